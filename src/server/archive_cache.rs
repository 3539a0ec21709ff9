//! Archives that were read and are kept: all applications of a repository send the same bytes at one commit.
//!
//! An archive is found by the SHA-256 of its compressed bytes. Its sender has sent all of them, and they are verified before what is kept
//! is used: a hit proves possession. Bounded in number and in bytes; the longest unused goes first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::workspace::archive_index::ArchiveIndex;

/// How long one sender of an archive waits for another. Most archives take less than a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is kept, the last used at the back.
#[derive(Debug)]
pub struct ArchiveCache {
    kept: Mutex<VecDeque<(String, Arc<ArchiveIndex>)>>,
    /// One lock for each archive that is being received for the first time.
    arriving: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    archives: usize,
    bytes: u64,
}

impl ArchiveCache {
    /// A cache for so many archives, and so many bytes of files and indexes.
    pub fn new(archives: usize, bytes: u64) -> Self {
        Self { kept: Mutex::default(), arriving: Mutex::default(), archives, bytes }
    }

    /// The slot of the archive with this checksum. Whoever holds an empty one fills it, and the others wait a while: not longer, since they
    /// cannot know whether it ever will.
    pub async fn slot(&self, checksum: &str) -> Slot<'_> {
        let own = |_turn| Slot { archives: self, checksum: checksum.to_owned(), _turn };
        if self.archives == 0 || self.get(checksum).is_some() {
            return own(None);
        }
        let own_lock = {
            let mut arriving = lock(&self.arriving);
            // Those that nobody holds or waits for.
            arriving.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(arriving.entry(checksum.to_owned()).or_default())
        };
        own(tokio::time::timeout(PATIENCE, own_lock.lock_owned()).await.ok())
    }

    fn get(&self, checksum: &str) -> Option<Arc<ArchiveIndex>> {
        let mut kept = lock(&self.kept);
        let slot = kept.iter().position(|(key, _)| key == checksum)?;
        let found = kept.remove(slot)?;
        let index = Arc::clone(&found.1);
        kept.push_back(found);
        Some(index)
    }

    fn put(&self, checksum: &str, index: &Arc<ArchiveIndex>) {
        if self.archives == 0 || index.cost() > self.bytes {
            return;
        }
        let mut dropped = Vec::new();
        let mut kept = lock(&self.kept);
        if kept.iter().any(|(key, _)| key == checksum) {
            return;
        }
        kept.push_back((checksum.to_owned(), Arc::clone(index)));
        while kept.len() > self.archives || kept.iter().map(|(_, index)| index.cost()).sum::<u64>() > self.bytes {
            dropped.extend(kept.pop_front());
        }
        // Files are closed without the lock.
        drop(kept);
        drop(dropped);
    }
}

/// One archive's slot. Dropping it lets the next one have it.
#[derive(Debug)]
pub struct Slot<'a> {
    archives: &'a ArchiveCache,
    checksum: String,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Slot<'_> {
    /// What stands there.
    pub fn get(&self) -> Option<Arc<ArchiveIndex>> {
        self.archives.get(&self.checksum)
    }

    /// Keeps an archive whose checksum was verified.
    pub fn put(self, index: &Arc<ArchiveIndex>) {
        self.archives.put(&self.checksum, index);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The index of one file, with what its index costs.
    fn index(bytes: u64) -> Arc<ArchiveIndex> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_cksum();
        let content = vec![0; usize::try_from(bytes).expect("it fits")];
        builder.append_data(&mut header, "f", &*content).expect("an entry");
        let archive = builder.into_inner().and_then(flate2::write::GzEncoder::finish).expect("an archive");
        let contents = tempfile::tempfile().expect("a file");
        Arc::new(
            crate::workspace::archive::read(&*archive, contents, crate::workspace::archive::Bounds::default()).expect("read"),
        )
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let archives = ArchiveCache::new(2, 10_000);
        archives.put("a", &index(10));
        archives.put("b", &index(10));
        assert!(archives.get("a").is_some());
        archives.put("c", &index(10));
        assert!(archives.get("a").is_some() && archives.get("b").is_none() && archives.get("c").is_some());
    }

    #[test]
    fn bytes_are_bounded_and_an_index_counts() {
        let cost = index(0).cost();
        assert!(cost > 50, "an empty file's entry costs memory: {cost}");
        let archives = ArchiveCache::new(10, 100 + 2 * cost);
        archives.put("a", &index(60));
        archives.put("too long", &index(200 + cost));
        assert!(archives.get("a").is_some() && archives.get("too long").is_none());
        archives.put("b", &index(60));
        assert!(archives.get("a").is_none() && archives.get("b").is_some());
        let none = ArchiveCache::new(0, 100);
        none.put("a", &index(1));
        assert!(none.get("a").is_none());
    }

    #[tokio::test]
    async fn the_same_archive_is_read_once_and_another_waits_for_nobody() {
        let archives = Arc::new(ArchiveCache::new(2, 10_000));
        let first = archives.slot("a").await;
        assert!(first.get().is_none());
        let (waiting, other) = (Arc::clone(&archives), Arc::clone(&archives));
        let second = tokio::spawn(async move { waiting.slot("a").await.get().is_some() });
        assert!(other.slot("b").await.get().is_none());
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!second.is_finished());
        first.put(&index(1));
        assert!(second.await.expect("it ends"), "found in the cache");
        // One that fails lets the next one try, and locks that nobody holds are forgotten.
        drop(archives.slot("c").await);
        assert!(archives.slot("d").await.get().is_none());
        assert_eq!(lock(&archives.arriving).len(), 1);
    }
}
