//! Asking a registry: the [`TagSource`] that goes over the network.
//!
//! A question becomes a [`call::Call`]: the route of the repository, the [`connection::Connection`] of its endpoint, the
//! [`session::Session`] of its credential. Connections are built when they are first needed and kept; so are tokens, each until its end.
//! Nothing else is kept: answers are the cache's business.

mod call;
mod connection;
mod pace;
mod paging;
mod session;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use reqwest::Method;
use tokio::time::Instant;

use super::config::{RegistriesConfig, Route};
use super::credential::docker::DockerConfig;
use super::credential::helper::Helpers;
use super::credential::{NOT_PERMITTED, Source};
use super::error::{Because, RegistryError};
use super::metadata::{self, ACCEPT};
use super::{Access, Blob, ImageConfig, Listing, Manifest, TagSource, Target, auth};
use crate::egress::{HostPattern, Policy, Refusal};
use crate::image::{Digest, Repository, Tag};
use crate::process::sandbox::Sandboxes;
use crate::telemetry::Requests;
use call::{Call, Kind};
use connection::{Connection, Reply, Request};
use session::{Origin, Session};

/// Connections to registries that nobody declared which are kept at most.
const CONNECTIONS: usize = 250;

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
    /// Most tags of one repository, illegal names included. Default: 1,000,000.
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
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(10),
            page_bytes: 32 << 20,
            pages: 1000,
            tags: 1_000_000,
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            concurrency: 20,
            allowed_hosts: None,
            egress: Arc::default(),
            allow_application_credentials: false,
            docker_config: DockerConfig::default_path(),
            sandboxes: Sandboxes::default(),
            requests: Requests::default(),
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
    docker: DockerConfig,
    /// By prefix and address.
    connections: Mutex<HashMap<String, Arc<Connection>>>,
}

impl Client {
    /// Costs nothing: connections are made, and certificates loaded, with the first question to a registry.
    pub fn new(config: RegistriesConfig, limits: Limits) -> Self {
        Self {
            shared: Arc::new(Shared {
                registries: RwLock::new(Arc::new(config)),
                docker: DockerConfig::new(limits.docker_config.clone()),
                limits: Arc::new(limits),
                connections: Mutex::default(),
            }),
        }
    }

    /// Uses this configuration from the next question on. Registries whose entry has not changed keep their connections and tokens.
    pub fn replace(&self, config: RegistriesConfig) {
        let config = Arc::new(config);
        *self.shared.registries.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&config);
        self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, kept| config.knows(&kept.endpoint));
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

    /// Finds the credential for a route, and its name.
    fn credential(&self, config: &RegistriesConfig, route: &Route, access: &Access) -> (String, Origin) {
        let sandboxes = self.shared.limits.sandboxes.clone();
        if access.is_anonymous {
            return ("anonymous".to_owned(), Origin::Anonymous);
        }
        let helpers = || Helpers { hidden: config.credential_variables(), sandboxes };
        if let Some(text) = access.source() {
            return match text.parse::<Source>() {
                Ok(source) if self.may_use(&source) => {
                    (format!("application/{source}"), Origin::Source { source, helpers: helpers() })
                }
                Ok(source) => (format!("application/{source}"), Origin::Unusable(Because::cause(NOT_PERMITTED))),
                Err(error) => ("application/unusable".to_owned(), Origin::Unusable(Arc::new(error))),
            };
        }
        if let Some(source) = &route.endpoint.credentials {
            return (source.to_string(), Origin::Source { source: source.clone(), helpers: helpers() });
        }
        let host = route.endpoint.authority();
        // An address with a path is a registry within a host; its logins may be stored with that path.
        let path = format!("{}/{}", route.endpoint.api_url.path().trim_matches('/'), route.path);
        let path = path.trim_start_matches('/').to_owned();
        match self.shared.docker.find(&host, &path) {
            Ok(None) => ("anonymous".to_owned(), Origin::Anonymous),
            Ok(Some(login)) => (login.identity(), Origin::Docker { login, helpers: helpers() }),
            Err(cause) => ("docker-config:unusable".to_owned(), Origin::Unusable(cause)),
        }
    }

    fn may_use(&self, source: &Source) -> bool {
        !source.is_of_the_operator() || self.shared.limits.allow_application_credentials
    }

    /// Puts a question together.
    async fn call(&self, repository: &Repository, access: &Access, deadline: Instant) -> Result<Call, RegistryError> {
        let refused = |source| RegistryError::HostRefused { host: repository.registry().to_owned(), source };
        let config = self.config();
        let route = config.route(repository).ok_or_else(|| refused(Refusal::Unreadable))?;
        if let Some(allowed) = self.shared.limits.allowed_hosts.as_ref().filter(|_| !route.endpoint.declared) {
            let host = route.endpoint.authority();
            if !allowed.iter().any(|pattern| pattern.accepts(&host) || pattern.accepts(repository.registry())) {
                return Err(refused(Refusal::NotAllowed));
            }
        }
        let (identity, origin) = self.credential(&config, &route, access);
        let connection = self.connection(&route);
        connection.check(&connection.endpoint.api_url).await?;
        let session = connection.session(Session::new(identity, origin));
        let scope = auth::scope(&connection.endpoint, &route.path);
        Ok(Call { connection, session, repository: repository.to_string(), path: route.path, scope, deadline })
    }

    fn connection(&self, route: &Route) -> Arc<Connection> {
        let key = format!("{} {}", route.endpoint.prefix, route.endpoint.api_url);
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.len() >= CONNECTIONS {
            connections.retain(|_, kept| kept.endpoint.declared || Arc::strong_count(kept) > 1);
        }
        match connections.get(&key).filter(|kept| kept.endpoint == route.endpoint) {
            Some(kept) => Arc::clone(kept),
            None => {
                let new = Arc::new(Connection::new(Arc::clone(&route.endpoint), Arc::clone(&self.shared.limits)));
                connections.insert(key, Arc::clone(&new));
                new
            }
        }
    }

    /// The archive of a chart in an OCI registry, as its manifest describes it. Asked for without a credential.
    ///
    /// # Errors
    ///
    /// [`RegistryError`], also when there is something else than a chart.
    pub async fn chart(&self, repository: &Repository, tag: &Tag, limit: usize) -> Result<Blob, RegistryError> {
        let limits = &self.shared.limits;
        self.within(repository, &Access::anonymous(), |call| async move {
            let mut request = call.get(&format!("manifests/{tag}"), limits.manifest_bytes);
            request.accept = Some(ACCEPT);
            let reply = call.require(request, Kind::Other, format!("{}:{tag}", call.repository)).await?;
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
    pub async fn blob(&self, repository: &Repository, blob: &Blob, limit: usize) -> Result<bytes::Bytes, RegistryError> {
        self.within(repository, &Access::anonymous(), |call| async move { read_blob(&call, blob, limit).await }).await
    }

    /// Runs a question until its deadline.
    async fn within<T, F>(
        &self,
        repository: &Repository,
        access: &Access,
        question: impl FnOnce(Call) -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let time = self.shared.limits.deadline;
        let deadline = Instant::now() + time;
        let answer = async { question(self.call(repository, access, deadline).await?).await };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(RegistryError::Unavailable {
                registry: repository.registry().to_owned(),
                source: Because::cause(format!("there was no answer within {time:?}")),
            }),
        }
    }
}

impl TagSource for Client {
    /// The name of the credential that would be used, without reading it: `anonymous`, `env:GHCR`, `docker-config:ghcr.io`. Stable, and
    /// free of secrets: a cache key. An application's own has `application/` before it, so that it never meets what the operator's read.
    ///
    /// Three more things that make a difference to the answer are in it: `@` and the host, where an image without a registry goes to
    /// another registry than its canonical name says; `unusable`, where there is a credential that can't be read; and the order of the
    /// registry's listings before it all, so that what was learned or chosen by one order, or by none, is never taken for another's.
    fn identity(&self, repository: &Repository, access: &Access) -> String {
        let config = self.config();
        match config.route(repository) {
            Some(route) => {
                let (identity, _) = self.credential(&config, &route, access);
                let order = route.endpoint.tag_order.map(|order| format!("{} ", order.as_str())).unwrap_or_default();
                let host = if route.detour { format!("@{}", route.endpoint.authority()) } else { String::new() };
                format!("{order}{identity}{host}")
            }
            None => "anonymous".to_owned(),
        }
    }

    async fn tags(&self, repository: &Repository, access: &Access) -> Result<Arc<Listing>, RegistryError> {
        let limits = &self.shared.limits;
        self.within(repository, access, |call| async move { paging::list(&call, limits).await.map(Arc::new) }).await
    }

    async fn digest(&self, repository: &Repository, tag: &Tag, access: &Access) -> Result<Digest, RegistryError> {
        let limits = &self.shared.limits;
        self.within(repository, access, |call| async move {
            let mut request = call.get(&format!("manifests/{tag}"), 0);
            request.method = Method::HEAD;
            request.accept = Some(ACCEPT);
            let reply = call.ask(request, Kind::Other).await?;
            let stated = || reply.header("docker-content-digest")?.parse().ok();
            match stated().filter(|_| reply.status.is_success()) {
                Some(digest) => Ok(digest),
                // Without a digest, or with a status and no body that says why: the manifest itself tells.
                None => read_manifest(&call, &Target::Tag(tag.clone()), limits).await.map(|manifest| manifest.digest),
            }
        })
        .await
    }

    async fn manifest(&self, repository: &Repository, target: &Target, access: &Access) -> Result<Arc<Manifest>, RegistryError> {
        let limits = &self.shared.limits;
        self.within(repository, access, |call| async move { read_manifest(&call, target, limits).await.map(Arc::new) }).await
    }

    async fn config(&self, repository: &Repository, blob: &Blob, access: &Access) -> Result<Arc<ImageConfig>, RegistryError> {
        let limits = &self.shared.limits;
        self.within(repository, access, |call| async move { read_config(&call, blob, limits).await.map(Arc::new) }).await
    }
}

async fn read_manifest(call: &Call, target: &Target, limits: &Limits) -> Result<Manifest, RegistryError> {
    let mut request = call.get(&format!("manifests/{target}"), limits.manifest_bytes);
    request.accept = Some(ACCEPT);
    let separator = if matches!(target, Target::Tag(_)) { ':' } else { '@' };
    let reply = call.require(request, Kind::Other, format!("{}{separator}{target}", call.repository)).await?;
    let content_type = media_type(&reply);
    let digest = Digest::of(&reply.body);
    // The digest of a signed schema 1 manifest is not that of its bytes. It is nothing that we could use, either.
    let signed = content_type.ends_with("manifest.v1+prettyjws");
    let stated = reply.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
    let wanted = match target {
        Target::Digest(digest) => Some(digest),
        Target::Tag(_) => None,
    };
    if !signed && stated.iter().chain(wanted).any(|other| *other != digest) {
        return Err(call.malformed(format!("the manifest `{target}` is not what its digest says")));
    }
    Manifest::read(&reply.body, &content_type, digest).map_err(|text| call.malformed(text))
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
    let reply = call.require(request, Kind::Blob, format!("{}@{}", call.repository, blob.digest)).await?;
    if Digest::of(&reply.body) != blob.digest {
        return Err(call.malformed(format!("the blob `{}` is not what its digest says", blob.digest)));
    }
    Ok(reply.body)
}
