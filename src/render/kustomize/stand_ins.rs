//! Legal tags in the place of placeholders while Kustomize runs.
//!
//! What changes images (`images`, `kustomize-images`, a rule's target, `replacements`) knows them by their form `name[:tag][@digest]`,
//! which `ghcr.io/acme/web:$(pin ~2)` does not have: it would be passed over in silence. So the placeholders behind an image's name in
//! the files that a kustomization names give way to tags of their own, and come back wherever those still stand in what was built.

use std::collections::BTreeMap;
use std::ops::Range;

use granit_parser::ScalarStyle;

use crate::image::{Digest, Repository};
use crate::manifest;
use crate::placeholder::image::before;
use crate::placeholder::{Form, Scan, quote, splice};
use crate::yaml::{self, Kind, Tree};

/// What every such tag starts with.
const PREFIX: &str = "pinion-";

/// Hexadecimal digits behind it.
const DIGITS: usize = 40;

/// What a digest starts with.
const ALGORITHM: &str = "sha256:";

/// What gave way to a tag.
#[derive(Debug)]
struct Replaced {
    /// The placeholder as it was written.
    source: String,
    /// The same with its image, for a place without one.
    named: String,
    form: Form,
}

/// All tags that stand in the place of placeholders, with these.
#[derive(Debug, Default)]
pub struct StandIns(BTreeMap<String, Replaced>);

impl StandIns {
    /// The text with tags in the place of its placeholders, if any of them stands behind an image's name.
    pub fn put(&mut self, text: &str) -> Option<String> {
        let scan = Scan::of(text).ok().flatten()?;
        let values: Vec<Option<String>> = scan
            .placeholders
            .iter()
            .map(|placeholder| {
                let image = before(&placeholder.before).ok().flatten().filter(|_| !placeholder.source.contains('\n'))?;
                let source = placeholder.source.clone();
                let named = if placeholder.names_no_image() { named(&source, &image) } else { source.clone() };
                let hash = Digest::of(format!("{image} {source}").as_bytes());
                let tag = format!("{PREFIX}{}", &hash.as_str()[ALGORITHM.len()..][..DIGITS]);
                let written = if placeholder.form == Form::Digest { format!("{ALGORITHM}{tag}") } else { tag.clone() };
                self.0.insert(tag, Replaced { source, named, form: placeholder.form });
                Some(written)
            })
            .collect();
        values.iter().any(Option::is_some).then(|| scan.substitute(&values))
    }

    /// What was built, with the placeholders back in their place.
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

    /// A text in which every tag of ours gives way to its placeholder.
    fn restored(&self, text: &str) -> String {
        let mut restored = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(PREFIX) {
            let (head, behind) = rest.split_at(at);
            let Some((tag, replaced)) = behind.get(..PREFIX.len() + DIGITS).and_then(|tag| self.0.get_key_value(tag)) else {
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
            rest = &behind[tag.len()..];
        }
        restored + rest
    }
}

/// A placeholder that says its image itself.
fn named(source: &str, image: &Repository) -> String {
    let words = source.trim_start_matches("$(pin").trim_end_matches(')').trim();
    if words.is_empty() { format!("$(pin {})", image.text()) } else { format!("$(pin {} {words})", image.text()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_come_back_where_their_tags_still_stand() {
        let mut stand_ins = StandIns::default();
        let text = "a: ghcr.io/a/b:$(pin ~2)\nb: 'c/d@$(pin digest latest)'\nc: $(pin e/f ~1)\nd: \"g/h:$(pin '>=1, <2')\"\n";
        let put = stand_ins.put(text).expect("placeholders");
        assert!(put.contains("a: ghcr.io/a/b:pinion-") && put.contains("'c/d@sha256:pinion-"), "{put}");
        assert!(put.contains("c: $(pin e/f ~1)"), "what stands behind no image stays: {put}");
        assert_eq!(stand_ins.restore(put.clone()), text);
        let moved = put.replace("ghcr.io/a/b:pinion", "pinion").replace("c/d@sha256:", "sha256:");
        let restored = stand_ins.restore(moved);
        assert!(restored.starts_with("a: $(pin ghcr.io/a/b ~2)\nb: '$(pin c/d digest latest)'\n"), "{restored}");
    }

    #[test]
    fn what_was_quoted_or_not_stays_one_string() {
        let mut stand_ins = StandIns::default();
        let put = stand_ins.put("a: \"x/y:$(pin '>=1, <2')\"\nb: |\n  run x/y:$(pin ~1) now\n").expect("placeholders");
        let plain = put.replacen('"', "", 2);
        let restored = stand_ins.restore(plain);
        assert_eq!(restored, "a: \"x/y:$(pin '>=1, <2')\"\nb: |\n  run x/y:$(pin ~1) now\n");
        let broken = format!("a: [{}", put.lines().next().expect("a line"));
        assert!(stand_ins.restore(broken).contains("$(pin '>=1, <2')"), "also in what is no YAML");
    }

    #[test]
    fn other_text_stays() {
        let stand_ins = StandIns::default();
        assert_eq!(stand_ins.restore("image: pinion-x\n".into()), "image: pinion-x\n");
        let mut stand_ins = StandIns::default();
        assert_eq!(stand_ins.put("image: a/b:1\n"), None);
        stand_ins.put("image: a/b:$(pin ~1)\n").expect("a placeholder");
        let text = format!("image: pinion-\nb: pinion-{}\n", "0".repeat(DIGITS));
        assert_eq!(stand_ins.restore(text.clone()), text);
    }
}
