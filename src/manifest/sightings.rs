//! Where the tags of pins stand in rendered manifests.
//!
//! Text is read as words of the characters that image references have, so that a tag is found in any field, in text of a ConfigMap and in
//! the base64 of a Secret, but not as a part of another word. A label that repeats a chart's version is no place of a tag.

use std::collections::{BTreeSet, HashMap};

use base64::Engine as _;

use super::documents;
use crate::image::{Digest, Repository, Tag, split_tag};
use crate::yaml::{Kind, Tree};

/// Keys whose value is a version of a chart, which may equal a tag.
const VERSIONS: [&str; 2] = ["app.kubernetes.io/version", "helm.sh/chart"];

/// A pin that is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    pub repository: &'a Repository,
    pub tag: &'a Tag,
    pub digest: Option<&'a Digest>,
}

/// How one pin stands in the manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Does its tag or digest stand behind its own repository?
    pub is_beside_own: bool,
    /// Other repositories that its tag stands behind.
    pub others: BTreeSet<Repository>,
    /// Does its tag or digest stand somewhere without a repository?
    pub is_alone: bool,
    /// Does its digest stand anywhere?
    pub has_digest: bool,
    /// Tags of its own repository that are not this pin's.
    pub other_tags: BTreeSet<String>,
}

impl Sighting {
    /// Did the pin reach the manifests? Where its own repository stands with another tag, that of another image is no evidence, and if
    /// an image was to get the tag, neither is the tag alone.
    pub fn is_found(&self, is_for_an_image: bool) -> bool {
        let is_contradicted = !self.other_tags.is_empty();
        let is_alone = self.is_alone && !(is_contradicted && is_for_an_image);
        self.is_beside_own || is_alone || (!self.others.is_empty() && !is_contradicted)
    }
}

/// Looks for pins: one [`Sighting`] for each, in the same order.
pub fn sightings(text: &str, pins: &[Sought<'_>]) -> Vec<Sighting> {
    let mut search =
        Search { pins, by_word: HashMap::new(), by_name: HashMap::new(), found: vec![Sighting::default(); pins.len()] };
    for (index, pin) in pins.iter().enumerate() {
        let words = [Some(pin.tag.as_str()), pin.digest.map(Digest::as_str)];
        words.into_iter().flatten().for_each(|word| search.by_word.entry(word).or_default().push(index));
        search.by_name.entry(last_part(pin.repository.path())).or_default().push(index);
    }
    search.read(text);
    if pins.is_empty() {
        return search.found;
    }
    for document in documents(text) {
        let document = &text[document.range];
        if document.contains("Secret") || document.contains("binaryData") {
            encoded(document).iter().for_each(|text| search.read(text));
        }
    }
    search.found
}

struct Search<'a> {
    pins: &'a [Sought<'a>],
    /// Pins by tag and by digest.
    by_word: HashMap<&'a str, Vec<usize>>,
    /// Pins by the last part of their repository's path.
    by_name: HashMap<&'a str, Vec<usize>>,
    found: Vec<Sighting>,
}

impl Search<'_> {
    fn read(&mut self, text: &str) {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
        for line in text.lines().map(without_comment) {
            let mut from = 0;
            while let Some(start) = line[from..].find(is_part).map(|at| from + at) {
                let end = line[start..].find(|c| !is_part(c)).map_or(line.len(), |at| start + at);
                // A full stop or a colon ends a sentence or a key.
                let word = line[start..end].trim_end_matches(['.', ':', '-']);
                self.word(word, &line[..start]);
                from = end;
            }
        }
    }

    fn word(&mut self, word: &str, before: &str) {
        if self.by_word.contains_key(word) {
            if !is_version(before) {
                self.mark(word, |sighting, _| sighting.is_alone = true);
            }
            return;
        }
        let (name, digest) = word.split_once('@').map_or((word, None), |(name, digest)| (name, Some(digest)));
        // `tag@sha256:…` without a repository, too.
        let (name, tag) = if digest.is_some() && self.by_word.contains_key(name) { ("", Some(name)) } else { split_tag(name) };
        let wanted: Vec<&str> = [tag, digest].into_iter().flatten().filter(|part| self.by_word.contains_key(part)).collect();
        let is_known = self.by_name.contains_key(last_part(name));
        if wanted.is_empty() && !(is_known && (tag.is_some() || digest.is_some())) {
            return;
        }
        // `docker://ghcr.io/acme/web:1.2`
        let repository = name.rsplit_once("//").map_or(name, |(_, name)| name).parse::<Repository>();
        let shown = [tag, digest].into_iter().flatten().collect::<Vec<_>>().join("@");
        // What a digest of another image stands behind is that other image.
        let has_digest = |pin: &Sought<'_>| digest.is_some_and(|digest| pin.digest.map(Digest::as_str) == Some(digest));
        let has_tag = |pin: &Sought<'_>| tag == Some(pin.tag.as_str());
        // Tag and digest may be two pins of one image.
        let is_of_another_pin = |pin: &Sought<'_>| {
            has_tag(pin)
                && self.pins.iter().any(|other| other.repository == pin.repository && other.tag == pin.tag && has_digest(other))
        };
        let is_exact = |pin: &Sought<'_>| {
            if digest.is_some() { has_digest(pin) || is_of_another_pin(pin) } else { has_tag(pin) }
        };
        for part in wanted {
            self.mark(part, |sighting, pin| match &repository {
                Ok(repository) if repository == pin.repository => sighting.is_beside_own |= is_exact(pin),
                Ok(repository) => drop(sighting.others.insert(repository.clone())),
                Err(_) => sighting.is_alone = true,
            });
        }
        let Ok(repository) = repository else { return };
        if shown.is_empty() {
            return;
        }
        let own = self.by_name.get(last_part(repository.path())).cloned().unwrap_or_default();
        let own: Vec<usize> = own.into_iter().filter(|index| *self.pins[*index].repository == repository).collect();
        if !own.iter().any(|index| is_exact(&self.pins[*index])) {
            for index in own {
                self.found[index].other_tags.insert(shown.clone());
            }
        }
    }

    fn mark(&mut self, word: &str, note: impl Fn(&mut Sighting, &Sought<'_>)) {
        for index in self.by_word.get(word).into_iter().flatten() {
            self.found[*index].has_digest |= self.pins[*index].digest.is_some_and(|digest| digest.as_str() == word);
            note(&mut self.found[*index], &self.pins[*index]);
        }
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// A line of YAML without its comment. A `#` inside quotes is text.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    let is_comment = |at: &usize| line[..*at].matches(['"', '\'']).count().is_multiple_of(2);
    line.match_indices(" #").map(|(at, _)| at).find(is_comment).map_or(line, |at| &line[..at])
}

/// Is a word that stands behind this text the value of a version's key?
fn is_version(before: &str) -> bool {
    let key = before.trim_end_matches([' ', '"', '\'']);
    key.strip_suffix(':').is_some_and(|key| VERSIONS.iter().any(|version| key.trim_end_matches(['"', '\'']).ends_with(version)))
}

/// The decoded values of a document that are base64 of text.
fn encoded(document: &str) -> Vec<String> {
    let Ok(tree) = Tree::parse(document) else { return Vec::new() };
    let scalars = tree.nodes().filter_map(|(_, node)| match &node.kind {
        Kind::Scalar { value, .. } if value.len() >= 4 => Some(value.split_ascii_whitespace().collect::<String>()),
        _ => None,
    });
    let decoded = scalars.filter_map(|word| base64::engine::general_purpose::STANDARD.decode(word).ok());
    decoded.filter_map(|bytes| String::from_utf8(bytes).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(text: &str, image: &str, pin: &str) -> Sighting {
        let (tag, digest) = pin.split_once('@').map_or((pin, None), |(tag, digest)| (tag, Some(digest)));
        let (repository, tag): (Repository, Tag) = (image.parse().expect("an image"), tag.parse().expect("a tag"));
        let digest: Option<Digest> = digest.map(|text| text.parse().expect("a digest"));
        sightings(text, &[Sought { repository: &repository, tag: &tag, digest: digest.as_ref() }]).remove(0)
    }

    #[test]
    fn a_tag_is_found_where_an_image_or_a_field_holds_it() {
        let digest = Digest::of(b"x");
        for (text, pin, is_found) in [
            ("image: \"ghcr.io/a/b:1.2\"\n".to_owned(), "1.2", true),
            ("args: [--image=ghcr.io/a/b:1.2]\n".to_owned(), "1.2", true),
            ("text: pull docker://ghcr.io/a/b:1.2.\n".to_owned(), "1.2", true),
            ("image: mirror.local/a/b:1.2\n".to_owned(), "1.2", true),
            ("data: {VERSION: \"1.2\"}\n".to_owned(), "1.2", true),
            (format!("image: ghcr.io/a/b@{digest}\n"), &format!("1.2@{digest}"), true),
            (format!("image: ghcr.io/a/b:1.2@{digest}\n"), &format!("1.2@{digest}"), true),
            (format!("digest: {digest}\n"), &format!("1.2@{digest}"), true),
            (format!("tag: 1.2@{digest}\n"), &format!("1.2@{digest}"), true),
            ("{\"image\":\"ghcr.io/a/b:1.2\"}".to_owned(), "1.2", true),
            ("image: ghcr.io/a/b:v1.2\n".to_owned(), "1.2", false),
            ("image: ghcr.io/a/b:1.2.0\n".to_owned(), "1.2", false),
            ("image: ghcr.io/a/b:0.9\nsidecar: busybox:1.2\n".to_owned(), "1.2", false),
            ("labels: {app.kubernetes.io/version: \"1.2\", \"helm.sh/chart\": 1.2}\n".to_owned(), "1.2", false),
            ("kind: Secret\ndata: {x: aW1hZ2U6IGdoY3IuaW8vYS9iOjEuMgo=}\n".to_owned(), "1.2", true),
            ("kind: Secret\ndata:\n  x: |\n    aW1hZ2U6IGdoY3Iu\n    aW8vYS9iOjEuMgo=\n".to_owned(), "1.2", true),
            ("# image: ghcr.io/a/b:1.2\nimage: x # ghcr.io/a/b:1.2\n".to_owned(), "1.2", false),
            ("args: [v1.2, web-1.2]\n".to_owned(), "1.2", false),
            ("command: \"echo # ghcr.io/a/b:1.2\"\n".to_owned(), "1.2", true),
            (format!("image: ghcr.io/a/b:1.2@{}\n", Digest::of(b"y")), &format!("1.2@{digest}"), false),
            (format!("image: ghcr.io/a/b:1.2@{}\n", Digest::of(b"y")), "1.2", false),
            ("image: ghcr.io/a/b:0.9\nenv: {VERSION: \"1.2\"}\n".to_owned(), "1.2", false),
            (String::new(), "1.2", false),
        ] {
            assert_eq!(sighting(&text, "ghcr.io/a/b", pin).is_found(true), is_found, "{text}");
        }
    }

    #[test]
    fn repositories_beside_a_tag_are_told() {
        let text = "image: \"ghcr.io/a/b:1.2\"\nargs: [--image=a/c:1.2@sha256:x, a/d:1.20, 'x:1.2']\n";
        let found = sighting(text, "ghcr.io/a/b", "1.2");
        let others: Vec<String> = found.others.iter().map(ToString::to_string).collect();
        assert_eq!((found.is_beside_own, others), (true, vec!["docker.io/a/c".to_owned(), "docker.io/library/x".to_owned()]));
        let found = sighting("image: ghcr.io/a/b:0.9\n---\nimage: ghcr.io/a/b\n", "ghcr.io/a/b", "1.2");
        assert_eq!(found.other_tags.into_iter().collect::<Vec<_>>(), ["0.9"]);
    }

    #[test]
    fn the_tag_of_another_pin_of_the_same_image_speaks_against_none() {
        let repository: Repository = "ghcr.io/a/b".parse().expect("an image");
        let (old, new): (Tag, Tag) = ("1.2".parse().expect("a tag"), "2.0".parse().expect("a tag"));
        let sought = |tag| Sought { repository: &repository, tag, digest: None };
        let found = sightings("image: ghcr.io/a/b:1.2\nNEXT: x/y:2.0\n", &[sought(&old), sought(&new)]);
        assert!(found.iter().all(|sighting| sighting.is_found(true)), "{found:?}");
        let named = sighting("image: ghcr.io/a/b:0.9\nenv: {VERSION: \"1.2\"}\n", "ghcr.io/a/b", "1.2");
        assert!(named.is_found(false), "a placeholder for a version alone");
    }
}
