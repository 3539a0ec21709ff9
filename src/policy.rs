//! How to choose one tag of a repository: which tags are permitted, and which of them is the newest.
//!
//! [`Settings`] (the texts of a placeholder or a rule) become a checked [`Policy`], which chooses among [`Candidate`]s. All of it is pure:
//! the caller lists the tags, fetches the metadata that [`Policy::choose`] needs, and tells the time. The outcome depends on nothing else,
//! not even on the order of the tags.
//!
//! Meanings are those of Argo CD Image Updater 1.3 (strategies, constraints, filters) and Flux (`extract`, `numerical`), see `constraint`,
//! `version` and `filter` for the grammars.

mod choose;
mod constraint;
mod error;
mod filter;
mod selection;
pub mod settings;
mod version;

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;

use crate::image::{Platform, Tag, printable};
use filter::{Glob, Ignored, Pattern, Template};

pub use constraint::{Constraint, ConstraintError};
pub use error::PolicyError;
pub use filter::{GlobError, PatternError, TemplateError};
pub use selection::{Candidate, FilterReport, ImageBuild, NoMatch, NoSelection, Selection, Step, TagMetadata};
pub use settings::Settings;
pub use version::parse as read_version;

/// Most patterns that `ignore-tags` may list.
const MAX_IGNORED: usize = 100;

/// Whose words the settings are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// Ours: constraints that a strategy can't use are errors, and `allow-tags` may be a bare regular expression.
    Placeholder,
    /// Image Updater's: `latest` and `name` are strategies too, constraints that a strategy can't use are ignored, and `allow-tags` is
    /// `any` or `regexp:…`.
    ImageUpdater,
}

/// How to choose: filters and a strategy. Made by [`Policy::parse`].
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    strategy: Strategy,
    allow: Option<Pattern>,
    ignore: Vec<Ignored>,
    extract: Option<Template>,
    platforms: Vec<Platform>,
    min_age: Option<Duration>,
    with_digest: bool,
    fallback: Option<Tag>,
}

/// Which of the permitted tags wins. Of equals, the tag that is greatest by bytes wins.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// The greatest version that the constraint permits.
    Semver(Constraint),
    /// The image that was created last, by its own record or by the [`Candidate::position`] of its tag.
    NewestBuild,
    /// The greatest text by bytes, or the least.
    Alphabetical(Order),
    /// The greatest decimal number, or the least.
    Numerical(Order),
    /// This tag, whatever it points at.
    Digest(Tag),
}

/// `asc`: the last in ascending order wins, which is the greatest. `desc`: the last in descending order. (Flux's words.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Asc,
    Desc,
}

impl Strategy {
    /// The names of all strategies, as they are written.
    pub const NAMES: [&'static str; 5] = ["semver", "newest-build", "alphabetical", "numerical", "digest"];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Semver(_) => "semver",
            Self::NewestBuild => "newest-build",
            Self::Alphabetical(_) => "alphabetical",
            Self::Numerical(_) => "numerical",
            Self::Digest(_) => "digest",
        }
    }

    // No wildcard below: a new strategy is asked each of these questions by the compiler.

    /// Does it rank images by when they were built, and not tags by their names?
    pub fn ranks_by_build(&self) -> bool {
        match self {
            Self::NewestBuild => true,
            Self::Semver(_) | Self::Alphabetical(_) | Self::Numerical(_) | Self::Digest(_) => false,
        }
    }

    /// Does it follow one tag, whatever image that is? Then the pin needs the digest.
    pub fn follows_a_tag(&self) -> bool {
        match self {
            Self::Digest(_) => true,
            Self::Semver(_) | Self::NewestBuild | Self::Alphabetical(_) | Self::Numerical(_) => false,
        }
    }

    /// Does it read a constraint in Image Updater's notation, which ignores the constraints of others?
    pub fn reads_constraint(&self) -> bool {
        match self {
            Self::Semver(_) | Self::Digest(_) => true,
            Self::NewestBuild | Self::Alphabetical(_) | Self::Numerical(_) => false,
        }
    }

    /// Which end of its ranking wins.
    fn order(&self) -> Order {
        match self {
            Self::Alphabetical(order) | Self::Numerical(order) => *order,
            Self::Semver(_) | Self::NewestBuild | Self::Digest(_) => Order::Asc,
        }
    }

    fn parse(name: &str, constraint: &str, notation: Notation) -> Result<Self, PolicyError> {
        let lower = name.to_ascii_lowercase();
        let name = match (lower.as_str(), notation) {
            ("", _) => "semver",
            ("latest", Notation::ImageUpdater) => "newest-build",
            ("name", Notation::ImageUpdater) => "alphabetical",
            ("latest", Notation::Placeholder) => return Err(PolicyError::Renamed { old: "latest", new: "newest-build" }),
            ("name", Notation::Placeholder) => return Err(PolicyError::Renamed { old: "name", new: "alphabetical" }),
            (other, _) => other,
        };
        let order = || match (constraint.to_ascii_lowercase().as_str(), notation) {
            ("" | "asc", _) | (_, Notation::ImageUpdater) => Ok(Order::Asc),
            ("desc", Notation::Placeholder) => Ok(Order::Desc),
            _ => Err(PolicyError::Order { text: printable(constraint) }),
        };
        Ok(match name {
            "semver" => {
                let fail = |source| PolicyError::Constraint { text: printable(constraint), source };
                Self::Semver(constraint.parse().map_err(fail)?)
            }
            "newest-build" if constraint.is_empty() || notation == Notation::ImageUpdater => Self::NewestBuild,
            "newest-build" => {
                return Err(PolicyError::ConstraintUnused { strategy: "newest-build", text: printable(constraint) });
            }
            "alphabetical" => Self::Alphabetical(order()?),
            "numerical" => Self::Numerical(order()?),
            "digest" if constraint.is_empty() => return Err(PolicyError::DigestWithoutTag),
            "digest" => Self::Digest(constraint.parse().map_err(|_| PolicyError::DigestTag { text: printable(constraint) })?),
            other => return Err(PolicyError::UnknownStrategy { name: printable(other) }),
        })
    }
}

impl Policy {
    /// Checks the settings. Empty texts are as good as absent ones.
    ///
    /// # Errors
    ///
    /// The first mistake found; [`PolicyError::hint`] says what to write.
    pub fn parse(settings: &Settings, notation: Notation) -> Result<Self, PolicyError> {
        let text = |setting: &Option<String>| setting.clone().filter(|text| !text.is_empty());
        let strategy = Strategy::parse(
            settings.strategy.as_deref().unwrap_or_default(),
            settings.constraint.as_deref().unwrap_or_default(),
            notation,
        )?;
        let allow = parse_allow(settings.allow_tags.as_deref().unwrap_or_default(), notation)?;
        let extract = match (text(&settings.extract), &allow) {
            (None, _) => None,
            (Some(_), _) if strategy.ranks_by_build() || strategy.follows_a_tag() => {
                return Err(PolicyError::ExtractUnused { strategy: strategy.name() });
            }
            (Some(_), None) => return Err(PolicyError::ExtractWithoutPattern),
            (Some(template), Some(pattern)) => Some(
                Template::parse(&template, pattern)
                    .map_err(|source| PolicyError::Extract { text: printable(&template), source })?,
            ),
        };
        let mut platforms = settings.platforms.iter().flatten().map(|text| text.parse()).collect::<Result<Vec<Platform>, _>>()?;
        platforms.sort();
        platforms.dedup();
        let min_age = match text(&settings.min_age) {
            None => None,
            Some(text) => Some(parse_age(&text).ok_or_else(|| PolicyError::MinAge { text: printable(&text) })?),
        };
        let fallback = match text(&settings.fallback) {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| PolicyError::Fallback { text: printable(&text) })?),
        };
        let ignore = parse_ignore(settings.ignore_tags.as_deref().unwrap_or_default())?;
        Ok(Self {
            strategy,
            allow,
            ignore,
            extract,
            platforms,
            min_age,
            with_digest: settings.with_digest.unwrap_or_default(),
            fallback,
        })
    }

    /// The policy with these platforms where it names none, if its strategy reads metadata anyway (`newest-build`). Not for tags that
    /// have a position: of those none is read.
    #[must_use]
    pub fn with_default_platforms(mut self, platforms: &[Platform]) -> Self {
        if self.platforms.is_empty() && self.strategy.ranks_by_build() {
            self.platforms = platforms.to_vec();
            self.platforms.sort();
            self.platforms.dedup();
        }
        self
    }

    pub fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    /// The platforms of which one must be offered; none: any image will do.
    pub fn platforms(&self) -> &[Platform] {
        &self.platforms
    }

    /// Was `with-digest` asked for? See also [`Policy::pins_digest`].
    pub fn with_digest(&self) -> bool {
        self.with_digest
    }

    /// Does the pin hold a digest: by `with-digest` or by the `digest` strategy?
    pub fn pins_digest(&self) -> bool {
        self.with_digest || self.strategy.follows_a_tag()
    }

    /// Does choosing need manifests and configurations, not only names and digests? It depends on whether the tags have a
    /// [`Candidate::position`].
    pub fn reads_metadata(&self, have_positions: bool) -> bool {
        let ranks_by_date = self.strategy.ranks_by_build() && !have_positions;
        ranks_by_date || self.min_age.is_some() || !self.platforms.is_empty()
    }

    /// The tag for the caller to use when nothing is permitted.
    pub fn fallback(&self) -> Option<&Tag> {
        self.fallback.as_ref()
    }
}

/// The pattern of `allow-tags`; none: any tag. Text after `regexp:` is taken verbatim, spaces included, as Image Updater does.
fn parse_allow(text: &str, notation: Notation) -> Result<Option<Pattern>, PolicyError> {
    if text.is_empty() || text.eq_ignore_ascii_case("any") {
        return Ok(None);
    }
    match (strip_regexp(text), notation) {
        (Some(pattern), _) => parse_pattern(pattern).map(Some),
        (None, Notation::Placeholder) => parse_pattern(text).map(Some),
        (None, Notation::ImageUpdater) => Err(PolicyError::Allow { text: printable(text) }),
    }
}

fn parse_ignore(texts: &[String]) -> Result<Vec<Ignored>, PolicyError> {
    if texts.len() > MAX_IGNORED {
        return Err(PolicyError::TooManyIgnored { count: texts.len() });
    }
    let mut texts: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    texts.sort_unstable();
    texts.dedup();
    let parse = |text: &str| match strip_regexp(text) {
        Some(pattern) => parse_pattern(pattern).map(Ignored::Pattern),
        None => Glob::parse(text).map(Ignored::Glob).map_err(|source| PolicyError::Glob { text: printable(text), source }),
    };
    texts.into_iter().map(parse).collect()
}

fn parse_pattern(text: &str) -> Result<Pattern, PolicyError> {
    Pattern::parse(text).map_err(|source| PolicyError::Pattern { text: printable(text), source })
}

/// The text behind `regexp:`, which may be written in any case.
fn strip_regexp(text: &str) -> Option<&str> {
    text.split_once(':').filter(|(function, _)| function.eq_ignore_ascii_case("regexp")).map(|(_, pattern)| pattern)
}

/// A duration such as `2h` or `3days`, short enough to be compared with times.
fn parse_age(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|&age| SignedDuration::try_from(age).is_ok())
}

/// Writes the canonical words of a placeholder, such as `semver ~1.0 --allow-tags '^main-'`. A POSIX shell's word splitter and
/// [`Policy::parse`] read them back as an equal policy; hence policies that choose differently print differently.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.strategy.name())?;
        match &self.strategy {
            // These hold no character that would need quotes.
            Strategy::Semver(constraint) => write!(f, " {constraint}")?,
            Strategy::Digest(tag) => write!(f, " {tag}")?,
            Strategy::Alphabetical(Order::Desc) | Strategy::Numerical(Order::Desc) => f.write_str(" desc")?,
            Strategy::NewestBuild | Strategy::Alphabetical(Order::Asc) | Strategy::Numerical(Order::Asc) => {}
        }
        if let Some(pattern) = &self.allow {
            let text = pattern.text();
            let ambiguous = text.is_empty() || text.eq_ignore_ascii_case("any") || strip_regexp(text).is_some();
            write_flag(f, "allow-tags", &format!("{}{text}", if ambiguous { "regexp:" } else { "" }))?;
        }
        self.ignore.iter().try_for_each(|ignored| write_flag(f, "ignore-tags", &ignored.text()))?;
        self.extract.iter().try_for_each(|template| write_flag(f, "extract", template.text()))?;
        self.platforms.iter().try_for_each(|platform| write_flag(f, "platform", &platform.to_string()))?;
        self.min_age.iter().try_for_each(|&age| write_flag(f, "min-age", &humantime::format_duration(age).to_string()))?;
        f.write_str(if self.with_digest { " --with-digest" } else { "" })?;
        self.fallback.iter().try_for_each(|tag| write_flag(f, "fallback", tag.as_str()))
    }
}

/// Writes ` --name value`, or ` --name=value` where the value could be taken for a flag, in quotes where it needs them.
fn write_flag(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_./:@%+,-".contains(&b);
    let between = if value.starts_with('-') { '=' } else { ' ' };
    if !value.is_empty() && value.bytes().all(plain) {
        write!(f, " --{name}{between}{value}")
    } else {
        write!(f, " --{name}{between}'{}'", value.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(strategy: &str, constraint: &str) -> Settings {
        Settings { strategy: Some(strategy.into()), constraint: Some(constraint.into()), ..Settings::default() }
    }

    fn placeholder(settings: &Settings) -> Result<Policy, PolicyError> {
        Policy::parse(settings, Notation::Placeholder)
    }

    /// Reads words as a placeholder's parser does.
    fn read(words: &str) -> Settings {
        let mut read = Settings::default();
        let mut constraint = Vec::new();
        let mut words = shell_words::split(words).expect("words").into_iter();
        read.strategy = words.next();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--") else {
                constraint.push(word);
                continue;
            };
            if flag == "with-digest" {
                read.with_digest = Some(true);
                continue;
            }
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), value.to_owned()),
                None => (flag.to_owned(), words.next().expect("a value")),
            };
            match flag.as_str() {
                "allow-tags" => read.allow_tags = Some(value),
                "ignore-tags" => read.ignore_tags.get_or_insert_default().push(value),
                "extract" => read.extract = Some(value),
                "platform" => read.platforms.get_or_insert_default().push(value),
                "min-age" => read.min_age = Some(value),
                "fallback" => read.fallback = Some(value),
                other => panic!("unknown flag {other}"),
            }
        }
        read.constraint = Some(constraint.join(" "));
        read
    }

    #[test]
    fn policies_print_as_canonical_words() {
        let full = Settings {
            allow_tags: Some("regexp:^main-(?<ts>[0-9]+)'$".into()),
            ignore_tags: Some(vec!["*-rc*".into(), "REGEXP:-dev$".into(), "*-rc*".into(), String::new()]),
            extract: Some("$ts".into()),
            platforms: Some(vec!["linux/arm64".into(), "linux/amd64".into()]),
            min_age: Some("26h".into()),
            with_digest: Some(true),
            fallback: Some("1.0".into()),
            ..settings("Numerical", "DESC")
        };
        for (settings, words) in [
            (Settings::default(), "semver *"),
            (settings("SemVer", ">=1.2   <2 ||3.x"), "semver >=1.2 <2 ||3.x"),
            (settings("newest-build", ""), "newest-build"),
            (settings("alphabetical", "asc"), "alphabetical"),
            (settings("digest", "latest"), "digest latest"),
            (Settings { allow_tags: Some("-x$".into()), ..Settings::default() }, "semver * --allow-tags='-x$'"),
            (Settings { allow_tags: Some("ANY".into()), ..Settings::default() }, "semver *"),
            (Settings { allow_tags: Some("regexp:any".into()), ..Settings::default() }, "semver * --allow-tags regexp:any"),
            (Settings { allow_tags: Some("regexp:".into()), ..Settings::default() }, "semver * --allow-tags regexp:"),
            (
                full,
                "numerical desc --allow-tags '^main-(?<ts>[0-9]+)'\\''$' --ignore-tags '*-rc*' --ignore-tags 'regexp:-dev$' \
                 --extract '$ts' --platform linux/amd64 --platform linux/arm64 --min-age '1day 2h' --with-digest --fallback 1.0",
            ),
        ] {
            let policy = placeholder(&settings).expect(words);
            assert_eq!(policy.to_string(), words);
            assert_eq!(placeholder(&read(words)), Ok(policy));
        }
    }

    #[test]
    fn image_updaters_words_mean_what_they_meant() {
        let read =
            |strategy, constraint| Policy::parse(&settings(strategy, constraint), Notation::ImageUpdater).map(|p| p.to_string());
        for (strategy, constraint, words) in [
            ("latest", "~1.0", "newest-build"),
            ("Name", "~1.0", "alphabetical"),
            ("newest-build", "main", "newest-build"),
            ("alphabetical", "desc", "alphabetical"),
            ("semver", "", "semver *"),
            ("", "1.x", "semver 1.x"),
            ("digest", "latest", "digest latest"),
        ] {
            assert_eq!(read(strategy, constraint).as_deref(), Ok(words), "{strategy} {constraint}");
        }
        assert_eq!(read("digest", ""), Err(PolicyError::DigestWithoutTag));
    }

    #[test]
    fn every_mistake_is_named_and_has_a_hint() {
        let allow = |text: &str| Settings { allow_tags: Some(text.into()), ..Settings::default() };
        let ignore = |texts: Vec<String>| Settings { ignore_tags: Some(texts), ..Settings::default() };
        let extract = |pattern: Option<&str>, text: &str, strategy: &str| Settings {
            allow_tags: pattern.map(Into::into),
            extract: Some(text.into()),
            ..settings(strategy, "")
        };
        for (settings, message, hint) in [
            (settings("calver", ""), "unknown strategy `calver`", "`numerical`"),
            (settings("latest", ""), "strategy `latest` has another name here", "`newest-build`"),
            (settings("name", ""), "strategy `name` has another name here", "`alphabetical`"),
            (settings("semver", "1.2.3.4"), "`1.2.3.4` is not a version constraint", "`~1.2`"),
            (settings("semver", ">=1<2"), "`>=1<2` is not a version constraint", "space"),
            (settings("semver", "==1.2"), "`==1.2` is not a version constraint", "one `=`"),
            (settings("semver", "latest"), "`latest` is not a version constraint", "`digest latest`"),
            (settings("newest-build", "~1"), "strategy `newest-build` takes no constraint: `~1`", "allow-tags"),
            (settings("numerical", "up"), "`up` is not an order", "`desc`"),
            (settings("digest", ""), "strategy `digest` needs a tag to follow", "`digest latest`"),
            (settings("digest", "~1.2"), "strategy `digest` follows one tag, which `~1.2` is not", "`digest latest`"),
            (allow("(a"), "`(a` is not a regular expression", "RE2"),
            (ignore(vec!["[a".into()]), "`[a` is not a glob", "`*-rc*`"),
            (ignore(vec!["a".into(); 101]), "more than 100 patterns of tags to ignore: 101", "`regexp:"),
            (extract(None, "$1", ""), "extract needs a regular expression in allow-tags", "allow-tags"),
            (extract(Some("a"), "$1", ""), "`$1` is not a template for extract", "$"),
            (
                extract(Some("(a)"), "$1", "newest-build"),
                "strategy `newest-build` does not rank by name, so extract has no effect",
                "leave",
            ),
            (
                Settings { platforms: Some(vec!["arm64".into()]), ..Settings::default() },
                "`arm64` is not a platform",
                "`linux/arm64`",
            ),
            (
                Settings { min_age: Some("2 fortnights".into()), ..Settings::default() },
                "`2 fortnights` is not a duration",
                "`2h`",
            ),
            (Settings { min_age: Some("500000000000years".into()), ..Settings::default() }, "`500000000000years`", "`2h`"),
            (Settings { fallback: Some("a b".into()), ..Settings::default() }, "fallback `a b` is not a tag", "`1.2.3`"),
        ] {
            let error = placeholder(&settings).expect_err(message);
            assert!(error.to_string().starts_with(message), "{error}");
            assert!(
                error.hint().or(Some(error.to_string())).is_some_and(|text| text.contains(hint)),
                "{error:?}: {:?}",
                error.hint()
            );
        }
        for text in ["^main-", "glob:a", " any"] {
            let error = Policy::parse(&allow(text), Notation::ImageUpdater).expect_err(text);
            assert_eq!(error, PolicyError::Allow { text: text.into() });
            assert!(error.hint().expect("a hint").contains("`regexp:"));
        }
    }

    #[test]
    fn default_platforms_are_for_strategies_that_read_metadata_anyway() {
        let platforms = ["linux/amd64".parse().expect("a platform")];
        let with = |policy: Policy| policy.with_default_platforms(&platforms).platforms().len();
        assert_eq!(with(placeholder(&settings("newest-build", "")).expect("a policy")), 1);
        assert_eq!(with(placeholder(&Settings::default()).expect("a policy")), 0);
        let named = Settings { platforms: Some(vec!["linux/arm64".into(), "linux/386".into()]), ..settings("newest-build", "") };
        assert_eq!(with(placeholder(&named).expect("a policy")), 2);
    }

    prop_compose! {
        fn any_settings()(
            strategy in prop::sample::select(vec![("semver", "~1"), ("semver", ">1 <2"), ("newest-build", ""), ("alphabetical", "desc"),
                ("numerical", ""), ("digest", "latest")]),
            allow_tags in prop::option::of(r"(regexp:)?[ a-z'\\.$#()-]{0,6}"),
            ignore_tags in prop::collection::vec(r"(regexp:)?[ a-z'*-]{0,4}", 0..3),
            extract in prop::option::of(Just("$1")),
            platforms in prop::collection::vec("linux/(amd|arm)64", 0..3),
            min_age in prop::option::of("[1-9]h( [1-9]ns)?"),
            with_digest: bool,
            fallback in prop::option::of("[a-z]{1,2}"),
        ) -> Settings {
            Settings { allow_tags, ignore_tags: Some(ignore_tags), extract: extract.map(Into::into), platforms: Some(platforms), min_age, with_digest: Some(with_digest), fallback,
                ..settings(strategy.0, strategy.1) }
        }
    }

    proptest! {
        #[test]
        fn words_are_read_back_as_the_same_policy(settings in any_settings()) {
            if let Ok(policy) = placeholder(&settings) {
                prop_assert_eq!(placeholder(&read(&policy.to_string())), Ok(policy));
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,20}", other in "[-+*?(){}\\[\\]^$|.:\\\\a-cdpwQEx0-9,<>P&~!=é ]{0,16}") {
            for text in [text, other] {
                let settings = Settings { allow_tags: Some(text.clone()), ..settings("semver", &text) };
                let _ = placeholder(&settings);
                let settings = Settings { allow_tags: Some(text.clone()), ignore_tags: Some(vec![text.clone()]), extract: Some(text.clone()),
                    ..Settings::default() };
                let _ = placeholder(&settings);
            }
        }
    }
}
