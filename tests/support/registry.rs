//! An OCI registry to test against: in this process, on loopback, speaking the dialects and faults of the registries people use.
//!
//! In go images ([`FakeRegistry::push`]), a [`Dialect`] (how tags are paged), an [`Auth`] and [`Fault`]s; out come a host to ask and the
//! [`Request`]s that were made of it. It follows the [OCI distribution specification] and Docker's [token protocol]; where a registry
//! strays from them, the constructor of its [`Dialect`] says how, and who saw it. Every registry starts as Distribution v3 with open
//! doors.
//!
//! The server has a thread and a clock of its own. A paused clock or a blocked test does not stop it, nothing of it outlives
//! [`FakeRegistry::stop`], and it may be dropped anywhere.
//!
//! ```ignore
//! let registry = FakeRegistry::start().await;
//! registry.push("acme/web", "1.4.0");
//! registry.dialect(Dialect::ghcr().page(2));
//! registry.auth(Bearer::new("alice", "s3cret"));
//! registry.fault_on(Route::Tags, When::Times(1), Fault::too_many_requests("1"));
//! assert_eq!(registry.count(Route::Token), 0);
//! ```
//!
//! [OCI distribution specification]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
//! [token protocol]: https://distribution.github.io/distribution/spec/auth/token/

#![allow(dead_code, unused_imports, reason = "each test, demo and benchmark that includes this file uses another part of it")]

// This file is included from several places by `#[path]`, below which rustc would look for the modules beside it.
#[path = "registry/answer.rs"]
mod answer;
#[path = "registry/auth.rs"]
mod auth;
#[path = "registry/content.rs"]
mod content;
#[path = "registry/dialect.rs"]
mod dialect;
#[path = "registry/fault.rs"]
mod fault;
#[path = "registry/http.rs"]
mod http;
#[path = "registry/image.rs"]
mod image;
#[path = "registry/paging.rs"]
mod paging;
#[path = "registry/server.rs"]
mod server;
#[path = "registry/token.rs"]
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use auth::{Auth, Bearer, TokenText};
pub use dialect::{Dialect, Link, Oversize, TagOrder};
pub use fault::{Cursor, Fault, Gate, When};
pub use http::{Request, Route};
pub use image::Image;
use server::{Server, State};

/// A registry that runs until the last clone of it is dropped.
#[derive(Clone)]
pub struct FakeRegistry(Arc<Running>);

struct Running {
    address: SocketAddr,
    state: Arc<State>,
    server: Mutex<Option<Server>>,
}

/// Starting and stopping.
impl FakeRegistry {
    /// Starts on a free port of 127.0.0.1, over plain http.
    pub async fn start() -> Self {
        Self::start_on(0).await
    }

    /// Starts an empty registry on this port; 0 takes any free one.
    ///
    /// # Panics
    ///
    /// If the port stays taken for two seconds.
    pub async fn start_on(port: u16) -> Self {
        let listener = listen(port);
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State::new(address));
        let server = Server::start(listener, Arc::clone(&state));
        Self(Arc::new(Running { address, state, server: Mutex::new(Some(server)) }))
    }

    /// Closes the port and every connection; later connections are refused. Content, settings and log stay.
    ///
    /// A client that kept a connection may first find it broken, and be refused only when it tries again.
    pub fn stop(&self) {
        lock(&self.0.server).take();
    }

    /// Comes back after [`FakeRegistry::stop`] on the same port, with everything it held.
    pub fn resume(&self) {
        let mut server = lock(&self.0.server);
        if server.is_none() {
            *server = Some(Server::start(listen(self.0.address.port()), Arc::clone(&self.0.state)));
        }
    }

    /// `127.0.0.1:34567`, the registry part of an image's name.
    pub fn host(&self) -> String {
        self.0.address.to_string()
    }

    /// `http://127.0.0.1:34567`, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    pub fn port(&self) -> u16 {
        self.0.address.port()
    }
}

/// Content.
impl FakeRegistry {
    /// Pushes a small real image, built a minute after the one pushed before it, and returns its digest. No two pushes share a digest.
    pub fn push(&self, repository: &str, tag: &str) -> String {
        let created = lock(&self.0.state.content).next_time();
        self.push_built(repository, tag, &created)
    }

    /// The same, with this text as the time of building: RFC 3339, or whatever a test wants a client to stumble over.
    pub fn push_built(&self, repository: &str, tag: &str, created: &str) -> String {
        let serial = lock(&self.0.state.content).next_serial();
        self.push_image(repository, tag, Image::new().created(created).env(format!("SERIAL={serial}")))
    }

    /// Pushes this image and returns its digest, which depends on the image alone: equal images are one manifest.
    pub fn push_image(&self, repository: &str, tag: &str, image: Image) -> String {
        lock(&self.0.state.content).push_image(repository, Some(tag), &image)
    }

    /// Pushes an index of these images and returns its digest. With `attestation` the index has an `unknown/unknown` entry too, as
    /// [BuildKit] adds them.
    ///
    /// [BuildKit]: https://github.com/moby/buildkit/blob/v0.13.0/docs/attestations/attestation-storage.md
    pub fn push_index(&self, repository: &str, tag: &str, images: Vec<Image>, attestation: bool) -> String {
        self.push_annotated_index(repository, tag, images, attestation, BTreeMap::new())
    }

    /// The same, with annotations on the index itself.
    pub fn push_annotated_index(
        &self,
        repository: &str,
        tag: &str,
        images: Vec<Image>,
        attestation: bool,
        annotations: BTreeMap<String, String>,
    ) -> String {
        lock(&self.0.state.content).push_index(repository, tag, &images, attestation, &annotations)
    }

    /// Pushes any bytes as a manifest and returns their digest.
    pub fn push_raw(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Vec<u8>>) -> String {
        lock(&self.0.state.content).push_manifest(repository, Some(tag), media_type, bytes.into())
    }

    /// Stores a blob that [`FakeRegistry::push_raw`]'s manifests may name, and returns its digest.
    pub fn push_blob(&self, repository: &str, bytes: impl Into<Vec<u8>>) -> String {
        lock(&self.0.state.content).push_blob(repository, bytes.into())
    }

    /// Adds many tags of one image, and returns its digest. Ten thousand cost some milliseconds.
    pub fn tags<I>(&self, repository: &str, names: I) -> String
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let mut content = lock(&self.0.state.content);
        let created = content.next_time();
        let digest = content.push_image(repository, None, &Image::new().created(created));
        for name in names {
            content.set_tag(repository, name.into(), Some(digest.clone()));
        }
        digest
    }

    /// Gives the image of one tag a second tag.
    pub fn retag(&self, repository: &str, from: &str, to: &str) {
        let mut content = lock(&self.0.state.content);
        let digest = content.digest_of(repository, from);
        content.set_tag(repository, to.to_owned(), digest);
    }

    /// Lists a name, however hostile, that no manifest answers to. Registries need not be honest.
    pub fn raw_tag(&self, repository: &str, name: &str) {
        lock(&self.0.state.content).set_tag(repository, name.to_owned(), None);
    }

    /// Makes an empty repository: it lists no tags, where an unknown one answers 404.
    pub fn create(&self, repository: &str) {
        lock(&self.0.state.content).repository(repository);
    }

    /// Takes a tag away, as a clean-up between two pages does.
    pub fn delete(&self, repository: &str, tag: &str) {
        lock(&self.0.state.content).delete_tag(repository, tag);
    }
}

/// Behaviour.
impl FakeRegistry {
    /// Sets how tags are paged and which headers are sent, from now on.
    pub fn dialect(&self, dialect: Dialect) {
        lock(&self.0.state.settings).dialect = dialect;
    }

    /// Sets who may do what, from now on: `Auth::Open`, [`Auth::basic`] or a [`Bearer`].
    pub fn auth(&self, auth: impl Into<Auth>) {
        lock(&self.0.state.settings).auth = auth.into();
    }

    /// Every token issued until now answers 401.
    pub fn revoke_tokens(&self) {
        lock(&self.0.state.tokens).revoke();
    }

    /// Answers config and layer blobs with a redirect to `storage`, as registries do that keep them in S3 or GCS. The blob is there at
    /// a signed URL below `/objects/`, which answers 400 to a request with an `Authorization` header, as S3 does.
    pub fn redirect_blobs_to(&self, storage: &FakeRegistry) {
        lock(&self.0.state.settings).storage = Some((storage.url(), Arc::clone(&storage.0.state)));
    }

    /// Adds a fault that strikes always, on [the route it is about](Fault::route).
    pub fn fault(&self, fault: Fault) {
        self.fault_on(fault.route(), When::Always, fault);
    }

    /// Adds a fault on one route. Faults add up; of those that replace the reply the first added wins.
    ///
    /// Only requests that pass authorisation are struck and counted (except to [`Route::Ping`] and [`Route::Token`]), so the 401 that
    /// starts a bearer exchange does not use up a `Times(1)`.
    pub fn fault_on(&self, route: Route, when: When, fault: Fault) {
        lock(&self.0.state.faults).add(fault::Target::Route(route), when, fault);
    }

    /// Adds a fault on requests whose path ends so, such as `acme/web/manifests/1.4.0`.
    pub fn fault_at(&self, path: &str, when: When, fault: Fault) {
        lock(&self.0.state.faults).add(fault::Target::Path(path.to_owned()), when, fault);
    }

    pub fn clear_faults(&self) {
        lock(&self.0.state.faults).clear();
    }
}

/// What was asked.
impl FakeRegistry {
    /// Every request since the start or [`FakeRegistry::forget_requests`], in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.0.state.log).clone()
    }

    /// How many requests went to this route.
    pub fn count(&self, route: Route) -> usize {
        lock(&self.0.state.log).iter().filter(|request| route.covers(request.route)).count()
    }

    /// The most requests that were being answered at one time.
    pub fn most_at_once(&self) -> usize {
        self.0.state.most_at_once.load(Ordering::SeqCst)
    }

    /// TCP connections accepted, whether or not a request came over them.
    pub fn connections(&self) -> usize {
        self.0.state.connections.load(Ordering::SeqCst)
    }

    /// Empties the log and sets the counters to zero.
    pub fn forget_requests(&self) {
        lock(&self.0.state.log).clear();
        self.0.state.most_at_once.store(0, Ordering::SeqCst);
        self.0.state.connections.store(0, Ordering::SeqCst);
    }
}

impl fmt::Debug for FakeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FakeRegistry").field(&self.host()).finish()
    }
}

/// Binds loopback. A port that was given up a moment ago may be busy for another moment.
fn listen(port: u16) -> TcpListener {
    let began = Instant::now();
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return listener,
            Err(_) if began.elapsed() < Duration::from_secs(2) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("could not listen on port {port}: {error}"),
        }
    }
}

/// A test that failed while it held a lock has said so already; what it left is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
