//! Asking a registry over the network.
//!
//! [`Client::open`] takes one look at the configuration and decides the route of the repository, the [`connection::Connection`] of its
//! endpoint and the [`session::Session`] of its credential; a configuration that is replaced meanwhile counts for the next one. Connections
//! are built when they are first needed and kept; so are tokens, each until its end. Answers are not kept here.

mod call;
mod connection;
mod paging;
mod rate_limit;
mod session;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use reqwest::Method;
use tokio::time::Instant;

use super::config::{RegistriesConfig, Route};
use super::credential::docker::DockerConfig;
use super::credential::provider::{CredentialProvider, Found};
use super::error::{Because, RegistryError};
use super::metadata::{self, ACCEPT};
use super::{Access, Blob, ImageConfig, Listing, Manifest, ManifestRef, auth};
use crate::clock::Clock;
use crate::egress::{HostPattern, Policy, Refusal};
use crate::image::{Digest, Repository, Tag};
use crate::metrics::Requests;
use crate::process::sandbox::Sandboxes;
use call::{Call, RedirectPolicy};
use connection::{Connection, Reply, Request};
use session::Session;

/// Connections to registries that nobody declared which are kept at most.
const CONNECTIONS: usize = 250;

/// Sessions that are kept of one registry at most; each is for one credential.
const SESSIONS: usize = 1000;

/// Bounds on what registries and applications can make us do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time for one question, pages, tokens and retries included. Default: 30 s.
    pub deadline: Duration,
    /// Time to connect. Default: 5 s.
    pub connect_timeout: Duration,
    /// Time between two pieces of an answer, and before the first. Default: 10 s.
    pub read_timeout: Duration,
    /// Largest page of tags, in bytes. Default: 32 MiB; 10,000 tags need about 100 KB.
    pub page_bytes: usize,
    /// Most pages of one listing, repetitions included. Default: 1,000.
    pub pages: usize,
    /// Most tags of one repository, illegal names included. Default: 500,000.
    pub tags: usize,
    /// Largest manifest, in bytes. Default: 4 MiB, which the OCI specification asks registries to accept.
    pub manifest_bytes: usize,
    /// Largest image configuration, in bytes. Default: 8 MiB.
    pub config_bytes: usize,
    /// Requests to one registry at one time, over at most as many connections. Default: 20.
    pub concurrency: usize,
    /// Registries that may be asked, beside those in `registries.conf`; [`None`] is any public host. Default: [`None`]. It is about
    /// images' registries: their token services and blob stores are judged by the rules for those. It takes no address out of the guard.
    pub allowed_hosts: Option<Vec<HostPattern>>,
    /// What may be connected to, beside what `registries.conf` declares. Default: public names.
    pub egress: Arc<Policy>,
    /// May applications name `env:` and `ext:` as their pull secret? Those read Pinion's own environment and files. Default: no; Image
    /// Updater lets them.
    pub allow_application_credentials: bool,
    /// Docker's `config.json`. Default: in `DOCKER_CONFIG`, else in `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// What bounds programs that print a credential. Default: what this kernel keeps.
    pub sandboxes: Sandboxes,
    /// Counts what is sent.
    pub requests: Requests,
    /// For dates in `Retry-After`.
    pub clock: Clock,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(10),
            page_bytes: 32 << 20,
            pages: 1000,
            tags: 500_000,
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            concurrency: 20,
            allowed_hosts: None,
            egress: Arc::default(),
            allow_application_credentials: false,
            docker_config: DockerConfig::default_path(),
            sandboxes: Sandboxes::default(),
            requests: Requests::default(),
            clock: Clock::default(),
        }
    }
}

impl Limits {
    /// The bounds of an answer that many may wait for at once: 512 KiB a page, 10,000 tags, 256 KiB a manifest or configuration.
    #[must_use]
    pub fn small(&self) -> Self {
        Self {
            page_bytes: self.page_bytes.min(512 << 10),
            tags: self.tags.min(10_000),
            manifest_bytes: self.manifest_bytes.min(256 << 10),
            config_bytes: self.config_bytes.min(256 << 10),
            ..self.clone()
        }
    }
}

/// Asks registries. Clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registries: RwLock<Arc<RegistriesConfig>>,
    limits: Arc<Limits>,
    /// For answers that many may wait for at once.
    small: Limits,
    credentials: CredentialProvider,
    /// By prefix and address.
    connections: Mutex<HashMap<String, Kept>>,
}

/// What is kept of a registry.
#[derive(Clone, Debug)]
struct Kept {
    connection: Arc<Connection>,
    /// By the credential's name.
    sessions: Arc<Mutex<HashMap<String, Arc<Session>>>>,
}

impl Client {
    /// Costs nothing: connections are made, and certificates loaded, with the first question to a registry.
    pub fn new(config: RegistriesConfig, limits: Limits) -> Self {
        Self {
            shared: Arc::new(Shared {
                registries: RwLock::new(Arc::new(config)),
                credentials: CredentialProvider {
                    docker: DockerConfig::new(limits.docker_config.clone()),
                    sandboxes: limits.sandboxes.clone(),
                    permits_operator_sources: limits.allow_application_credentials,
                },
                small: limits.small(),
                limits: Arc::new(limits),
                connections: Mutex::default(),
            }),
        }
    }

    /// Uses this configuration from the next question on. Registries whose entry has not changed keep their connections and tokens.
    pub fn replace(&self, config: RegistriesConfig) {
        let config = Arc::new(config);
        *self.shared.registries.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&config);
        self.shared
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, kept| config.knows(&kept.connection.endpoint));
    }

    /// A digest of what decides which registry is asked, and whether: two clients of one digest get the same answers.
    pub fn configuration(&self) -> String {
        let Limits { allowed_hosts, egress, allow_application_credentials, .. } = &*self.shared.limits;
        let text = format!("{:?} {allowed_hosts:?} {egress:?} {allow_application_credentials}", self.config());
        Digest::of(text.as_bytes()).to_string()
    }

    fn config(&self) -> Arc<RegistriesConfig> {
        Arc::clone(&self.shared.registries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a repository: what is decided here counts for all that is asked through it.
    pub fn open(&self, repository: &Repository, access: &Access) -> RepositoryClient {
        let config = self.config();
        let refused = |source| RegistryError::HostRefused { host: repository.registry().to_owned(), source };
        let (identity, opened) = match config.route(repository) {
            None => ("anonymous".to_owned(), Err(refused(Refusal::Unreadable))),
            Some(route) => {
                let found = self.shared.credentials.find(&config, &route, access);
                let order = route.endpoint.tag_order.map(|order| format!("{} ", order.as_str())).unwrap_or_default();
                let host = if route.detour { format!("@{}", route.endpoint.authority()) } else { String::new() };
                (format!("{order}{}{host}", found.identity), self.opened(repository, &route, found))
            }
        };
        RepositoryClient { shared: Arc::clone(&self.shared), repository: repository.clone(), identity, opened }
    }

    fn opened(&self, repository: &Repository, route: &Route, found: Found) -> Result<Opened, RegistryError> {
        if let Some(allowed) = self.shared.limits.allowed_hosts.as_ref().filter(|_| !route.endpoint.declared) {
            let host = route.endpoint.authority();
            if !allowed.iter().any(|pattern| pattern.accepts(&host) || pattern.accepts(repository.registry())) {
                return Err(RegistryError::HostRefused { host: repository.registry().to_owned(), source: Refusal::NotAllowed });
            }
        }
        let kept = self.connection(route);
        let session = kept.session(Session::new(found));
        Ok(Opened { connection: kept.connection, session, path: route.path.clone() })
    }

    fn connection(&self, route: &Route) -> Kept {
        let key = format!("{} {}", route.endpoint.prefix, route.endpoint.api_url);
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.len() >= CONNECTIONS {
            connections.retain(|_, kept| kept.connection.endpoint.declared || Arc::strong_count(&kept.connection) > 1);
        }
        match connections.get(&key).filter(|kept| kept.connection.endpoint == route.endpoint) {
            Some(kept) => kept.clone(),
            None => {
                let connection = Connection::new(Arc::clone(&route.endpoint), Arc::clone(&self.shared.limits));
                let new = Kept { connection: Arc::new(connection), sessions: Arc::default() };
                connections.insert(key, new.clone());
                new
            }
        }
    }
}

impl Kept {
    /// The state of one credential: the one that is kept, if it is still of the same source, or a new one.
    fn session(&self, new: Session) -> Arc<Session> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS {
            sessions.retain(|_, session| Arc::strong_count(session) > 1);
        }
        match sessions.get(&new.identity).filter(|kept| kept.origin == new.origin) {
            Some(kept) => Arc::clone(kept),
            None => {
                let session = Arc::new(new);
                sessions.insert(session.identity.clone(), Arc::clone(&session));
                session
            }
        }
    }
}

/// A repository as one credential sees it.
#[derive(Clone, Debug)]
pub struct RepositoryClient {
    shared: Arc<Shared>,
    repository: Repository,
    identity: String,
    /// What is asked, or why it may not be asked.
    opened: Result<Opened, RegistryError>,
}

#[derive(Clone, Debug)]
struct Opened {
    connection: Arc<Connection>,
    session: Arc<Session>,
    /// The repository's path at the registry.
    path: String,
}

/// How large an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// As large as nearly all are, so that many may be read at once: see [`Limits::small`].
    Small,
    /// As large as [`Limits`] permit.
    Large,
}

impl RepositoryClient {
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Names the credential that asks, without reading it: `anonymous`, `env:GHCR`, `docker-config:ghcr.io`. Stable, and free of secrets: a
    /// cache key.
    ///
    /// Three more things that make a difference to the answer are in it: `@` and the host, where an image without a registry goes to another
    /// registry than its canonical name says; `unusable`, where there is a credential that can't be read; and the order of the registry's
    /// listings before it all, so that what was learned or chosen by one order, or by none, is never taken for another's.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// All tags. Complete, or an error.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub async fn tags(&self, size: Size) -> Result<Listing, RegistryError> {
        let limits = self.limits(size);
        self.within(|call| async move { paging::list(&call, limits).await }).await
    }

    /// The digest that a tag points to now, as the registry says it; it is not verified against the manifest's bytes.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub async fn digest(&self, tag: &Tag, size: Size) -> Result<Digest, RegistryError> {
        let limits = self.limits(size);
        self.within(|call| async move {
            let mut request = call.get(&format!("manifests/{tag}"), 0);
            request.method = Method::HEAD;
            request.accept = Some(ACCEPT);
            let reply = call.ask(request, RedirectPolicy::Other).await?;
            let stated = || reply.header("docker-content-digest")?.parse().ok();
            match stated().filter(|_| reply.status.is_success()) {
                Some(digest) => Ok(digest),
                // Without a digest, or with a status and no body that says why: the manifest itself tells.
                None => read_manifest(&call, &ManifestRef::Tag(tag.clone()), limits).await.map(|manifest| manifest.digest),
            }
        })
        .await
    }

    /// A manifest, verified against its digest.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub async fn manifest(&self, target: &ManifestRef, size: Size) -> Result<Manifest, RegistryError> {
        let limits = self.limits(size);
        self.within(|call| async move { read_manifest(&call, target, limits).await }).await
    }

    /// The configuration of an image, verified against its digest.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub async fn config(&self, blob: &Blob, size: Size) -> Result<ImageConfig, RegistryError> {
        let limits = self.limits(size);
        self.within(|call| async move { read_config(&call, blob, limits).await }).await
    }

    /// The archive of a chart, as its manifest describes it.
    ///
    /// # Errors
    ///
    /// [`RegistryError`], also when there is something else than a chart.
    pub async fn chart(&self, tag: &Tag, limit: usize) -> Result<Blob, RegistryError> {
        let limits = &self.shared.limits;
        self.within(|call| async move {
            let mut request = call.get(&format!("manifests/{tag}"), limits.manifest_bytes);
            request.accept = Some(ACCEPT);
            let reply = call.require(request, RedirectPolicy::Other, format!("{}:{tag}", call.repository)).await?;
            let blob = metadata::chart(&reply.body).map_err(|text| call.malformed(text))?;
            if blob.size > limit as u64 { Err(call.too_large(connection::size(limit))) } else { Ok(blob) }
        })
        .await
    }

    /// The bytes of a blob, verified against its digest.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub async fn blob(&self, blob: &Blob, limit: usize) -> Result<bytes::Bytes, RegistryError> {
        self.within(|call| async move { read_blob(&call, blob, limit).await }).await
    }

    fn limits(&self, size: Size) -> &Limits {
        match size {
            Size::Small => &self.shared.small,
            Size::Large => &self.shared.limits,
        }
    }

    /// Runs a question until its deadline.
    async fn within<T, F>(&self, question: impl FnOnce(Call) -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let time = self.shared.limits.deadline;
        let deadline = Instant::now() + time;
        let Opened { connection, session, path } = self.opened.clone()?;
        let answer = async {
            connection.check(&connection.endpoint.api_url).await?;
            let scope = auth::scope(&connection.endpoint, &path);
            question(Call { connection, session, repository: self.repository.to_string(), path, scope, deadline }).await
        };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(RegistryError::Unavailable {
                registry: self.repository.registry().to_owned(),
                source: Because::cause(format!("there was no answer within {time:?}")),
            }),
        }
    }
}

async fn read_manifest(call: &Call, target: &ManifestRef, limits: &Limits) -> Result<Manifest, RegistryError> {
    let mut request = call.get(&format!("manifests/{target}"), limits.manifest_bytes);
    request.accept = Some(ACCEPT);
    let separator = if matches!(target, ManifestRef::Tag(_)) { ':' } else { '@' };
    let at = request.url.clone();
    let reply = call.require(request, RedirectPolicy::Other, format!("{}{separator}{target}", call.repository)).await?;
    let content_type = media_type(&reply);
    let digest = Digest::of(&reply.body);
    // The digest of a signed schema 1 manifest is not that of its bytes. It is nothing that we could use, either.
    let signed = content_type.ends_with("manifest.v1+prettyjws");
    let stated = reply.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
    let wanted = match target {
        ManifestRef::Digest(digest) => Some(digest),
        ManifestRef::Tag(_) => None,
    };
    if !signed && stated.iter().chain(wanted).any(|other| *other != digest) {
        return Err(call.malformed(format!("the manifest `{target}` is not what its digest says")));
    }
    Manifest::read(&reply.body, &content_type, digest).map_err(|text| reply.web_page(&at).unwrap_or_else(|| call.malformed(text)))
}

/// The reply's media type, without parameters.
fn media_type(reply: &Reply) -> String {
    let text = reply.header("content-type").unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn read_config(call: &Call, blob: &Blob, limits: &Limits) -> Result<ImageConfig, RegistryError> {
    let body = read_blob(call, blob, limits.config_bytes).await?;
    ImageConfig::read(&body).map_err(|text| call.malformed(text))
}

async fn read_blob(call: &Call, blob: &Blob, cap: usize) -> Result<bytes::Bytes, RegistryError> {
    if blob.size > cap as u64 {
        return Err(call.too_large(connection::size(cap)));
    }
    let request: Request = call.get(&format!("blobs/{}", blob.digest), usize::try_from(blob.size).unwrap_or(cap).min(cap));
    let reply = call.require(request, RedirectPolicy::Blob, format!("{}@{}", call.repository, blob.digest)).await?;
    if Digest::of(&reply.body) != blob.digest {
        return Err(call.malformed(format!("the blob `{}` is not what its digest says", blob.digest)));
    }
    Ok(reply.body)
}
