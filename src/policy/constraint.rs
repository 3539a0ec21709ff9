//! Version constraints: which versions `~1.2`, `>=1.2 <2 || 3.x` or `1.0 - 2.0` permit.
//!
//! Grammar and meaning are those of [Masterminds/semver 3.4.0], quirks included, since users wrote their constraints for it:
//! `^*` permits 0.0.0 alone, `<=*` 0.0.z, `~0.0.0` everything, and `!=*` all but 0.0.0. Pre-releases are permitted by a group (the items
//! between two `||`) if an item of the group has a pre-release part, as in `~1.2-0`. The regular expressions of the original are written
//! out, so that none has to be compiled. `constraint_table.txt` holds the answers of the original for a few hundred constraints.
//!
//! [Masterminds/semver 3.4.0]: https://github.com/Masterminds/semver/blob/v3.4.0/constraints.go

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use semver::Version;

use super::version;
use crate::image::printable;

/// Longest constraint that is read, in bytes.
const MAX_CONSTRAINT: usize = 1024;

/// Why a text is not a version constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// A part between two `||` is not a list of operators and versions.
    #[error("`{0}` is not a list of operators and versions")]
    Improper(String),
    /// An item looks like a version but is none: `1.2.3-01`, `1x`, a number beyond 64 bits.
    #[error("`{0}` is not a version")]
    Version(String),
    #[error("it is longer than {MAX_CONSTRAINT} bytes")]
    TooLong,
}

/// A checked constraint: groups joined by `||`, of which one must hold, of items that must all hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    text: String,
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq)]
struct Group {
    items: Vec<Item>,
    /// Does an item have a pre-release part?
    prereleases: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Item {
    operator: Operator,
    /// The version as written, without operator.
    text: String,
    /// The version with 0 in place of what is absent or a wildcard.
    version: Version,
    given: Given,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterOrEqual,
    LessOrEqual,
    Tilde,
    Caret,
}

/// How much of a version stands before the first wildcard: nothing in `*`, major in `1.x`, minor in `1.2`, all in `1.2.3`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Given {
    Nothing,
    Major,
    Minor,
    All,
}

impl Constraint {
    /// Is this version permitted? Build metadata is ignored.
    pub fn matches(&self, version: &Version) -> bool {
        self.groups.iter().any(|group| group.matches(version))
    }

    /// This constraint with `-0` where that opens it to pre-releases, for hints. None if nothing can be opened.
    pub(super) fn with_prereleases(&self) -> Option<Self> {
        let open = |item: &Item| {
            let exact = item.operator == Operator::NotEqual || (item.operator == Operator::Equal && item.given == Given::All);
            if exact || !item.version.pre.is_empty() {
                return format!("{}{}", item.operator.as_str(), item.text);
            }
            let core = item.text.split('+').next().unwrap_or_default();
            format!("{}{core}-0", item.operator.as_str())
        };
        let group = |group: &Group| group.items.iter().map(open).collect::<Vec<_>>().join(" ");
        let opened: Self = self.groups.iter().map(group).collect::<Vec<_>>().join(" || ").parse().ok()?;
        (opened.text != self.text).then_some(opened)
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    /// The empty text is `*`, as for Image Updater since 1.3.
    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        if text.len() > MAX_CONSTRAINT {
            return Err(ConstraintError::TooLong);
        }
        let text = if text.is_empty() { "*" } else { text };
        let groups = rewrite_ranges(text).split("||").map(Group::parse).collect::<Result<_, _>>()?;
        Ok(Self { text: text.split_ascii_whitespace().collect::<Vec<_>>().join(" "), groups })
    }
}

/// Writes the constraint as the user did, with single spaces.
impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Group {
    /// Items are separated by white space or one comma, never by nothing: `>=1<2` is an error.
    fn parse(text: &str) -> Result<Self, ConstraintError> {
        let improper = || ConstraintError::Improper(printable(text.trim()));
        let mut items = Vec::new();
        let mut rest = trim_start(text);
        loop {
            let (operator, after) = Operator::split(rest).ok_or_else(improper)?;
            let after = trim_start(after);
            let length = version_length(after.as_bytes());
            if length == 0 {
                return Err(improper());
            }
            items.push(Item::parse(operator, &after[..length])?);
            let after = &after[length..];
            let next = trim_start(after);
            if next.is_empty() {
                break;
            }
            rest = match next.strip_prefix(',') {
                Some(next) => trim_start(next),
                None if next.len() < after.len() => next,
                None => return Err(improper()),
            };
        }
        Ok(Self { prereleases: items.iter().any(|item| !item.version.pre.is_empty()), items })
    }

    fn matches(&self, version: &Version) -> bool {
        (self.prereleases || version.pre.is_empty()) && self.items.iter().all(|item| item.matches(version))
    }
}

impl Item {
    fn parse(operator: Operator, text: &str) -> Result<Self, ConstraintError> {
        let wild = |part: &str| matches!(part, "" | "x" | "X" | "*");
        let unbuilt = text.split('+').next().unwrap_or_default();
        let (core, pre) = unbuilt.find('-').map_or((unbuilt, ""), |dash| unbuilt.split_at(dash));
        let mut parts = core.strip_prefix('v').unwrap_or(core).split('.');
        let mut next = || parts.next().unwrap_or_default();
        // What follows the first wildcard is discarded, whatever it is: `1.x.3` is `1.x`.
        let (given, full) = match (next(), next(), next()) {
            (major, _, _) if wild(major) => (Given::Nothing, format!("0.0.0{pre}")),
            (major, minor, _) if wild(minor) => (Given::Major, format!("{major}.0.0{pre}")),
            (major, minor, patch) if wild(patch) => (Given::Minor, format!("{major}.{minor}.0{pre}")),
            _ => (Given::All, text.to_owned()),
        };
        let version = version::parse(&full).ok_or_else(|| ConstraintError::Version(printable(text)))?;
        Ok(Self { operator, text: text.to_owned(), version, given })
    }

    /// Masterminds' function for the operator, without the gate for pre-releases, which is the group's.
    fn matches(&self, version: &Version) -> bool {
        let limit = &self.version;
        let order = version.cmp_precedence(limit);
        match (self.operator, self.given) {
            (Operator::Equal, Given::All) => order == Ordering::Equal,
            (Operator::Equal | Operator::Tilde, _) => order != Ordering::Less && self.matches_tilde(version),
            (Operator::NotEqual, _) => self.matches_not_equal(version, order),
            (Operator::Greater, Given::Major) => version.major > limit.major,
            (Operator::Greater, Given::Minor) => (version.major, version.minor) > (limit.major, limit.minor),
            (Operator::Greater, _) => order == Ordering::Greater,
            (Operator::Less, _) => order == Ordering::Less,
            (Operator::GreaterOrEqual, _) => order != Ordering::Less,
            (Operator::LessOrEqual, Given::All) => order != Ordering::Greater,
            (Operator::LessOrEqual, Given::Major) => version.major <= limit.major,
            (Operator::LessOrEqual, _) => (version.major, version.minor) <= (limit.major, limit.minor),
            (Operator::Caret, _) => order != Ordering::Less && self.matches_caret(version),
        }
    }

    /// `~1.2.3` is below 1.3.0, `~1` below 2.0.0, `~*` and (a quirk) `~0.0.0` have no upper bound.
    fn matches_tilde(&self, version: &Version) -> bool {
        let limit = &self.version;
        let partial = matches!(self.given, Given::Major | Given::Minor);
        if (limit.major, limit.minor, limit.patch) == (0, 0, 0) && !partial {
            return true;
        }
        version.major == limit.major && (version.minor == limit.minor || self.given == Given::Major)
    }

    /// `^1.2.3` is below 2.0.0, `^0.2.3` below 0.3.0, `^0.0.3` is 0.0.3, `^0.0` below 0.1.0, `^0` below 1.0.0, `^*` (a quirk) 0.0.0.
    fn matches_caret(&self, version: &Version) -> bool {
        let limit = &self.version;
        if limit.major > 0 || self.given == Given::Major {
            return version.major == limit.major;
        }
        if version.major > 0 {
            return false;
        }
        if limit.minor > 0 || self.given == Given::Minor {
            return version.minor == limit.minor;
        }
        version.minor == 0 && version.patch == limit.patch
    }

    /// `!=1` excludes 1.y.z. `!=1.2` excludes 1.2.z, but pre-releases of these only with the same pre-release part (a quirk).
    fn matches_not_equal(&self, version: &Version, order: Ordering) -> bool {
        let limit = &self.version;
        match self.given {
            Given::Major => version.major != limit.major,
            Given::Minor => (version.major, version.minor) != (limit.major, limit.minor) || version.pre != limit.pre,
            Given::Nothing | Given::All => order != Ordering::Equal,
        }
    }
}

impl Operator {
    /// Splits the operator from what follows it. None: the characters are operators', but together they are none.
    fn split(text: &str) -> Option<(Self, &str)> {
        let length = text.bytes().take_while(|b| b"=!<>~^".contains(b)).count();
        let operator = match &text[..length] {
            "" | "=" => Self::Equal,
            "!=" => Self::NotEqual,
            ">" => Self::Greater,
            "<" => Self::Less,
            ">=" | "=>" => Self::GreaterOrEqual,
            "<=" | "=<" => Self::LessOrEqual,
            "~" | "~>" => Self::Tilde,
            "^" => Self::Caret,
            _ => return None,
        };
        Some((operator, &text[length..]))
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "",
            Self::NotEqual => "!=",
            Self::Greater => ">",
            Self::Less => "<",
            Self::GreaterOrEqual => ">=",
            Self::LessOrEqual => "<=",
            Self::Tilde => "~",
            Self::Caret => "^",
        }
    }
}

/// Replaces every `A - B` by `>= A, <= B `, before anything else is read, at the first place where the same text stands, as the original
/// does (`constraintRangeRegex`, `rewriteRange`).
fn rewrite_ranges(text: &str) -> String {
    let mut rewritten = text.to_owned();
    let mut at = 0;
    while at < text.len() {
        match Range::at(text, at) {
            Some(range) => {
                rewritten = rewritten.replacen(&text[at..range.end], &format!(">= {}, <= {} ", range.lower, range.upper), 1);
                at = range.end;
            }
            None => at += 1,
        }
    }
    rewritten
}

/// `\s*(version)\s+-\s+(version)\s*`
struct Range<'a> {
    lower: &'a str,
    upper: &'a str,
    end: usize,
}

impl<'a> Range<'a> {
    fn at(text: &'a str, at: usize) -> Option<Self> {
        let bytes = text.as_bytes();
        let after_spaces = |at: usize| at + bytes[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let version = |at: usize| match version_length(&bytes[at..]) {
            0 => None,
            length => Some(at + length),
        };
        let start = after_spaces(at);
        let end = version(start)?;
        let dash = after_spaces(end);
        if dash == end || bytes.get(dash) != Some(&b'-') {
            return None;
        }
        let second = after_spaces(dash + 1);
        if second == dash + 1 {
            return None;
        }
        let second_end = version(second)?;
        Some(Self { lower: &text[start..end], upper: &text[second..second_end], end: after_spaces(second_end) })
    }
}

/// How many bytes a version takes at the start, wildcards included; 0 if there is none (`cvRegex`, whose class of digits and wildcards
/// holds `|` as well).
fn version_length(bytes: &[u8]) -> usize {
    let run = |at: usize, class: fn(&u8) -> bool| bytes.get(at..).unwrap_or_default().iter().take_while(|&b| class(b)).count();
    let number = |b: &u8| b.is_ascii_digit() || b"|xX*".contains(b);
    let identifier = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
    let mut at = usize::from(bytes.first() == Some(&b'v'));
    match run(at, number) {
        0 => return 0,
        length => at += length,
    }
    for _ in 0..2 {
        if bytes.get(at) == Some(&b'.') && run(at + 1, number) > 0 {
            at += 1 + run(at + 1, number);
        }
    }
    for sign in [b'-', b'+'] {
        if bytes.get(at) == Some(&sign) && run(at + 1, identifier) > 0 {
            at += 1 + run(at + 1, identifier);
            while bytes.get(at) == Some(&b'.') && run(at + 1, identifier) > 0 {
                at += 1 + run(at + 1, identifier);
            }
        }
    }
    at
}

/// White space is that of Go's `\s`, which is that of ASCII without the vertical tab.
fn trim_start(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Masterminds/semver says of constraints × versions; the table tells how it was made. Besides, 60,000 random constraints and
    /// 80 versions were compared once, without a difference.
    #[test]
    fn constraints_mean_what_they_mean_to_masterminds() {
        let mut lines = include_str!("constraint_table.txt").lines().filter(|line| !line.starts_with("# "));
        let versions: Vec<&str> = lines.next().expect("the versions").split(' ').collect();
        let mut rows = 0;
        for line in lines {
            let (constraint, expected) = line.rsplit_once(" => ").expect(line);
            let permitted = constraint.parse().map(|constraint: Constraint| {
                let permits = |text: &&str| constraint.matches(&version::parse(text).expect(text));
                versions.iter().copied().filter(permits).collect::<Vec<_>>().join(" ")
            });
            let actual = match permitted {
                Ok(permitted) if permitted.is_empty() => "none".to_owned(),
                Ok(permitted) if permitted.len() == versions.join(" ").len() => "all".to_owned(),
                Ok(permitted) => permitted,
                Err(_) => "error".to_owned(),
            };
            assert_eq!(actual, expected, "{constraint}");
            rows += 1;
        }
        assert!(rows > 300, "{rows} rows");
    }

    #[test]
    fn the_empty_constraint_is_a_star() {
        assert_eq!("".parse::<Constraint>(), "*".parse());
    }

    #[test]
    fn constraints_print_as_written_with_single_spaces() {
        for (text, shown) in [(" >=1.2,\t<2  ", ">=1.2, <2"), ("=>1 ||x", "=>1 ||x"), ("1.0  -  2", "1.0 - 2")] {
            let constraint: Constraint = text.parse().expect(text);
            assert_eq!(constraint.to_string(), shown);
            assert_eq!(shown.parse::<Constraint>().expect(shown).groups, constraint.groups);
        }
    }

    #[test]
    fn errors_name_the_part() {
        let error = |text: &str| text.parse::<Constraint>().expect_err(text).to_string();
        assert_eq!(error("~1.2 || main"), "`main` is not a list of operators and versions");
        assert_eq!(error("~1.2 1.2.3-01"), "`1.2.3-01` is not a version");
        assert_eq!(error(&" ".repeat(1025)), "it is longer than 1024 bytes");
    }

    #[test]
    fn a_constraint_can_be_opened_to_prereleases() {
        for (text, opened) in [
            ("*", Some("*-0")),
            (">=1.2 <2, !=1.3 || ~3.x", Some(">=1.2-0 <2-0 !=1.3 || ~3.x-0")),
            ("1 - 2+b", Some(">=1-0 <=2-0")),
            ("1.2.3", None),
            ("~1-0", None),
        ] {
            let constraint: Constraint = text.parse().expect(text);
            assert_eq!(constraint.with_prereleases().map(|opened| opened.to_string()).as_deref(), opened, "{text}");
        }
    }
}
