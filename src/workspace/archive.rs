//! Unpacks the archive that Argo CD sends: a gzip of a tar of the checkout.
//!
//! Bytes go in, files below one directory come out, or an error and no use of the directory. What Argo CD's own server accepts is accepted
//! (`util/io/files/tar.go`): regular files, directories and links; everything else is passed over. The archive is written by tenants: no
//! name and no link leads out of the directory, and bytes, entries and names are bounded.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use crate::image::printable;

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all files together, unpacked.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 8 << 30, entries: 2_000_000 }
    }
}

/// Longest name of an entry, in bytes: Linux's own bound.
const MAX_NAME: usize = 4096;

/// Why an archive is not used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("illegal filepath in archive: `{0}`")]
    Name(String),
    #[error("illegal filepath in symlink: `{0}`")]
    Link(String),
    #[error("the archive holds more than {} bytes", .0.bytes)]
    TooLong(Bounds),
    #[error("the archive holds more than {} entries", .0.entries)]
    TooMany(Bounds),
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    #[error("`{path}` cannot be written")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Unpacks an archive below a directory, which exists and is empty.
///
/// Files get mode 0644 and directories 0755, or with `keep_modes` the permissions of the archive, without its special bits.
///
/// Returns the bytes of all files.
///
/// # Errors
///
/// [`ArchiveError`]; what was written until then stays.
pub fn unpack(archive: impl Read, root: &Path, keep_modes: bool, bounds: Bounds) -> Result<u64, ArchiveError> {
    let mut unpacker = Unpacker {
        root: fs::canonicalize(root).map_err(ArchiveError::Read)?,
        known: HashSet::new(),
        links: Vec::new(),
        keep_modes,
        room: bounds.bytes,
        bounds,
    };
    let mut archive = Archive::new(GzDecoder::new(archive));
    for (number, entry) in archive.entries().map_err(ArchiveError::Read)?.enumerate() {
        if number >= bounds.entries {
            return Err(ArchiveError::TooMany(bounds));
        }
        let mut entry = entry.map_err(ArchiveError::Read)?;
        let name = entry.path_bytes().into_owned();
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => unpacker.file(&name, mode, &mut entry)?,
            EntryType::Directory => unpacker.directory(&name)?,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                unpacker.link(&name, &target)?;
            }
            _ => {}
        }
    }
    unpacker.check_links()?;
    Ok(bounds.bytes - unpacker.room)
}

struct Unpacker {
    root: PathBuf,
    /// Directories that are known to be inside.
    known: HashSet<PathBuf>,
    links: Vec<PathBuf>,
    keep_modes: bool,
    room: u64,
    bounds: Bounds,
}

impl Unpacker {
    fn file(&mut self, name: &[u8], mode: u32, content: &mut impl Read) -> Result<(), ArchiveError> {
        let Some(path) = self.place(name)? else { return Ok(()) };
        self.parent(&path)?;
        let failed = |source| ArchiveError::Write { path: shown(name), source };
        // What stood there, perhaps a link, is replaced and not written through.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mode = if self.keep_modes { mode } else { 0o644 };
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(failed)?;
        // The tar gives no more than the header says, and says so when it gives less.
        let copied = io::copy(&mut content.take(self.room + 1), &mut file).map_err(ArchiveError::Read)?;
        self.room = self.room.checked_sub(copied).ok_or(ArchiveError::TooLong(self.bounds))?;
        Ok(())
    }

    fn directory(&mut self, name: &[u8]) -> Result<(), ArchiveError> {
        match self.place(name)? {
            Some(path) => self.parent(&path.join("x")).map(drop),
            None => Ok(()),
        }
    }

    fn link(&mut self, name: &[u8], target: &[u8]) -> Result<(), ArchiveError> {
        let Some(path) = self.place(name)? else { return Ok(()) };
        let target = Path::new(std::str::from_utf8(target).map_err(|_| ArchiveError::Link(shown(name)))?);
        let parent = self.parent(&path)?;
        // Lexically first: nothing may stand there yet. What it really leads to is checked at the end.
        let joined = if target.is_absolute() { target.to_owned() } else { parent.join(target) };
        let inside =
            lexical(&joined).filter(|joined| joined.starts_with(&self.root)).ok_or_else(|| ArchiveError::Link(shown(name)))?;
        let failed = |source| ArchiveError::Write { path: shown(name), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        symlink(relative(&parent, &inside), &path).map_err(failed)?;
        // A directory that was known by this name may now lead elsewhere.
        self.known.clear();
        self.links.push(path);
        Ok(())
    }

    /// Where an entry goes. `None` for the root itself.
    fn place(&self, name: &[u8]) -> Result<Option<PathBuf>, ArchiveError> {
        let illegal = || ArchiveError::Name(shown(name));
        let text = std::str::from_utf8(name).map_err(|_| illegal())?;
        if text.len() > MAX_NAME || text.contains('\0') {
            return Err(illegal());
        }
        let path = lexical(&self.root.join(text.trim_start_matches('/'))).ok_or_else(illegal)?;
        match path.strip_prefix(&self.root) {
            Ok(rest) if rest.as_os_str().is_empty() => Ok(None),
            Ok(_) => Ok(Some(path)),
            Err(_) => Err(illegal()),
        }
    }

    /// Makes the directory that holds a path, and makes sure that it really is inside: a part of it may be a link.
    fn parent(&mut self, path: &Path) -> Result<PathBuf, ArchiveError> {
        let parent = path.parent().unwrap_or(&self.root).to_owned();
        if self.known.contains(&parent) {
            return Ok(parent);
        }
        let shown = || shown(path.strip_prefix(&self.root).unwrap_or(path).as_os_str().as_encoded_bytes());
        // From the root down, so that nothing is made beyond a link that leads out.
        let mut made = self.root.clone();
        for part in parent.strip_prefix(&self.root).unwrap_or(&parent).components() {
            made.push(part);
            match fs::create_dir(&made) {
                Ok(()) => fs::set_permissions(&made, fs::Permissions::from_mode(0o755)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
            .map_err(|source| ArchiveError::Write { path: shown(), source })?;
            let real = fs::canonicalize(&made).map_err(|source| ArchiveError::Write { path: shown(), source })?;
            if !real.starts_with(&self.root) {
                return Err(ArchiveError::Name(shown()));
            }
        }
        self.known.insert(parent.clone());
        Ok(parent)
    }

    /// No link leads out, now that everything is there.
    fn check_links(&self) -> Result<(), ArchiveError> {
        for link in &self.links {
            if fs::canonicalize(link).is_ok_and(|real| !real.starts_with(&self.root)) {
                let name = link.strip_prefix(&self.root).unwrap_or(link);
                return Err(ArchiveError::Link(shown(name.as_os_str().as_encoded_bytes())));
            }
        }
        Ok(())
    }
}

/// Resolves `.` and `..` by name alone; `None` above the root of the file system.
fn lexical(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    Some(clean)
}

/// The way from a directory to a path, both absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(shared)).collect();
    if way.as_os_str().is_empty() { ".".into() } else { way }
}

fn shown(name: &[u8]) -> String {
    printable(&String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    enum Put<'a> {
        File(&'a str, &'a [u8]),
        Directory(&'a str),
        Link(&'a str, &'a str),
        Other(&'a str, EntryType),
    }
    use Put::{Directory, File as Content, Link, Other};

    fn archive(entries: &[Put<'_>]) -> Vec<u8> {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for entry in entries {
            let (name, kind, content, target) = match entry {
                Content(name, content) => (name, EntryType::Regular, *content, None),
                Directory(name) => (name, EntryType::Directory, &[][..], None),
                Link(name, target) => (name, EntryType::Symlink, &[][..], Some(target)),
                Other(name, kind) => (name, *kind, &[][..], None),
            };
            let mut header = Header::new_old();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o6755);
            // Written by hand: the builder refuses what a hostile archive holds.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            if let Some(target) = target {
                header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, content).expect("an entry");
        }
        builder.into_inner().and_then(GzEncoder::finish).expect("an archive")
    }

    fn unpacked(entries: &[Put<'_>], bounds: Bounds) -> (tempfile::TempDir, Result<(), String>) {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("a root");
        fs::write(dir.path().join("outside"), "untouched").expect("a file");
        let result = unpack(&archive(entries)[..], &root, false, bounds).map(drop).map_err(|error| error.to_string());
        assert_eq!(fs::read_to_string(dir.path().join("outside")).expect("a file"), "untouched");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2, "nothing is made outside");
        (dir, result)
    }

    #[test]
    fn what_argo_cd_sends_is_unpacked() {
        let (dir, result) = unpacked(
            &[
                Directory("."),
                Directory("charts"),
                Content("charts/a.yaml", b"a: 1\n"),
                Content("deep/er/b.yaml", b"b"),
                Link("link.yaml", "charts/a.yaml"),
                Link("charts/up", "../deep"),
                Content("charts/up/c.yaml", b"through a link that stays inside"),
                Link("dangling", "nothing/here"),
                Other("pipe", EntryType::Fifo),
                Other("device", EntryType::Char),
                Other("hard", EntryType::Link),
            ],
            Bounds::default(),
        );
        result.expect("unpacked");
        let root = dir.path().join("root");
        assert_eq!(fs::read_to_string(root.join("link.yaml")).expect("a file"), "a: 1\n");
        assert!(root.join("deep/er/c.yaml").exists() || root.join("deep/c.yaml").exists());
        assert!(!root.join("pipe").exists() && !root.join("device").exists() && !root.join("hard").exists());
        let mode = |path: &str| fs::metadata(root.join(path)).expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode("charts/a.yaml"), mode("deep")), (0o644, 0o755));
    }

    #[test]
    fn nothing_leaves_the_directory() {
        for (entries, message) in [
            (&[Content("../outside", b"x")][..], "illegal filepath in archive: `../outside`"),
            (&[Content("a/../../outside", b"x")], "illegal filepath in archive: `a/../../outside`"),
            (&[Link("l", "..")], "illegal filepath in symlink: `l`"),
            (&[Link("l", "/etc/passwd")], "illegal filepath in symlink: `l`"),
            (&[Link("a/l", "../../outside")], "illegal filepath in symlink: `a/l`"),
        ] {
            let (_dir, result) = unpacked(entries, Bounds::default());
            assert_eq!(result.as_ref().map_err(String::as_str), Err(message));
        }
        // Chains, in which each link looks harmless by name: they are made relative by name, as Go's server does, and lead nowhere else.
        for entries in [
            &[Directory("d/e/f"), Link("d/e/f/up", "../../.."), Link("d/e/f/out", "up/../outside")][..],
            &[Directory("d/e"), Link("d/e/top", "../.."), Link("d/e/out", "top/.."), Content("d/e/out/outside", b"x")],
        ] {
            unpacked(entries, Bounds::default()).1.expect("harmless");
        }
        let (dir, result) = unpacked(&[Content("/absolute", b"x")], Bounds::default());
        assert!(result.is_ok() && dir.path().join("root/absolute").exists(), "as Go's server joins it");
    }

    #[test]
    fn a_file_replaces_a_link_and_is_not_written_through() {
        let (dir, result) = unpacked(&[Content("a", b"1"), Link("b", "a"), Content("b", b"2")], Bounds::default());
        result.expect("unpacked");
        assert_eq!(fs::read_to_string(dir.path().join("root/a")).expect("a file"), "1");
    }

    #[test]
    fn bytes_entries_and_names_are_bounded() {
        let bounds = Bounds { bytes: 10, entries: 3 };
        let (_dir, result) = unpacked(&[Content("a", &[0; 6]), Content("b", &[0; 6])], bounds);
        assert_eq!(result, Err("the archive holds more than 10 bytes".into()));
        let (_dir, result) = unpacked(&[Directory("a"), Directory("b"), Directory("c"), Directory("d")], bounds);
        assert_eq!(result, Err("the archive holds more than 3 entries".into()));
        assert!(unpacked(&[Content("a", &[0; 10])], bounds).1.is_ok());
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = archive(&[Content("a", &[7; 5000])]);
        for bytes in [&b"no gzip"[..], &whole[..whole.len() / 2]] {
            assert!(unpack(bytes, dir.path(), false, Bounds::default()).is_err());
        }
    }
}
