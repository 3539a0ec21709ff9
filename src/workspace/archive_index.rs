//! A checkout that was not unpacked: an index of its entries, and the tar that they came in, in one nameless file.
//!
//! Writing 20,000 files is what makes an archive slow; writing one is not. Nothing is lost by it: whatever a render turns out to read
//! is still there ([`super::lazy_checkout`]).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

/// Links that are followed on the way to one path, as Linux does.
const MAX_LINKS: usize = 40;

/// Directories above an entry. Removing a directory takes a file descriptor for each of them, of which a process may have 1024.
const MAX_DEPTH: usize = 256;

/// Bytes of names that are gone along while entries are added. An archive that is written without links in its entries' names stays far
/// below; of the others, a few kilobytes could say what takes hours.
const MAX_WALKED: u64 = 1 << 30;

/// What an entry costs besides its name, about, in bytes.
const ENTRY_COST: u64 = 96;

/// A path from the checkout's root, without `.`, `..` and slashes at its ends. The root is the empty name.
pub type Name = Box<[u8]>;

/// One thing of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Directory,
    /// Where its bytes stand, and how many; the permissions of the archive.
    File {
        at: u64,
        bytes: u64,
        mode: u32,
    },
    /// What it leads to. Never outside: a name of the root's, not a path.
    Link {
        target: Name,
    },
}

/// Why an entry cannot stand where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// A file or a dangling link stands where a directory is needed.
    NoDirectory,
    /// A directory stands there.
    Directory,
    /// Links were followed further than all entries together may.
    TooFar,
    /// Too many directories stand above it.
    TooDeep,
}

/// All entries, and a file in which the bytes of theirs stand.
#[derive(Debug)]
pub struct ArchiveIndex {
    entries: BTreeMap<Name, Entry>,
    contents: File,
    /// Bytes of the contents.
    bytes: u64,
    /// Bytes of all names.
    names: u64,
    /// Bytes of names that were gone along.
    walked: u64,
}

impl ArchiveIndex {
    /// An empty one, whose files' bytes are in `contents`.
    pub fn new(contents: File) -> Self {
        Self { entries: BTreeMap::new(), contents, bytes: 0, names: 0, walked: 0 }
    }

    /// Counts so many bytes of contents as its own.
    pub(super) fn holding(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// What it costs to keep, in bytes of disk and memory.
    pub fn cost(&self) -> u64 {
        self.bytes + self.names + self.entries.len() as u64 * ENTRY_COST
    }

    /// How many entries there are, and how many bytes their names and their links' targets have.
    pub fn size(&self) -> (usize, u64) {
        (self.entries.len(), self.names)
    }

    /// An entry by its name.
    pub fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Everything below a directory, parents first.
    pub fn below(&self, directory: &[u8]) -> impl Iterator<Item = (&[u8], &Entry)> {
        // `0` is what follows `/`.
        let (from, to) = match directory {
            [] => (Bound::Unbounded, Bound::Unbounded),
            name => (Bound::Excluded([name, b"/"].concat()), Bound::Excluded([name, b"0"].concat())),
        };
        let range = (from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice));
        self.entries.range::<[u8], _>(range).map(|(name, entry)| (&**name, entry))
    }

    /// Reads a file's bytes, from an offset in it.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.contents.read_exact_at(buffer, at)
    }

    /// Adds a file, of which `bytes` bytes stand at `at` in the contents.
    pub(super) fn add_file(&mut self, name: &[u8], at: u64, bytes: u64, mode: u32) -> Result<(), EntryError> {
        self.add(name, Entry::File { at, bytes, mode })
    }

    /// Adds a link or replaces what stood there.
    pub(super) fn add_link(&mut self, name: &[u8], target: Name) -> Result<(), EntryError> {
        self.names += target.len() as u64;
        self.add(name, Entry::Link { target })
    }

    /// Adds a directory, and those above it. Returns its real name, links on the way followed.
    pub(super) fn add_directory(&mut self, name: &[u8]) -> Result<Name, EntryError> {
        // Most entries stand beside the one before.
        if self.entries.get(name) == Some(&Entry::Directory) {
            return Ok(name.into());
        }
        let mut real: Vec<u8> = Vec::new();
        for part in parts(name) {
            let next = joined(&real, part);
            self.walked += next.len() as u64;
            if self.walked > MAX_WALKED {
                return Err(EntryError::TooFar);
            }
            real = match self.entries.get(&*next) {
                Some(Entry::Directory) => next,
                Some(Entry::File { .. }) => return Err(EntryError::NoDirectory),
                Some(Entry::Link { .. }) => {
                    let room = MAX_WALKED - self.walked;
                    let mut walked = 0;
                    let found = self.follow(&next, &mut within(room, &mut walked)).map_err(|_| EntryError::TooFar)?;
                    self.walked += walked;
                    let found = found.ok_or(EntryError::NoDirectory)?;
                    match self.entries.get(&*found) {
                        None | Some(Entry::Directory) => found.into_vec(),
                        Some(_) => return Err(EntryError::NoDirectory),
                    }
                }
                None => {
                    if next.iter().filter(|byte| **byte == b'/').count() >= MAX_DEPTH {
                        return Err(EntryError::TooDeep);
                    }
                    self.names += next.len() as u64;
                    self.entries.insert(next.clone().into(), Entry::Directory);
                    next
                }
            };
        }
        Ok(real.into())
    }

    fn add(&mut self, name: &[u8], entry: Entry) -> Result<(), EntryError> {
        let cut = name.iter().rposition(|byte| *byte == b'/');
        let (parent, own) = cut.map_or((&[][..], name), |cut| (&name[..cut], &name[cut + 1..]));
        let parent = self.add_directory(parent)?;
        let name = joined(&parent, own);
        match self.entries.get(&*name) {
            Some(Entry::Directory) => return Err(EntryError::Directory),
            Some(_) => {}
            None => self.names += name.len() as u64,
        }
        self.entries.insert(name.into(), entry);
        Ok(())
    }

    /// Goes to a path (relative to the root) as Linux goes there: part by part, each link followed when it is met. Visits what is on the
    /// way, and what stands there; returns its name. `None` if nothing stands there.
    ///
    /// # Errors
    ///
    /// Those of `visit`.
    pub fn follow(&self, path: &[u8], visit: &mut dyn FnMut(&[u8], &Entry) -> io::Result<()>) -> io::Result<Option<Name>> {
        let mut real: Vec<u8> = Vec::new();
        let mut is_file = false;
        let mut waiting: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = waiting.pop() {
            if is_file {
                return Ok(None);
            }
            if part == b".." {
                let Some(_) = real.pop() else { return Ok(None) };
                real.truncate(real.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let next = joined(&real, &part);
            let Some(entry) = self.entries.get(&*next) else { return Ok(None) };
            visit(&next, entry)?;
            match entry {
                Entry::Directory => real = next,
                Entry::File { .. } => (real, is_file) = (next, true),
                Entry::Link { target } => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    waiting.extend(parts(target).rev().map(<[u8]>::to_vec));
                    real.clear();
                }
            }
        }
        Ok(Some(real.into()))
    }
}

/// A visit that ends the way when it has become too long: `walked` counts the bytes of names and targets.
pub(super) fn within(room: u64, walked: &mut u64) -> impl FnMut(&[u8], &Entry) -> io::Result<()> {
    move |name, entry| {
        let target = if let Entry::Link { target } = entry { target.len() } else { 0 };
        *walked += (name.len() + target) as u64;
        if *walked > room { Err(io::Error::other("links lead on and on")) } else { Ok(()) }
    }
}

/// The parts of a path. `..` is one of them, `.` is none.
fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    Path::new(OsStr::from_bytes(path)).components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.as_bytes()),
        Component::ParentDir => Some(&b".."[..]),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    })
}

fn joined(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent {
        [] => name.to_vec(),
        parent => [parent, b"/", name].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a/b/file`, `top -> a`, `a/up -> top/b` and a loop.
    fn pack() -> ArchiveIndex {
        let mut pack = ArchiveIndex::new(tempfile::tempfile().expect("a file"));
        pack.add_file(b"a/b/file", 0, 3, 0o644).expect("placed");
        pack.add_link(b"top", Name::from(*b"a")).expect("placed");
        pack.add_link(b"a/up", Name::from(*b"top/b")).expect("placed");
        pack.add_link(b"loop", Name::from(*b"loop/x")).expect("placed");
        pack.add_file(b"a!", 0, 0, 0o644).expect("placed");
        pack
    }

    fn found(path: &str) -> Option<String> {
        let found = pack().follow(path.as_bytes(), &mut |_, _| Ok(())).expect("no disk is used");
        found.map(|name| String::from_utf8(name.into_vec()).expect("text"))
    }

    #[test]
    fn paths_are_followed_as_linux_does() {
        for (path, expected) in [
            ("", Some("")),
            ("./a//b/", Some("a/b")),
            ("top/b/file", Some("a/b/file")),
            ("a/up/file", Some("a/b/file")),
            // Where the link leads, and not where it stands.
            ("a/up/../b", Some("a/b")),
            ("a/b/../..", Some("")),
            ("a/b/../../..", None),
            ("a/b/file/..", None),
            ("a/missing", None),
            ("loop", None),
        ] {
            assert_eq!(found(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn links_do_not_lead_on_and_on() {
        let deep = ["long-directory"; 250].join("/").into_bytes();
        let mut pack = ArchiveIndex::new(tempfile::tempfile().expect("a file"));
        pack.add_directory(&deep).expect("placed");
        pack.add_directory(b"e").expect("placed");
        for number in 0..35 {
            let target = [&deep[..], format!("/{}", number + 1).as_bytes()].concat();
            pack.add_link(&[&deep[..], format!("/{number}").as_bytes()].concat(), target.into()).expect("placed");
        }
        pack.add_link(&[&deep[..], b"/35"].concat(), Name::from(*b"e")).expect("placed");
        for link in [&b"s"[..], b"e/s"] {
            pack.add_link(link, [&deep[..], b"/0"].concat().into()).expect("placed");
        }
        // Each part goes along 9,000 names.
        assert_eq!(pack.add_directory(["s"; 2000].join("/").as_bytes()), Err(EntryError::TooFar));
    }

    #[test]
    fn directories_go_only_so_deep() {
        let mut pack = ArchiveIndex::new(tempfile::tempfile().expect("a file"));
        let deep = ["d"; MAX_DEPTH].join("/").into_bytes();
        pack.add_file(&[&deep[..], b"/file"].concat(), 0, 0, 0o644).expect("placed");
        pack.add_link(b"link", deep.into()).expect("placed");
        assert_eq!(pack.add_directory(b"link/d"), Err(EntryError::TooDeep));
    }

    #[test]
    fn what_is_below_a_directory_is_that_alone() {
        let names = |directory: &[u8]| {
            pack().below(directory).map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(b"a"), ["a/b", "a/b/file", "a/up"]);
        assert_eq!(names(b"a/b"), ["a/b/file"]);
        assert_eq!(names(b"").len(), 7);
    }

    #[test]
    fn entries_stand_where_links_lead() {
        let mut pack = pack();
        pack.add_file(b"top/b/more", 0, 1, 0o644).expect("through a link");
        assert!(pack.get(b"a/b/more").is_some());
        assert_eq!(pack.add_file(b"a/b", 0, 1, 0o644), Err(EntryError::Directory));
        assert_eq!(pack.add_file(b"a/b/file/x", 0, 1, 0o644), Err(EntryError::NoDirectory));
        assert_eq!(pack.add_file(b"loop/x", 0, 1, 0o644), Err(EntryError::NoDirectory));
        assert_eq!(pack.add_directory(b"a/b/file"), Err(EntryError::NoDirectory));
        // A file takes a link's place.
        pack.add_file(b"a/up", 0, 1, 0o644).expect("replaced");
        assert!(matches!(pack.get(b"a/up"), Some(Entry::File { .. })));
    }
}
