//! Reads the archive that Argo CD sends: a gzip of a tar of the checkout.
//!
//! Bytes go in, an [`ArchiveIndex`] comes out, or an error and nothing. The tar is kept as it is, and what stands where in it: inflating and one
//! write of each byte are all that an archive costs. What Argo CD's own server accepts is accepted (`util/io/files/tar.go`):
//! regular files, directories and links; everything else is passed over. The archive is written by tenants: no name and no link leads
//! out of the checkout, and bytes, entries and names are bounded.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use flate2::bufread::MultiGzDecoder;
use tar::{Archive, EntryType};

use super::archive_index::{ArchiveIndex, EntryError, Name};
use crate::image::printable;

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the whole archive, unpacked: also those of names and of entries that are passed over.
    pub bytes: u64,
    /// Files, directories, links and whatever else, also directories that only stand in the names of others.
    pub entries: usize,
    /// Bytes of all names and of where links lead, which stay in memory.
    pub names: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 8 << 30, entries: 1_000_000, names: 256 << 20 }
    }
}

/// Longest name of an entry, in bytes: Linux's own bound.
const MAX_NAME: usize = 4096;

/// Longest record of an entry's further headers, in bytes. Go writes names and times there.
const MAX_RECORDS: u64 = 1024 * 1024;

/// Bytes that are inflated at a time: with 16 KiB it takes half as long again, with more it takes as long.
const INFLATED: usize = 256 * 1024;

/// Why an archive is not used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("illegal filepath in archive: `{0}`")]
    Name(String),
    #[error("illegal filepath in symlink: `{0}`")]
    Link(String),
    #[error("`{0}` is in the archive as a file and as a directory")]
    EntryError(String),
    #[error("the archive holds more than {} bytes; a larger one is taken with `--max-archive-bytes`", .0.bytes)]
    TooLong(Bounds),
    #[error("the archive holds more than {} entries; more are taken with `--max-archive-entries`", .0.entries)]
    TooMany(Bounds),
    #[error("the archive's names are longer than {} bytes", .0.names)]
    TooLongNames(Bounds),
    #[error("the links on the way to `{0}` lead too far")]
    TooFar(String),
    #[error("`{0}` is below too many directories")]
    TooDeep(String),
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    #[error("the archive's files cannot be kept")]
    Write(#[source] io::Error),
}

/// Reads an archive; what is in it goes to `contents`, which is empty.
///
/// # Errors
///
/// [`ArchiveError`].
pub fn read(archive: impl BufRead, contents: File, bounds: Bounds) -> Result<ArchiveIndex, ArchiveError> {
    let copy = contents.try_clone().map_err(ArchiveError::Write)?;
    let mut archive = Archive::new(Inflated::new(archive, copy, bounds));
    let index = entries(&mut archive, contents, bounds);
    let inflated = archive.into_inner();
    match inflated.problem {
        Some(problem) => Err(problem),
        None => Ok(index?.holding(inflated.bytes)),
    }
}

fn entries(archive: &mut Archive<impl Read + Seek>, contents: File, bounds: Bounds) -> Result<ArchiveIndex, ArchiveError> {
    let mut index = ArchiveIndex::new(contents);
    let mut records = Records::default();
    // Raw: the crate itself would read a long name into memory, however long.
    for (number, entry) in archive.entries_with_seek().map_err(ArchiveError::Read)?.raw(true).enumerate() {
        if number >= bounds.entries {
            return Err(ArchiveError::TooMany(bounds));
        }
        let mut entry = entry.map_err(ArchiveError::Read)?;
        let kind = entry.header().entry_type();
        let record = match kind {
            EntryType::XHeader => Some(Record::Pax),
            EntryType::GNULongName => Some(Record::Name),
            EntryType::GNULongLink => Some(Record::Link),
            _ => None,
        };
        if let Some(record) = record {
            let mut bytes = Vec::new();
            entry.by_ref().take(MAX_RECORDS + 1).read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
            if bytes.len() as u64 > MAX_RECORDS {
                return Err(ArchiveError::Read(io::Error::other("an entry's headers are too long")));
            }
            records.add(record, &bytes);
            continue;
        }
        let Records { name, link } = std::mem::take(&mut records);
        let name = name.unwrap_or_else(|| entry.path_bytes().into_owned());
        let misplaced = |why| match why {
            EntryError::NoDirectory | EntryError::Directory => ArchiveError::EntryError(shown(&name)),
            EntryError::TooFar => ArchiveError::TooFar(shown(&name)),
            EntryError::TooDeep => ArchiveError::TooDeep(shown(&name)),
        };
        let place = place(&name).ok_or_else(|| ArchiveError::Name(shown(&name)))?;
        if place.is_empty() {
            continue;
        }
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.header().size().map_err(ArchiveError::Read)?;
                let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
                index.add_file(&place, entry.raw_file_position(), size, mode).map_err(misplaced)?;
            }
            EntryType::Directory => drop(index.add_directory(&place).map_err(misplaced)?),
            EntryType::Symlink => {
                let target = link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
                let cut = place.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                let parent = index.add_directory(&place[..cut]).map_err(misplaced)?;
                let target = inside(&parent, &target).ok_or_else(|| ArchiveError::Link(shown(&name)))?;
                index.add_link(&place, target).map_err(misplaced)?;
            }
            _ => {}
        }
        let (count, names) = index.size();
        if count > bounds.entries {
            return Err(ArchiveError::TooMany(bounds));
        }
        if names > bounds.names {
            return Err(ArchiveError::TooLongNames(bounds));
        }
    }
    Ok(index)
}

/// What stands before an entry and is about it.
#[derive(Default)]
struct Records {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Record {
    Pax,
    Name,
    Link,
}

impl Records {
    fn add(&mut self, record: Record, bytes: &[u8]) {
        let text = || Some(bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec());
        match record {
            Record::Name => self.name = text(),
            Record::Link => self.link = text(),
            Record::Pax => {
                let mut rest = bytes;
                while let Some((key, value, next)) = pax(rest) {
                    match key {
                        b"path" => self.name = Some(value.to_vec()),
                        b"linkpath" => self.link = Some(value.to_vec()),
                        _ => {}
                    }
                    rest = next;
                }
            }
        }
    }
}

/// The first of some PAX records, `LENGTH KEY=VALUE\n` each, and what follows it.
fn pax(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

/// The tar, which can only be read on, and each byte of which is kept when it is inflated.
struct Inflated<R> {
    from: MultiGzDecoder<R>,
    contents: File,
    bounds: Bounds,
    buffer: Box<[u8]>,
    /// What of the buffer is still to be read.
    rest: Range<usize>,
    /// Bytes that were inflated.
    bytes: u64,
    /// What the reader of the tar cannot tell.
    problem: Option<ArchiveError>,
}

impl<R: BufRead> Inflated<R> {
    fn new(archive: R, contents: File, bounds: Bounds) -> Self {
        let buffer = vec![0; INFLATED].into_boxed_slice();
        Self { from: MultiGzDecoder::new(archive), contents, bounds, buffer, rest: 0..0, bytes: 0, problem: None }
    }

    fn fail(&mut self, problem: ArchiveError) -> io::Error {
        self.problem = Some(problem);
        io::ErrorKind::Other.into()
    }
}

impl<R: BufRead> BufRead for Inflated<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            let count = self.from.read(&mut self.buffer)?;
            self.bytes += count as u64;
            if self.bytes > self.bounds.bytes {
                return Err(self.fail(ArchiveError::TooLong(self.bounds)));
            }
            if let Err(error) = self.contents.write_all(&self.buffer[..count]) {
                return Err(self.fail(ArchiveError::Write(error)));
            }
            self.rest = 0..count;
        }
        Ok(&self.buffer[self.rest.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.rest.start += count;
    }
}

impl<R: BufRead> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> Seek for Inflated<R> {
    /// Forward only, and not beyond the end.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Current(count) = to else { return Err(io::ErrorKind::NotSeekable.into()) };
        let mut left = u64::try_from(count).map_err(|_| io::ErrorKind::NotSeekable)?;
        while left > 0 {
            let here = self.fill_buf()?.len();
            if here == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(here);
            self.consume(count);
            left -= count as u64;
        }
        Ok(self.bytes - self.rest.len() as u64)
    }
}

/// Where an entry goes. Empty for the root itself, `None` for a name that leads out.
fn place(name: &[u8]) -> Option<Name> {
    let is_legal = name.len() <= MAX_NAME && !name.contains(&0);
    is_legal.then(|| clean(Vec::new(), name)).flatten()
}

/// Where a link in a directory leads, by name alone; `None` outside.
fn inside(parent: &[u8], target: &[u8]) -> Option<Name> {
    let is_legal = target.len() <= MAX_NAME && !target.contains(&0) && !target.starts_with(b"/");
    let above = parent.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
    is_legal.then(|| clean(above, target)).flatten()
}

/// Resolves `.` and `..` by name alone.
fn clean<'a>(mut parts: Vec<&'a [u8]>, path: &'a [u8]) -> Option<Name> {
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/').into())
}

fn shown(name: &[u8]) -> String {
    printable(&String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use super::super::archive_index::Entry;
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    enum Put<'a> {
        File(&'a str, &'a [u8]),
        Directory(&'a str),
        Link(&'a str, &'a str),
        Other(&'a str, EntryType, &'a [u8]),
    }
    use Put::{Directory, File as Content, Link, Other};

    fn archive(entries: &[Put<'_>]) -> Vec<u8> {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for entry in entries {
            let (name, kind, content, target) = match entry {
                Content(name, content) => (name, EntryType::Regular, *content, None),
                Directory(name) => (name, EntryType::Directory, &[][..], None),
                Link(name, target) => (name, EntryType::Symlink, &[][..], Some(target)),
                Other(name, kind, content) => (name, *kind, *content, None),
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

    fn read_bytes(archive: &[u8], bounds: Bounds) -> Result<ArchiveIndex, String> {
        read(archive, tempfile::tempfile().expect("a file"), bounds).map_err(|error| error.to_string())
    }

    fn packed(entries: &[Put<'_>]) -> Result<ArchiveIndex, String> {
        read_bytes(&archive(entries), Bounds::default())
    }

    fn content(index: &ArchiveIndex, name: &str) -> String {
        let Some(Entry::File { at, bytes, .. }) = index.get(name.as_bytes()) else { panic!("`{name}` is no file") };
        let mut text = vec![0; usize::try_from(*bytes).expect("it fits")];
        index.read(*at, &mut text).expect("it is there");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn what_argo_cd_sends_is_read() {
        let index = packed(&[
            Directory("."),
            Directory("charts"),
            Content("charts/a.yaml", b"a: 1\n"),
            Content("deep/er/b.yaml", b"b"),
            Link("link.yaml", "charts/a.yaml"),
            Link("charts/up", "../deep"),
            Content("charts/up/c.yaml", b"through a link that stays inside"),
            Link("dangling", "nothing/here"),
            Other("pipe", EntryType::Fifo, b""),
            Other("device", EntryType::Char, b""),
            Other("hard", EntryType::Link, b""),
            Content("/absolute", b"as Go's server joins it"),
        ])
        .expect("an archive");
        assert_eq!(content(&index, "charts/a.yaml"), "a: 1\n");
        assert_eq!(content(&index, "deep/er/b.yaml"), "b");
        assert_eq!(content(&index, "deep/c.yaml"), "through a link that stays inside");
        assert_eq!(content(&index, "absolute"), "as Go's server joins it");
        assert_eq!(index.get(b"link.yaml"), Some(&Entry::Link { target: Name::from(*b"charts/a.yaml") }));
        assert_eq!(index.get(b"charts/up"), Some(&Entry::Link { target: Name::from(*b"deep") }));
        assert!(matches!(index.get(b"charts/a.yaml"), Some(Entry::File { mode: 0o755, .. })), "without its special bits");
        for name in ["pipe", "device", "hard"] {
            assert_eq!(index.get(name.as_bytes()), None);
        }
    }

    #[test]
    fn long_and_foreign_names_are_read_from_both_kinds_of_record() {
        let long = format!("{}/file.yaml", "long-directory-name/".repeat(12).trim_end_matches('/'));
        let record = |key: &str, value: &str| {
            let rest = format!(" {key}={value}\n");
            let length = (1..).find(|digits: &usize| (rest.len() + digits).to_string().len() == *digits).expect("one fits");
            format!("{}{rest}", rest.len() + length)
        };
        let pax = record("mtime", "1.5") + &record("path", &long) + &record("comment", "a\nb=c");
        let index = packed(&[
            Other("pax", EntryType::XHeader, pax.as_bytes()),
            Content("cut", b"1"),
            Other("gnu", EntryType::GNULongName, format!("other/{long}\0").as_bytes()),
            Content("cut", b"2"),
            Other("pax", EntryType::XHeader, record("linkpath", &long).as_bytes()),
            Link("link", "cut"),
            Content("plain", b"3"),
        ])
        .expect("an archive");
        assert_eq!((content(&index, &long), content(&index, &format!("other/{long}"))), ("1".into(), "2".into()));
        assert_eq!(index.get(b"link"), Some(&Entry::Link { target: long.into_bytes().into() }));
        assert_eq!(content(&index, "plain"), "3");
        // Records that lead out are names like others.
        let outside = packed(&[Other("pax", EntryType::XHeader, record("path", "../x").as_bytes()), Content("cut", b"1")]);
        assert_eq!(outside.expect_err("outside"), "illegal filepath in archive: `../x`");
    }

    #[test]
    fn names_need_not_be_text() {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = Header::new_old();
        header.set_size(1);
        header.as_mut_bytes()[..5].copy_from_slice(b"caf\xe9s");
        header.set_cksum();
        builder.append(&header, &b"x"[..]).expect("an entry");
        let bytes = builder.into_inner().and_then(GzEncoder::finish).expect("an archive");
        assert!(read_bytes(&bytes, Bounds::default()).expect("an archive").get(b"caf\xe9s").is_some());
    }

    #[test]
    fn nothing_leads_out() {
        for (entries, message) in [
            (&[Content("../outside", b"x")][..], "illegal filepath in archive: `../outside`"),
            (&[Content("a/../../outside", b"x")], "illegal filepath in archive: `a/../../outside`"),
            (&[Link("l", "..")], "illegal filepath in symlink: `l`"),
            (&[Link("l", "/etc/passwd")], "illegal filepath in symlink: `l`"),
            (&[Link("a/l", "../../outside")], "illegal filepath in symlink: `a/l`"),
            (&[Directory("d"), Link("d/top", ".."), Link("d/top/out", "../x")], "illegal filepath in symlink: `d/top/out`"),
            (&[Content("a", b"x"), Content("a/b", b"x")], "`a/b` is in the archive as a file and as a directory"),
            (&[Directory("a"), Content("a", b"x")], "`a` is in the archive as a file and as a directory"),
        ] {
            assert_eq!(packed(entries).expect_err(message), message);
        }
    }

    #[test]
    fn bytes_entries_and_names_are_bounded() {
        let bounds = Bounds { bytes: 4096, entries: 3, names: 100 };
        let bounded = |entries: &[Put<'_>]| read_bytes(&archive(entries), bounds).map(drop);
        assert_eq!(bounded(&[Content("a", &[0; 2000])]), Ok(()));
        let too_long = Err("the archive holds more than 4096 bytes; a larger one is taken with `--max-archive-bytes`".to_owned());
        assert_eq!(bounded(&[Content("a", &[0; 5000])]), too_long);
        assert_eq!(bounded(&[Other("passed over", EntryType::Fifo, &[0; 5000])]), too_long);
        assert_eq!(bounded(&[Other("record", EntryType::GNULongName, &[b'x'; 5000])]), too_long);
        let many = [Directory("a"), Directory("b"), Directory("c"), Directory("d")];
        assert_eq!(
            bounded(&many),
            Err("the archive holds more than 3 entries; more are taken with `--max-archive-entries`".into())
        );
        // A short name may hold many directories, and each of them has a name.
        assert_eq!(
            bounded(&[Directory("a/b/c/d")]),
            Err("the archive holds more than 3 entries; more are taken with `--max-archive-entries`".into())
        );
        let long = "n".repeat(60);
        let named = [Directory(&long), Link("a", &long)];
        assert_eq!(bounded(&named), Err("the archive's names are longer than 100 bytes".into()));
        let records = packed(&[Other("record", EntryType::GNULongName, &vec![b'x'; 2 << 20]), Content("a", b"")]);
        assert_eq!(records.expect_err("too long"), "the archive cannot be read");
        let name = "n".repeat(5000);
        let named = packed(&[Other("record", EntryType::GNULongName, name.as_bytes()), Content("a", b"")]);
        assert!(named.expect_err("too long").starts_with("illegal filepath in archive: `nnn"));
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let whole = archive(&[Content("a", &[7; 5000])]);
        for bytes in [&b"no gzip"[..], &whole[..whole.len() / 2], b""] {
            assert_eq!(read_bytes(bytes, Bounds::default()).expect_err("broken"), "the archive cannot be read");
        }
    }
}
