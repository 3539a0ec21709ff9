//! Rendered text, remembered by what it was made from: a commit that changes nothing for an application costs no Helm.
//!
//! A key covers everything that was on disk for the tool (not a guess of what it read), its arguments, the texts with their pins, and the
//! program itself. Only where that is known is there a key: for checkouts that come to the disk as they are read. What may have come from
//! the network has none.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use prometheus_client::metrics::gauge::Gauge;
use sha2::{Digest, Sha256};

use crate::process::which;
use crate::workspace::Checkout;

/// What an entry costs besides its text, about, in bytes.
const ENTRY_COST: u64 = 100;

/// Texts, packed, in files without a name. What was not used for long goes first, many at a time.
#[derive(Clone, Debug)]
pub struct RenderCache {
    kept: Arc<Mutex<Generations>>,
    dir: PathBuf,
    limit: u64,
    /// For the metrics: how many texts are kept, and how many bytes.
    pub texts: Gauge,
    pub bytes: Gauge,
}

/// Two generations: when the current has half of the bytes, the previous is forgotten. What is used moves to the current.
#[derive(Debug, Default)]
struct Generations {
    current: Option<Generation>,
    previous: Option<Generation>,
}

#[derive(Debug)]
struct Generation {
    file: Arc<File>,
    end: u64,
    /// Where each text stands, and its length.
    places: HashMap<[u8; 32], (u64, u32)>,
}

impl RenderCache {
    /// Keeps at most so many bytes, in a directory that exists.
    pub fn new(dir: &Path, limit: u64) -> Self {
        Self { kept: Arc::default(), dir: dir.to_owned(), limit, texts: Gauge::default(), bytes: Gauge::default() }
    }

    /// The text that was made from the same.
    pub fn get(&self, key: &[u8; 32]) -> Option<String> {
        let (file, (at, length), is_old) = {
            let kept = self.lock();
            let found = |generation: &Option<Generation>| {
                let generation = generation.as_ref()?;
                Some((Arc::clone(&generation.file), *generation.places.get(key)?))
            };
            let young = found(&kept.current).map(|(file, place)| (file, place, false));
            young.or_else(|| found(&kept.previous).map(|(file, place)| (file, place, true)))?
        };
        let mut packed = vec![0; length as usize];
        file.read_exact_at(&mut packed, at).ok()?;
        let mut text = String::new();
        DeflateDecoder::new(&*packed).read_to_string(&mut text).ok()?;
        if is_old {
            self.put(*key, &packed);
        }
        Some(text)
    }

    /// Remembers a text, behind the answer.
    pub fn keep(&self, key: [u8; 32], text: &str) {
        let (cache, text) = (self.clone(), text.to_owned());
        tokio::task::spawn_blocking(move || cache.pack(key, &text));
    }

    fn pack(&self, key: [u8; 32], text: &str) {
        let mut packed = DeflateEncoder::new(Vec::new(), Compression::fast());
        // Writing to memory does not fail.
        if let Ok(packed) = packed.write_all(text.as_bytes()).and_then(|()| packed.finish()) {
            self.put(key, &packed);
        }
    }

    fn put(&self, key: [u8; 32], packed: &[u8]) {
        let mut kept = self.lock();
        if let Err(error) = kept.put(&self.dir, self.limit / 2, key, packed) {
            tracing::warn!(%error, "a rendered text could not be kept");
        }
        let generations = || kept.current.iter().chain(&kept.previous);
        self.texts.set(generations().map(|generation| generation.places.len()).sum::<usize>().cast_signed() as i64);
        self.bytes.set(generations().map(Generation::cost).sum::<u64>().cast_signed());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn put(&mut self, dir: &Path, half: u64, key: [u8; 32], packed: &[u8]) -> io::Result<()> {
        let length = u32::try_from(packed.len()).map_err(io::Error::other)?;
        let cost = u64::from(length) + ENTRY_COST;
        if cost > half {
            return Ok(());
        }
        if self.current.as_ref().is_some_and(|current| current.cost() + cost > half) {
            self.previous = self.current.take();
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => none.insert(Generation::new(dir)?),
        };
        current.file.write_all_at(packed, current.end)?;
        current.places.insert(key, (current.end, length));
        current.end += u64::from(length);
        // It stands in one place.
        if let Some(previous) = &mut self.previous {
            previous.places.remove(&key);
        }
        Ok(())
    }
}

impl Generation {
    fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(tempfile::tempfile_in(dir)?), end: 0, places: HashMap::new() })
    }

    fn cost(&self) -> u64 {
        self.end + self.places.len() as u64 * ENTRY_COST
    }
}

/// A key that is being put together.
#[derive(Debug)]
pub struct Key {
    hash: Sha256,
    /// Directories of this one render, which are not part of the key.
    private: Vec<PathBuf>,
}

impl Key {
    /// The start of a key: a program, and all that is on disk. [`None`] where that is not known.
    pub fn new(program: &Path, checkout: &Checkout, workspace: &Path) -> Option<Self> {
        let on_disk = checkout.digest()?;
        let path = which(program)?;
        let metadata = std::fs::metadata(&path).ok()?;
        let mut key = Self { hash: Sha256::new(), private: vec![checkout.root().to_owned(), workspace.to_owned()] };
        key.add(path.as_os_str().as_bytes());
        // Another version is another file.
        let version = [metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime().cast_unsigned()];
        key.add(format!("{version:?} {}", metadata.mtime_nsec()).as_bytes());
        key.add(&on_disk);
        key.add(checkout.app().as_os_str().as_bytes());
        Some(key)
    }

    /// Adds anything.
    pub fn add(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_be_bytes());
        self.hash.update(bytes);
    }

    /// Adds words of a command line; the private directories in them by their place.
    pub fn add_words<'a>(&mut self, words: impl IntoIterator<Item = &'a OsStr>) {
        for word in words {
            let mut word = word.as_bytes().to_vec();
            for (place, directory) in self.private.iter().enumerate() {
                word = replaced(&word, directory.as_os_str().as_bytes(), format!("\0{place}").as_bytes());
            }
            self.hash.update((word.len() as u64).to_be_bytes());
            self.hash.update(&word);
        }
        self.hash.update(u64::MAX.to_be_bytes());
    }

    pub fn finish(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

fn replaced(word: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut new = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        new.extend_from_slice(&rest[..at]);
        new.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    new.extend_from_slice(rest);
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_whole_and_bytes_are_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = RenderCache::new(dir.path(), 4000);
        let text = "kind: Deployment\n".repeat(1000);
        cache.pack([1; 32], &text);
        assert_eq!(cache.get(&[1; 32]).as_deref(), Some(text.as_str()));
        assert_eq!(cache.get(&[2; 32]), None);
        for number in 2..100 {
            cache.pack([number; 32], &format!("{number}{text}"));
            // What is used stays.
            assert!(cache.get(&[1; 32]).is_some_and(|kept| kept == text), "{number}");
        }
        assert!(cache.bytes.get() <= 4000 && cache.texts.get() > 2, "{cache:?}");
        assert_eq!(cache.get(&[3; 32]), None);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0, "its files have no name");
        let none = RenderCache::new(dir.path(), 0);
        none.pack([1; 32], &text);
        assert_eq!(none.get(&[1; 32]), None);
        let gone = RenderCache::new(&dir.path().join("gone"), 4000);
        gone.pack([1; 32], &text);
        assert_eq!(gone.get(&[1; 32]), None, "a full or missing disk costs the memory, not the render");
    }

    #[test]
    fn words_count_without_the_private_directories() {
        let key = |private: &str, words: &[&str]| {
            let mut key = Key { hash: Sha256::new(), private: vec!["/work".into(), private.into()] };
            key.add_words(words.iter().map(OsStr::new));
            key.finish()
        };
        assert_eq!(key("/tmp/a", &["--values", "/tmp/a/v.yaml"]), key("/tmp/b", &["--values", "/tmp/b/v.yaml"]));
        assert_eq!(key("/tmp/a", &["x=/tmp/a/1,/tmp/a/2"]), key("/tmp/b", &["x=/tmp/b/1,/tmp/b/2"]));
        assert_ne!(key("/tmp/a", &["/tmp/a/v.yaml"]), key("/tmp/a", &["/work/v.yaml"]));
        assert_ne!(key("/tmp/a", &["a", "b"]), key("/tmp/a", &["ab"]));
        assert_ne!(key("/tmp/a", &["a", "b"]), key("/tmp/a", &["b", "a"]));
    }

    #[test]
    fn there_is_no_key_where_it_is_not_known_what_is_on_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let checkout = Checkout::open(dir.path(), None).expect("a checkout");
        assert!(Key::new(Path::new("sh"), &checkout, dir.path()).is_none());
    }
}
