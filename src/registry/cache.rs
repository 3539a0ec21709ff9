//! Remembering what registries said: in the process, and in the [`Store`].
//!
//! Answers the same questions as the source behind it ([`TagSource`]), and asks it at most once at a time for each (single flight).
//! A listing is fresh for `tags_ttl`, a tag's digest for `digests_ttl`; what a digest names never changes. Keys hold the credential's
//! identity, so that nobody gets what only another may read. What is learned is written to the store by [`Cache::save`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use moka::future::Cache as Memory;

use super::store::{Dated, Known, Store, StoredDigest};
use super::{Access, Blob, ImageConfig, Listing, Manifest, RegistryError, TagSource, Target};
use crate::image::{Digest, Repository, Tag};
use crate::telemetry::{Hits, Layer};

/// Memory for listings, in tags.
const MAX_TAGS: u64 = 5_000_000;

/// Digests of tags, manifests and configurations in memory, each.
const MAX_FACTS: u64 = 200_000;

/// Repositories whose stored knowledge is in memory.
const MAX_KNOWN: u64 = 1000;

/// How long answers are fresh.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// A listing, and the digest of a tag that is followed by digest.
    pub tags: Duration,
    /// The digest of a tag that is one of many candidates, as for `newest-build`: asking for each of a thousand tags at every render
    /// would be too much.
    pub digests: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Self { tags: Duration::from_secs(60), digests: Duration::from_secs(3600) }
    }
}

/// A source that remembers. Call [`Cache::save`] after asking, or what was learned ends with the process.
pub struct Cache<S> {
    source: S,
    store: Arc<Store>,
    freshness: Freshness,
    hits: Hits,
    listings: Memory<String, Arc<Dated<Arc<Listing>>>>,
    digests: Memory<(String, Tag), Dated<Digest>>,
    manifests: Memory<(String, Digest), Arc<Manifest>>,
    configs: Memory<(String, Digest), Arc<ImageConfig>>,
    /// What the store knew when a repository was first asked about.
    known: Memory<String, Arc<Known>>,
    /// What was learned since the last [`Cache::save`], by key.
    learned: Mutex<HashMap<String, Known>>,
}

impl<S: TagSource> Cache<S> {
    /// An empty cache before this source.
    pub fn new(source: S, store: Arc<Store>, freshness: Freshness, hits: Hits) -> Self {
        let weigh =
            |_: &String, listing: &Arc<Dated<Arc<Listing>>>| u32::try_from(listing.value.tags.len() + 1).unwrap_or(u32::MAX);
        Self {
            source,
            store,
            freshness,
            hits,
            listings: Memory::builder().max_capacity(MAX_TAGS).weigher(weigh).build(),
            digests: Memory::new(MAX_FACTS),
            manifests: Memory::new(MAX_FACTS),
            configs: Memory::new(MAX_FACTS),
            known: Memory::new(MAX_KNOWN),
            learned: Mutex::default(),
        }
    }

    /// Counts a question to a layer above.
    pub(crate) fn count(&self, layer: Layer, is_hit: bool) {
        self.hits.count(layer, is_hit);
    }

    /// Names what a repository's answers are kept under: the repository and whose credential asks.
    pub fn key(&self, repository: &Repository, access: &Access) -> String {
        format!("{repository} {}", self.source.identity(repository, access))
    }

    /// All tags, and when they were read.
    ///
    /// # Errors
    ///
    /// As the source; nothing is remembered then.
    pub async fn dated_tags(&self, repository: &Repository, access: &Access) -> Result<Arc<Dated<Arc<Listing>>>, RegistryError> {
        let key = self.key(repository, access);
        if let Some(listing) = self.listings.get(&key).await {
            if is_fresh(listing.at, self.freshness.tags) {
                self.hits.count(Layer::Tags, true);
                return Ok(listing);
            }
            self.listings.invalidate(&key).await;
        }
        let load = async {
            if let Some(stored) = &self.known(&key).await.listing
                && is_fresh(stored.at, self.freshness.tags)
            {
                self.hits.count(Layer::Tags, true);
                return Ok(Arc::new(Dated { at: stored.at, value: Arc::new(stored.value.clone()) }));
            }
            self.hits.count(Layer::Tags, false);
            let at = Timestamp::now();
            let listing = self.source.tags(repository, access).await?;
            self.learn(&key, |learned| learned.listing = Some(Dated { at, value: (*listing).clone() }));
            Ok(Arc::new(Dated { at, value: listing }))
        };
        self.listings.try_get_with(key.clone(), load).await.map_err(|error: Arc<RegistryError>| (*error).clone())
    }

    /// The last complete listing, however old.
    pub async fn last_tags(&self, repository: &Repository, access: &Access) -> Option<Dated<Listing>> {
        self.known(&self.key(repository, access)).await.listing.clone()
    }

    /// The digest that a tag had when it was last asked, however old.
    async fn last_digest(&self, key: &str, tag: &Tag) -> Option<Digest> {
        match self.digests.get(&(key.to_owned(), tag.clone())).await {
            Some(digest) => Some(digest.value),
            None => Some(self.known(key).await.tags.get(tag.as_str())?.value.0.clone()),
        }
    }

    async fn last_manifest(&self, key: &str, digest: &Digest) -> Option<Arc<Manifest>> {
        match self.manifests.get(&(key.to_owned(), digest.clone())).await {
            Some(manifest) => Some(manifest),
            None => self.known(key).await.manifests.get(digest.as_str()).map(|manifest| Arc::new(manifest.clone())),
        }
    }

    /// The tag's digest, asked for again when it is older than the given time.
    async fn digest_within(
        &self,
        repository: &Repository,
        tag: &Tag,
        access: &Access,
        ttl: Duration,
    ) -> Result<Digest, RegistryError> {
        let key = self.key(repository, access);
        let place = (key.clone(), tag.clone());
        if let Some(digest) = self.digests.get(&place).await {
            if is_fresh(digest.at, ttl) {
                self.hits.count(Layer::Digest, true);
                return Ok(digest.value);
            }
            self.digests.invalidate(&place).await;
        }
        let load = async {
            if let Some(stored) = self.known(&key).await.tags.get(tag.as_str())
                && is_fresh(stored.at, ttl)
            {
                self.hits.count(Layer::Digest, true);
                return Ok(Dated { at: stored.at, value: stored.value.0.clone() });
            }
            self.hits.count(Layer::Digest, false);
            let at = Timestamp::now();
            let digest = self.source.digest(repository, tag, access).await?;
            self.learn_digest(&key, tag, &digest, at);
            Ok(Dated { at, value: digest })
        };
        let digest = self.digests.try_get_with(place, load).await.map_err(|error: Arc<RegistryError>| (*error).clone())?;
        Ok(digest.value)
    }

    /// Writes what was learned to the store.
    pub async fn save(&self) {
        let learned = std::mem::take(&mut *self.learned.lock().unwrap_or_else(PoisonError::into_inner));
        let keys: Vec<String> = learned.keys().cloned().collect();
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || learned.into_values().for_each(|known| store.learn(known)));
        if let Err(error) = written.await {
            tracing::warn!(%error, "what was learned could not be kept");
        }
        for key in keys {
            self.known.invalidate(&key).await;
        }
    }

    async fn known(&self, key: &str) -> Arc<Known> {
        let load = async {
            let (store, key) = (Arc::clone(&self.store), key.to_owned());
            let read = tokio::task::spawn_blocking(move || store.known(&key).unwrap_or_default());
            Arc::new(read.await.unwrap_or_default())
        };
        self.known.get_with(key.to_owned(), load).await
    }

    fn learn(&self, key: &str, learn: impl FnOnce(&mut Known)) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learn(learned.entry(key.to_owned()).or_insert_with(|| Known { key: key.to_owned(), ..Known::default() }));
    }

    fn learn_digest(&self, key: &str, tag: &Tag, digest: &Digest, at: Timestamp) {
        let dated = Dated { at, value: StoredDigest(digest.clone()) };
        self.learn(key, |learned| drop(learned.tags.insert(tag.to_string(), dated)));
    }
}

impl<S: TagSource> TagSource for Cache<S> {
    fn identity(&self, repository: &Repository, access: &Access) -> String {
        self.source.identity(repository, access)
    }

    async fn tags(&self, repository: &Repository, access: &Access) -> Result<Arc<Listing>, RegistryError> {
        Ok(Arc::clone(&self.dated_tags(repository, access).await?.value))
    }

    async fn digest(&self, repository: &Repository, tag: &Tag, access: &Access) -> Result<Digest, RegistryError> {
        self.digest_within(repository, tag, access, self.freshness.tags).await
    }

    /// A tag's manifest is that of its last digest while that is fresh; past that, a HEAD tells whether the tag moved.
    async fn manifest(&self, repository: &Repository, target: &Target, access: &Access) -> Result<Arc<Manifest>, RegistryError> {
        let key = self.key(repository, access);
        let digest = match target {
            Target::Digest(digest) => Some(digest.clone()),
            Target::Tag(tag) => match self.last_digest(&key, tag).await {
                Some(last) if self.last_manifest(&key, &last).await.is_some() => {
                    Some(self.digest_within(repository, tag, access, self.freshness.digests).await?)
                }
                _ => None,
            },
        };
        if let Some(digest) = &digest
            && let Some(manifest) = self.last_manifest(&key, digest).await
        {
            return Ok(manifest);
        }
        let at = Timestamp::now();
        let manifest = self.source.manifest(repository, target, access).await?;
        if let Target::Tag(tag) = target {
            self.digests.insert((key.clone(), tag.clone()), Dated { at, value: manifest.digest.clone() }).await;
            self.learn_digest(&key, tag, &manifest.digest, at);
        }
        self.manifests.insert((key.clone(), manifest.digest.clone()), Arc::clone(&manifest)).await;
        self.learn(&key, |learned| drop(learned.manifests.insert(manifest.digest.to_string(), (*manifest).clone())));
        Ok(manifest)
    }

    async fn config(&self, repository: &Repository, blob: &Blob, access: &Access) -> Result<Arc<ImageConfig>, RegistryError> {
        let key = self.key(repository, access);
        let load = async {
            if let Some(stored) = self.known(&key).await.configs.get(blob.digest.as_str()) {
                return Ok(Arc::new(stored.clone()));
            }
            let config = self.source.config(repository, blob, access).await?;
            self.learn(&key, |learned| drop(learned.configs.insert(blob.digest.to_string(), (*config).clone())));
            Ok(config)
        };
        let place = (key.clone(), blob.digest.clone());
        self.configs.try_get_with(place, load).await.map_err(|error: Arc<RegistryError>| (*error).clone())
    }
}

/// What is remembered, however old; asks nobody.
pub struct Remembered<'a, S>(pub &'a Cache<S>);

impl<S: TagSource> Remembered<'_, S> {
    /// The digest of a tag.
    pub async fn digest(&self, repository: &Repository, tag: &Tag, access: &Access) -> Option<Digest> {
        self.0.last_digest(&self.0.key(repository, access), tag).await
    }

    /// The manifest of a tag.
    pub async fn manifest(&self, repository: &Repository, tag: &Tag, access: &Access) -> Option<Arc<Manifest>> {
        let key = self.0.key(repository, access);
        let digest = self.0.last_digest(&key, tag).await?;
        self.0.last_manifest(&key, &digest).await
    }

    /// A manifest of an index.
    pub async fn child(&self, repository: &Repository, digest: &Digest, access: &Access) -> Option<Arc<Manifest>> {
        self.0.last_manifest(&self.0.key(repository, access), digest).await
    }

    /// The configuration of an image.
    pub async fn config(&self, repository: &Repository, blob: &Blob, access: &Access) -> Option<Arc<ImageConfig>> {
        let key = self.0.key(repository, access);
        match self.0.configs.get(&(key.clone(), blob.digest.clone())).await {
            Some(config) => Some(config),
            None => self.0.known(&key).await.configs.get(blob.digest.as_str()).map(|config| Arc::new(config.clone())),
        }
    }
}

/// Is something from this time fresh? What lies in the future is not: the clock was set back.
pub fn is_fresh(at: Timestamp, ttl: Duration) -> bool {
    let age = Timestamp::now().duration_since(at);
    !age.is_negative() && age.unsigned_abs() < ttl
}
