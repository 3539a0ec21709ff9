//! Counters that the code that counts holds. The server shows them ([`crate::server::metrics`]).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// Registries that have counters of their own. Applications name registries, so all further ones are `other`.
pub(crate) const MAX_REGISTRIES: usize = 100;

/// Requests to registries, by registry and status.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    pub(crate) family: Family<RequestLabels, Counter>,
    registries: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    registry: String,
    status: String,
}

impl Requests {
    /// Counts a request; [`None`] for one that got no answer.
    pub fn count(&self, registry: &str, status: Option<u16>) {
        let mut registries = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known =
            registries.contains(registry) || (registries.len() < MAX_REGISTRIES && registries.insert(registry.to_owned()));
        drop(registries);
        let registry = if is_known { registry } else { "other" };
        let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        self.family.get_or_create(&RequestLabels { registry: registry.to_owned(), status }).inc();
    }
}

/// What was remembered, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Archives that were read before.
    Archive,
    /// Pins of the same question.
    Pin,
    /// Listings of tags.
    Tags,
    /// Digests that tags point to.
    Digest,
    /// Texts that were rendered from the same.
    Text,
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Pin => "pin",
            Self::Tags => "tags",
            Self::Digest => "digest",
            Self::Text => "text",
        }
    }
}

/// Questions to caches, by layer and result.
#[derive(Clone, Debug, Default)]
pub struct Hits(pub(crate) Family<HitLabels, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HitLabels {
    layer: &'static str,
    result: &'static str,
}

impl Hits {
    /// Counts a question: was the answer there?
    pub fn count(&self, layer: Layer, is_hit: bool) {
        self.0.get_or_create(&HitLabels { layer: layer.name(), result: if is_hit { "hit" } else { "miss" } }).inc();
    }
}
