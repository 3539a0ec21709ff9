//! The index of a chart repository, read piece by piece: what is kept is a small part of it, and it comes from anywhere.

use std::collections::BTreeMap;
use std::fmt;

use granit_parser::{Event, Parser, ScalarStyle, StrInput};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::lenient;
use crate::image::Digest;
use crate::yaml::reads_as_string;

/// Versions that one index may list, of all charts together.
const MAX_VERSIONS: usize = 200_000;

/// One version of a chart.
#[derive(Clone, Debug)]
pub struct Entry {
    pub version: String,
    /// The first of its addresses.
    pub url: String,
    pub digest: Option<Digest>,
}

/// Charts by name, the newest version first.
pub type Index = BTreeMap<String, Vec<Entry>>;

/// Reads an index; many are JSON, which is read ten times as fast. Versions without an address are left out.
///
/// # Errors
///
/// What is wrong with it, also if it lists more than [`MAX_VERSIONS`].
pub fn read(bytes: &[u8]) -> Result<Index, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let File { api_version, entries: Entries(mut index) } = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        Reader::new(text).file()?
    };
    if api_version.is_empty() {
        return Err("it has no `apiVersion`".to_owned());
    }
    for entries in index.values_mut() {
        // What is no version comes last.
        entries.sort_by(|a, b| match (lenient(&a.version), lenient(&b.version)) {
            (Some(a), Some(b)) => b.cmp_precedence(&a),
            (a, b) => b.is_some().cmp(&a.is_some()),
        });
    }
    Ok(index)
}

#[derive(Default, Deserialize)]
struct File {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    entries: Entries,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    version: Option<String>,
    urls: Option<Vec<String>>,
    digest: Option<String>,
}

impl Raw {
    fn entry(self) -> Option<Entry> {
        let digest = self.digest.map(|text| if text.contains(':') { text } else { format!("sha256:{text}") });
        Some(Entry {
            version: self.version?,
            url: self.urls?.into_iter().next()?,
            digest: digest.and_then(|text| text.parse().ok()),
        })
    }
}

fn too_many() -> String {
    format!("it lists more than {MAX_VERSIONS} versions")
}

#[derive(Default)]
struct Entries(Index);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Charts)
    }
}

struct Charts;

impl<'de> Visitor<'de> for Charts {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("charts by name")
    }

    fn visit_unit<E: Error>(self) -> Result<Entries, E> {
        Ok(Entries::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let (mut index, mut count) = (Index::new(), 0);
        while let Some(name) = map.next_key::<String>()? {
            let Versions(entries) = map.next_value()?;
            count += entries.len();
            if count > MAX_VERSIONS {
                return Err(A::Error::custom(too_many()));
            }
            index.insert(name, entries);
        }
        Ok(Entries(index))
    }
}

struct Versions(Vec<Entry>);

impl<'de> Deserialize<'de> for Versions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfOne;
        impl<'de> Visitor<'de> for OfOne {
            type Value = Versions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of versions")
            }

            fn visit_unit<E: Error>(self) -> Result<Versions, E> {
                Ok(Versions(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Versions, A::Error> {
                let mut entries = Vec::new();
                while let Some(raw) = items.next_element::<Option<Raw>>()? {
                    entries.extend(raw.and_then(Raw::entry));
                    if entries.len() > MAX_VERSIONS {
                        return Err(A::Error::custom(too_many()));
                    }
                }
                Ok(Versions(entries))
            }
        }
        deserializer.deserialize_any(OfOne)
    }
}

/// Reads YAML by its events, of which there may be many millions.
struct Reader<'t> {
    events: Parser<'t, StrInput<'t>>,
    count: usize,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Self {
        let options = granit_parser::options! { emit_comments: false };
        Self { events: Parser::new_from_str_with_options(text, options), count: 0 }
    }

    fn next(&mut self) -> Result<Event<'t>, String> {
        match self.events.next() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it ends too early".to_owned()),
        }
    }

    /// Passes over the rest of what an event began.
    fn skip(&mut self, event: &Event<'t>) -> Result<(), String> {
        let mut depth = usize::from(matches!(event, Event::MappingStart(..) | Event::SequenceStart(..)));
        while depth > 0 {
            match self.next()? {
                Event::MappingStart(..) | Event::SequenceStart(..) => depth += 1,
                Event::MappingEnd | Event::SequenceEnd => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Calls `take` with each key of a mapping that was begun and the first event of its value, which `take` reads to its end.
    fn mapping(&mut self, mut take: impl FnMut(&mut Self, &str, Event<'t>) -> Result<(), String>) -> Result<(), String> {
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(()),
                Event::Scalar(key, ..) => key,
                other => {
                    self.skip(&other)?;
                    let value = self.next()?;
                    self.skip(&value)?;
                    continue;
                }
            };
            let value = self.next()?;
            take(self, &key, value)?;
        }
    }

    /// Calls `take` with the first event of each item of a list that was begun.
    fn list(&mut self, mut take: impl FnMut(&mut Self, Event<'t>) -> Result<(), String>) -> Result<(), String> {
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(()),
                item => take(self, item)?,
            }
        }
    }

    fn file(mut self) -> Result<File, String> {
        let mut file = File::default();
        loop {
            match self.next()? {
                Event::MappingStart(..) => break,
                Event::Scalar(..) | Event::SequenceStart(..) | Event::Alias(_) => return Err("it is no mapping".to_owned()),
                Event::StreamEnd => return Err("it is empty".to_owned()),
                _ => {}
            }
        }
        self.mapping(|own, key, value| match (key, &value) {
            ("apiVersion", Event::Scalar(text, ..)) => {
                file.api_version = text.to_string();
                Ok(())
            }
            ("entries", Event::MappingStart(..)) => own.mapping(|own, name, value| {
                let entries = own.versions(&value)?;
                file.entries.0.insert(name.to_owned(), entries);
                Ok(())
            }),
            _ => own.skip(&value),
        })?;
        Ok(file)
    }

    fn versions(&mut self, value: &Event<'t>) -> Result<Vec<Entry>, String> {
        let mut entries = Vec::new();
        if !matches!(value, Event::SequenceStart(..)) {
            self.skip(value)?;
            return Ok(entries);
        }
        self.list(|own, item| {
            // Also those that are none: each takes its time.
            own.count += 1;
            if own.count > MAX_VERSIONS {
                return Err(too_many());
            }
            if !matches!(item, Event::MappingStart(..)) {
                return own.skip(&item);
            }
            let mut raw = Raw::default();
            own.mapping(|own, key, value| {
                match (key, &value) {
                    ("version", _) => raw.version = text(&value),
                    ("digest", _) => raw.digest = text(&value),
                    ("urls", Event::SequenceStart(..)) => {
                        let mut first = None;
                        own.list(|own, item| {
                            first = first.take().or_else(|| text(&item));
                            own.skip(&item)
                        })?;
                        raw.urls = Some(first.into_iter().collect());
                        return Ok(());
                    }
                    _ => {}
                }
                own.skip(&value)
            })?;
            entries.extend(raw.entry());
            Ok(())
        })?;
        Ok(entries)
    }
}

/// A scalar that is text: `1.0` is a number.
fn text(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Scalar(text, ScalarStyle::Plain, ..) if !reads_as_string(text) => None,
        Event::Scalar(text, ..) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_sorted_and_what_cannot_be_fetched_left_out() {
        let text = "# generated
apiVersion: v1
entries:
  web:
  - {version: 1.2.0, urls: [web-1.2.0.tgz], digest: abc, maintainers: [{name: x}], ? [a] : b}
  - version: 1.10.0
    urls: ['https://other.example/web-1.10.0.tgz', second]
    digest: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
  - {version: 2.0.0}
  - {version: latest, urls: [x]}
  - {version: 3.0, urls: [x]}
  -
  none: null
generated: now
";
        let index = read(text.as_bytes()).expect("an index");
        let versions: Vec<&str> = index["web"].iter().map(|entry| entry.version.as_str()).collect();
        assert_eq!(versions, ["1.10.0", "1.2.0", "latest"]);
        assert!(index["web"][0].digest.is_some() && index["web"][1].digest.is_none() && index["none"].is_empty());
        assert_eq!(index["web"][0].url, "https://other.example/web-1.10.0.tgz");
        let json = r#"{"apiVersion": "v1", "entries": {"web": [{"version": "1.0.0", "urls": ["a"]}, null], "none": null}}"#;
        assert_eq!(read(json.as_bytes()).expect("an index")["web"][0].url, "a");
        for wrong in [&b"entries: {}"[..], b"\xff", b"apiVersion: v1\na: [", b"", b"[]", b"apiVersion: v1\nentries: {a: [{"] {
            assert!(read(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn what_an_index_lists_is_bounded() {
        for entry in ["{}", "{version: '1', urls: [a]}", "x"] {
            let list = vec![entry; MAX_VERSIONS + 1].join(",");
            let error = read(format!("apiVersion: v1\nentries: {{web: [{list}]}}\n").as_bytes()).expect_err(entry);
            assert!(error.contains("more than 200000 versions"), "{entry}: {error}");
        }
        let list = vec![r#"{"version":"1","urls":["a"]}"#; MAX_VERSIONS + 1].join(",");
        let error = read(format!(r#"{{"apiVersion":"v1","entries":{{"web":[{list}]}}}}"#).as_bytes()).expect_err("too many");
        assert!(error.contains("more than 200000 versions"), "{error}");
        assert!(read(format!("apiVersion: v1\nentries: {}", "[".repeat(100_000)).as_bytes()).is_err(), "nested");
    }
}
