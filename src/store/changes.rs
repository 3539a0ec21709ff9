//! What is read from the store, and what is to be written to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

/// What is stored of one repository by one credential. Texts are as they were put in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredRecord {
    /// The last complete listing, and when it was read.
    pub listing: Option<(Timestamp, String)>,
    /// By tag: when it was asked, and the digest; [`None`] if the registry said that the tag does not exist.
    pub tags: Vec<(String, Timestamp, Option<String>)>,
    /// By digest: manifests and configurations.
    pub metadata: Vec<(String, String)>,
}

/// The last choice for a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChoice {
    /// When the listing was read that it was made from.
    pub at: Timestamp,
    pub choice: String,
}

/// A choice to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRow {
    pub key: String,
    pub tenant: String,
    pub stored: StoredChoice,
}

/// What was learned about a repository and is not stored yet.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub listing: Option<NewListing>,
    /// As in [`StoredRecord::tags`].
    pub tags: BTreeMap<String, (Timestamp, Option<String>)>,
    pub metadata: BTreeMap<String, String>,
    /// Tags that are no longer listed.
    pub forgotten_tags: BTreeSet<String>,
    /// Digests that no tag leads to any more.
    pub forgotten_metadata: BTreeSet<String>,
    /// Tenants that asked, and when.
    pub askers: BTreeMap<String, Timestamp>,
}

/// A listing that was read.
#[derive(Clone)]
pub struct NewListing {
    pub at: Timestamp,
    /// Writes it out, on the writer's thread.
    pub text: Arc<dyn Fn() -> String + Send + Sync>,
    /// Bytes that it holds in memory until then.
    pub bytes: usize,
}

impl std::fmt::Debug for NewListing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewListing").field("at", &self.at).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Changes {
    /// Adds later changes.
    pub fn merge(&mut self, later: Self) {
        self.listing = later.listing.or(self.listing.take());
        for (tag, known) in later.tags {
            self.forgotten_tags.remove(&tag);
            self.tags.insert(tag, known);
        }
        for (digest, content) in later.metadata {
            self.forgotten_metadata.remove(&digest);
            self.metadata.insert(digest, content);
        }
        for tag in later.forgotten_tags {
            self.tags.remove(&tag);
            self.forgotten_tags.insert(tag);
        }
        for digest in later.forgotten_metadata {
            self.metadata.remove(&digest);
            self.forgotten_metadata.insert(digest);
        }
        self.askers.extend(later.askers);
    }

    /// Bytes in memory, roughly.
    pub fn bytes(&self) -> usize {
        const ENTRY: usize = 200;
        let listing = self.listing.as_ref().map_or(0, |listing| listing.bytes);
        let tags: usize = self.tags.keys().map(|tag| tag.len() + ENTRY).sum();
        let metadata: usize = self.metadata.values().map(|content| content.len() + ENTRY).sum();
        let forgotten = (self.forgotten_tags.len() + self.forgotten_metadata.len() + self.askers.len()) * ENTRY;
        listing + tags + metadata + forgotten
    }
}
