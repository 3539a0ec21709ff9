//! One question to one repository: authorisation, redirects, and what the statuses mean.

use std::sync::Arc;

use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::connection::{Connection, Reply, Request, redirected};
use super::session::{AuthContext, Session};
use crate::image::printable;
use crate::registry::auth::Challenge;
use crate::registry::config::authority;
use crate::registry::error::{Because, RegistryError};

/// Redirects that are followed one after another.
const HOPS: usize = 3;

/// Registries that answer from other hosts, as their design says, with the domain of those hosts. Kubernetes' own registry sends all
/// but its blobs to Google's ([archeio]).
///
/// [archeio]: https://github.com/kubernetes/registry.k8s.io/blob/main/cmd/archeio/docs/request-handling.md
const REDIRECTORS: [(&str, &str); 1] = [("registry.k8s.io", "-docker.pkg.dev")];

/// A question on its way.
#[derive(Debug)]
pub struct Call {
    pub connection: Arc<Connection>,
    pub session: Arc<Session>,
    /// The repository's canonical name, for messages.
    pub repository: String,
    /// Its path at the registry.
    pub path: String,
    pub scope: String,
    pub deadline: Instant,
}

/// What is asked for, which decides where redirects may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPolicy {
    /// Blobs are kept in object stores; what comes from there is checked against its digest.
    Blob,
    /// Nothing else is redirected, except by registries known to do so.
    Other,
}

impl Call {
    /// The address of something in the repository. `rest` consists of what we checked or wrote.
    pub fn url(&self, rest: &str) -> Url {
        let mut url = self.connection.endpoint.api_url.clone();
        let path = format!("{}/v2/{}/{rest}", url.path().trim_end_matches('/'), self.path);
        url.set_path(&path);
        url
    }

    /// Asks, with the authorization that the registry wants. Replies with 401 and 403 are errors, all other statuses are the caller's.
    pub async fn ask(&self, mut request: Request, redirects: RedirectPolicy) -> Result<Reply, RegistryError> {
        let connection = &self.connection;
        let context = AuthContext { repository: &self.repository, scope: &self.scope, deadline: self.deadline };
        let mut authorization = self.session.authorize(connection, &context, None).await?;
        let mut refreshed = false;
        loop {
            request.authorization = authorization.as_ref().map(|authorization| authorization.header.clone());
            let reply = connection.exchange(&request, self.deadline).await?;
            if !matches!(reply.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return self.follow(reply, &request, redirects).await;
            }
            if reply.status == StatusCode::UNAUTHORIZED
                && let Some(challenge) = Challenge::read(&reply.headers, &connection.endpoint)?
            {
                self.session.learn(challenge);
            }
            authorization = match authorization {
                // The registry asks for the first time.
                None if reply.status == StatusCode::UNAUTHORIZED && !refreshed => {
                    self.session.authorize(connection, &context, None).await?
                }
                // Something that we kept is refused: perhaps it has expired, or the password was changed.
                Some(refused) if !refused.fresh && !refreshed => {
                    refreshed = true;
                    self.session.authorize(connection, &context, Some(refused.number)).await?
                }
                _ => None,
            };
            if authorization.is_none() {
                return Err(self.session.denied(&self.repository));
            }
        }
    }

    /// Follows redirects where they may be followed, without authorisation.
    async fn follow(&self, mut reply: Reply, request: &Request, redirects: RedirectPolicy) -> Result<Reply, RegistryError> {
        let mut at = request.url.clone();
        for _ in 0..HOPS {
            if !is_redirect(reply.status) {
                return Ok(reply);
            }
            let refused = redirected(&reply, &at);
            let location = reply.headers.get(LOCATION).and_then(|value| value.to_str().ok()).and_then(|text| at.join(text).ok());
            at = match location {
                Some(location) if redirects == RedirectPolicy::Blob || self.is_redirector(&location) => location,
                _ => return Err(refused),
            };
            self.connection.check(&at).await?;
            let next = Request { url: at.clone(), authorization: None, ..request.clone() };
            reply = self.connection.exchange(&next, self.deadline).await?;
        }
        if is_redirect(reply.status) { Err(redirected(&reply, &at)) } else { Ok(reply) }
    }

    fn is_redirector(&self, location: &Url) -> bool {
        let own = self.connection.endpoint.authority();
        let known = |&(registry, domain): &(&str, &str)| own == registry && authority(location).ends_with(domain);
        location.scheme() == "https" && REDIRECTORS.iter().any(known)
    }

    /// Asks, and takes anything but a good answer for an error. `what` names the thing that 404 is about.
    pub async fn require(&self, request: Request, redirects: RedirectPolicy, what: String) -> Result<Reply, RegistryError> {
        let at = request.url.clone();
        let reply = self.ask(request, redirects).await?;
        if reply.status.is_success() { Ok(reply) } else { Err(self.refusal(&reply, &at, what)) }
    }

    /// What a bad status means.
    pub fn refusal(&self, reply: &Reply, at: &Url, what: String) -> RegistryError {
        let error = OciError::read(&reply.body);
        if let Some(page) = reply.web_page(at).filter(|_| !matches!(reply.status.as_u16(), 401 | 403)) {
            return page;
        }
        match (reply.status.as_u16(), error) {
            (401 | 403, _) => self.session.denied(&self.repository),
            (404, Some(_)) => RegistryError::NotFound { what },
            (404, None) => self.malformed("it answered 404, not in the words of a registry"),
            (status, Some(error)) => self.malformed(format!("it answered {status} ({error})")),
            (status, None) => self.malformed(format!("it answered {status}")),
        }
    }

    pub fn malformed(&self, text: impl Into<String>) -> RegistryError {
        RegistryError::Malformed { registry: self.connection.endpoint.authority(), source: Because::cause(text) }
    }

    pub fn too_large(&self, limit: String) -> RegistryError {
        RegistryError::TooLarge { registry: self.connection.endpoint.authority(), limit }
    }

    pub fn get(&self, rest: &str, cap: usize) -> Request {
        Request { method: Method::GET, ..Request::get(self.url(rest), cap) }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// An error as the [specification] words it.
///
/// [specification]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#error-codes
struct OciError(String);

impl OciError {
    fn read(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Envelope {
            errors: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            code: String,
            #[serde(default)]
            message: Option<String>,
        }
        let first = serde_json::from_slice::<Envelope>(body).ok()?.errors.into_iter().next()?;
        Some(Self(match first.message {
            Some(message) => format!("{}: {}", printable(&first.code), printable(&message)),
            None => printable(&first.code),
        }))
    }
}

impl std::fmt::Display for OciError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
