//! Asking OCI registries: which tags a repository has, and what stands behind a tag.
//!
//! In go a [`Repository`], a [`Tag`] or a digest, and whose credential asks ([`Access`]); out come [`Listing`], [`Digest`], [`Manifest`]
//! and [`ImageConfig`], or a [`RegistryError`]. [`TagSource`] is the question; [`Client`] answers it by asking the registry, the cache
//! by remembering. Follows the [OCI distribution specification], and the registries that stray from it.
//!
//! Registries may be hostile, the operator's files are trusted. An answer is complete or it is an error: no page, manifest or blob that
//! could not be read is ever left out. Nothing gets further that is not in the OCI grammars, every body, page and wait has a bound, and
//! a credential goes to the host that it belongs to and to that host's declared token service alone.
//!
//! ```text
//! Repository, Access ─▶ config     which endpoint, which path, which credential
//!                       guard      may this host be asked?
//!                       client     pace ─▶ request ─▶ retry ─▶ bounded body ─▶ paging, metadata
//!                       auth         └─ 401: challenge ─▶ credential ─▶ token
//! ```
//!
//! [OCI distribution specification]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md

mod auth;
pub mod cache;
mod client;
pub mod config;
pub mod credential;
mod error;
mod listing;
mod metadata;
pub mod store;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::image::{Digest, Repository, Tag};

pub use client::{Client, Limits};
pub use config::RegistriesConfig;
pub use error::RegistryError;
pub use listing::{Listed, Listing};
pub use metadata::{Blob, Content, Entry, ImageConfig, Manifest};

/// Answers questions about repositories. Implemented by [`Client`], which asks, and by the cache, which asks a source and remembers.
///
/// Every answer is complete, or an error. Futures may be dropped at any time.
pub trait TagSource: Send + Sync {
    /// Names the credential that would be used, without reading it: stable, free of secrets, part of the keys of what is remembered.
    fn identity(&self, repository: &Repository, access: &Access) -> String;

    /// All tags of a repository.
    fn tags(&self, repository: &Repository, access: &Access) -> impl Future<Output = Result<Arc<Listing>, RegistryError>> + Send;

    /// The digest that a tag points to now, as the registry says it; it is not verified against the manifest's bytes.
    fn digest(
        &self,
        repository: &Repository,
        tag: &Tag,
        access: &Access,
    ) -> impl Future<Output = Result<Digest, RegistryError>> + Send;

    /// A manifest, verified against its digest.
    fn manifest(
        &self,
        repository: &Repository,
        target: &Target,
        access: &Access,
    ) -> impl Future<Output = Result<Arc<Manifest>, RegistryError>> + Send;

    /// The configuration of an image, verified against its digest.
    fn config(
        &self,
        repository: &Repository,
        blob: &Blob,
        access: &Access,
    ) -> impl Future<Output = Result<Arc<ImageConfig>, RegistryError>> + Send;
}

/// What names a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Tag(Tag),
    Digest(Digest),
}

impl Target {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tag(tag) => tag.as_str(),
            Self::Digest(digest) => digest.as_str(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose credential asks.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// The source that an application names, as it was written; [`None`] is the operator's configuration.
    secret: Option<Box<str>>,
    is_anonymous: bool,
}

impl Access {
    /// What `registries.conf` and docker's `config.json` say for the repository.
    pub const fn operator() -> Self {
        Self { secret: None, is_anonymous: false }
    }

    /// Nobody's: for what an application names and then reads itself, where the operator's credential would open it for all.
    pub const fn anonymous() -> Self {
        Self { secret: None, is_anonymous: true }
    }

    /// An application's own source, the text of its `--pull-secret`, such as `pullsecret:argocd/ghcr`. It takes the place of the
    /// operator's credential. Whether it can be used is said when it is used ([`RegistryError::Credentials`]).
    pub fn secret(source: &str) -> Self {
        Self { secret: Some(source.into()), is_anonymous: false }
    }

    /// Why it cannot be used, as far as that can be told without asking. `is_permitted`: may applications name `env:` and `ext:`?
    pub fn problem(&self, is_permitted: bool) -> Option<String> {
        let text = self.source()?;
        match text.parse::<credential::Source>() {
            Ok(source) if !is_permitted && source.is_of_the_operator() => {
                Some(format!("the credential `{source}` cannot be used: {}", credential::NOT_PERMITTED))
            }
            Ok(source) => Some(format!("the credential `{source}` cannot be used: {}", source.problem()?)),
            Err(error) => Some(format!("the credential cannot be used: {error}")),
        }
    }

    /// The source that the application names, if it names one.
    pub(crate) fn source(&self) -> Option<&str> {
        self.secret.as_deref()
    }
}

impl fmt::Debug for Access {
    /// Shows the source only where it is one: in its place may stand a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source().map(str::parse::<credential::Source>) {
            None if self.is_anonymous => f.write_str("Access::anonymous()"),
            None => f.write_str("Access::operator()"),
            Some(Ok(source)) => write!(f, "Access::secret({source})"),
            Some(Err(_)) => f.write_str("Access::secret(***)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_place_of_its_source_is_not_shown() {
        assert_eq!(format!("{:?}", Access::secret("alice:s3cret")), "Access::secret(***)");
        assert_eq!(format!("{:?}", Access::secret("pullsecret:argocd/ghcr")), "Access::secret(pullsecret:argocd/ghcr)");
        assert_eq!(format!("{:?}", Access::operator()), "Access::operator()");
    }
}
