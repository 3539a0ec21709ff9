//! Unpacked archives that are kept: all applications of a repository send the same bytes at one commit.
//!
//! An archive is found by the SHA-256 of its compressed bytes. Its sender has sent all of them, and they are verified before what is kept
//! is used: a hit proves possession. Kept files are only read. Bounded in number and in bytes; the longest unused goes first.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;

/// An unpacked archive; removed with its last user.
#[derive(Debug)]
pub struct Unpacked {
    dir: TempDir,
    /// Bytes of its files.
    bytes: u64,
}

impl Unpacked {
    pub fn new(dir: TempDir, bytes: u64) -> Self {
        Self { dir, bytes }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// What is kept, the last used at the back.
#[derive(Debug)]
pub struct Shelf {
    kept: Mutex<VecDeque<(String, Arc<Unpacked>)>>,
    archives: usize,
    bytes: u64,
}

impl Shelf {
    /// A shelf for so many archives, and so many bytes of files.
    pub fn new(archives: usize, bytes: u64) -> Self {
        Self { kept: Mutex::default(), archives, bytes }
    }

    /// The archive with this checksum.
    pub fn get(&self, checksum: &str) -> Option<Arc<Unpacked>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(key, _)| key == checksum)?;
        let found = kept.remove(place)?;
        let unpacked = Arc::clone(&found.1);
        kept.push_back(found);
        Some(unpacked)
    }

    /// Keeps an archive whose checksum was verified.
    pub fn put(&self, checksum: &str, unpacked: &Arc<Unpacked>) {
        if self.archives == 0 || unpacked.bytes > self.bytes {
            return;
        }
        let mut dropped = Vec::new();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|(key, _)| key == checksum) {
            return;
        }
        kept.push_back((checksum.to_owned(), Arc::clone(unpacked)));
        while kept.len() > self.archives || kept.iter().map(|(_, unpacked)| unpacked.bytes).sum::<u64>() > self.bytes {
            dropped.extend(kept.pop_front());
        }
        // Files are removed without the lock.
        drop(kept);
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(bytes: u64) -> Arc<Unpacked> {
        Arc::new(Unpacked::new(tempfile::tempdir().expect("a directory"), bytes))
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let shelf = Shelf::new(2, 100);
        let first = unpacked(10);
        shelf.put("a", &first);
        shelf.put("b", &unpacked(10));
        assert!(shelf.get("a").is_some());
        shelf.put("c", &unpacked(10));
        assert!(shelf.get("a").is_some() && shelf.get("b").is_none() && shelf.get("c").is_some());
    }

    #[test]
    fn bytes_are_bounded_and_files_go_with_their_last_user() {
        let shelf = Shelf::new(10, 100);
        let first = unpacked(60);
        let path = first.path().to_owned();
        shelf.put("a", &first);
        shelf.put("too long", &unpacked(101));
        assert!(shelf.get("a").is_some() && shelf.get("too long").is_none());
        shelf.put("b", &unpacked(60));
        assert!(shelf.get("a").is_none() && path.exists());
        drop(first);
        assert!(!path.exists());
        let none = Shelf::new(0, 100);
        none.put("a", &unpacked(1));
        assert!(none.get("a").is_none());
    }
}
