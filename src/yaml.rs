//! YAML with byte positions: text in, trees of nodes out, each node knowing where it stands.
//!
//! Used wherever Pinion must know *where* a scalar is (placeholders, image positions) or what Helm will make of several values files.
//! Nothing is ever written back from a tree: edits are splices of the original text, so comments, order and layout survive. Grammar:
//! YAML 1.2 as `granit-parser` reads it; typing: [`reads_as_string`] knows both 1.1 (what Go's parsers do) and 1.2.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle};

/// Nodes that one text may hold. A 5 MB values file has about 400,000.
const MAX_NODES: usize = 4_000_000;

/// Why a text is not YAML, and where: lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {reason}")]
pub struct YamlError {
    pub line: usize,
    pub column: usize,
    pub reason: String,
}

/// The place of a node in its [`Tree`].
pub type NodeId = usize;

/// One node and the bytes it covers, without anchor, tag and comments.
#[derive(Debug)]
pub struct Node<'t> {
    pub kind: Kind<'t>,
    pub span: Range<usize>,
    /// The line on which it starts, counted from 1.
    pub line: usize,
}

#[derive(Debug)]
pub enum Kind<'t> {
    Scalar {
        value: Cow<'t, str>,
        style: ScalarStyle,
    },
    Mapping(Vec<(NodeId, NodeId)>),
    Sequence(Vec<NodeId>),
    /// `*name`: the node that carries the anchor.
    Alias(NodeId),
}

/// All documents of a text.
#[derive(Debug, Default)]
pub struct Tree<'t> {
    nodes: Vec<Node<'t>>,
    /// The root of each document; an empty document has none.
    pub roots: Vec<NodeId>,
}

impl<'t> Tree<'t> {
    /// Reads all documents of a text.
    ///
    /// # Errors
    ///
    /// [`YamlError`] with the position at which reading failed, also past `MAX_NODES` nodes.
    pub fn parse(text: &'t str) -> Result<Self, YamlError> {
        let mut tree = Self::default();
        let mut anchors: HashMap<usize, NodeId> = HashMap::new();
        // Open collections, with the key that waits for its value when it is a mapping.
        let mut open: Vec<(NodeId, Option<NodeId>)> = Vec::new();
        let options = granit_parser::options! { emit_comments: false };
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|error| {
                let marker = error.marker();
                YamlError { line: marker.line(), column: marker.col() + 1, reason: error.info().clone() }
            })?;
            let range = span.byte_range().unwrap_or(0..0);
            let (kind, anchor) = match event {
                Event::Scalar(value, style, anchor, _) => (Kind::Scalar { value, style }, anchor),
                Event::MappingStart(_, anchor, _) => (Kind::Mapping(Vec::new()), anchor),
                Event::SequenceStart(_, anchor, _) => (Kind::Sequence(Vec::new()), anchor),
                Event::Alias(anchor) => {
                    let target = *anchors.get(&anchor).expect("the parser reports unknown anchors itself");
                    (Kind::Alias(target), 0)
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    open.pop();
                    continue;
                }
                _ => continue,
            };
            let id = tree.nodes.len();
            if id == MAX_NODES {
                let reason = format!("more than {MAX_NODES} nodes");
                return Err(YamlError { line: span.start.line(), column: span.start.col() + 1, reason });
            }
            if anchor != 0 {
                anchors.insert(anchor, id);
            }
            let is_collection = matches!(kind, Kind::Mapping(_) | Kind::Sequence(_));
            tree.nodes.push(Node { kind, span: range, line: span.start.line() });
            match open.last_mut() {
                None => tree.roots.push(id),
                Some((parent, key)) => match &mut tree.nodes[*parent].kind {
                    Kind::Sequence(items) => items.push(id),
                    Kind::Mapping(entries) => match key.take() {
                        None => *key = Some(id),
                        Some(key) => entries.push((key, id)),
                    },
                    Kind::Scalar { .. } | Kind::Alias(_) => unreachable!("only collections are opened"),
                },
            }
            if is_collection {
                open.push((id, None));
            }
        }
        Ok(tree)
    }

    /// A tree of one string, taken as it is.
    pub fn of_string(text: &'t str) -> Self {
        let kind = Kind::Scalar { value: Cow::Borrowed(text), style: ScalarStyle::Literal };
        Self { nodes: vec![Node { kind, span: 0..text.len(), line: 1 }], roots: vec![0] }
    }

    pub fn node(&self, id: NodeId) -> &Node<'t> {
        &self.nodes[id]
    }

    /// The node itself, or the one that an alias stands for.
    pub fn follow(&self, id: NodeId) -> NodeId {
        match self.nodes[id].kind {
            Kind::Alias(target) => target,
            _ => id,
        }
    }

    /// The decoded text of a scalar, through an alias.
    pub fn text(&self, id: NodeId) -> Option<&str> {
        match &self.nodes[self.follow(id)].kind {
            Kind::Scalar { value, .. } => Some(value),
            _ => None,
        }
    }

    /// The entries of a mapping, through an alias; none for anything else. Merge keys (`<<`) are entries like others.
    pub fn entries(&self, id: NodeId) -> &[(NodeId, NodeId)] {
        match &self.nodes[self.follow(id)].kind {
            Kind::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The entries of a mapping itself, not through an alias.
    pub fn own_entries(&self, id: NodeId) -> &[(NodeId, NodeId)] {
        match &self.nodes[id].kind {
            Kind::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence, through an alias; none for anything else.
    pub fn items(&self, id: NodeId) -> &[NodeId] {
        match &self.nodes[self.follow(id)].kind {
            Kind::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The value of a key. The last of equal keys counts, as in Go's parsers; a merged mapping is looked into last.
    pub fn get(&self, mapping: NodeId, key: &str) -> Option<NodeId> {
        // Mappings that merge others: each is looked into once, however often it is merged itself.
        let mut seen = BTreeSet::new();
        let mut waiting = vec![self.follow(mapping)];
        while let Some(mapping) = waiting.pop() {
            let entries = self.entries(mapping);
            if let Some((_, value)) = entries.iter().rev().find(|(name, _)| self.text(*name) == Some(key)) {
                return Some(*value);
            }
            let Some((_, merged)) = entries.iter().find(|(name, _)| self.is_merge_key(*name)) else { continue };
            if !seen.insert(mapping) {
                continue;
            }
            match &self.node(self.follow(*merged)).kind {
                Kind::Sequence(items) => waiting.extend(items.iter().rev().map(|item| self.follow(*item))),
                _ => waiting.push(self.follow(*merged)),
            }
        }
        None
    }

    pub fn is_merge_key(&self, key: NodeId) -> bool {
        matches!(&self.nodes[key].kind, Kind::Scalar { value, style: ScalarStyle::Plain } if value == "<<")
    }

    /// The value of a key path such as `["spec", "template"]`.
    pub fn at(&self, root: NodeId, path: &[&str]) -> Option<NodeId> {
        path.iter().try_fold(root, |node, key| self.get(node, key))
    }

    /// All nodes with their places, in the order of the text.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node<'t>)> {
        self.nodes.iter().enumerate()
    }

    /// For every node the mapping or sequence that holds it.
    pub fn parents(&self) -> Vec<Option<NodeId>> {
        let mut parents = vec![None; self.nodes.len()];
        for (id, node) in self.nodes() {
            match &node.kind {
                Kind::Mapping(entries) => {
                    for (key, value) in entries {
                        parents[*key] = Some(id);
                        parents[*value] = Some(id);
                    }
                }
                Kind::Sequence(items) => items.iter().for_each(|item| parents[*item] = Some(id)),
                _ => {}
            }
        }
        parents
    }
}

/// Reads YAML into a type.
///
/// This module's parser goes first, because it bounds how deep text nests: the time that the other takes grows with the square of that.
///
/// # Errors
///
/// When the text is no YAML, nests too deep, or is not of the type.
pub fn from_str<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_yaml::Error> {
    let options = granit_parser::options! { emit_comments: false };
    for event in Parser::new_from_str_with_options(text, options) {
        event.map_err(<serde_yaml::Error as serde::de::Error>::custom)?;
    }
    serde_yaml::from_str(text)
}

/// The line and column of a byte, both counted from 1, columns in characters.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    (lines(&text[..offset]) + 1, column(text, offset))
}

/// The column of a byte in its line, counted from 1 in characters.
pub fn column(text: &str, offset: usize) -> usize {
    let before = &text[..offset];
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    before[start..].chars().count() + 1
}

/// How many lines end in a text.
pub fn lines(text: &str) -> usize {
    text.bytes().filter(|&b| b == b'\n').count()
}

/// The decoded characters of a scalar's source text, each with the offset of its first source byte.
///
/// Line breaks stay line breaks (a parser may fold them to spaces): enough to find words, which is all this is for. The last entry of
/// the offsets is the end of the source.
pub fn decode(source: &str, style: ScalarStyle) -> (String, Vec<usize>) {
    let mut text = String::with_capacity(source.len());
    let mut offsets = Vec::with_capacity(source.len() + 1);
    let mut push = |c: char, at: usize| {
        text.push(c);
        offsets.extend(std::iter::repeat_n(at, c.len_utf8()));
    };
    let (body, shift) = match style {
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted if source.len() >= 2 => (&source[1..source.len() - 1], 1),
        _ => (source, 0),
    };
    let mut chars = body.char_indices().map(|(at, c)| (at + shift, c)).peekable();
    while let Some((at, c)) = chars.next() {
        match (style, c) {
            (ScalarStyle::SingleQuoted, '\'') => {
                chars.next();
                push('\'', at);
            }
            (ScalarStyle::DoubleQuoted, '\\') => {
                let Some((_, escape)) = chars.next() else { break };
                let mut hex = |digits: usize| {
                    let code: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                    u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
                };
                match escape {
                    'x' => push(hex(2), at),
                    'u' => push(hex(4), at),
                    'U' => push(hex(8), at),
                    'n' => push('\n', at),
                    't' | '\t' => push('\t', at),
                    'r' => push('\r', at),
                    '0' => push('\0', at),
                    'a' => push('\x07', at),
                    'b' => push('\x08', at),
                    'e' => push('\x1b', at),
                    'f' => push('\x0c', at),
                    'v' => push('\x0b', at),
                    '_' => push('\u{a0}', at),
                    'N' => push('\u{85}', at),
                    'L' => push('\u{2028}', at),
                    'P' => push('\u{2029}', at),
                    // An escaped line break joins the lines.
                    '\n' | '\r' => while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {},
                    other => push(other, at),
                }
            }
            _ => push(c, at),
        }
    }
    offsets.push(shift + body.len());
    (text, offsets)
}

/// Would a plain scalar with this text be read as a string, by YAML 1.1 parsers and by YAML 1.2 parsers alike?
///
/// Conservative: `false` also for what only some parsers type (`1_000`, `0o17`, `12:30:45`, `2024-01-01`, `y`, `=`). Follows the
/// resolver of Go's yaml.v2/v3 and the YAML 1.1 type repository.
pub fn reads_as_string(text: &str) -> bool {
    let Some(first) = text.bytes().next() else { return false };
    const WORDS: [&str; 13] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", ".inf", "+.inf", "-.inf"];
    if text == "~" || text == "=" || text == "<<" || WORDS.iter().any(|word| word.eq_ignore_ascii_case(text)) {
        return false;
    }
    if first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.') {
        // Anything that could be an integer, a float, a sexagesimal or a date is left quoted: only its characters are looked at.
        let number =
            |b: u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b'_' | b'+' | b'-' | b':' | b'x' | b'o' | b'T' | b't' | b'Z');
        let prefixed = text.len() > 2 && text.as_bytes()[0] == b'0' && matches!(text.as_bytes()[1], b'x' | b'X' | b'b' | b'o');
        let mut exponents = text.bytes().filter(u8::is_ascii_alphabetic);
        let decimal = exponents.all(|b| matches!(b, b'e' | b'E' | b'T' | b't' | b'Z'));
        if text.bytes().all(number) && (prefixed || decimal) {
            return is_version_like(text);
        }
    }
    true
}

/// Three or more parts of digits (`1.2.3`) are no number in any YAML.
fn is_version_like(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.bytes().filter(|&b| b == b'.').count() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalars(text: &str) -> Vec<(String, String)> {
        let tree = Tree::parse(text).expect("YAML");
        tree.nodes()
            .filter_map(|(_, node)| match &node.kind {
                Kind::Scalar { value, .. } => Some((value.to_string(), text[node.span.clone()].to_owned())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn spans_cover_the_scalar_and_nothing_else() {
        let text = "a: &x plain text # c\nb: 'it''s'\nc: \"q\\n\" # c\nd: {e: f, g: [h]}\ni: |\n  line 1\n  line 2\nj: !!str k\n";
        let found = scalars(text);
        let raw = |value: &str| found.iter().find(|(v, _)| v == value).expect(value).1.clone();
        assert_eq!(raw("plain text"), "plain text");
        assert_eq!(raw("it's"), "'it''s'");
        assert_eq!(raw("q\n"), "\"q\\n\"");
        assert_eq!(raw("f"), "f");
        assert_eq!(raw("h"), "h");
        assert!(raw("line 1\nline 2\n").contains("line 1\n  line 2"));
        assert_eq!(raw("k"), "k");
    }

    #[test]
    fn keys_are_found_through_aliases_and_merges() {
        let text = "base: &b {repository: r, tag: x}\nweb:\n  <<: *b\n  tag: y\nother: *b\nlist:\n  <<: [*b]\n";
        let tree = Tree::parse(text).expect("YAML");
        let root = tree.roots[0];
        let at = |path: &[&str]| tree.at(root, path).and_then(|id| tree.text(id)).map(str::to_owned);
        assert_eq!(at(&["web", "repository"]).as_deref(), Some("r"));
        assert_eq!(at(&["web", "tag"]).as_deref(), Some("y"));
        assert_eq!(at(&["other", "tag"]).as_deref(), Some("x"));
        assert_eq!(at(&["list", "tag"]).as_deref(), Some("x"));
        assert_eq!(at(&["web", "nothing"]), None);
    }

    #[test]
    fn mappings_that_are_merged_over_and_over_are_looked_into_once() {
        let mut text = "m0: &m0 {x: y}\n".to_owned();
        for number in 1..=60 {
            let below = number - 1;
            text += &format!("m{number}: &m{number} {{<<: [*m{below}, *m{below}, *m{below}]}}\n");
        }
        text += "ring: &ring {<<: *ring}\n";
        let tree = Tree::parse(&text).expect("YAML");
        let at = |path: &[&str]| tree.at(tree.roots[0], path).and_then(|id| tree.text(id));
        assert_eq!(at(&["m60", "missing"]), None);
        assert_eq!(at(&["m60", "x"]), Some("y"));
        assert_eq!(at(&["ring", "x"]), None);
    }

    #[test]
    fn errors_name_the_place() {
        let error = Tree::parse("a: 1\nb: [1, 2\nc: }\n").expect_err("not YAML");
        assert!(error.line >= 2, "{error}");
        assert!(Tree::parse("image: {{ .Values.image }}:x: y\n{{ if }}\n").is_err());
    }

    #[test]
    fn every_document_has_its_root() {
        let tree = Tree::parse("a: 1\n---\n# nothing\n---\n- b\n").expect("YAML");
        assert_eq!(tree.roots.len(), 3);
    }

    #[test]
    fn decoding_keeps_the_offsets_of_the_source() {
        let (text, offsets) = decode("'it''s $(pin x)'", ScalarStyle::SingleQuoted);
        assert_eq!(text, "it's $(pin x)");
        assert_eq!(offsets[text.find('$').expect("found")], 7);
        let (text, offsets) = decode(r#""a\t\x24(pin \"é\")""#, ScalarStyle::DoubleQuoted);
        assert_eq!(text, "a\t$(pin \"é\")");
        assert_eq!(offsets[2], 4);
        assert_eq!(*offsets.last().expect("an end"), 20);
    }

    /// Legal tags that a registry accepted, with what YAML 1.1 makes of them.
    #[test]
    fn texts_that_change_type_are_known() {
        for text in [
            "1.10",
            "0123",
            "null",
            "on",
            "Yes",
            "NO",
            "y",
            "2024-01-01",
            "0x1F",
            "1_000",
            "0o17",
            "0b11",
            "1e3",
            "12",
            "12:30:45",
            "",
            "~",
            ".5",
            "+1",
            "-1",
            "1.",
            "2001-12-14T21:59:43Z",
            ".inf",
            "0xdeadBEEF",
            "=",
            "08",
            "1E5",
        ] {
            assert!(!reads_as_string(text), "{text}");
        }
        for text in
            ["1.2.3", "v1.2", "latest", "main-0a1b", "1.0.0-rc.1", "12a", "sha-1", "2024.01.15", "1.2-alpine", "0x1g", "_1", "e5"]
        {
            assert!(reads_as_string(text), "{text}");
        }
    }
}
