//! Words in the place of placeholders, to find out what becomes of them.
//!
//! What changes images (`images`, `kustomize-images`, a rule's target, `replacements`) knows them by their form `name[:tag][@digest]`,
//! which `ghcr.io/acme/web:$(pin ~2)` does not have: it would be passed over in silence. So Kustomize runs with a word that looks like a
//! version for each placeholder. Those that are still in what it builds are asked for, with the image that stands before them there. If it
//! builds the same with other words for the rest, those are overridden; else something of them is left (a hash, a part), and they are asked
//! for, too. In the render itself all are substituted beforehand, so that whatever reads them sees tags.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use base64::Engine as _;
use granit_parser::ScalarStyle;

use crate::image::{Digest, Repository};
use crate::manifest;
use crate::placeholder::image::{Siblings, before, beside};
use crate::placeholder::words::PlaceholderSubject;
use crate::placeholder::{Form, Placeholder, Scan, quote, splice};
use crate::yaml::{self, Kind, Tree};

/// What every such word starts with.
const PREFIX: &str = "9.9.9-pinion";

/// What the other word for the same placeholder starts with: no letter or digit of it is the same.
const OTHER: &str = "8.8.8-noipni";

/// Hexadecimal digits behind it.
const DIGITS: usize = 40;

/// What a digest starts with.
const ALGORITHM: &str = "sha256:";

/// What a placeholder gives way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// Its word, which [`StandIns::restore`] knows.
    Word,
    /// The same with a digest, if its pin will have one.
    Like,
    /// Another word, otherwise like that.
    Other,
}

/// What gave way to a word.
#[derive(Clone, Debug)]
struct Replaced {
    /// The placeholder as it was written.
    source: String,
    /// The same with its image, for a place without one.
    named: String,
    form: Form,
}

/// All words that stand in the place of placeholders, with these.
#[derive(Clone, Debug, Default)]
pub struct StandIns(BTreeMap<String, Replaced>);

/// The words that were found, with the images that they stand behind or beside.
pub type Survivors = BTreeMap<String, BTreeSet<Repository>>;

/// The word for a placeholder: equal text behind an equal image has an equal one, so that what compares them still can.
pub fn word(placeholder: &Placeholder) -> String {
    let image = before(&placeholder.before).ok().flatten().map(|image| image.to_string()).unwrap_or_default();
    let hash = Digest::of(format!("{image} {}", placeholder.source).as_bytes());
    format!("{PREFIX}{}", &hash.as_str()[ALGORITHM.len()..][..DIGITS])
}

impl StandIns {
    /// The text with words in the place of placeholders, if there are any. `is_raw`: is it one string, not YAML? `pick` says what each gives
    /// way to, if to anything.
    pub fn put(&mut self, text: &str, is_raw: bool, pick: impl Fn(&Placeholder) -> Option<As>) -> Option<String> {
        let scan = if is_raw { Scan::raw(text) } else { Scan::of(text).ok().flatten() }?;
        let values: Vec<Option<String>> = scan
            .placeholders
            .iter()
            .map(|placeholder| {
                let image = before(&placeholder.before).ok().flatten();
                let picked = pick(placeholder).filter(|_| !placeholder.source.contains('\n'))?;
                let (word, source, form) = (word(placeholder), placeholder.source.clone(), placeholder.form);
                let named = match image {
                    Some(image) if placeholder.names_no_image() => named(&source, &image),
                    _ => source.clone(),
                };
                self.0.insert(word.clone(), Replaced { source, named, form });
                let has_digest =
                    matches!(&placeholder.spec.target, PlaceholderSubject::Image { policy, .. } if policy.pins_digest());
                let digits = &word[PREFIX.len()..];
                let other = format!("{OTHER}{}", digits.chars().rev().collect::<String>());
                let written = if picked == As::Other { other } else { word.clone() };
                Some(match form {
                    Form::Digest => format!("{ALGORITHM}{written}"),
                    Form::Tag if has_digest && picked != As::Word => {
                        format!("{written}@{}", Digest::of(written.as_bytes()))
                    }
                    Form::Tag => written,
                })
            })
            .collect();
        values.iter().any(Option::is_some).then(|| scan.substitute(&values))
    }

    /// The words that are in what was built.
    pub fn survivors(&self, built: &str) -> Survivors {
        let mut found = Survivors::new();
        for document in manifest::documents(built) {
            let text = &built[document.range];
            let is_encoded = text.contains("Secret") || text.contains("binaryData");
            if !is_encoded && !text.contains(PREFIX) {
                continue;
            }
            let Ok(tree) = Tree::parse(text) else {
                self.words(text, |word, head| found.entry(word.to_owned()).or_default().extend(before(head).ok().flatten()));
                continue;
            };
            let parents = tree.parents();
            for (id, node) in tree.nodes() {
                let Kind::Scalar { value, .. } = &node.kind else { continue };
                self.words(value, |word, head| {
                    let image = before(head).ok().flatten();
                    let sibling = || beside(&tree, &parents, id, Siblings::Values).ok();
                    let is_alone = value.trim_start_matches(ALGORITHM).split('@').next() == Some(word);
                    let image = image.or_else(|| is_alone.then(sibling).flatten());
                    found.entry(word.to_owned()).or_default().extend(image);
                });
                if let Some(decoded) = is_encoded.then(|| decoded(value)).flatten() {
                    self.words(&decoded, |word, head| {
                        found.entry(word.to_owned()).or_default().extend(before(head).ok().flatten());
                    });
                }
            }
        }
        found
    }

    /// Calls `note` with each word in a text, and what stands before it.
    fn words(&self, text: &str, mut note: impl FnMut(&str, &str)) {
        for (at, _) in text.match_indices(PREFIX) {
            if let Some((word, _)) = text[at..].get(..PREFIX.len() + DIGITS).and_then(|word| self.0.get_key_value(word)) {
                note(word, text[..at].strip_suffix(ALGORITHM).unwrap_or(&text[..at]));
            }
        }
    }

    /// What was built, with placeholders back in the place of words.
    pub fn restore(&self, built: String) -> String {
        if self.0.is_empty() || !built.contains(PREFIX) {
            return built;
        }
        let mut restored = String::with_capacity(built.len());
        for document in manifest::documents(&built) {
            let text = &built[document.range];
            if text.contains(PREFIX) {
                restored += &self.restore_document(text);
            } else {
                restored += text;
            }
        }
        restored
    }

    fn restore_document(&self, text: &str) -> String {
        let Ok(tree) = Tree::parse(text) else { return self.restored(text) };
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        for (_, node) in tree.nodes() {
            let Kind::Scalar { value, style } = &node.kind else { continue };
            if !value.contains(PREFIX) {
                continue;
            }
            let written = &text[node.span.clone()];
            let restored = match style {
                ScalarStyle::Plain => {
                    let plain = self.restored(value);
                    let is_plain = yaml::reads_as_string(&plain) && !plain.contains([',', '[', ']', '{', '}', '#', '\\']);
                    if is_plain && !plain.contains(": ") { plain } else { quote(&plain) }
                }
                ScalarStyle::DoubleQuoted => serde_json::Value::String(self.restored(value)).to_string(),
                ScalarStyle::SingleQuoted => format!("'{}'", self.restored(value).replace('\'', "''")),
                _ => self.restored(written),
            };
            edits.push((node.span.clone(), restored));
        }
        edits.sort_by_key(|(range, _)| range.start);
        splice(text, 0, &edits)
    }

    /// A text in which every word of ours gives way to its placeholder.
    fn restored(&self, text: &str) -> String {
        let mut restored = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(PREFIX) {
            let (head, behind) = rest.split_at(at);
            let Some((word, replaced)) = behind.get(..PREFIX.len() + DIGITS).and_then(|word| self.0.get_key_value(word)) else {
                restored += head;
                restored += PREFIX;
                rest = &behind[PREFIX.len()..];
                continue;
            };
            restored += head;
            if replaced.form == Form::Digest && restored.ends_with(ALGORITHM) {
                restored.truncate(restored.len() - ALGORITHM.len());
            }
            let is_behind_an_image = before(&restored).is_ok_and(|image| image.is_some());
            restored += if is_behind_an_image { &replaced.source } else { &replaced.named };
            rest = &behind[word.len()..];
        }
        restored + rest
    }
}

/// Is there any of these words in a text, also in base64?
pub fn is_left(text: &str) -> bool {
    let holds = |text: &str| {
        text.match_indices(PREFIX).any(|(at, _)| {
            let digits = text[at + PREFIX.len()..].bytes().take(DIGITS).filter(u8::is_ascii_hexdigit).count();
            digits == DIGITS
        })
    };
    holds(text)
        || manifest::documents(text).into_iter().map(|document| &text[document.range]).any(|text| {
            let is_encoded = text.contains("Secret") || text.contains("binaryData");
            is_encoded
                && Tree::parse(text).is_ok_and(|tree| {
                    tree.nodes().any(|(_, node)| match &node.kind {
                        Kind::Scalar { value, .. } => decoded(value).is_some_and(|text| holds(&text)),
                        _ => false,
                    })
                })
        })
}

/// The text in a scalar that is base64 of some.
fn decoded(value: &str) -> Option<String> {
    let word: String = value.split_ascii_whitespace().collect();
    let bytes = (word.len() >= PREFIX.len()).then(|| base64::engine::general_purpose::STANDARD.decode(word).ok()).flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A placeholder that says its image itself.
fn named(source: &str, image: &Repository) -> String {
    let words = source.trim_start_matches("$(pin").trim_end_matches(')').trim();
    if words.is_empty() { format!("$(pin {})", image.text()) } else { format!("$(pin {} {words})", image.text()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind_images(placeholder: &Placeholder) -> Option<As> {
        before(&placeholder.before).ok().flatten().map(|_| As::Word)
    }

    #[test]
    fn the_other_word_has_nothing_of_the_first() {
        let mut stand_ins = StandIns::default();
        let text = "a: x/y:$(pin ~2)\nb: x/y:$(pin ~2 --with-digest)\n";
        let [first, like, other] =
            [As::Word, As::Like, As::Other].map(|as_| stand_ins.put(text, false, |_| Some(as_)).expect("words"));
        assert!(!first.contains('@') && like.contains("@sha256:") && other.contains("@sha256:"), "{first}{like}{other}");
        let word = |text: &str| text.lines().next().and_then(|line| line.split(':').next_back()).unwrap_or_default().to_owned();
        let (like_word, other_word) = (word(&like), word(&other));
        let pairs = like_word.chars().zip(other_word.chars()).take(PREFIX.len());
        let same = pairs.filter(|(a, b)| a == b && a.is_alphanumeric());
        assert_eq!(same.count(), 0, "{like}{other}");
        assert_eq!(stand_ins.survivors(&like).len(), 2);
        assert!(stand_ins.survivors(&other).is_empty());
    }

    #[test]
    fn placeholders_come_back_where_their_words_still_stand() {
        let mut stand_ins = StandIns::default();
        let text = "a: ghcr.io/a/b:$(pin ~2)\nb: 'c/d@$(pin digest latest)'\nc: $(pin e/f ~1)\nd: \"g/h:$(pin '>=1, <2')\"\n";
        let put = stand_ins.put(text, false, behind_images).expect("placeholders");
        assert!(put.contains(&format!("a: ghcr.io/a/b:{PREFIX}")) && put.contains(&format!("'c/d@sha256:{PREFIX}")), "{put}");
        assert!(put.contains("c: $(pin e/f ~1)"), "what stands behind no image stays: {put}");
        assert_eq!(stand_ins.restore(put.clone()), text);
        let moved = put.replace("ghcr.io/a/b:", "").replace("c/d@sha256:", "sha256:");
        let restored = stand_ins.restore(moved);
        assert!(restored.starts_with("a: $(pin ghcr.io/a/b ~2)\nb: '$(pin c/d digest latest)'\n"), "{restored}");
    }

    #[test]
    fn what_survives_is_found_with_the_image_that_it_got() {
        let mut stand_ins = StandIns::default();
        let text = "a: old/web:$(pin ~2)\nb: $(pin ~1)\nc: $(pin x/y ~3)\nd: z/z@$(pin digest latest)\n";
        let put = stand_ins.put(text, false, |_| Some(As::Word)).expect("placeholders");
        let words: Vec<String> = {
            let scan = Scan::of(text).expect("YAML").expect("placeholders");
            scan.placeholders.iter().map(word).collect()
        };
        let secret = base64::engine::general_purpose::STANDARD.encode(format!("image: q/r:{}", words[2]));
        let (start, end) = secret.split_at(20);
        let built = format!(
            "image: new/web:{}\nspec: {{image: {{repository: m/n, tag: {}}}}}\n---\nkind: Secret\ndata:\n  x: |\n    {start}\n    {end}\n---\nimage: z/z@sha256:{}\n",
            words[0], words[1], words[3]
        );
        let survivors = stand_ins.survivors(&built);
        let images: Vec<String> =
            words.iter().map(|word| survivors[word].iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(images, ["docker.io/new/web", "docker.io/m/n", "docker.io/q/r", "docker.io/z/z"]);
        assert!(is_left(&put) && is_left(&built) && is_left(&format!("kind: Secret\ndata: {{x: {secret}}}\n")));
        assert!(stand_ins.survivors("image: new/web:1\n").is_empty() && !is_left("apiVersion: pinion.dev/v1\n"));
    }

    #[test]
    fn what_was_quoted_or_not_stays_one_string() {
        let mut stand_ins = StandIns::default();
        let text = "a: \"x/y:$(pin '>=1, <2')\"\nb: |\n  run x/y:$(pin ~1) now\n";
        let put = stand_ins.put(text, false, behind_images).expect("placeholders");
        let restored = stand_ins.restore(put.replacen('"', "", 2));
        assert_eq!(restored, text);
        let broken = format!("a: [{}", put.lines().next().expect("a line"));
        assert!(stand_ins.restore(broken).contains("$(pin '>=1, <2')"), "also in what is no YAML");
    }

    #[test]
    fn other_text_stays() {
        let stand_ins = StandIns::default();
        assert_eq!(stand_ins.restore("image: pinion-x\n".into()), "image: pinion-x\n");
        let mut stand_ins = StandIns::default();
        assert_eq!(stand_ins.put("image: a/b:1\n", false, |_| Some(As::Word)), None);
        stand_ins.put("image: a/b:$(pin ~1)\n", false, |_| Some(As::Word)).expect("a placeholder");
        let text = format!("image: {PREFIX}\nb: {PREFIX}{}\n", "0".repeat(DIGITS));
        assert_eq!(stand_ins.restore(text.clone()), text);
    }
}
