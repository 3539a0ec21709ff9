//! Which tags are considered at all, by their names: `allow-tags`, `ignore-tags` and `extract`.
//!
//! Texts from settings go in, matchers come out. Regular expressions are Go's (`pattern`), globs are those of Go's `filepath.Match`
//! (`glob`), templates those of Go's `Regexp.Expand`, as Image Updater and Flux use them. Tags are ASCII, so all matching is on bytes.

mod ascii;
mod glob;
mod pattern;
mod translate;

pub use glob::GlobError;
pub use translate::PatternError;

pub(super) use glob::Glob;
pub(super) use pattern::Pattern;

/// Longest template that is read, in bytes; each reference in it can yield a whole tag.
const MAX_TEMPLATE: usize = 128;

/// One item of `ignore-tags`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ignored {
    Glob(Glob),
    Pattern(Pattern),
}

impl Ignored {
    pub(super) fn is_match(&self, tag: &str) -> bool {
        match self {
            Self::Glob(glob) => glob.is_match(tag),
            Self::Pattern(pattern) => pattern.is_match(tag),
        }
    }

    /// The item as it stands in the settings.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Glob(glob) => glob.text().to_owned(),
            Self::Pattern(pattern) => format!("regexp:{}", pattern.text()),
        }
    }
}

/// Is this a tag by which cosign and registries without the referrers API attach signatures, attestations and bills of material to
/// an image? Such tags are `sha256-` and 64 hexadecimal digits, perhaps with `.sig`, `.att`, `.sbom` or another word behind
/// ([OCI distribution specification, referrers tag schema], cosign's `specs/SIGNATURE_SPEC.md`).
///
/// [OCI distribution specification, referrers tag schema]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#referrers-tag-schema
pub(super) fn is_attached(tag: &str) -> bool {
    let Some((digest, suffix)) = tag.strip_prefix("sha256-").and_then(|rest| rest.split_at_checked(64)) else {
        return false;
    };
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        && (suffix.is_empty() || suffix.strip_prefix('.').is_some_and(word))
}

/// Why a text is not a template for `extract`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Every tag would yield the same text.
    #[error("it refers to no group of the pattern")]
    NoReference,
    /// The pattern has no group with this name or number.
    #[error("the pattern has no group `{0}`")]
    UnknownGroup(String),
    #[error("it is longer than {MAX_TEMPLATE} bytes")]
    TooLong,
}

/// A checked template: text and references such as `$ts`, `${ts}` and `$1`, as in Go's `Regexp.Expand`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    /// Groups of one name; the first that took part in the match is meant.
    Groups(Vec<usize>),
}

impl Template {
    /// Reads a template for the groups of `pattern`. A `$` that starts no reference is text, `$$` is one `$`.
    ///
    /// # Errors
    ///
    /// Unlike Go, which expands them to nothing, references to unknown groups are refused, and so is a template without reference.
    pub(super) fn parse(text: &str, pattern: &Pattern) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE {
            return Err(TemplateError::TooLong);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            parts.push(Part::Text(before.to_owned()));
            if let Some(after) = after.strip_prefix('$') {
                parts.push(Part::Text("$".to_owned()));
                rest = after;
            } else if let Some((name, after)) = reference(after) {
                let groups = pattern.groups(name);
                if groups.is_empty() {
                    return Err(TemplateError::UnknownGroup(crate::image::printable(name)));
                }
                parts.push(Part::Groups(groups));
                rest = after;
            } else {
                parts.push(Part::Text("$".to_owned()));
                rest = after;
            }
        }
        parts.push(Part::Text(rest.to_owned()));
        if !parts.iter().any(|part| matches!(part, Part::Groups(_))) {
            return Err(TemplateError::NoReference);
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What the template yields for this tag. None: the pattern does not match. Groups outside the match yield nothing.
    pub(super) fn expand(&self, pattern: &Pattern, tag: &str) -> Option<String> {
        let captures = pattern.captures(tag)?;
        let mut yielded = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => yielded.push_str(text),
                Part::Groups(groups) => {
                    let found = groups.iter().find_map(|&group| captures.get(group));
                    yielded.push_str(found.and_then(|found| tag.get(found.range())).unwrap_or_default());
                }
            }
        }
        Some(yielded)
    }
}

/// Splits `name` or `{name}` from what follows; None if there is neither.
fn reference(text: &str) -> Option<(&str, &str)> {
    let (inner, braced) = match text.strip_prefix('{') {
        Some(inner) => (inner, true),
        None => (text, false),
    };
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, rest) = inner.split_at(end);
    if name.is_empty() {
        return None;
    }
    if braced { rest.strip_prefix('}').map(|rest| (name, rest)) } else { Some((name, rest)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attached_artifacts_are_known_by_their_tags() {
        let digest = "0123456789abcdef".repeat(4);
        for suffix in ["", ".sig", ".att", ".sbom", ".cosign-bundle"] {
            assert!(is_attached(&format!("sha256-{digest}{suffix}")), "{suffix}");
        }
        for tag in [
            format!("sha256-{}", &digest[1..]),
            format!("sha256-{digest}0"),
            format!("sha256-{digest}."),
            format!("sha256-{digest}.a.b"),
            format!("sha256-{}", digest.to_uppercase()),
            format!("v-sha256-{digest}"),
            format!("sha256{digest}"),
            "sha256-".to_owned(),
            "1.2.3".to_owned(),
        ] {
            assert!(!is_attached(&tag), "{tag}");
        }
    }

    /// Rows were run through Go's `Regexp.ExpandString`.
    #[test]
    fn templates_expand_as_in_go() {
        for (pattern, template, tag, yielded) in [
            (r"^main-[a-f0-9]+-(?P<ts>[0-9]+)$", "$ts", "main-0a1b-1700000000", "1700000000"),
            (r"^v(.+)-alpine$", "$1", "v1.2.3-alpine", "1.2.3"),
            (r"^v(.+)-alpine$", "${1}.0", "v1.2-alpine", "1.2.0"),
            (r"^v(.+)-alpine$", "$0", "v1.2-alpine", "v1.2-alpine"),
            (r"(\d+)-(?<b>\d+)", "$b.$1", "x7-8y", "8.7"),
            (r"(a)|(b)", "$1$2", "b", "b"),
            (r"(?P<x>a)|(?P<x>b)", "$x", "b", "b"),
            (r"(a)?b", "$1", "b", ""),
            (r"(a)", "$$1-$1", "a", "$1-a"),
            (r"(a)", "$-${1$1", "a", "$-${1a"),
        ] {
            let pattern = Pattern::parse(pattern).expect(pattern);
            let template = Template::parse(template, &pattern).expect(template);
            assert_eq!(template.expand(&pattern, tag).as_deref(), Some(yielded), "{template:?}");
        }
    }

    #[test]
    fn templates_that_cannot_work_are_refused() {
        let pattern = Pattern::parse(r"^v(?<n>.+)$").expect("a pattern");
        let parse = |text: &str| Template::parse(text, &pattern);
        assert_eq!(parse("n"), Err(TemplateError::NoReference));
        assert_eq!(parse(""), Err(TemplateError::NoReference));
        assert_eq!(parse("$2"), Err(TemplateError::UnknownGroup("2".into())));
        assert_eq!(parse("$1x"), Err(TemplateError::UnknownGroup("1x".into())));
        assert_eq!(parse("${01}"), Err(TemplateError::UnknownGroup("01".into())));
        assert_eq!(parse(&"$1".repeat(65)), Err(TemplateError::TooLong));
        assert_eq!(parse("$n").expect("a template").expand(&pattern, "w"), None);
    }
}
