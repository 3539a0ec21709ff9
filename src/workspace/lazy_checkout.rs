//! Writes out what a render reads of an [`ArchiveIndex`], and no more: a private directory that fills as paths are asked for.
//!
//! The directory belongs to one request, so that what stands in it is all that its render can have read: [`LazyCheckout::digest`]
//! covers it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::archive_index::{ArchiveIndex, Entry, Name, within};

/// Bytes of names that one request may go along. Its own are megabytes at most.
const MAX_WALKED: u64 = 1 << 30;

/// A part of a checkout, on disk until its last user is gone.
#[derive(Debug)]
pub struct LazyCheckout {
    pack: Arc<ArchiveIndex>,
    dir: Option<TempDir>,
    root: PathBuf,
    /// Files get the archive's permissions instead of 0644.
    keep_modes: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What stands on disk, with what tells two of that name apart.
    written: BTreeMap<Name, [u8; 32]>,
    /// Directories of which everything stands there.
    whole: BTreeSet<Name>,
    /// Bytes of names that were gone along.
    walked: u64,
}

impl LazyCheckout {
    /// An empty one. `dir` is this request's own.
    ///
    /// # Errors
    ///
    /// When the directory is not there.
    pub fn new(pack: Arc<ArchiveIndex>, dir: TempDir, keep_modes: bool) -> io::Result<Self> {
        let root = std::fs::canonicalize(dir.path())?;
        Ok(Self { pack, dir: Some(dir), root, keep_modes, state: Mutex::default() })
    }

    /// Where it stands: absolute, without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes what stands at a path (relative to the root): the links on the way, and the file or the directory, empty. Nothing where
    /// nothing stands.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn extract(&self, path: &Path) -> io::Result<()> {
        self.state(|state| self.write_path(state, path.as_os_str().as_bytes()).map(drop))
    }

    /// Writes a directory with all below it, and all that links in it lead to. Returns how many entries are new.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn extract_tree(&self, directory: &Path) -> io::Result<usize> {
        self.state(|state| {
            let before = state.written.len();
            let mut seen = BTreeSet::new();
            let mut waiting: Vec<Name> = self.write_path(state, directory.as_os_str().as_bytes())?.into_iter().collect();
            while let Some(directory) = waiting.pop() {
                if !seen.insert(directory.clone()) || state.whole.contains(&directory) {
                    continue;
                }
                for (name, entry) in self.pack.below(&directory) {
                    self.write(state, name, entry)?;
                    if let Entry::Link { target } = entry {
                        waiting.extend(self.write_path(state, target)?);
                    }
                }
            }
            // Whole only now: after an error it is tried again.
            state.whole.append(&mut seen);
            Ok(state.written.len() - before)
        })
    }

    /// Does a link stand on disk?
    pub fn has_links(&self) -> bool {
        let is_link = |name: &Name| matches!(self.pack.get(name), Some(Entry::Link { .. }));
        self.state(|state| state.written.keys().any(is_link))
    }

    /// A digest of everything that stands on disk: names, kinds, permissions, contents.
    pub fn digest(&self) -> [u8; 32] {
        self.state(|state| {
            let mut all = Sha256::new();
            for (name, one) in &state.written {
                all.update((name.len() as u64).to_be_bytes());
                all.update(name);
                all.update(one);
            }
            all.finalize().into()
        })
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the name of the directory that stands there, if one does.
    fn write_path(&self, state: &mut State, path: &[u8]) -> io::Result<Option<Name>> {
        let mut walked = state.walked;
        let mut walk = within(MAX_WALKED, &mut walked);
        let found = self.pack.follow(path, &mut |name, entry| {
            walk(name, entry)?;
            self.write(state, name, entry)
        })?;
        drop(walk);
        state.walked = walked;
        Ok(found.filter(|name| name.is_empty() || self.pack.get(name) == Some(&Entry::Directory)))
    }

    /// Writes one entry, whose directory stands there.
    fn write(&self, state: &mut State, name: &[u8], entry: &Entry) -> io::Result<()> {
        if state.written.contains_key(name) {
            return Ok(());
        }
        let path = self.root.join(OsStr::from_bytes(name));
        let mut hash = Sha256::new();
        match entry {
            Entry::Directory => {
                hash.update(b"directory");
                DirBuilder::new().mode(0o755).create(&path)?;
            }
            Entry::Link { target } => {
                hash.update(b"link ");
                hash.update(target);
                symlink(way(Path::new(OsStr::from_bytes(name)), Path::new(OsStr::from_bytes(target))), &path)?;
            }
            Entry::File { at, bytes, mode } => {
                let mode = if self.keep_modes { *mode } else { 0o644 };
                hash.update(format!("file {mode} "));
                let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
                let mut buffer = vec![0; usize::try_from(*bytes).unwrap_or(usize::MAX).min(60 * 1024)];
                let mut done = 0;
                while done < *bytes {
                    let count = usize::try_from(*bytes - done).unwrap_or(usize::MAX).min(buffer.len());
                    self.pack.read(at + done, &mut buffer[..count])?;
                    hash.update(&buffer[..count]);
                    file.write_all(&buffer[..count])?;
                    done += count as u64;
                }
            }
        }
        state.written.insert(name.into(), hash.finalize().into());
        Ok(())
    }
}

impl Drop for LazyCheckout {
    /// Removes the directory, behind the answer where there is a runtime.
    fn drop(&mut self) {
        let dir = self.dir.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(dir));
        }
    }
}

/// The text of a link: the way from its directory to its target, both from the same root.
pub(super) fn way(link: &Path, target: &Path) -> PathBuf {
    let from = link.parent().unwrap_or(Path::new(""));
    let shared = from.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| "..".as_ref());
    let way: PathBuf = up.chain(target.components().skip(shared).map(Component::as_os_str)).collect();
    if way.as_os_str().is_empty() { ".".into() } else { way }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn materialised() -> LazyCheckout {
        let mut contents = tempfile::tempfile().expect("a file");
        contents.write_all(b"chartsharedother").expect("written");
        let mut pack = ArchiveIndex::new(contents);
        pack.add_file(b"app/Chart.yaml", 0, 5, 0o755).expect("placed");
        pack.add_file(b"lib/deep/shared", 5, 6, 0o644).expect("placed");
        pack.add_file(b"other/big", 11, 5, 0o644).expect("placed");
        pack.add_link(b"app/lib", Name::from(*b"hop")).expect("placed");
        pack.add_link(b"hop", Name::from(*b"lib/deep")).expect("placed");
        pack.add_link(b"lib/deep/back", Name::from(*b"app")).expect("placed");
        pack.add_link(b"app/dangling", Name::from(*b"nothing")).expect("placed");
        LazyCheckout::new(Arc::new(pack), tempfile::tempdir().expect("a directory"), false).expect("made")
    }

    fn list(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut waiting = vec![root.to_owned()];
        while let Some(dir) = waiting.pop() {
            for entry in fs::read_dir(dir).expect("listed").flatten() {
                found.push(entry.path().strip_prefix(root).expect("below").display().to_string());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    waiting.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn one_path_brings_what_is_on_the_way_to_it() {
        let tree = materialised();
        tree.extract(Path::new("app/lib/shared")).expect("written");
        assert_eq!(list(tree.root()), ["app", "app/lib", "hop", "lib", "lib/deep", "lib/deep/shared"]);
        assert_eq!(fs::read_to_string(tree.root().join("app/lib/shared")).expect("through both links"), "shared");
        tree.extract(Path::new("app/missing/x")).expect("nothing to write");
        tree.extract(Path::new("app/../other")).expect("written");
        assert_eq!(list(tree.root()).len(), 7);
    }

    #[test]
    fn a_directory_brings_what_its_links_lead_to() {
        let tree = materialised();
        assert_eq!(tree.extract_tree(Path::new("app")).expect("written"), 9);
        assert_eq!(fs::read_to_string(tree.root().join("app/lib/back/Chart.yaml")).expect("round and round"), "chart");
        assert!(!tree.root().join("other").exists() && tree.root().join("app/dangling").is_symlink());
        assert_eq!(tree.extract_tree(Path::new("app")).expect("written"), 0);
        assert_eq!(tree.extract_tree(Path::new("")).expect("written"), 2);
        let mode = |path: &str| fs::metadata(tree.root().join(path)).expect("there").permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode("app/Chart.yaml")) & 0o777, 0o644);
    }

    #[test]
    fn the_digest_is_that_of_what_was_written() {
        let (one, other) = (materialised(), materialised());
        let empty = one.digest();
        one.extract_tree(Path::new("app")).expect("written");
        assert_ne!(one.digest(), empty);
        for path in ["app", "lib/deep", "hop"] {
            other.extract_tree(Path::new(path)).expect("written");
        }
        assert_eq!(one.digest(), other.digest(), "the order does not matter");
        other.extract(Path::new("other/big")).expect("written");
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn links_do_not_lead_on_and_on() {
        let deep = ["long-directory"; 250].join("/").into_bytes();
        let mut pack = ArchiveIndex::new(tempfile::tempfile().expect("a file"));
        for number in 0..38 {
            let target = [&deep[..], format!("/{}", number + 1).as_bytes()].concat();
            pack.add_link(&[&deep[..], format!("/{number}").as_bytes()].concat(), target.into()).expect("placed");
        }
        for number in 0..100 {
            pack.add_link(format!("s{number}").as_bytes(), [&deep[..], b"/0"].concat().into()).expect("placed");
        }
        let tree = LazyCheckout::new(Arc::new(pack), tempfile::tempdir().expect("a directory"), false).expect("made");
        // Each of them goes along 9,500 names.
        assert_eq!(tree.extract_tree(Path::new("")).expect_err("too far").to_string(), "links lead on and on");
    }

    #[test]
    fn it_goes_with_its_last_user() {
        let tree = materialised();
        let path = tree.root().to_owned();
        tree.extract_tree(Path::new("")).expect("written");
        drop(tree);
        assert!(!path.exists());
    }
}
