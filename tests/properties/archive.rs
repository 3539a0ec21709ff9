//! What holds for every archive, whoever wrote it. Bytes go in; a broken law is a panic.
//!
//! The bytes are a gzip, or a tar, or else a text of entries, one a line, which is what a mutation gets furthest with:
//!
//! ```text
//! f NAME CONTENT   a file (`c` as a continuous file, `o` in the oldest notation)
//! d NAME           a directory
//! l NAME TARGET    a symbolic link (`h` a hard link, `p` a pipe)
//! x KEY VALUE      a PAX record about the next entry (`g` about all of them)
//! N NAME           GNU's long name of the next entry
//! K TARGET         GNU's long target of the next entry
//! ```
//!
//! A `*` behind the letter repeats the last word fifty times.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use pinion::workspace::archive::{Bounds, read};
use pinion::workspace::archive_index::{ArchiveIndex, Entry};
use pinion::workspace::lazy_checkout::LazyCheckout;
use tar::{Archive, EntryType, Header};
use tempfile::TempDir;

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 200, names: 64 << 10 };

/// What an entry costs besides its name.
const COST: u64 = 96;

const BLOCK: usize = 512;

/// Reads an archive and lets renders look at it.
pub fn check(input: &[u8]) {
    let (archive, tar) = match input {
        [0x1f, 0x8b, ..] => (input.to_vec(), unzipped(input)),
        _ => {
            let is_tar = input.get(257..262) == Some(b"ustar");
            let tar = if is_tar { mended(input) } else { written(input) };
            (zipped(&tar), tar)
        }
    };
    let outside = Outside::new();
    let pack = match read(&*archive, outside.nameless(), BOUNDS) {
        Ok(pack) => Arc::new(pack),
        Err(error) => return assert!(error.to_string().len() < 2000, "a short message"),
    };
    assert!(pack.below(b"").count() <= BOUNDS.entries, "more entries than allowed");
    assert!(pack.cost() <= BOUNDS.bytes + BOUNDS.names + BOUNDS.entries as u64 * COST, "more memory than allowed");
    as_others_read_it(&pack, &tar);
    on_disk(&pack, &outside);
    outside.is_untouched();
}

/// Everything on disk is what the pack says, and nothing leads out; a part of it looks as it does in the whole.
fn on_disk(pack: &Arc<ArchiveIndex>, outside: &Outside) {
    let whole = outside.tree(pack);
    if let Err(error) = whole.extract_tree(Path::new("")) {
        return assert!(error.kind() == io::ErrorKind::InvalidFilename && has_long_names(pack, whole.root()), "{error}");
    }
    let names: Vec<&[u8]> = pack.below(b"").map(|(name, _)| name).collect();
    assert_eq!(listed(whole.root()), names.iter().map(|name| name.to_vec()).collect(), "other entries than those of the pack");
    for (name, entry) in pack.below(b"") {
        let path = at(whole.root(), name);
        let kind = path.symlink_metadata().expect("it was listed").file_type();
        match entry {
            Entry::Directory => assert!(kind.is_dir(), "{path:?} is no directory"),
            Entry::Link { .. } => assert!(kind.is_symlink(), "{path:?} is no link"),
            Entry::File { .. } => {
                assert!(kind.is_file(), "{path:?} is no file");
                assert_eq!(fs::read(&path).expect("a file"), content(pack, entry), "{path:?}");
            }
        }
        leads_alike(pack, &whole, name);
    }
    let links = pack.below(b"").filter(|(_, entry)| matches!(entry, Entry::Link { .. })).map(|(name, _)| name);
    for link in links.take(8) {
        for name in names.iter().take(16) {
            leads_alike(pack, &whole, &[link, b"/", name].concat());
            if found(&whole, link).is_some_and(|place| !place.is_empty()) {
                leads_alike(pack, &whole, &[link, b"/../", name].concat());
            }
        }
    }
    let is_directory = |name: &&&[u8]| pack.get(name) == Some(&Entry::Directory);
    let part = outside.tree(pack);
    for directory in [names.iter().find(is_directory), names.iter().rfind(is_directory)].into_iter().flatten() {
        part.extract_tree(Path::new(OsStr::from_bytes(directory))).expect("as the whole");
        for (name, entry) in pack.below(directory) {
            let place = found(&part, name);
            assert_eq!(place, found(&whole, name), "{:?} in a part", at(part.root(), name));
            if let (Some(place), Entry::Link { .. }) = (place, entry) {
                let behind = |tree: &LazyCheckout| listed(&at(tree.root(), &place));
                assert!(
                    !at(part.root(), &place).is_dir() || behind(&part) == behind(&whole),
                    "behind {:?}",
                    at(part.root(), name)
                );
            }
        }
    }
    let one = outside.tree(pack);
    for name in names.iter().rev().take(4) {
        one.extract(Path::new(OsStr::from_bytes(name))).expect("as the whole");
        assert_eq!(found(&one, name), found(&whole, name), "{:?} alone", at(one.root(), name));
    }
    part.extract_tree(Path::new("")).expect("as the whole");
    assert_eq!(part.digest(), whole.digest(), "the order of reading shows");
}

/// The pack goes where Linux goes.
fn leads_alike(pack: &ArchiveIndex, whole: &LazyCheckout, path: &[u8]) {
    let followed = pack.follow(path, &mut |_, _| Ok(())).expect("no disk is used");
    assert_eq!(followed.map(<[u8]>::into_vec), found(whole, path), "{:?}", at(whole.root(), path));
}

/// Where a path leads on disk, from the root.
fn found(tree: &LazyCheckout, path: &[u8]) -> Option<Vec<u8>> {
    let real = fs::canonicalize(at(tree.root(), path)).ok()?;
    let inside = real.strip_prefix(tree.root()).unwrap_or_else(|_| panic!("{:?} leads out to {real:?}", at(tree.root(), path)));
    Some(inside.as_os_str().as_bytes().to_vec())
}

fn at(root: &Path, name: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(name))
}

/// The names below a directory; links are not followed.
fn listed(directory: &Path) -> BTreeSet<Vec<u8>> {
    let mut names = BTreeSet::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).expect("a directory") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            names.insert(path.strip_prefix(directory).expect("below").as_os_str().as_bytes().to_vec());
            if entry.file_type().expect("a kind").is_dir() {
                waiting.push(path);
            }
        }
    }
    names
}

fn content(pack: &ArchiveIndex, entry: &Entry) -> Vec<u8> {
    let Entry::File { at, bytes, .. } = entry else { panic!("{entry:?} is no file") };
    let mut content = vec![0; usize::try_from(*bytes).expect("bounded")];
    pack.read(*at, &mut content).expect("it is there");
    content
}

/// Does anything go beyond what Linux takes as a name or a path?
fn has_long_names(pack: &ArchiveIndex, root: &Path) -> bool {
    let is_long = |name: &[u8]| name.split(|byte| *byte == b'/').any(|part| part.len() > 255);
    let room = 4095 - root.as_os_str().len() - 1;
    pack.below(b"").any(|(name, entry)| match entry {
        // What leads up to what they share comes before a link's target.
        Entry::Link { target } => name.len() > room || target.len() + 3 * name.len() > 4095 || is_long(name),
        _ => name.len() > room || is_long(name),
    })
}

/// Files and directories are those that the tar crate's own reading finds.
fn as_others_read_it(pack: &ArchiveIndex, tar: &[u8]) {
    let Some(entries) = independently(tar) else { return };
    let files = pack.below(b"").filter(|(_, entry)| matches!(entry, Entry::File { .. }));
    if entries.iter().any(|(kind, ..)| *kind == EntryType::Symlink) {
        // A link changes where what follows is put, but not its last part.
        let last = |name: &[u8]| name.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        let known: BTreeSet<(Vec<u8>, &[u8])> =
            entries.iter().filter(|(kind, ..)| is_file(*kind)).map(|(_, name, content)| (last(name), &**content)).collect();
        for (name, entry) in files {
            assert!(known.contains(&(last(name), &content(pack, entry))), "no entry has the content of {name:?}");
        }
        return;
    }
    let mut expected: BTreeMap<Vec<u8>, Option<&[u8]>> = BTreeMap::new();
    for (kind, name, content) in &entries {
        let is_directory = *kind == EntryType::Directory;
        if name.is_empty() || !(is_directory || is_file(*kind)) {
            continue;
        }
        for (cut, _) in name.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            expected.insert(name[..cut].to_vec(), None);
        }
        expected.insert(name.clone(), (!is_directory).then_some(content));
    }
    let packed: BTreeMap<Vec<u8>, Option<Vec<u8>>> = pack
        .below(b"")
        .map(|(name, entry)| (name.to_vec(), matches!(entry, Entry::File { .. }).then(|| content(pack, entry))))
        .collect();
    assert_eq!(packed, expected.into_iter().map(|(name, content)| (name, content.map(<[u8]>::to_vec))).collect());
}

fn is_file(kind: EntryType) -> bool {
    matches!(kind, EntryType::Regular | EntryType::Continuous)
}

/// An entry as the tar crate reads it: kind, clean name and content.
type Other = (EntryType, Vec<u8>, Vec<u8>);

/// Every entry. `None` for an archive that the tar crate refuses, or reads by records that Argo CD
/// does not write.
fn independently(tar: &[u8]) -> Option<Vec<Other>> {
    let mut records = 0;
    for entry in Archive::new(tar).entries().ok()?.raw(true) {
        let is_record =
            matches!(entry.ok()?.header().entry_type(), EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink);
        records = if is_record { records + 1 } else { 0 };
        if records > 1 {
            return None;
        }
    }
    let mut found = Vec::new();
    for entry in Archive::new(tar).entries().ok()? {
        let mut entry = entry.ok()?;
        let kind = entry.header().entry_type();
        for record in entry.pax_extensions().ok()?.into_iter().flatten() {
            let record = record.ok()?;
            if !matches!(record.key_bytes(), b"path" | b"linkpath" | b"mtime" | b"comment")
                || record.value_bytes().contains(&b'\n')
            {
                return None;
            }
        }
        let name = entry.path_bytes().into_owned();
        // Records with another magic number than theirs are entries to the crate, and records to Go and to us.
        let is_record = matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader);
        if kind == EntryType::GNUSparse || is_record || name.contains(&0) {
            return None;
        }
        let mut clean: Vec<&[u8]> = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => clean.truncate(clean.len().saturating_sub(1)),
                part => clean.push(part),
            }
        }
        let clean = clean.join(&b'/');
        let mut content = Vec::new();
        entry.read_to_end(&mut content).ok()?;
        found.push((kind, clean, content));
    }
    Some(found)
}

/// A directory around those that trees are written to, with something in it that nobody may touch.
struct Outside {
    dir: TempDir,
}

impl Outside {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("pinion-properties-").tempdir_in(parent).expect("a directory");
        fs::write(dir.path().join("untouched"), "untouched").expect("written");
        Self { dir }
    }

    fn nameless(&self) -> fs::File {
        tempfile::tempfile_in(self.dir.path()).expect("a file")
    }

    fn tree(&self, pack: &Arc<ArchiveIndex>) -> LazyCheckout {
        let dir = tempfile::Builder::new().prefix("tree-").tempdir_in(self.dir.path()).expect("a directory");
        LazyCheckout::new(Arc::clone(pack), dir, false).expect("the directory is there")
    }

    /// Once all trees are gone.
    fn is_untouched(&self) {
        assert_eq!(listed(self.dir.path()), BTreeSet::from([b"untouched".to_vec()]), "something was written outside");
        assert_eq!(fs::read(self.dir.path().join("untouched")).expect("a file"), b"untouched");
    }
}

fn zipped(tar: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(tar).expect("memory");
    encoder.finish().expect("memory")
}

fn unzipped(archive: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    // What was read before an error counts.
    let _ = MultiGzDecoder::new(archive).take(BOUNDS.bytes + 1).read_to_end(&mut tar);
    tar
}

/// A tar with right checksums, so that a changed header is read.
fn mended(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    let mut at = 0_usize;
    while let Some(block) = at.checked_add(BLOCK).and_then(|end| tar.get_mut(at..end)) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let Some(size) = header.entry_size().ok().and_then(|size| usize::try_from(size).ok()?.checked_next_multiple_of(BLOCK))
        else {
            break;
        };
        at = at.saturating_add(size);
    }
    tar
}

/// A tar of the entries that stand in a text, and of nothing else.
fn written(text: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for line in text.split(|byte| *byte == b'\n').take(2 * BOUNDS.entries) {
        let mut words = line.splitn(3, |byte| *byte == b' ').map(<[u8]>::to_vec);
        let (Some(letter), Some(mut name)) = (words.next(), words.next()) else { continue };
        let mut rest = words.next();
        if letter.get(1) == Some(&b'*') {
            let last = rest.as_mut().unwrap_or(&mut name);
            *last = last.repeat(50);
        }
        let rest = rest.unwrap_or_default();
        match letter.first() {
            Some(b'f') => add(&mut tar, EntryType::Regular, &name, b"", &rest),
            Some(b'c') => add(&mut tar, EntryType::Continuous, &name, b"", &rest),
            Some(b'o') => add(&mut tar, EntryType::new(0), &name, b"", &rest),
            Some(b'd') => add(&mut tar, EntryType::Directory, &name, b"", &rest),
            Some(b'l') => add(&mut tar, EntryType::Symlink, &name, &rest, b""),
            Some(b'h') => add(&mut tar, EntryType::Link, &name, &rest, b""),
            Some(b'p') => add(&mut tar, EntryType::Fifo, &name, b"", &rest),
            Some(b'N') => add(&mut tar, EntryType::GNULongName, b"././@LongLink", b"", &[&name, &b"\0"[..]].concat()),
            Some(b'K') => add(&mut tar, EntryType::GNULongLink, b"././@LongLink", b"", &[&name, &b"\0"[..]].concat()),
            Some(b'x') => add(&mut tar, EntryType::XHeader, b"pax", b"", &record(&name, &rest)),
            Some(b'g') => add(&mut tar, EntryType::XGlobalHeader, b"pax", b"", &record(&name, &rest)),
            _ => {}
        }
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

fn add(tar: &mut Vec<u8>, kind: EntryType, name: &[u8], target: &[u8], content: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    // By hand: the crate refuses names that a hostile archive holds. What does not fit the name goes before it.
    let cut = name.len().saturating_sub(100);
    let (before, name) = name.split_at(cut);
    let mut put = |from: usize, room: usize, text: &[u8]| {
        let length = text.len().min(room);
        header.as_mut_bytes()[from..from + length].copy_from_slice(&text[..length]);
    };
    put(0, 100, name);
    put(157, 100, target);
    put(345, 155, before);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// A PAX record, which starts with its own length.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let is_length = |length: &usize| length.to_string().len() + rest.len() == *length;
    let length = (rest.len()..).find(is_length).expect("there is one");
    [length.to_string().as_bytes(), &rest].concat()
}
