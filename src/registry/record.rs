//! What is known of one repository by one credential, in memory: the last complete listing, each tag's last digest, and metadata by digest.
//!
//! A record is loaded from the store when it is first asked for, and collects what it learns until that is stored.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Content, ImageConfig, Listing, Manifest};
use crate::image::{Digest, Tag};
use crate::store::{Changes, NewListing, Store, StoredRecord};

/// How often it is stored that a tenant asks for a repository.
const ASKED: Duration = Duration::from_secs(3600);

/// Bytes of an entry in a map, beside its texts.
const ENTRY: u64 = 128;

/// Something with the time at which it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated<T> {
    pub at: Timestamp,
    pub value: T,
}

/// What stands behind a digest.
#[derive(Clone, Debug, PartialEq)]
pub enum Metadata {
    Manifest(Arc<Manifest>),
    Config(Arc<ImageConfig>),
    /// The registry said that there is nothing.
    Gone,
}

/// [`Metadata`] as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum StoredMetadata<M, C> {
    Manifest(M),
    Config(C),
    Gone(()),
}

/// A record.
#[derive(Debug)]
pub struct Record {
    pub key: Arc<str>,
    /// Tells this record from another one of the same key that was evicted.
    pub id: u64,
    state: Mutex<State>,
    /// Held while the record is loaded.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    is_loaded: bool,
    listing: Option<Dated<Arc<Listing>>>,
    /// By tag, the digest when it was last asked; [`None`] if the registry said that the tag does not exist.
    tags: HashMap<Tag, Dated<Option<Digest>>>,
    metadata: HashMap<Digest, Metadata>,
    /// What is not stored yet.
    changes: Changes,
    /// When it was last noted that a tenant asks.
    asked: HashMap<Arc<str>, Timestamp>,
    bytes: u64,
}

impl Record {
    pub fn new(key: Arc<str>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { key, id: NEXT.fetch_add(1, Ordering::Relaxed), state: Mutex::default(), loading: tokio::sync::Mutex::default() }
    }

    /// Adds what the store knows, once. A store that cannot be read now is read the next time.
    pub async fn load(&self, store: &Store, now: Timestamp) {
        if self.lock().is_loaded {
            return;
        }
        let _one = self.loading.lock().await;
        if self.lock().is_loaded {
            return;
        }
        if let Ok(stored) = store.record(&self.key).await {
            let mut state = self.lock();
            state.is_loaded = true;
            state.add(stored.unwrap_or_default(), now);
        }
    }

    /// Reads the store again the next time: it was damaged, and knows something else now.
    pub fn reload(&self) {
        self.lock().is_loaded = false;
    }

    pub fn listing(&self) -> Option<Dated<Arc<Listing>>> {
        self.lock().listing.clone()
    }

    /// The digest that a tag had when it was last asked, however long ago.
    pub fn tag(&self, tag: &Tag) -> Option<Dated<Option<Digest>>> {
        self.lock().tags.get(tag).cloned()
    }

    pub fn metadata(&self, digest: &Digest) -> Option<Metadata> {
        self.lock().metadata.get(digest).cloned()
    }

    /// Notes that a tenant asks.
    pub fn asked_by(&self, tenant: &Arc<str>, now: Timestamp) {
        let mut state = self.lock();
        let is_noted = state.asked.get(tenant).is_some_and(|at| now.duration_since(*at).unsigned_abs() < ASKED);
        if !is_noted {
            state.asked.retain(|_, at| now.duration_since(*at).unsigned_abs() < ASKED);
            state.asked.insert(Arc::clone(tenant), now);
            state.changes.askers.insert(tenant.to_string(), now);
        }
    }

    pub fn learn_listing(&self, at: Timestamp, listing: Arc<Listing>) {
        let mut state = self.lock();
        let bytes = usize::try_from(listing.bytes()).unwrap_or(usize::MAX);
        let written = Arc::clone(&listing);
        let text = Arc::new(move || serde_json::to_string(&*written).expect("a listing is JSON"));
        state.changes.listing = Some(NewListing { at, text, bytes });
        let is_same = state.listing.as_ref().is_some_and(|last| last.value == listing);
        state.bytes -= state.listing.as_ref().map_or(0, |last| last.value.bytes());
        state.bytes += listing.bytes();
        state.listing = Some(Dated { at, value: listing });
        if !is_same {
            state.forget_unlisted();
        }
    }

    /// Learns a tag's digest; [`None`] if the registry said that the tag does not exist.
    pub fn learn_tag(&self, at: Timestamp, tag: &Tag, digest: Option<Digest>) {
        let mut state = self.lock();
        state.changes.tags.insert(tag.to_string(), (at, digest.as_ref().map(ToString::to_string)));
        state.set_tag(tag.clone(), Dated { at, value: digest });
    }

    pub fn learn_metadata(&self, digest: &Digest, metadata: Metadata) {
        let mut state = self.lock();
        state.changes.metadata.insert(digest.to_string(), metadata.text());
        state.set_metadata(digest.clone(), metadata);
    }

    /// What was learned since the last time.
    pub fn take_changes(&self) -> Option<Changes> {
        let changes = std::mem::take(&mut self.lock().changes);
        let is_empty = changes.listing.is_none()
            && changes.tags.is_empty()
            && changes.metadata.is_empty()
            && changes.forgotten_tags.is_empty()
            && changes.forgotten_metadata.is_empty()
            && changes.askers.is_empty();
        (!is_empty).then_some(changes)
    }

    /// Bytes in memory, roughly.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set_tag(&mut self, tag: Tag, digest: Dated<Option<Digest>>) {
        let weight = ENTRY + (tag.as_str().len() + digest.value.as_ref().map_or(0, |digest| digest.as_str().len())) as u64;
        if self.tags.insert(tag, digest).is_none() {
            self.bytes += weight;
        }
    }

    fn set_metadata(&mut self, digest: Digest, metadata: Metadata) {
        let weight = metadata.bytes();
        let before = self.metadata.insert(digest, metadata);
        self.bytes = self.bytes - before.map_or(0, |before| before.bytes()) + weight;
    }

    /// Adds what the store knows better: what is newer, and what is not known here. What lies in the future was written by a wrong clock.
    fn add(&mut self, stored: StoredRecord, now: Timestamp) {
        if let Some((at, text)) = stored.listing
            && let Ok(listing) = serde_json::from_str::<Listing>(&text)
        {
            let is_better = |own: &Dated<Arc<Listing>>| own.at > now || (own.at < at && at <= now);
            if self.listing.as_ref().is_none_or(is_better) {
                self.bytes -= self.listing.as_ref().map_or(0, |last| last.value.bytes());
                self.bytes += listing.bytes();
                self.listing = Some(Dated { at, value: Arc::new(listing) });
            }
        }
        for (tag, at, digest) in stored.tags {
            let Ok(tag) = tag.parse::<Tag>() else { continue };
            let Ok(digest) = digest.map(|digest| digest.parse()).transpose() else { continue };
            if self.tags.get(&tag).is_none_or(|own| own.at > now || (own.at < at && at <= now)) {
                self.set_tag(tag, Dated { at, value: digest });
            }
        }
        for (digest, text) in stored.metadata {
            let Ok(digest) = digest.parse::<Digest>() else { continue };
            if let Some(metadata) = Metadata::read(&digest, &text)
                && !self.metadata.contains_key(&digest)
            {
                self.set_metadata(digest, metadata);
            }
        }
    }

    /// Forgets tags that are no longer listed, and metadata that no remaining tag leads to.
    fn forget_unlisted(&mut self) {
        let Some(listing) = self.listing.as_ref().map(|listing| Arc::clone(&listing.value)) else { return };
        let forgotten: Vec<Tag> = self.tags.keys().filter(|tag| !listing.holds(tag)).cloned().collect();
        for tag in &forgotten {
            if let Some(digest) = self.tags.remove(tag) {
                let texts = tag.as_str().len() + digest.value.as_ref().map_or(0, |digest| digest.as_str().len());
                self.bytes = self.bytes.saturating_sub(ENTRY + texts as u64);
            }
            self.changes.tags.remove(tag.as_str());
            self.changes.forgotten_tags.insert(tag.to_string());
        }
        // Moving tags leave manifests behind that no tag leads to; indexes have several each.
        if forgotten.is_empty() && self.metadata.len() <= 16 * self.tags.len() + 100 {
            return;
        }
        let mut reached: Vec<Digest> = self.tags.values().filter_map(|digest| digest.value.clone()).collect();
        let mut kept = HashSet::new();
        while let Some(digest) = reached.pop() {
            if !kept.insert(digest.clone()) {
                continue;
            }
            if let Some(Metadata::Manifest(manifest)) = self.metadata.get(&digest) {
                match &manifest.content {
                    Content::Index { entries, .. } => reached.extend(entries.iter().map(|entry| entry.digest.clone())),
                    Content::Image { config, .. } => reached.push(config.digest.clone()),
                    Content::Other { .. } => {}
                }
            }
        }
        let unreached: Vec<Digest> = self.metadata.keys().filter(|digest| !kept.contains(digest)).cloned().collect();
        for digest in unreached {
            self.bytes -= self.metadata.remove(&digest).map_or(0, |metadata| metadata.bytes());
            self.changes.metadata.remove(digest.as_str());
            self.changes.forgotten_metadata.insert(digest.to_string());
        }
    }
}

impl Metadata {
    fn text(&self) -> String {
        let stored = match self {
            Self::Manifest(manifest) => StoredMetadata::Manifest(&**manifest),
            Self::Config(config) => StoredMetadata::Config(&**config),
            Self::Gone => StoredMetadata::Gone(()),
        };
        serde_json::to_string(&stored).expect("metadata is JSON")
    }

    /// Reads what was stored under a digest. [`None`] if it is something else.
    fn read(digest: &Digest, text: &str) -> Option<Self> {
        match serde_json::from_str::<StoredMetadata<Manifest, ImageConfig>>(text).ok()? {
            StoredMetadata::Manifest(manifest) if manifest.digest == *digest => Some(Self::Manifest(Arc::new(manifest))),
            StoredMetadata::Manifest(_) => None,
            StoredMetadata::Config(config) => Some(Self::Config(Arc::new(config))),
            StoredMetadata::Gone(()) => Some(Self::Gone),
        }
    }

    fn bytes(&self) -> u64 {
        let entries = match self {
            Self::Manifest(manifest) => match &manifest.content {
                Content::Index { entries, .. } => entries.len() as u64,
                Content::Image { .. } | Content::Other { .. } => 1,
            },
            Self::Config(_) | Self::Gone => 0,
        };
        2 * ENTRY + entries * 2 * ENTRY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Blob, Listed};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn listing(tags: &[&str]) -> Arc<Listing> {
        let listed = |tag: &&str| Listed { tag: tag.parse().expect("a tag"), digest: None, created: None, position: None };
        Arc::new(Listing { tags: tags.iter().map(listed).collect(), dropped: 0 })
    }

    fn manifest(name: &str) -> (Digest, Metadata) {
        let digest = Digest::of(name.as_bytes());
        let config = Blob { digest: Digest::of(format!("config of {name}").as_bytes()), size: 1 };
        (digest.clone(), Metadata::Manifest(Arc::new(Manifest { digest, content: Content::Image { config, created: None } })))
    }

    #[test]
    fn what_no_listed_tag_leads_to_is_forgotten() {
        let record = Record::new("r".into());
        for name in ["a", "b"] {
            let (digest, metadata) = manifest(name);
            record.learn_tag(at(1), &name.parse().expect("a tag"), Some(digest.clone()));
            let Metadata::Manifest(content) = &metadata else { unreachable!() };
            let Content::Image { config, .. } = &content.content else { unreachable!() };
            record.learn_metadata(&config.digest, Metadata::Config(Arc::new(ImageConfig { platform: None, created: None })));
            record.learn_metadata(&digest, metadata);
        }
        record.learn_listing(at(1), listing(&["a", "b"]));
        let full = record.bytes();
        record.take_changes();
        record.learn_listing(at(2), listing(&["a"]));
        assert!(record.tag(&"b".parse().expect("a tag")).is_none() && record.metadata(&manifest("b").0).is_none());
        assert!(record.tag(&"a".parse().expect("a tag")).is_some() && record.metadata(&manifest("a").0).is_some());
        let changes = record.take_changes().expect("changes");
        assert_eq!((changes.forgotten_tags.len(), changes.forgotten_metadata.len()), (1, 2));
        assert!(record.bytes() < full);
        record.learn_listing(at(3), listing(&[]));
        assert_eq!(record.bytes(), listing(&[]).bytes(), "nothing is left");
    }

    #[test]
    fn what_was_stored_in_the_future_gives_way() {
        let record = Record::new("r".into());
        record.learn_listing(at(100), listing(&["new"]));
        let stored = |second: i64| StoredRecord {
            listing: Some((at(second), serde_json::to_string(&*listing(&["stored"])).expect("JSON"))),
            ..StoredRecord::default()
        };
        for (second, expected) in [(99, "new"), (300, "new"), (150, "stored")] {
            record.lock().add(stored(second), at(200));
            assert_eq!(record.listing().expect("a listing").value.tags[0].tag.as_str(), expected, "{second}");
        }
    }

    #[test]
    fn metadata_is_read_strictly() {
        let (digest, metadata) = manifest("a");
        let text = metadata.text();
        assert_eq!(Metadata::read(&digest, &text), Some(metadata));
        assert_eq!(Metadata::read(&Digest::of(b"other"), &text), None, "under another digest");
        assert_eq!(Metadata::read(&digest, "{}"), None);
        for metadata in [Metadata::Gone, Metadata::Config(Arc::new(ImageConfig { platform: None, created: Some(at(7)) }))] {
            assert_eq!(Metadata::read(&digest, &metadata.text()), Some(metadata));
        }
    }
}
