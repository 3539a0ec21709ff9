//! Repositories that are asked, and remembered.
//!
//! A [`RepositoryHandle`] is opened once for a question. In the mode [`Mode::Ask`] it answers from the repository's record while that is
//! fresh, else from the registry, which is asked once at a time for the same thing however many wait for it (single flight). In the mode
//! [`Mode::Recall`] it answers from the record, however old it is, and asks nobody.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use moka::future::Cache as Flights;
use prometheus_client::metrics::gauge::Gauge;

use super::record::{Dated, Metadata, Record};
use super::tenant::{Place, Tenant, Tenants};
use super::{Access, Blob, Client, ImageConfig, Listing, Manifest, ManifestRef, RegistryError, RepositoryClient, Size};
use crate::clock::Clock;
use crate::image::{Digest, Repository, Tag};
use crate::metrics::{Hits, Layer};
use crate::shares::SharedCache;
use crate::store::Store;

/// Tags of a listing that is large: it needs a place, see [`super::tenant`].
const LARGE: usize = 10_000;

/// Answers that are on their way to those who wait for them.
const MAX_FLIGHTS: u64 = 10_000;

/// How long answers are fresh.
#[derive(Clone, Copy, Debug)]
pub struct CacheTtls {
    /// A listing, and the digest of a tag that is followed by digest. Default: 60 s.
    pub tags: Duration,
    /// The digest of a tag that is one of many candidates, as for `newest-build`: asking for each of a thousand tags at every render
    /// would be too much. Default: 1 h.
    pub digests: Duration,
}

impl Default for CacheTtls {
    fn default() -> Self {
        Self { tags: Duration::from_secs(60), digests: Duration::from_secs(3600) }
    }
}

/// How a [`Registry`] remembers.
#[derive(Clone, Debug)]
pub struct Settings {
    pub ttls: CacheTtls,
    /// Bytes of records in memory.
    pub most_bytes: u64,
    pub clock: Clock,
    pub hits: Hits,
}

impl Default for Settings {
    fn default() -> Self {
        Self { ttls: CacheTtls::default(), most_bytes: 64 << 20, clock: Clock::default(), hits: Hits::default() }
    }
}

/// Registries, and what is remembered of them. Clones share it.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    store: Store,
    settings: Settings,
    records: SharedCache<Arc<str>, Arc<Record>>,
    flights: Flights<(u64, Item, Size), Answer>,
    tenants: Tenants,
}

/// What is asked for in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    Listing,
    Digest(Tag),
    Manifest(ManifestRef),
    Config(Digest),
}

#[derive(Clone, Debug)]
enum Answer {
    Listing(Dated<Arc<Listing>>),
    Digest(Digest),
    Manifest(Arc<Manifest>),
    Config(Arc<ImageConfig>),
}

/// Where answers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Fresh answers: from the registry, or remembered for less than their time.
    Ask,
    /// What is remembered, however old. Nobody is asked.
    Recall,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LookupError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It is not remembered.
    #[error("it is not remembered")]
    NotKnown,
    /// The registry said that it does not exist, when it was asked last.
    #[error("it did not exist when the registry was asked")]
    Gone,
}

impl LookupError {
    /// Whether the thing that was asked for does not exist.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone | Self::Registry(RegistryError::NotFound { .. }))
    }
}

impl Registry {
    pub fn new(client: Client, store: Store, settings: Settings) -> Self {
        let flights = Flights::builder().max_capacity(MAX_FLIGHTS).time_to_live(Duration::from_secs(1)).build();
        let records = SharedCache::new(settings.most_bytes);
        Self(Arc::new(Inner { client, store, settings, records, flights, tenants: Tenants::default() }))
    }

    /// Opens a repository for a tenant: route, credential and record are decided here, for all that is asked through the handle.
    pub fn open(&self, repository: &Repository, access: &Access, tenant: &str) -> RepositoryHandle {
        let client = self.0.client.open(repository, access);
        let key: Arc<str> = format!("{repository} {}", client.identity()).into();
        let now = self.0.settings.clock.now();
        let record = self.0.records.get_or_insert(&key, tenant, now, || Arc::new(Record::new(Arc::clone(&key))));
        let tenant = self.0.tenants.get(tenant);
        record.asked_by(&tenant.name, now);
        RepositoryHandle { registry: Arc::clone(&self.0), client, record, tenant, place: Arc::default() }
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub fn clock(&self) -> &Clock {
        &self.0.settings.clock
    }

    /// Bytes of records in memory.
    pub fn gauge(&self) -> &Gauge {
        self.0.records.gauge()
    }

    /// Counts a question to a layer above.
    pub(crate) fn count(&self, layer: Layer, is_hit: bool) {
        self.0.settings.hits.count(layer, is_hit);
    }
}

/// A repository as one credential sees it, opened for one tenant. What is learned through it is stored when it is dropped, or by
/// [`RepositoryHandle::save`].
#[derive(Clone, Debug)]
pub struct RepositoryHandle {
    registry: Arc<Inner>,
    client: RepositoryClient,
    record: Arc<Record>,
    tenant: Arc<Tenant>,
    /// The place of a question about a large repository. Held until the question is answered.
    place: Arc<tokio::sync::Mutex<Option<Place>>>,
}

impl Drop for RepositoryHandle {
    fn drop(&mut self) {
        self.save();
    }
}

impl RepositoryHandle {
    /// What the record is kept under: repository and credential.
    pub fn key(&self) -> &str {
        &self.record.key
    }

    pub fn repository(&self) -> &Repository {
        self.client.repository()
    }

    /// All tags, and when they were read.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub async fn listing(&self, mode: Mode) -> Result<Dated<Arc<Listing>>, LookupError> {
        self.load().await;
        let known = self.record.listing();
        if mode == Mode::Recall {
            return known.ok_or(LookupError::NotKnown);
        }
        let listing = match &known {
            Some(listing) if self.is_fresh(listing.at, self.registry.settings.ttls.tags) => {
                self.count(Layer::Tags, true);
                listing.clone()
            }
            _ => {
                self.count(Layer::Tags, false);
                let is_large = known.is_some_and(|listing| listing.value.tags.len() >= LARGE);
                let size = if is_large { Size::Large } else { Size::Small };
                let asked = self.flight(Item::Listing, size, |size| async move {
                    let at = self.now();
                    let listing = Arc::new(self.client.tags(size).await?);
                    self.record.learn_listing(at, Arc::clone(&listing));
                    Ok(Answer::Listing(Dated { at, value: listing }))
                });
                match asked.await? {
                    Answer::Listing(listing) => listing,
                    _ => unreachable!("a flight of a listing answers with one"),
                }
            }
        };
        if listing.value.tags.len() >= LARGE {
            self.take_place().await;
        }
        Ok(listing)
    }

    /// The digest that a tag points to.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub async fn digest(&self, tag: &Tag, mode: Mode) -> Result<Digest, LookupError> {
        self.digest_within(tag, mode, self.registry.settings.ttls.tags).await
    }

    async fn digest_within(&self, tag: &Tag, mode: Mode, ttl: Duration) -> Result<Digest, LookupError> {
        self.load().await;
        let known = self.record.tag(tag);
        if mode == Mode::Recall {
            return known.ok_or(LookupError::NotKnown)?.value.ok_or(LookupError::Gone);
        }
        if let Some(Dated { at, value: Some(digest) }) = known
            && self.is_fresh(at, ttl)
        {
            self.count(Layer::Digest, true);
            return Ok(digest);
        }
        self.count(Layer::Digest, false);
        let asked = self.flight(Item::Digest(tag.clone()), Size::Small, |size| async move {
            let at = self.now();
            let digest = self.client.digest(tag, size).await;
            self.learn_tag(at, tag, digest.as_ref());
            digest.map(Answer::Digest)
        });
        match asked.await? {
            Answer::Digest(digest) => Ok(digest),
            _ => unreachable!("a flight of a digest answers with one"),
        }
    }

    /// A manifest. A tag's is that of its last digest while that is fresh; past that, a HEAD tells whether the tag moved.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub async fn manifest(&self, target: &ManifestRef, mode: Mode) -> Result<Arc<Manifest>, LookupError> {
        self.load().await;
        let digest = match target {
            ManifestRef::Digest(digest) => Some(digest.clone()),
            ManifestRef::Tag(tag) if mode == Mode::Recall => Some(self.digest(tag, mode).await?),
            ManifestRef::Tag(tag) => match self.record.tag(tag).and_then(|last| last.value) {
                Some(last) if matches!(self.record.metadata(&last), Some(Metadata::Manifest(_))) => {
                    Some(self.digest_within(tag, mode, self.registry.settings.ttls.digests).await?)
                }
                _ => None,
            },
        };
        match digest.as_ref().and_then(|digest| self.record.metadata(digest)) {
            Some(Metadata::Manifest(manifest)) => return Ok(manifest),
            Some(Metadata::Gone) if mode == Mode::Recall => return Err(LookupError::Gone),
            _ if mode == Mode::Recall => return Err(LookupError::NotKnown),
            _ => {}
        }
        let asked = self.flight(Item::Manifest(target.clone()), Size::Small, |size| async move {
            let at = self.now();
            let manifest = self.client.manifest(target, size).await.map(Arc::new);
            match target {
                ManifestRef::Tag(tag) => self.learn_tag(at, tag, manifest.as_ref().map(|manifest| &manifest.digest)),
                ManifestRef::Digest(digest) if matches!(manifest, Err(RegistryError::NotFound { .. })) => {
                    self.record.learn_metadata(digest, Metadata::Gone);
                }
                ManifestRef::Digest(_) => {}
            }
            let manifest = manifest?;
            self.record.learn_metadata(&manifest.digest, Metadata::Manifest(Arc::clone(&manifest)));
            Ok(Answer::Manifest(manifest))
        });
        match asked.await? {
            Answer::Manifest(manifest) => Ok(manifest),
            _ => unreachable!("a flight of a manifest answers with one"),
        }
    }

    /// The configuration of an image.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub async fn config(&self, blob: &Blob, mode: Mode) -> Result<Arc<ImageConfig>, LookupError> {
        self.load().await;
        if let Some(Metadata::Config(config)) = self.record.metadata(&blob.digest) {
            return Ok(config);
        }
        if mode == Mode::Recall {
            return Err(LookupError::NotKnown);
        }
        let asked = self.flight(Item::Config(blob.digest.clone()), Size::Small, |size| async move {
            let config = Arc::new(self.client.config(blob, size).await?);
            self.record.learn_metadata(&blob.digest, Metadata::Config(Arc::clone(&config)));
            Ok(Answer::Config(config))
        });
        match asked.await? {
            Answer::Config(config) => Ok(config),
            _ => unreachable!("a flight of a configuration answers with one"),
        }
    }

    /// Hands what was learned to the store, which writes it behind the caller.
    pub fn save(&self) {
        if let Some(changes) = self.record.take_changes() {
            self.registry.store.learn(&self.record.key, changes);
        }
        self.registry.records.weigh(&self.record.key, self.record.bytes());
    }

    /// The same repository for one lookup, which gives its place back when it is dropped.
    #[must_use]
    pub fn for_lookup(&self) -> Self {
        let mut own = self.clone();
        own.place = Arc::default();
        own
    }

    /// Waits for a place for choosing from a large listing that is recalled: one for each tenant.
    pub async fn recall_place(&self) -> Place {
        self.tenant.recall().await
    }

    /// Reads the record from the store once more: it was damaged, and knows something else now.
    pub fn reload(&self) {
        self.record.reload();
    }

    async fn load(&self) {
        self.record.load(&self.registry.store, self.now()).await;
    }

    fn learn_tag(&self, at: Timestamp, tag: &Tag, digest: Result<&Digest, &RegistryError>) {
        match digest {
            Ok(digest) => self.record.learn_tag(at, tag, Some(digest.clone())),
            Err(RegistryError::NotFound { .. }) => self.record.learn_tag(at, tag, None),
            Err(_) => {}
        }
    }

    /// Asks once for all who wait. A small answer that turns out to be large is asked for again, with a place for it: those who wait for it
    /// then have a place each, so that no tenant waits for another one's.
    async fn flight<F>(&self, item: Item, size: Size, ask: impl Fn(Size) -> F) -> Result<Answer, RegistryError>
    where
        F: Future<Output = Result<Answer, RegistryError>>,
    {
        if size == Size::Small {
            let request = self.tenant.request().await;
            let answer = self.flight_of((self.record.id, item.clone(), size), ask(size)).await;
            drop(request);
            if !matches!(answer, Err(RegistryError::TooLarge { .. })) {
                return answer;
            }
        }
        self.take_place().await;
        self.flight_of((self.record.id, item, Size::Large), ask(Size::Large)).await
    }

    async fn flight_of(
        &self,
        key: (u64, Item, Size),
        ask: impl Future<Output = Result<Answer, RegistryError>>,
    ) -> Result<Answer, RegistryError> {
        let answer = self.registry.flights.try_get_with(key.clone(), ask).await;
        // It is in the record now; who asks later decides by its age.
        self.registry.flights.invalidate(&key).await;
        self.registry.records.weigh(&self.record.key, self.record.bytes());
        answer.map_err(|error: Arc<RegistryError>| (*error).clone())
    }

    async fn take_place(&self) {
        let mut place = self.place.lock().await;
        if place.is_none() {
            *place = Some(self.tenant.large().await);
        }
    }

    fn now(&self) -> Timestamp {
        self.registry.settings.clock.now()
    }

    fn is_fresh(&self, at: Timestamp, ttl: Duration) -> bool {
        self.registry.settings.clock.is_fresh(at, ttl)
    }

    fn count(&self, layer: Layer, is_hit: bool) {
        self.registry.settings.hits.count(layer, is_hit);
    }
}
