//! Rendered text, remembered by what it was made from: a commit that changes nothing for an application costs no Helm.
//!
//! A key covers everything that was on disk for the tool (not a guess of what it read), its arguments, the texts with their pins, and the
//! program itself. Only where that is known is there a key: for checkouts that come to the disk as they are read. What may have come from
//! the network has none.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use moka::sync::Cache;
use prometheus_client::metrics::gauge::Gauge;
use sha2::{Digest, Sha256};

use crate::workspace::Checkout;

/// What an entry costs besides its text, about, in bytes.
const ENTRY_COST: usize = 200;

/// Texts in memory, packed; those that were used seldom or long ago go first.
#[derive(Clone, Debug)]
pub struct Memo {
    kept: Cache<[u8; 32], Arc<[u8]>>,
    /// For the metrics: how many texts are kept, and how many bytes.
    pub texts: Gauge,
    pub bytes: Gauge,
}

impl Memo {
    /// Keeps at most so many bytes.
    pub fn new(bytes: u64) -> Self {
        let weigh = |_: &[u8; 32], text: &Arc<[u8]>| u32::try_from(text.len() + ENTRY_COST).unwrap_or(u32::MAX);
        let kept = Cache::builder().max_capacity(bytes).weigher(weigh).build();
        Self { kept, texts: Gauge::default(), bytes: Gauge::default() }
    }

    /// The text that was made from the same.
    pub fn get(&self, key: &[u8; 32]) -> Option<String> {
        let mut text = String::new();
        DeflateDecoder::new(&*self.kept.get(key)?).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Remembers a text, behind the answer.
    pub fn keep(&self, key: [u8; 32], text: &str) {
        let (memo, text) = (self.clone(), text.to_owned());
        tokio::task::spawn_blocking(move || memo.pack(key, &text));
    }

    fn pack(&self, key: [u8; 32], text: &str) {
        let mut packed = DeflateEncoder::new(Vec::new(), Compression::fast());
        // Writing to memory does not fail.
        if let Ok(packed) = packed.write_all(text.as_bytes()).and_then(|()| packed.finish()) {
            self.kept.insert(key, packed.into());
            self.kept.run_pending_tasks();
            self.texts.set(self.kept.entry_count().cast_signed());
            self.bytes.set(self.kept.weighted_size().cast_signed());
        }
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
        let (path, metadata) = found(program)?;
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

/// The file of a program, looked for as a shell does.
fn found(program: &Path) -> Option<(PathBuf, std::fs::Metadata)> {
    let is_name = program.components().count() == 1 && !program.is_absolute();
    let places: Vec<PathBuf> = if is_name {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).collect()
    } else {
        vec![program.to_owned()]
    };
    places.into_iter().find_map(|place| {
        let metadata = std::fs::metadata(&place).ok()?;
        metadata.is_file().then_some((place, metadata))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_whole_and_bytes_are_bounded() {
        let memo = Memo::new(4000);
        let text = "kind: Deployment\n".repeat(1000);
        memo.pack([1; 32], &text);
        assert_eq!(memo.get(&[1; 32]).as_deref(), Some(text.as_str()));
        assert_eq!(memo.get(&[2; 32]), None);
        for number in 0..100 {
            memo.pack([number; 32], &format!("{number}{text}"));
        }
        assert!(memo.bytes.get() <= 4000 && memo.texts.get() > 0, "{memo:?}");
        let none = Memo::new(0);
        none.pack([1; 32], &text);
        assert_eq!(none.get(&[1; 32]), None);
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
