//! What other parts of the program learn of renders: values, and who receives them.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::pin::Report;

/// An application was rendered, and asked for these pins: all that its manifests hold now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// The name that Argo CD gives the application, with its namespace if that is not Argo CD's own.
    pub application: String,
    /// The AppProject, which bounds are shared by.
    #[serde(skip)]
    pub project: String,
    /// `helm`, `kustomize` or `directory`.
    pub tool: &'static str,
    #[serde(rename = "rendered")]
    pub at: Timestamp,
    pub pins: Vec<Report>,
}

/// A part that wants to know. It is called while Argo CD waits for the manifests, so it must neither block nor fail.
pub trait Listener: fmt::Debug + Send + Sync {
    fn asked(&self, event: &Asked);
}

/// Sends events to all listeners, in their order. Clones share them.
#[derive(Clone, Debug)]
pub struct Events(Arc<[Arc<dyn Listener>]>);

impl Events {
    pub fn to(listeners: impl IntoIterator<Item = Arc<dyn Listener>>) -> Self {
        Self(listeners.into_iter().collect())
    }

    pub fn asked(&self, event: &Asked) {
        self.0.iter().for_each(|listener| listener.asked(event));
    }
}
