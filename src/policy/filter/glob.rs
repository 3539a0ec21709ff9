//! Globs as Go's [`filepath.Match`] reads them: `*`, `?`, `[a-z]`, `[^a]` and `\`, matched against the whole tag.
//!
//! Tags hold no `/`, so `*` matches everything. `[!a]` holds a literal `!`; `**` is `*`; braces are literals.
//!
//! [`filepath.Match`]: https://github.com/golang/go/blob/go1.26.0/src/path/filepath/match.go

use super::ascii::AsciiSet;

/// Longest glob that is read, in bytes.
const MAX_GLOB: usize = 1024;

/// Why a text is not a glob. (Image Updater takes such texts for globs that never match.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// `[]`, `[a-]`, or a bracket that is not closed.
    #[error("a range in brackets is not complete")]
    Range,
    #[error("nothing follows the last backslash")]
    Backslash,
    #[error("it is longer than {MAX_GLOB} bytes")]
    TooLong,
}

/// A checked glob.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::policy) struct Glob {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    Star,
    One(AsciiSet),
}

impl Glob {
    pub(in crate::policy) fn parse(text: &str) -> Result<Self, GlobError> {
        if text.len() > MAX_GLOB {
            return Err(GlobError::TooLong);
        }
        let literal = |c: char| Token::One(AsciiSet::range(u32::from(c), u32::from(c)));
        let mut tokens = Vec::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            tokens.push(match c {
                '*' => Token::Star,
                '?' => Token::One(AsciiSet::ALL),
                '[' => Token::One(class(&mut rest)?),
                '\\' => literal(rest.next().ok_or(GlobError::Backslash)?),
                c => literal(c),
            });
        }
        Ok(Self { text: text.to_owned(), tokens })
    }

    pub(in crate::policy) fn text(&self) -> &str {
        &self.text
    }

    /// Does the whole tag match? Only the last star is ever lengthened, so this takes at most tag × glob steps.
    pub(in crate::policy) fn is_match(&self, tag: &str) -> bool {
        let tag = tag.as_bytes();
        let (mut at, mut token) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while at < tag.len() {
            match (self.tokens.get(token), star) {
                (Some(Token::Star), _) => {
                    star = Some((at, token + 1));
                    token += 1;
                }
                (Some(Token::One(set)), _) if set.contains(tag[at]) => {
                    at += 1;
                    token += 1;
                }
                (_, Some((start, after))) => {
                    star = Some((start + 1, after));
                    at = start + 1;
                    token = after;
                }
                (_, None) => return false,
            }
        }
        self.tokens[token..].iter().all(|&token| token == Token::Star)
    }
}

/// What follows `[`: `^`, then at least one character or range, then `]`. Characters are escaped by `\`, and `-` only so.
fn class(rest: &mut std::str::Chars<'_>) -> Result<AsciiSet, GlobError> {
    let negated = rest.as_str().starts_with('^');
    if negated {
        rest.next();
    }
    let mut set = AsciiSet::EMPTY;
    let mut empty = true;
    loop {
        if !empty && rest.as_str().starts_with(']') {
            rest.next();
            return Ok(if negated { !set } else { set });
        }
        let low = member(rest)?;
        let mut high = low;
        if rest.as_str().starts_with('-') {
            rest.next();
            high = member(rest)?;
        }
        set = set | AsciiSet::range(low, high);
        empty = false;
    }
}

fn member(rest: &mut std::str::Chars<'_>) -> Result<u32, GlobError> {
    match rest.next() {
        None | Some('-' | ']') => Err(GlobError::Range),
        Some('\\') => rest.next().map(u32::from).ok_or(GlobError::Range),
        Some(c) => Ok(u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row was run through Go 1.26's `filepath.Match`.
    #[test]
    fn globs_match_as_in_go() {
        for (glob, tags, others) in [
            ("*", &["", "a", "1.2.3"][..], &[][..]),
            ("**-rc*", &["1.0-rc1", "-rc"], &["1.0rc"]),
            ("?.?", &["1.2"], &["1.22", "12"]),
            ("latest", &["latest"], &["latest1", "alatest", "Latest"]),
            ("v[0-9]", &["v1"], &["v", "v10", "va"]),
            ("[^a]", &["b", "-"], &["a", "", "bb"]),
            ("[!a]", &["a", "!"], &["b"]),
            ("[a^]", &["a", "^"], &["b"]),
            ("[z-a]", &[], &["a", "m", "z"]),
            ("[^z-a]", &["a", "m"], &[""]),
            (r"[\-\]]", &["-", "]"], &["\\"]),
            (r"\*", &["*"], &["a", "\\*"]),
            (r"\[a]", &["[a]"], &["a"]),
            ("{a,b}", &["{a,b}"], &["a", "b"]),
            ("[[]", &["["], &["]"]),
            ("[*]*", &["*", "*a"], &["a"]),
            ("a]", &["a]"], &["a"]),
            ("é*", &[], &["e", ""]),
            ("[a-é]", &["a", "z"], &["A"]),
            ("[^é]", &["a"], &[""]),
            ("*-", &["a-", "-"], &["a-b"]),
            ("a*b*c", &["abc", "aXbYbZc"], &["acb", "ab"]),
            ("", &[""], &["a"]),
        ] {
            let parsed = Glob::parse(glob).expect(glob);
            assert_eq!(tags.iter().find(|tag| !parsed.is_match(tag)), None, "{glob} matches");
            assert_eq!(others.iter().find(|tag| parsed.is_match(tag)), None, "{glob} does not match");
        }
    }

    #[test]
    fn malformed_globs_are_refused() {
        for glob in ["[", "[]", "[^]", "[a", "[a-", "[a-]", "[-a]", "[]a]", r"[\", r"[a\", "a[", "*[", "[^]*]", "[a-b-c]"] {
            assert_eq!(Glob::parse(glob), Err(GlobError::Range), "{glob}");
        }
        assert_eq!(Glob::parse(r"a\"), Err(GlobError::Backslash));
        assert_eq!(Glob::parse(&"a".repeat(1025)), Err(GlobError::TooLong));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let glob = Glob::parse(&"*a".repeat(512)).expect("a glob");
        assert!(!glob.is_match(&format!("{}b", "a".repeat(127))));
        let glob = Glob::parse(&format!("{}*b", "*a".repeat(64))).expect("a glob");
        assert!(!glob.is_match(&"a".repeat(128)));
        assert!(glob.is_match(&format!("{}b", "a".repeat(127))));
    }
}
