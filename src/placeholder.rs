//! Placeholders `$(pin …)`: find them in YAML text, and put tags in their place.
//!
//! Text goes in, places and text come out. A placeholder stands inside one string scalar of any style; its words are split as a POSIX
//! shell splits them; `)` inside quotes is text. Substitution splices bytes: all else in the file stays as it was, except that a plain
//! scalar whose type would change is quoted. `$$(pin ` is a literal `$(pin `, as Kubernetes escapes its own `$(VAR)`. `$(pin)` has no
//! constraint: it is `$(pin *)`.
//!
//! Which image a placeholder means, where it does not say so itself, is told by [`image`].

pub mod image;
pub mod near_miss;
pub mod scans;
pub mod words;

use std::collections::BTreeSet;
use std::ops::Range;

use granit_parser::ScalarStyle;

use crate::image::printable;
use crate::yaml::{self, Kind, NodeId, Tree, YamlError};
use words::{Spec, Words, WordsError};

const OPEN: &str = "$(pin";

/// Longest placeholder, from `$` to `)`, in bytes.
const MAX_LENGTH: usize = 4096;

/// Placeholders that one render may hold.
pub const MAX_PLACEHOLDERS: usize = 10_000;

/// A placeholder and where it stands.
#[derive(Clone, Debug)]
pub struct Placeholder {
    /// The scalar that holds it.
    pub scalar: NodeId,
    /// Its bytes in the text, from `$` to `)`.
    pub range: Range<usize>,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// As it is written, decoded.
    pub source: String,
    /// The decoded text of the same scalar before it.
    pub before: String,
    /// Is there nothing else in the scalar?
    pub is_alone: bool,
    /// Does a character that could belong to a tag stand right before or behind it?
    pub is_touched: bool,
    pub form: Form,
    pub spec: Spec,
}

impl Placeholder {
    /// Is the image left to what stands around the placeholder?
    pub fn names_no_image(&self) -> bool {
        matches!(self.spec.target, words::PlaceholderSubject::Image { repository: None, .. })
    }
}

/// What stands in a placeholder's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `tag[@digest]`
    Tag,
    /// The digest alone: behind an `@`, or as the value of a key `digest`.
    Digest,
}

/// A placeholder that cannot be understood.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{line}:{column}: `{source_text}`: {mistake}")]
pub struct PlaceholderError {
    pub line: usize,
    pub column: usize,
    /// As it is written, decoded and made printable.
    pub source_text: String,
    pub mistake: Mistake,
}

/// What is wrong with a placeholder.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Mistake {
    #[error("the placeholder is not closed: `)` is missing in this scalar")]
    Unclosed,
    #[error("a space is missing after `$(pin`")]
    NoSpace,
    #[error("the placeholder is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The file holds a placeholder but cannot be read as YAML.
    #[error("the file holds a placeholder but is not YAML: {0}")]
    NotYaml(String),
}

impl PlaceholderError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match &self.mistake {
            Mistake::Unclosed => {
                Some("write `)` at the end; put the value in quotes if the placeholder holds `, `, ` #` or `: `".into())
            }
            Mistake::NoSpace => Some("write `$(pin …)`".into()),
            Mistake::TooLong => None,
            Mistake::Words(error) => error.hint(),
            Mistake::NotYaml(_) => Some(
                "placeholders are understood in YAML only: mend the file, or move the placeholder to one that is YAML".into(),
            ),
        }
    }
}

/// The placeholders of one text, with its tree.
#[derive(Debug)]
pub struct Scan<'t> {
    pub text: &'t str,
    pub tree: Tree<'t>,
    pub placeholders: Vec<Placeholder>,
    pub errors: Vec<PlaceholderError>,
    /// Where a `$` escapes a literal `$(pin `.
    escapes: Vec<usize>,
}

impl<'t> Scan<'t> {
    /// Looks for placeholders. `None` when there is nothing of the kind, also when the text is no YAML then.
    ///
    /// Mistakes are collected in [`Scan::errors`]: all faulty placeholders are reported, not the first. Behind [`MAX_PLACEHOLDERS`] and
    /// one more it stops.
    ///
    /// # Errors
    ///
    /// When the text holds `$(pin ` but cannot be read as YAML.
    pub fn of(text: &'t str) -> Result<Option<Self>, PlaceholderError> {
        if !text.contains("(pin") {
            return Ok(None);
        }
        let tree = match Tree::parse(text) {
            Ok(tree) => tree,
            Err(error) => return literal(text).map_or(Ok(None), |at| Err(not_yaml(text, at, &error))),
        };
        let mut scan = Self { text, tree, placeholders: Vec::new(), errors: Vec::new(), escapes: Vec::new() };
        let mut cursor = Cursor::default();
        for id in 0..scan.tree.nodes().count() {
            scan.scan_scalar(id, &mut cursor);
        }
        scan.find_digests();
        let nothing = scan.placeholders.is_empty() && scan.errors.is_empty() && scan.escapes.is_empty();
        Ok((!nothing).then_some(scan))
    }

    /// Looks for placeholders in a text that is one string, such as the value of a `--set`.
    pub fn raw(text: &'t str) -> Option<Self> {
        let tree = Tree::of_string(text);
        let mut scan = Self { text, tree, placeholders: Vec::new(), errors: Vec::new(), escapes: Vec::new() };
        scan.scan_scalar(0, &mut Cursor::default());
        let nothing = scan.placeholders.is_empty() && scan.errors.is_empty() && scan.escapes.is_empty();
        (!nothing).then_some(scan)
    }

    /// A value whose key is `digest` is to be a digest.
    fn find_digests(&mut self) {
        if self.placeholders.is_empty() {
            return;
        }
        let entries = self.tree.nodes().flat_map(|(id, _)| self.tree.own_entries(id));
        let values: BTreeSet<NodeId> =
            entries.filter(|(key, _)| self.tree.text(*key) == Some("digest")).map(|(_, value)| *value).collect();
        for placeholder in self.placeholders.iter_mut().filter(|placeholder| values.contains(&placeholder.scalar)) {
            placeholder.form = Form::Digest;
        }
    }

    fn scan_scalar(&mut self, id: NodeId, cursor: &mut Cursor) {
        let node = self.tree.node(id);
        let Kind::Scalar { value, style } = &node.kind else { return };
        if !value.contains(OPEN) {
            return;
        }
        let start = node.span.start;
        let (decoded, offsets) = yaml::decode(&self.text[node.span.clone()], *style);
        let mut from = 0;
        while let Some(at) = literal(&decoded[from..]).map(|at| at + from) {
            if self.placeholders.len() + self.errors.len() > MAX_PLACEHOLDERS {
                return;
            }
            from = at + OPEN.len();
            if decoded[..at].ends_with('$') {
                self.escapes.push(start + offsets[at - 1]);
                continue;
            }
            let (line, column) = cursor.go(self.text, start + offsets[at]);
            let spaced = decoded[from..].starts_with(ENDS_NAME).then_some(from).ok_or(Mistake::NoSpace);
            let read = spaced.and_then(|from| closing(&decoded[from..])).and_then(|end| {
                let length = OPEN.len() + end + 1;
                let words = &decoded[from..from + end];
                if length > MAX_LENGTH {
                    return Err(Mistake::TooLong);
                }
                Ok((length, Words::parse(words).and_then(Words::spec)?))
            });
            match read {
                Ok((length, spec)) => {
                    from = at + length;
                    self.placeholders.push(Placeholder {
                        scalar: id,
                        range: start + offsets[at]..start + offsets[at + length],
                        line,
                        column,
                        source: decoded[at..from].to_owned(),
                        before: tail(&decoded[..at]).to_owned(),
                        is_alone: decoded[..at].trim_end().is_empty() && decoded[from..].trim_start().is_empty(),
                        is_touched: decoded[..at].ends_with(is_of_a_tag) || decoded[from..].starts_with(is_of_a_tag),
                        form: if decoded[..at].ends_with('@') { Form::Digest } else { Form::Tag },
                        spec,
                    });
                }
                Err(mistake) => {
                    let end = closing(&decoded[from..]).map_or(decoded.len(), |end| from + end + 1);
                    let source_text = printable(head(&decoded[at..end]).trim_end());
                    self.errors.push(PlaceholderError { line, column, source_text, mistake });
                }
            }
        }
    }

    /// The text with each placeholder replaced by its value; one without a value stays as it is. Escapes stay too: see [`unescape`].
    ///
    /// `values` has one entry for each of [`Scan::placeholders`], in the same order.
    pub fn substitute(&self, values: &[Option<String>]) -> String {
        debug_assert_eq!(values.len(), self.placeholders.len(), "one value a placeholder");
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        let placed: Vec<(&Placeholder, &String)> =
            self.placeholders.iter().zip(values).filter_map(|(place, value)| Some((place, value.as_ref()?))).collect();
        for group in placed.chunk_by(|a, b| a.0.scalar == b.0.scalar) {
            let node = self.tree.node(group[0].0.scalar);
            let parts: Vec<_> = group.iter().map(|(place, value)| (place.range.clone(), (*value).clone())).collect();
            let is_plain = matches!(node.kind, Kind::Scalar { style: ScalarStyle::Plain, .. });
            let plain = if is_plain { splice(&self.text[node.span.clone()], node.span.start, &parts) } else { String::new() };
            if is_plain && !yaml::reads_as_string(&plain) {
                edits.push((node.span.clone(), quote(&plain)));
            } else {
                edits.extend(parts);
            }
        }
        splice(self.text, 0, &edits)
    }
}

/// Counts lines and columns on from one placeholder to the next: a long line may hold many.
struct Cursor {
    offset: usize,
    line: usize,
    column: usize,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { offset: 0, line: 1, column: 1 }
    }
}

impl Cursor {
    /// The line and column of a byte that stands no further left than the last.
    fn go(&mut self, text: &str, offset: usize) -> (usize, usize) {
        let passed = &text[self.offset..offset];
        self.line += yaml::lines(passed);
        self.column =
            if passed.contains('\n') { yaml::column(passed, passed.len()) } else { self.column + passed.chars().count() };
        self.offset = offset;
        (self.line, self.column)
    }
}

/// The text with every escaped `$$(pin ` turned into the literal `$(pin ` that it stands for.
///
/// Done once, at the very end: before that the text may be read again.
pub fn unescape(text: String) -> String {
    match Scan::of(&text) {
        Ok(Some(scan)) if !scan.escapes.is_empty() => {
            let edits: Vec<_> = scan.escapes.iter().map(|at| (*at..*at + 1, String::new())).collect();
            splice(&text, 0, &edits)
        }
        _ => text,
    }
}

/// Replaces ranges, which are in order and do not overlap. `base` is what the ranges count from.
pub(crate) fn splice(text: &str, base: usize, edits: &[(Range<usize>, String)]) -> String {
    let mut spliced = String::with_capacity(text.len() + edits.iter().map(|(_, value)| value.len()).sum::<usize>());
    let mut from = 0;
    for (range, value) in edits {
        spliced.push_str(&text[from..range.start - base]);
        spliced.push_str(value);
        from = range.end - base;
    }
    spliced.push_str(&text[from..]);
    spliced
}

/// A plain scalar's text in quotes: double ones, or single ones where the text holds what double ones would interpret.
pub(crate) fn quote(plain: &str) -> String {
    if plain.contains(['"', '\\']) { format!("'{}'", plain.replace('\'', "''")) } else { format!("\"{plain}\"") }
}

fn is_of_a_tag(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// What ends the word `pin`: white space before the words, or the end of a placeholder without any.
const ENDS_NAME: [char; 5] = [' ', '\t', '\r', '\n', ')'];

/// What cannot stand in a Kubernetes variable's name, so that `$(pin~1)` is a placeholder that lacks its space.
const NO_NAME: [char; 11] = ['~', '^', '>', '<', '=', '!', '*', '@', ',', '\'', '"'];

/// May a text hold a placeholder, also where it is not to be read as YAML?
pub fn is_mentioned(text: &str) -> bool {
    literal(text).is_some()
}

/// Where `$(pin` stands with white space or `)` behind it, or with what must have been meant as a word.
fn literal(text: &str) -> Option<usize> {
    text.match_indices(OPEN).map(|(at, _)| at).find(|at| {
        let behind = &text[at + OPEN.len()..];
        behind.is_empty() || behind.starts_with(ENDS_NAME) || behind.starts_with(NO_NAME)
    })
}

/// The last bytes of a text: enough for any image name.
fn tail(text: &str) -> &str {
    let from = (text.len().saturating_sub(MAX_LENGTH)..=text.len()).find(|at| text.is_char_boundary(*at));
    &text[from.unwrap_or(0)..]
}

/// The first bytes of a text: enough for any message.
fn head(text: &str) -> &str {
    let to = (0..=text.len().min(MAX_LENGTH)).rev().find(|at| text.is_char_boundary(*at));
    &text[..to.unwrap_or(0)]
}

/// The offset of the `)` that closes a placeholder: the first outside quotes.
fn closing(text: &str) -> Result<usize, Mistake> {
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if at > MAX_LENGTH {
            return Err(Mistake::TooLong);
        }
        match (quote, c) {
            (None, ')') => return Ok(at),
            (None, '\'' | '"') => quote = Some(c),
            (None | Some('"'), '\\') => {
                chars.next();
            }
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    Err(if quote.is_some() { WordsError::open_quote(text).into() } else { Mistake::Unclosed })
}

fn not_yaml(text: &str, at: usize, error: &YamlError) -> PlaceholderError {
    let (line, column) = yaml::position(text, at);
    let end = text[at..].find(['\n', ')']).map_or(text.len(), |end| at + end);
    let source_text = printable(text[at..=end.min(text.len() - 1)].trim_end());
    PlaceholderError { line, column, source_text, mistake: Mistake::NotYaml(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn substitute(text: &str, value: &str) -> String {
        let scan = Scan::of(text).expect("readable").expect("placeholders");
        assert_eq!(scan.errors, [], "{text}");
        scan.substitute(&vec![Some(value.to_owned()); scan.placeholders.len()])
    }

    /// One row a scalar style: source, tag, result.
    #[test]
    fn tags_are_spliced_into_every_style() {
        for (text, tag, expected) in [
            ("tag: $(pin ~1.0) # why\n", "1.0.3", "tag: 1.0.3 # why\n"),
            ("tag: $(pin ~1.0)\n", "1.10", "tag: \"1.10\"\n"),
            ("tag: $(pin ~1.0)\n", "0123", "tag: \"0123\"\n"),
            ("tag: $(pin ~1.0)\n", "null", "tag: \"null\"\n"),
            ("tag: $(pin ~1.0)\n", "on", "tag: \"on\"\n"),
            ("tag: $(pin ~1.0)\n", "1_000", "tag: \"1_000\"\n"),
            ("tag: $(pin ~1.0)\n", "2024-01-01", "tag: \"2024-01-01\"\n"),
            ("tag: $(pin ~1.0)\n", "1234e56", "tag: \"1234e56\"\n"),
            ("tag: '$(pin ~1.0)'\n", "1.10", "tag: '1.10'\n"),
            ("tag: \"$(pin ~1.0)\"\n", "1.10", "tag: \"1.10\"\n"),
            ("image: a/b:$(pin ~1.0)\n", "1.10", "image: a/b:1.10\n"),
            ("a: {tag: $(pin ~1.0), b: c}\n", "1.10", "a: {tag: \"1.10\", b: c}\n"),
            ("a: [x, $(pin ~1.0)]\n", "v1", "a: [x, v1]\n"),
            ("a: '$(pin newest-build --allow-tags ''^(main|rel)-'')'\n", "v1", "a: 'v1'\n"),
            ("a: \"$(pin newest-build --allow-tags \\\"^(main|rel)-\\\")\"\n", "v1", "a: \"v1\"\n"),
            ("a: \"\\x24(pin ~1)\"\n", "v1", "a: \"v1\"\n"),
            ("a: |\n  run a/b:$(pin ~1)\n  run a/c:$(pin ~2) # x\n", "v1", "a: |\n  run a/b:v1\n  run a/c:v1 # x\n"),
            ("a: >-\n    x $(pin ~1)\n    y\n", "1", "a: >-\n    x 1\n    y\n"),
            ("a: $(pin >=1.2\n  <2)\n", "v1", "a: v1\n"),
            ("a: &t $(pin ~1)\nb: *t\n", "1.10", "a: &t \"1.10\"\nb: *t\n"),
            ("a: é $(pin ~1) ü\n", "1", "a: é 1 ü\n"),
            ("a: 1\r\nb: $(pin ~1)\r\n", "v1", "a: 1\r\nb: v1\r\n"),
            ("a: $(pin ~1)", "v1", "a: v1"),
            ("---\na: $(pin ~1)\n---\n- $(pin ~2)\n...\n", "v1", "---\na: v1\n---\n- v1\n...\n"),
            ("$(pin ~1): key\n", "v1", "v1: key\n"),
            ("image: a/b:$(pin)\n", "v1", "image: a/b:v1\n"),
            ("tag: $(pin)\n", "1.10", "tag: \"1.10\"\n"),
        ] {
            assert_eq!(substitute(text, tag), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_placeholder_is_left_alone() {
        for text in [
            "args: [\"$(PIN)\", \"$(PIN x)\", \"$(pinion x)\", \"$(pins x)\"]\n",
            "# $(pin ~1)\na: b # $(pin ~1)\n",
            "{{ if }} (pin: x\n",
            "a: (pin \n",
        ] {
            assert!(Scan::of(text).expect("readable").is_none_or(|scan| scan.placeholders.is_empty()), "{text}");
        }
    }

    #[test]
    fn an_escaped_placeholder_becomes_a_literal_at_the_end() {
        let text = "a: $$(pin ~1)\nb: $(pin ~1)\nc: \"$$(pin x\"\nd: $$(pin)\n";
        let substituted = substitute(text, "v1");
        assert_eq!(substituted, "a: $$(pin ~1)\nb: v1\nc: \"$$(pin x\"\nd: $$(pin)\n");
        assert_eq!(unescape(substituted), "a: $(pin ~1)\nb: v1\nc: \"$(pin x\"\nd: $(pin)\n");
    }

    #[test]
    fn all_mistakes_are_reported_with_their_place() {
        let text = "a: x $(pin ~1\nb:\n  - $(pin ~1 --nope)\n  - {c: $(pin >=1, <2)}\n  - x $(pin~1)\n  - $(pin \"~2)\n";
        let scan = Scan::of(text).expect("readable").expect("placeholders");
        let errors: Vec<String> = scan.errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "1:6: `$(pin ~1`: the placeholder is not closed: `)` is missing in this scalar",
                "3:5: `$(pin ~1 --nope)`: unexpected argument `--nope` found",
                "4:9: `$(pin >=1`: the placeholder is not closed: `)` is missing in this scalar",
                "5:7: `$(pin~1)`: a space is missing after `$(pin`",
                "6:5: `$(pin \"~2)`: the quote `\"` before `~2)` is not closed",
            ]
        );
        assert!(scan.errors.iter().all(|error| error.hint().is_some()));
    }

    #[test]
    fn a_file_that_is_no_yaml_but_holds_a_placeholder_is_an_error() {
        let error = Scan::of("a: b\n{{ if }}\nc: $(pin ~1)\n").expect_err("no YAML");
        assert!(error.to_string().starts_with("3:4: `$(pin ~1)`: the file holds a placeholder but is not YAML: "), "{error}");
        assert!(Scan::of("{{ if }} $(pins)\n").expect("no placeholder").is_none());
    }

    #[test]
    fn a_placeholder_has_a_longest_length() {
        let text = format!("a: '$(pin {})'\n", "x".repeat(MAX_LENGTH));
        let scan = Scan::of(&text).expect("readable").expect("a mistake");
        assert_eq!(scan.errors[0].mistake, Mistake::TooLong);
    }

    #[test]
    fn places_are_counted_across_scalars_and_lines() {
        let text = "é: [$(pin ~1), 'é $(pin ~2)']\nb: |\n  x\n\n  é $(pin ~3) $(pin ~4)\n";
        let scan = Scan::of(text).expect("readable").expect("placeholders");
        for placeholder in &scan.placeholders {
            assert_eq!((placeholder.line, placeholder.column), yaml::position(text, placeholder.range.start));
        }
        assert_eq!(scan.placeholders.len(), 4);
    }

    /// Counted anew for each placeholder, the columns of this line took minutes.
    #[test]
    fn a_scan_stops_behind_too_many() {
        for text in [format!("a: '{}'\n", "$(pin ~1) ".repeat(300_000)), format!("a: [{}]\n", "$(pin ~1), ".repeat(300_000))] {
            let scan = Scan::of(&text).expect("readable").expect("placeholders");
            assert_eq!(scan.placeholders.len(), MAX_PLACEHOLDERS + 1);
        }
    }

    proptest! {
        /// Whatever stands around a placeholder stays as it was, and nothing is left to find.
        #[test]
        fn substituted_text_holds_no_placeholder_and_all_other_bytes(
            before in "[ -~é]{0,12}", after in "[ -~é]{0,12}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,12}", style in 0..4_usize,
        ) {
            prop_assume!(!before.ends_with('$') && !before.contains("$(pin") && !after.contains("$(pin"));
            let wrap = |inner: &str| match style {
                0 => format!("k: '{}'\n", inner.replace('\'', "''")),
                1 => format!("k: \"{}\"\n", inner.replace('\\', "\\\\").replace('"', "\\\"")),
                2 => format!("k: |\n  .{inner}\n"),
                _ => format!("k: >-\n  .{inner}\nl: m # c\n"),
            };
            let text = wrap(&format!("{before}$(pin ~1){after}"));
            let scan = Scan::of(&text).expect("YAML").expect("a placeholder");
            prop_assert_eq!(scan.placeholders.len(), 1);
            let spliced = scan.substitute(&[Some(tag.clone())]);
            prop_assert_eq!(&spliced, &wrap(&format!("{before}{tag}{after}")));
            prop_assert!(Scan::of(&spliced).expect("YAML").is_none_or(|scan| scan.placeholders.is_empty()));
        }

        /// A spliced plain scalar stays a string for YAML 1.1 and 1.2 readers.
        #[test]
        fn spliced_scalars_stay_strings(tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,12}") {
            let spliced = substitute("k: $(pin ~1)\n", &tag);
            let value: serde_json::Value = serde_yaml::from_str::<serde_json::Value>(&spliced).expect("YAML")["k"].clone();
            prop_assert_eq!(value, serde_json::Value::String(tag));
        }
    }
}
