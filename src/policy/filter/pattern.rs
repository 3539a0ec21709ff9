//! Regular expressions as Go reads them (RE2's syntax), since Image Updater and Flux hand their users' patterns to Go.
//!
//! A pattern is translated for the `regex` crate (see `translate`), which like Go's takes time linear in pattern and tag and prefers the
//! same match. It need not match the whole tag: `^` and `$` say so.

use regex::bytes::{Captures, Regex, RegexBuilder};

use super::translate::{MAX_COMPILED, MAX_PATTERN, PatternError, Translation, translate};

/// A compiled pattern. Equal to patterns of the same text.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Pattern {
    text: String,
    regex: Regex,
    names: Vec<(String, usize)>,
}

impl Pattern {
    pub(in crate::policy) fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        let Translation { regex, names } = translate(text)?;
        let regex = RegexBuilder::new(&regex).unicode(false).size_limit(MAX_COMPILED).build().map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => PatternError::TooLarge,
            _ => PatternError::Syntax { reason: "groups are nested too deeply", part: crate::image::printable(text) },
        })?;
        Ok(Self { text: text.to_owned(), regex, names })
    }

    pub(in crate::policy) fn text(&self) -> &str {
        &self.text
    }

    pub(in crate::policy) fn is_match(&self, tag: &str) -> bool {
        self.regex.is_match(tag.as_bytes())
    }

    pub(super) fn captures<'t>(&self, tag: &'t str) -> Option<Captures<'t>> {
        self.regex.captures(tag.as_bytes())
    }

    /// The groups with this name or number; Go allows a name to be given twice.
    pub(super) fn groups(&self, name: &str) -> Vec<usize> {
        let numeric = name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
        if numeric {
            return name.parse().ok().filter(|&group| group < self.regex.captures_len()).into_iter().collect();
        }
        self.names.iter().filter(|(known, _)| known == name).map(|&(_, group)| group).collect()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Go says of patterns × tags; the table tells how it was made.
    #[test]
    fn patterns_match_as_in_go() {
        let mut lines = include_str!("pattern_table.txt").lines().filter(|line| !line.starts_with("# "));
        let tags: Vec<&str> = lines.next().expect("the tags").split(' ').collect();
        let mut rows = 0;
        for line in lines {
            let (pattern, expected) = line.rsplit_once(" => ").expect(line);
            let matching = Pattern::parse(pattern)
                .map(|parsed| tags.iter().copied().filter(|tag| parsed.is_match(tag)).collect::<Vec<_>>().join(" "));
            let actual = match matching {
                Ok(matching) if matching.is_empty() => "none".to_owned(),
                Ok(matching) if matching.len() == tags.join(" ").len() => "all".to_owned(),
                Ok(matching) => matching,
                Err(_) => "error".to_owned(),
            };
            assert_eq!(actual, expected, "{pattern}");
            rows += 1;
        }
        assert!(rows > 250, "{rows} rows");
    }

    #[test]
    fn errors_name_the_part() {
        for (pattern, message) in [
            ("a+*", "repetition of a repetition: `*`"),
            ("(a", "a parenthesis is not closed: `(a`"),
            ("a)", "a parenthesis was not opened: `)`"),
            ("[a", "a bracket is not closed: `[a`"),
            ("a{1001}", "more than 1000 repetitions: `{1001}`"),
            ("(?x)a", "not a group that Go knows: `(?x`"),
            ("(?!a)", "not a group that Go knows (it has no look-around): `(?!`"),
            (r"(a)\1", r"not an escape that Go knows: `\1`"),
        ] {
            assert_eq!(Pattern::parse(pattern).expect_err(pattern).to_string(), message);
        }
    }

    #[test]
    fn patterns_are_bounded() {
        assert!(Pattern::parse(&"a".repeat(1024)).is_ok());
        assert_eq!(Pattern::parse(&"a".repeat(1025)), Err(PatternError::TooLong));
        assert_eq!(Pattern::parse("((a{100}){100}){100}"), Err(PatternError::TooLarge));
        assert!(Pattern::parse(r"^[a-z]{1000}(?i:\w{0,500})\pL{1000}$").is_ok());
        assert!(Pattern::parse(&format!("{}{}", "(".repeat(512), ")".repeat(512))).is_err());
    }

    #[test]
    fn matching_takes_linear_time() {
        let pattern = Pattern::parse("^(a+)+$").expect("a pattern");
        assert!(!pattern.is_match(&format!("{}b", "a".repeat(127))));
    }
}
