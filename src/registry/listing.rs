//! A repository's tags: the listing that we keep, and the pages that registries send.
//!
//! Bytes go in, sorted and distinct legal tags come out. What is no tag by the OCI grammar is counted and forgotten.

use std::collections::{HashMap, HashSet};
use std::fmt;

use jiff::Timestamp;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::metadata::{optional_text, text};
use crate::image::{Digest, Tag};

/// The tags of a repository, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Stored")]
pub struct Listing {
    /// Sorted by the tags' bytes, distinct. All of them have a position, or none.
    pub tags: Vec<Listed>,
    /// How many distinct names were left out because they are not legal tags.
    pub dropped: usize,
}

/// A tag, and what some registries say about it in the listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    #[serde(with = "text")]
    pub tag: Tag,
    /// The digest that the tag points to. Only Google's registries send it.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// When the image was built. Only Google's registries send it (`timeCreatedMs`); [`None`] where they send the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Its place in time among the tags, the oldest first, as the order of the registry's list tells it. Only where `registries.conf`
    /// says that this order means something (`tagsortmode`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
}

impl Listing {
    /// Does the registry's order say which tag is newer?
    pub fn is_ordered(&self) -> bool {
        self.tags.first().is_some_and(|listed| listed.position.is_some())
    }

    /// Is this tag listed?
    pub fn holds(&self, tag: &Tag) -> bool {
        self.tags.binary_search_by(|listed| listed.tag.cmp(tag)).is_ok()
    }

    /// Bytes in memory, roughly.
    pub fn bytes(&self) -> u64 {
        const ALLOCATION: usize = 16;
        let own = |listed: &Listed| {
            let digest = listed.digest.as_ref().map_or(0, |digest| digest.as_str().len() + ALLOCATION);
            size_of::<Listed>() + listed.tag.as_str().len() + ALLOCATION + digest
        };
        self.tags.iter().map(own).sum::<usize>() as u64
    }
}

/// A listing as it was stored, before its order is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    tags: Vec<Listed>,
    dropped: usize,
}

impl TryFrom<Stored> for Listing {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<Self, &'static str> {
        if !stored.tags.is_sorted_by(|a, b| a.tag < b.tag) {
            return Err("the tags are not sorted and distinct");
        }
        let positions: HashSet<u32> = stored.tags.iter().filter_map(|listed| listed.position).collect();
        let is_ordered = stored.tags.iter().any(|listed| listed.position.is_some());
        if is_ordered && positions.len() != stored.tags.len() {
            return Err("the tags have not each a position of its own");
        }
        Ok(Self { tags: stored.tags, dropped: stored.dropped })
    }
}

/// One reply to `tags/list`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    pub tags: Vec<Tag>,
    /// Names that are not tags.
    pub illegal: Vec<Box<str>>,
    /// How many names the reply holds, repeated and illegal ones too.
    pub count: usize,
    /// The last name in the reply, whatever it is: a cursor.
    pub last: Option<Box<str>>,
    /// What Google's registries add: by tag, digest and time.
    pub details: HashMap<Tag, (Digest, Option<Timestamp>)>,
}

impl Page {
    /// Reads a reply with at most `max` names. `"tags": null` is an empty page, as GHCR sends past the end; `name` may be missing.
    ///
    /// # Errors
    ///
    /// [`PageError::TooMany`] past `max`, read no further than that; [`PageError::Malformed`] for what is not such a reply.
    pub fn read(bytes: &[u8], max: usize) -> Result<Self, PageError> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let mut over = false;
        let page = PageSeed { max, over: &mut over }.deserialize(&mut json).and_then(|page| json.end().map(|()| page));
        match page {
            Ok(page) => Ok(page),
            Err(_) if over => Err(PageError::TooMany),
            Err(error) => Err(PageError::Malformed(error.to_string())),
        }
    }
}

#[derive(Debug, PartialEq)]
pub(super) enum PageError {
    TooMany,
    Malformed(String),
}

struct PageSeed<'a> {
    max: usize,
    over: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for PageSeed<'_> {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageSeed<'_> {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `tags`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        let mut page = Page::default();
        let mut seen = false;
        let mut google = None;
        while let Some(key) = map.next_key::<Box<str>>()? {
            match &*key {
                "tags" if seen => return Err(A::Error::duplicate_field("tags")),
                "tags" => {
                    seen = true;
                    map.next_value_seed(NamesSeed { page: &mut page, max: self.max, over: &mut *self.over })?;
                }
                "manifest" => google = map.next_value::<Option<HashMap<Box<str>, GoogleManifest>>>()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !seen {
            return Err(A::Error::missing_field("tags"));
        }
        page.details = details(google.unwrap_or_default());
        Ok(page)
    }
}

/// Reads names one at a time, so that a hostile list costs memory for its legal names at most.
struct NamesSeed<'a> {
    page: &'a mut Page,
    max: usize,
    over: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for NamesSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NamesSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tags, or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<(), A::Error> {
        while let Some(name) = names.next_element::<Box<str>>()? {
            if self.page.count == self.max {
                *self.over = true;
                return Err(A::Error::custom("too many tags"));
            }
            self.page.count += 1;
            match name.parse() {
                Ok(tag) => self.page.tags.push(tag),
                Err(_) => self.page.illegal.push(name.clone()),
            }
            self.page.last = Some(name);
        }
        Ok(())
    }
}

/// An entry of `manifest`, [as Google sends it](https://github.com/google/go-containerregistry/blob/v0.20.3/pkg/v1/google/list.go).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GoogleManifest {
    #[serde(default)]
    tag: Vec<Box<str>>,
    /// Milliseconds since the epoch, as a text.
    #[serde(default)]
    time_created_ms: Box<str>,
}

/// Turns the entries around. A tag of two digests says nothing about either, and a time at the epoch is no time.
fn details(manifests: HashMap<Box<str>, GoogleManifest>) -> HashMap<Tag, (Digest, Option<Timestamp>)> {
    let mut details: HashMap<Tag, Option<(Digest, Option<Timestamp>)>> = HashMap::new();
    for (digest, manifest) in manifests {
        let Ok(digest) = digest.parse::<Digest>() else { continue };
        let created = manifest.time_created_ms.parse().ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let created = created.filter(|&created| !super::metadata::is_epoch(created));
        for tag in manifest.tag.iter().filter_map(|tag| tag.parse::<Tag>().ok()) {
            details.entry(tag).and_modify(|entry| *entry = None).or_insert_with(|| Some((digest.clone(), created)));
        }
    }
    details.into_iter().filter_map(|(tag, entry)| Some((tag, entry?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Page, PageError> {
        Page::read(text.as_bytes(), 10)
    }

    fn names(page: &Page) -> Vec<&str> {
        page.tags.iter().map(Tag::as_str).collect()
    }

    #[test]
    fn pages_of_every_registry_are_read() {
        for (text, expected) in [
            (r#"{"name":"a/b","tags":["1","2"]}"#, vec!["1", "2"]),
            (r#"{"tags":["1"]}"#, vec!["1"]),
            (r#"{"name":"a/b","tags":null}"#, vec![]),
            (r#"{"tags":[],"child":[],"manifest":{}}"#, vec![]),
        ] {
            assert_eq!(names(&read(text).expect(text)), expected);
        }
    }

    #[test]
    fn what_is_no_page_is_an_error() {
        for text in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"tags":"1"}"#,
            r#"{"tags":[1]}"#,
            r#"{"tags":["1"]"#,
            r#"{"tags":[]}x"#,
            r#"{"tags":["1"],"tags":["2"]}"#,
        ] {
            assert!(matches!(read(text), Err(PageError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn names_that_are_no_tags_are_set_apart() {
        let page = read(r#"{"tags":["1.0","a\nb","$(pin x)","2.0","../x"]}"#).expect("a page");
        assert_eq!((names(&page), page.illegal.len(), page.count), (vec!["1.0", "2.0"], 3, 5));
        assert_eq!(page.last.as_deref(), Some("../x"));
    }

    #[test]
    fn reading_stops_at_the_cap() {
        assert_eq!(read(&format!(r#"{{"tags":[{}"1"]}}"#, r#""1","#.repeat(10))), Err(PageError::TooMany));
        assert!(read(&format!(r#"{{"tags":[{}"1"]}}"#, r#""1","#.repeat(9))).is_ok());
    }

    #[test]
    fn googles_manifests_give_digest_and_time() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let text = format!(
            r#"{{"tags":["1","2","both"],"manifest":{{
                "{a}":{{"tag":["1","both"],"timeCreatedMs":"1700000000000","timeUploadedMs":"1","imageSizeBytes":"7"}},
                "{b}":{{"tag":["2","both"],"timeCreatedMs":"0"}},
                "sha512:00":{{"tag":["1"]}}}}}}"#
        );
        let details = read(&text).expect("a page").details;
        let of = |tag: &str| details.get(&tag.parse::<Tag>().expect("a tag")).cloned();
        assert_eq!(of("1"), Some((a, Timestamp::from_millisecond(1_700_000_000_000).ok())));
        assert_eq!(of("2"), Some((b, None)));
        assert_eq!(of("both"), None);
    }

    #[test]
    fn stored_listings_are_read_strictly() {
        for (text, is_ordered) in [
            (r#"{"tags":[{"tag":"1"},{"tag":"2","created":"2024-01-01T00:00:00Z"}],"dropped":1}"#, false),
            (r#"{"tags":[{"tag":"1","position":1},{"tag":"2","position":0}],"dropped":0}"#, true),
            (r#"{"tags":[],"dropped":0}"#, false),
        ] {
            let listing: Listing = serde_json::from_str(text).expect("a listing");
            assert_eq!(serde_json::to_string(&listing).expect("json"), text);
            assert_eq!(listing.is_ordered(), is_ordered, "{text}");
        }
        for text in [
            r#"{"tags":[{"tag":"2"},{"tag":"1"}],"dropped":0}"#,
            r#"{"tags":[{"tag":"1"},{"tag":"1"}],"dropped":0}"#,
            r#"{"tags":[{"tag":"a b"}],"dropped":0}"#,
            r#"{"tags":[{"tag":"1","digest":"sha256:00"}],"dropped":0}"#,
            r#"{"tags":[{"tag":"1","x":1}],"dropped":0}"#,
            r#"{"tags":[{"tag":"1","position":0},{"tag":"2"}],"dropped":0}"#,
            r#"{"tags":[{"tag":"1"},{"tag":"2","position":0}],"dropped":0}"#,
            r#"{"tags":[{"tag":"1","position":0},{"tag":"2","position":0}],"dropped":0}"#,
            r#"{"tags":[{"tag":"1","position":-1}],"dropped":0}"#,
            r#"{"tags":[],"dropped":0,"x":1}"#,
            r#"{"tags":[]}"#,
        ] {
            assert!(serde_json::from_str::<Listing>(text).is_err(), "{text}");
        }
    }
}
