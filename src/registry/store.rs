//! What is known of registries, on disk: the last known good pins, and what never changes.
//!
//! Survives restarts and outages (P3). A file a repository and credential holds the last complete listing, each tag's last digest and
//! the metadata of each digest; a file a question holds the last pin. Files are JSON, replaced atomically under one lock, so that a
//! kill at any moment leaves the old or the new one, and two processes lose nothing of each other's. They are read as strictly as
//! network input: a damaged one is set aside and reported, never fatal. A store that cannot be written is reported once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::metadata::text;
use super::{Content, ImageConfig, Listing, Manifest};
use crate::image::Digest;
use crate::pin::Considered;

/// Longest file that is read, in bytes. 100,000 tags with their metadata take about 40 MB.
const MAX_FILE: u64 = 128 * 1024 * 1024;

/// Files of one kind; past this the longest unused are removed.
const MAX_FILES: usize = 20_000;

/// Longest wait for the lock.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// What is known of one repository by one credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Repository and credential, to tell a clash of names.
    pub key: String,
    pub listing: Option<Dated<Listing>>,
    /// By tag, what it pointed at when it was last asked.
    #[serde(default)]
    pub tags: BTreeMap<String, Dated<StoredDigest>>,
    /// By digest.
    #[serde(default)]
    pub manifests: BTreeMap<String, Manifest>,
    /// By digest.
    #[serde(default)]
    pub configs: BTreeMap<String, ImageConfig>,
}

/// Something with the time at which it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dated<T> {
    pub at: Timestamp,
    pub value: T,
}

/// A digest as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoredDigest(#[serde(with = "text")] pub Digest);

/// The last answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPin {
    /// The question, to tell a clash of names.
    pub key: String,
    /// `tag[@digest]`.
    pub pin: String,
    pub created: Option<Timestamp>,
    /// When the listing was read that it was chosen from.
    pub at: Timestamp,
    pub considered: Option<Considered>,
}

impl Known {
    /// Takes over what `other` knows better: what is newer, and what this does not know. What lies in the future was written by a clock
    /// that was wrong.
    fn merge(&mut self, other: Self) {
        let now = Timestamp::now();
        let own = self.listing.as_ref().map(|listing| listing.at).filter(|at| *at <= now);
        if other.listing.as_ref().map(|listing| listing.at) > own {
            self.listing = other.listing;
        }
        for (tag, digest) in other.tags {
            match self.tags.get(&tag) {
                Some(own) if own.at >= digest.at && own.at <= now => {}
                _ => drop(self.tags.insert(tag, digest)),
            }
        }
        other.manifests.into_iter().for_each(|(digest, manifest)| drop(self.manifests.insert(digest, manifest)));
        other.configs.into_iter().for_each(|(digest, config)| drop(self.configs.insert(digest, config)));
    }

    /// Forgets tags that are no longer listed, and metadata that no remaining tag leads to.
    fn prune(&mut self) {
        let Some(listing) = &self.listing else { return };
        let is_listed = |tag: &str| listing.value.tags.binary_search_by(|listed| listed.tag.as_str().cmp(tag)).is_ok();
        // Moving tags leave manifests behind that no tag leads to; indexes have several each.
        if self.tags.keys().all(|tag| is_listed(tag)) && self.manifests.len() <= 16 * self.tags.len() + 100 {
            return;
        }
        self.tags.retain(|tag, _| is_listed(tag));
        let mut reached: Vec<&str> = self.tags.values().map(|digest| digest.value.0.as_str()).collect();
        let mut kept = std::collections::BTreeSet::new();
        while let Some(digest) = reached.pop() {
            if kept.insert(digest.to_owned())
                && let Some(manifest) = self.manifests.get(digest)
            {
                match &manifest.content {
                    Content::Index { entries, .. } => reached.extend(entries.iter().map(|entry| entry.digest.as_str())),
                    Content::Image { config, .. } => reached.push(config.digest.as_str()),
                    Content::Other { .. } => {}
                }
            }
        }
        self.manifests.retain(|digest, _| kept.contains(digest));
        self.configs.retain(|digest, _| kept.contains(digest));
    }
}

/// The directory of the store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    has_warned: AtomicBool,
}

#[derive(Clone, Copy)]
enum Section {
    Repositories,
    Pins,
}

impl Section {
    fn name(self) -> &'static str {
        match self {
            Self::Repositories => "repositories",
            Self::Pins => "pins",
        }
    }
}

impl Store {
    /// A store in this directory, which is made when something is written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), has_warned: AtomicBool::new(false) }
    }

    /// What is known under a key.
    pub fn known(&self, key: &str) -> Option<Known> {
        self.read(Section::Repositories, key).filter(|known: &Known| known.key == key)
    }

    /// The last pin of a question.
    pub fn pin(&self, key: &str) -> Option<StoredPin> {
        self.read(Section::Pins, key).filter(|pin: &StoredPin| pin.key == key && pin.pin.parse::<crate::pin::Pinned>().is_ok())
    }

    /// Adds to what is known.
    pub fn learn(&self, learned: Known) {
        let key = learned.key.clone();
        self.update(Section::Repositories, &key, |stored: Option<Known>| {
            let mut known =
                stored.filter(|known| known.key == key).unwrap_or_else(|| Known { key: key.clone(), ..Known::default() });
            known.merge(learned);
            known.prune();
            Some(known)
        });
    }

    /// Keeps a pin, unless a newer one is kept already.
    pub fn keep(&self, pin: StoredPin) {
        let key = pin.key.clone();
        self.update(Section::Pins, &key, |stored: Option<StoredPin>| match stored {
            Some(stored) if stored.key == pin.key && stored.at > pin.at && stored.at <= Timestamp::now() => None,
            _ => Some(pin),
        });
    }

    fn path(&self, section: Section, key: &str) -> PathBuf {
        let digest = Digest::of(key.as_bytes());
        let name = digest.as_str().trim_start_matches("sha256:");
        self.root.join("v1").join(section.name()).join(name).with_extension("json")
    }

    fn read<T: DeserializeOwned>(&self, section: Section, key: &str) -> Option<T> {
        let path = self.path(section, key);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        let problem = match read {
            Ok(_) => match serde_json::from_str(&text) {
                Ok(value) => return Some(value),
                Err(error) => error.to_string(),
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
            Err(error) => {
                // Perhaps there were too many open files for a moment: the file may be whole.
                tracing::warn!(file = %path.display(), %error, "a file of the store cannot be read");
                return None;
            }
        };
        let aside = path.with_extension("damaged");
        let moved = fs::rename(&path, &aside).is_ok();
        tracing::warn!(file = %path.display(), %problem, set_aside = moved, "a file of the store is damaged");
        None
    }

    fn update<T: Serialize + DeserializeOwned>(&self, section: Section, key: &str, change: impl FnOnce(Option<T>) -> Option<T>) {
        if let Err(error) = self.try_update(section, key, change)
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(store = %self.root.display(), %error, "the store cannot be written: pins will not survive an outage");
        }
    }

    fn try_update<T: Serialize + DeserializeOwned>(
        &self,
        section: Section,
        key: &str,
        change: impl FnOnce(Option<T>) -> Option<T>,
    ) -> io::Result<()> {
        let path = self.path(section, key);
        let dir = path.parent().expect("a file of the store has a parent");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // Not blocking, whatever somebody put in its place.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags);
        let lock = options.open(self.root.join("v1/lock"))?;
        wait_for(&lock)?;
        let is_new = !path.exists();
        // What is there but cannot be read is not replaced by less.
        if !is_new {
            File::open(&path)?;
        }
        let Some(value) = change(self.read(section, key)) else { return Ok(()) };
        if is_new {
            make_room(dir)?;
        }
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        write(file.as_file_mut(), &value)?;
        file.persist(&path)?;
        Ok(())
    }
}

/// Writes a value as JSON, to the last byte: a buffer that is dropped tells nobody that the disk is full.
fn write(file: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut buffer = io::BufWriter::new(file);
    serde_json::to_writer(&mut buffer, value)?;
    buffer.flush()
}

/// Takes the lock, which others hold for moments; a stopped process must not stop everybody.
fn wait_for(lock: &File) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if started.elapsed() < MAX_WAIT => std::thread::sleep(Duration::from_millis(5)),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds the lock"));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Removes what was longest unused when a directory is full, and what a killed process left behind.
fn make_room(dir: &Path) -> io::Result<()> {
    make_room_for(dir, MAX_FILES)
}

fn make_room_for(dir: &Path, most: usize) -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(dir)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    let hour = std::time::Duration::from_secs(3600);
    files.retain(|(time, path)| {
        let is_left = path.extension().is_none_or(|end| end != "json") && time.elapsed().is_ok_and(|age| age > hour);
        !(is_left && fs::remove_file(path).is_ok())
    });
    if files.len() >= most {
        files.sort();
        let surplus = files.len() - most + most / 10 + 1;
        files.iter().take(surplus).for_each(|(_, path)| drop(fs::remove_file(path)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Listed;

    fn pin(key: &str, tag: &str, second: i64) -> StoredPin {
        let at = Timestamp::from_second(second).expect("a time");
        StoredPin { key: key.into(), pin: tag.into(), created: None, at, considered: None }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path().join("store"));
        (dir, store)
    }

    /// A disk with room for so many bytes.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.0);
            self.0 -= count;
            if count == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_an_empty_file() {
        let pin = pin("a", "1.1", 20);
        let length = serde_json::to_vec(&pin).expect("JSON").len();
        for room in 0..length {
            assert!(write(&mut Disk(room), &pin).is_err(), "{room} of {length} bytes");
        }
        assert!(write(&mut Disk(length), &pin).is_ok());
    }

    #[test]
    fn what_lies_in_the_future_is_replaced() {
        let (_dir, store) = store();
        let tag = |name: &str, second| {
            let at = Timestamp::from_second(second).expect("a time");
            let listed = |name: &str| Listed { tag: name.parse().expect("a tag"), digest: None, created: None, position: None };
            let digest = StoredDigest(Digest::of(name.as_bytes()));
            let listing = Dated { at, value: Listing { tags: vec![listed(name), listed("latest")], ..Listing::default() } };
            let tags = BTreeMap::from([("latest".to_owned(), Dated { at, value: digest })]);
            Known { key: "r".into(), listing: Some(listing), tags, ..Known::default() }
        };
        store.learn(tag("1.0.0", 9_000_000_000));
        store.learn(tag("1.1.0", 1_700_000_000));
        let known = store.known("r").expect("known");
        assert_eq!(known.listing.expect("a listing").value.tags[0].tag.as_str(), "1.1.0");
        assert_eq!(known.tags["latest"].value.0, Digest::of(b"1.1.0"));
        store.learn(tag("1.0.0", 1_600_000_000));
        assert_eq!(store.known("r").expect("known").listing.expect("a listing").value.tags[0].tag.as_str(), "1.1.0");
    }

    #[test]
    fn the_newest_pin_is_kept() {
        let (_dir, store) = store();
        assert_eq!(store.pin("a"), None);
        store.keep(pin("a", "1.1", 20));
        store.keep(pin("a", "1.0", 10));
        assert_eq!(store.pin("a"), Some(pin("a", "1.1", 20)));
        store.keep(pin("a", "1.2", 30));
        assert_eq!(store.pin("a").expect("kept").pin, "1.2");
        assert_eq!(store.pin("b"), None);
    }

    #[test]
    fn what_is_learned_is_merged() {
        let (_dir, store) = store();
        let digest = |text: &str| Digest::of(text.as_bytes());
        let tag = |name: &str, text: &str, second: i64| {
            let at = Timestamp::from_second(second).expect("a time");
            (name.to_owned(), Dated { at, value: StoredDigest(digest(text)) })
        };
        let config = |text: &str| (digest(text).to_string(), ImageConfig { platform: None, created: None });
        let learned = |tags, configs| Known { key: "r".into(), tags, configs, ..Known::default() };
        store.learn(learned(BTreeMap::from([tag("a", "old", 1), tag("b", "b", 1)]), BTreeMap::from([config("x")])));
        store.learn(learned(BTreeMap::from([tag("a", "new", 2)]), BTreeMap::from([config("y")])));
        store.learn(learned(BTreeMap::from([tag("a", "older", 0)]), BTreeMap::new()));
        let known = store.known("r").expect("learned");
        assert_eq!(known.tags, BTreeMap::from([tag("a", "new", 2), tag("b", "b", 1)]));
        assert_eq!(known.configs.len(), 2);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let (_dir, store) = store();
        store.keep(pin("a", "1.1", 20));
        let path = store.path(Section::Pins, "a");
        for damage in ["", "{\"key\":\"a\"", "{\"key\":\"a\",\"pin\":\"1\",\"created\":null,\"at\":\"x\",\"considered\":null}"] {
            fs::write(&path, damage).expect("written");
            assert_eq!(store.pin("a"), None, "{damage}");
            assert!(!path.exists() && path.with_extension("damaged").exists());
        }
        store.keep(pin("a", "1.2", 30));
        assert_eq!(store.pin("a").expect("kept").pin, "1.2");
    }

    #[test]
    fn a_pin_that_is_no_tag_is_not_believed() {
        let (_dir, store) = store();
        store.keep(pin("a", "../../x", 20));
        assert_eq!(store.pin("a"), None);
    }

    #[test]
    fn a_store_that_cannot_be_written_is_not_fatal() {
        let store = Store::new("/proc/nothing/here");
        store.keep(pin("a", "1.1", 20));
        assert_eq!(store.pin("a"), None);
    }

    #[test]
    fn what_stands_in_the_locks_place_stops_nobody() {
        let (dir, store) = store();
        let lock = dir.path().join("store/v1/lock");
        fs::create_dir_all(lock.parent().expect("a parent")).expect("made");
        rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a pipe");
        store.keep(pin("a", "1.1", 20));
        assert_eq!(store.pin("a"), None);
        fs::remove_file(&lock).expect("removed");
        let held = File::create(&lock).expect("a lock");
        held.lock().expect("locked");
        let started = Instant::now();
        store.keep(pin("a", "1.1", 20));
        assert!(started.elapsed() >= MAX_WAIT && store.pin("a").is_none());
    }

    #[test]
    fn files_are_for_this_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, store) = store();
        store.keep(pin("a", "1.1", 20));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let path = store.path(Section::Pins, "a");
        assert_eq!((mode(&path), mode(path.parent().expect("a directory"))), (0o600, 0o700));
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        for number in 0..30 {
            fs::write(dir.path().join(format!("{number}.json")), "{}").expect("written");
        }
        make_room_for(dir.path(), 20).expect("room");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 17);
    }

    #[test]
    fn writers_do_not_lose_each_others_knowledge() {
        let (_dir, store) = store();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..25 {
                        let digest = Digest::of(format!("{writer}-{number}").as_bytes());
                        let configs = BTreeMap::from([(digest.to_string(), ImageConfig { platform: None, created: None })]);
                        store.learn(Known { key: "r".into(), configs, ..Known::default() });
                    }
                });
            }
        });
        assert_eq!(store.known("r").expect("learned").configs.len(), 100);
    }
}
