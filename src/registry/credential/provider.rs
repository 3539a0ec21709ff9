//! Which credential asks: the one place where repositories, applications and the operator's settings meet.
//!
//! An application's own source goes before the operator's, `registries.conf` before docker's `config.json`. The answer is a [`CredentialSource`], of
//! which the credential is read when a registry asks for it.

use std::sync::Arc;

use super::docker::{DockerConfig, Login};
use super::helper::Helpers;
use super::{Credential, NOT_PERMITTED, Source};
use crate::process::sandbox::Sandboxes;
use crate::registry::Access;
use crate::registry::config::{RegistriesConfig, Route};
use crate::registry::error::{Because, Cause, RegistryError};

/// Finds credentials.
#[derive(Debug)]
pub struct CredentialProvider {
    pub docker: DockerConfig,
    /// What bounds programs that print a credential.
    pub sandboxes: Sandboxes,
    /// May applications name `env:` and `ext:`?
    pub permits_operator_sources: bool,
}

/// A credential's name and where it comes from.
#[derive(Clone, Debug)]
pub struct Found {
    /// Stable and free of secrets: `anonymous`, `env:GHCR`, `docker-config:ghcr.io`. An application's own has `application/` before it, so
    /// that it never meets what the operator's read. `unusable` where there is a credential that cannot be read.
    pub identity: String,
    pub origin: CredentialSource,
}

/// Where a credential comes from.
#[derive(Clone, Debug)]
pub enum CredentialSource {
    Anonymous,
    /// A source of `registries.conf`, or of an application.
    Source {
        source: Source,
        helpers: Helpers,
    },
    /// An entry of docker's configuration. When that changes, the next question has another origin.
    Docker {
        login: Login,
        helpers: Helpers,
    },
    /// There is one and it can't be used.
    Unusable(Cause),
}

impl PartialEq for CredentialSource {
    /// Would they yield the same credential? A login that changed in docker's file is another.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::Source { source: a, .. }, Self::Source { source: b, .. }) => a == b,
            (Self::Docker { login: a, .. }, Self::Docker { login: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl CredentialSource {
    /// Reads the credential anew. [`None`] is anonymous.
    pub async fn read(&self, identity: &str) -> Result<Option<Credential>, RegistryError> {
        let failed = |source| RegistryError::Credentials { credential: identity.to_owned(), source };
        match self {
            Self::Anonymous => Ok(None),
            Self::Source { source, helpers } => source.read(helpers).await.map(Some).map_err(failed),
            Self::Docker { login, helpers } => login.read(helpers).await.map_err(failed),
            Self::Unusable(source) => Err(failed(Arc::clone(source))),
        }
    }
}

impl CredentialProvider {
    /// Finds the credential for a route.
    pub fn find(&self, config: &RegistriesConfig, route: &Route, access: &Access) -> Found {
        let found = |identity: &str, origin| Found { identity: identity.to_owned(), origin };
        let helpers = || Helpers { hidden: config.credential_variables(), sandboxes: self.sandboxes.clone() };
        match access {
            Access::Anonymous => return found("anonymous", CredentialSource::Anonymous),
            Access::Unusable(error) => return found("application/unusable", CredentialSource::Unusable(Arc::new(*error))),
            Access::Application(source) if source.is_of_the_operator() && !self.permits_operator_sources => {
                return found(&format!("application/{source}"), CredentialSource::Unusable(Because::cause(NOT_PERMITTED)));
            }
            Access::Application(source) => {
                return found(
                    &format!("application/{source}"),
                    CredentialSource::Source { source: source.clone(), helpers: helpers() },
                );
            }
            Access::Operator => {}
        }
        if let Some(source) = &route.endpoint.credentials {
            return found(&source.to_string(), CredentialSource::Source { source: source.clone(), helpers: helpers() });
        }
        let host = route.endpoint.authority();
        // An address with a path is a registry within a host; its logins may be stored with that path.
        let path = format!("{}/{}", route.endpoint.api_url.path().trim_matches('/'), route.path);
        match self.docker.find(&host, path.trim_start_matches('/')) {
            Ok(None) => found("anonymous", CredentialSource::Anonymous),
            Ok(Some(login)) => found(&login.identity(), CredentialSource::Docker { login, helpers: helpers() }),
            Err(cause) => found("docker-config:unusable", CredentialSource::Unusable(cause)),
        }
    }
}
