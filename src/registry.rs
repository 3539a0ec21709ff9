//! Asking OCI registries: which tags a repository has, and what stands behind a tag. And remembering what they said.
//!
//! [`Registry::open`] decides for one repository and one [`Access`] which registry is asked, on which path and with which credential. The
//! [`RepositoryHandle`] that it returns answers with a [`Listing`], a [`Digest`], a [`Manifest`] or an [`ImageConfig`]: from the record of the
//! repository in memory while that is fresh, else from the registry. Records are per repository and credential, so that nobody gets what only
//! another may read, and they are stored in the [`Store`]. Follows the [OCI distribution specification], and the registries that stray from it.
//!
//! Registries may be hostile, the operator's files are trusted. An answer is complete or it is an error: no page, manifest or blob that
//! could not be read is ever left out. Nothing gets further that is not in the OCI grammars, every body, page and wait has a bound, and
//! a credential goes to the host that it belongs to and to that host's declared token service alone.
//!
//! ```text
//! Repository, Access ─▶ config      which endpoint, which path
//!                       credential  which credential
//!                       handle      record ─▶ fresh? ─▶ answer
//!                       client        └─ else: rate limiter ─▶ request ─▶ retry ─▶ bounded body ─▶ paging, metadata
//!                       auth              └─ 401: challenge ─▶ credential ─▶ token
//! ```
//!
//! [OCI distribution specification]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
//! [`Digest`]: crate::image::Digest
//! [`Store`]: crate::store::Store

mod auth;
mod client;
pub mod config;
pub mod credential;
mod error;
mod handle;
mod listing;
mod metadata;
mod record;
mod tenant;

use std::fmt;

use crate::image::{Digest, Tag};

pub use client::{Client, Limits, RepositoryClient, Size};
pub use config::RegistriesConfig;
pub use error::RegistryError;
pub use handle::{CacheTtls, LookupError, Mode, Registry, RepositoryHandle, Settings};
pub use listing::{Listed, Listing};
pub use metadata::{Blob, Content, Entry, ImageConfig, Manifest};
pub use record::Dated;
pub use tenant::Place;

/// What names a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManifestRef {
    Tag(Tag),
    Digest(Digest),
}

impl ManifestRef {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tag(tag) => tag.as_str(),
            Self::Digest(digest) => digest.as_str(),
        }
    }
}

impl fmt::Display for ManifestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose credential asks.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// What `registries.conf` and docker's `config.json` say for the repository.
    #[default]
    Operator,
    /// Nobody's: for what an application names and then reads itself, where the operator's credential would open it for all.
    Anonymous,
    /// An application's own source. It takes the place of the operator's credential. Whether it can be used is said when it is used
    /// ([`RegistryError::Credentials`]).
    Application(credential::Source),
    /// An application names something that is no source. It may be a password, so that it is not kept.
    Unusable(credential::SourceError),
}

impl Access {
    /// Reads what an application names with `--pull-secret`, such as `pullsecret:argocd/ghcr`.
    pub fn application(source: &str) -> Self {
        source.parse().map_or_else(Self::Unusable, Self::Application)
    }

    /// Why it cannot be used, as far as that can be told without asking. `is_permitted`: may applications name `env:` and `ext:`?
    pub fn problem(&self, is_permitted: bool) -> Option<String> {
        match self {
            Self::Operator | Self::Anonymous => None,
            Self::Application(source) if !is_permitted && source.is_of_the_operator() => {
                Some(format!("the credential `{source}` cannot be used: {}", credential::NOT_PERMITTED))
            }
            Self::Application(source) => Some(format!("the credential `{source}` cannot be used: {}", source.problem()?)),
            Self::Unusable(error) => Some(format!("the credential cannot be used: {error}")),
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("Access::Operator"),
            Self::Anonymous => f.write_str("Access::Anonymous"),
            Self::Application(source) => write!(f, "Access::Application({source})"),
            Self::Unusable(_) => f.write_str("Access::Unusable(***)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_place_of_its_source_is_not_shown() {
        assert_eq!(format!("{:?}", Access::application("alice:s3cret")), "Access::Unusable(***)");
        let application = Access::application("pullsecret:argocd/ghcr");
        assert_eq!(format!("{application:?}"), "Access::Application(pullsecret:argocd/ghcr)");
        assert_eq!(format!("{:?}", Access::default()), "Access::Operator");
    }
}
