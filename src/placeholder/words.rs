//! The words of a placeholder, which are also the arguments of `pinion resolve` and `pinion select`.
//!
//! One clap struct reads all three, so that there is one grammar, one help text and one set of errors.

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser};

use crate::image::{ImageError, Repository, printable, split_tag};
use crate::policy::{Notation, Policy, PolicyError, Settings};

/// The help for strategies and constraints.
pub const STRATEGIES: &str = "STRATEGY is one of semver (the default), newest-build, alphabetical, numerical, digest. All other words are \
    the constraint: a semantic version range such as `~1.2` or `>=1 <2` (write `~1-0` to permit pre-releases), `asc` or `desc` for \
    alphabetical and numerical, the tag to follow for digest.";

/// Words and flags that say which image is meant and which of its tags is permitted.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct Words {
    /// Image or alias, strategy, and constraint. The help is that of `pinion resolve`, which takes no alias.
    #[arg(
        value_name = "WORDS",
        help = "IMAGE[:CONSTRAINT] [STRATEGY] [CONSTRAINT…]",
        long_help = format!("IMAGE[:CONSTRAINT] [STRATEGY] [CONSTRAINT…]\n\nIMAGE is the word with `/`, else the first word. {STRATEGIES}")
    )]
    pub words: Vec<String>,

    /// The image, if its name has no `/`, as in `--image nginx`
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,

    #[command(flatten)]
    pub settings: Settings,
}

/// Which image, and how to choose among its tags.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub target: PlaceholderSubject,
    pub pull_secret: Option<String>,
}

/// What a placeholder points at.
#[derive(Clone, Debug, PartialEq)]
pub enum PlaceholderSubject {
    /// A rule, by its alias: image and policy are the rule's.
    Rule(String),
    /// This image, or the one that stands around the placeholder.
    Image { repository: Option<Repository>, policy: Box<Policy> },
}

/// Why words say nothing that can be done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WordsError {
    /// The words cannot be split as a shell splits them.
    #[error("the quote {} before `{behind}` is not closed", marked(*.quote))]
    Quotes {
        quote: char,
        /// The text behind it, made printable.
        behind: String,
    },
    /// A flag is unknown, misses its value or is given twice. The text is clap's own first line.
    #[error("{text}")]
    Flags {
        text: String,
        /// The flag that was probably meant.
        meant: Option<String>,
    },
    #[error("two images are named: `{0}` and `{1}`")]
    TwoImages(String, String),
    #[error("`@{0}` takes no other words: image and policy are the rule's")]
    AliasWithWords(String),
    #[error("`@` needs the alias of a rule, as in `@web`")]
    EmptyAlias,
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl WordsError {
    /// The error for text whose quotes do not pair.
    pub(super) fn open_quote(text: &str) -> Self {
        let mut open = None;
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match (open, c) {
                (None, '\'' | '"') => open = Some((at, c)),
                (None | Some((_, '"')), '\\') => drop(chars.next()),
                (Some((_, quote)), c) if quote == c => open = None,
                _ => {}
            }
        }
        // Without an open quote, it is a `\` at the end that quotes nothing.
        let (at, quote) = open.unwrap_or((text.len().saturating_sub(1), '\\'));
        Self::Quotes { quote, behind: printable(text.get(at + 1..).unwrap_or_default().trim_end()) }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Quotes { quote, .. } => {
                let quote = marked(*quote);
                Some(format!(
                    "write {quote} also at the end of the word, or remove it; a `\\` before it makes it part of the word"
                ))
            }
            Self::Flags { meant: Some(flag), .. } => Some(format!("did you mean `{flag}`?")),
            Self::Flags { meant: None, .. } => Some("`pinion resolve --help` lists the flags".into()),
            Self::Image(_) => Some("a word with `/` is read as an image".into()),
            Self::Policy(error) => error.hint(),
            Self::TwoImages(..) | Self::AliasWithWords(_) | Self::EmptyAlias => None,
        }
    }
}

/// A character as it stands in a message.
fn marked(quote: char) -> String {
    format!("`{quote}`")
}

impl Words {
    /// Splits a text as a POSIX shell does, and reads its flags.
    ///
    /// # Errors
    ///
    /// [`WordsError::Quotes`] and [`WordsError::Flags`].
    pub fn parse(text: &str) -> Result<Self, WordsError> {
        #[derive(Parser)]
        #[command(no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
        struct Placeholder {
            #[command(flatten)]
            words: Words,
        }
        let words = shell_words::split(text).map_err(|_| WordsError::open_quote(text))?;
        let plain = |word: &String| !word.starts_with("--");
        if words.iter().all(plain) && !words.iter().any(|word| word.len() > 1 && word.starts_with('-')) {
            return Ok(Self { words, ..Self::default() });
        }
        // `-allow-tags` is read as many flags of one letter.
        let single = |word: &String| {
            let name = word.strip_prefix('-').filter(|name| !name.starts_with('-'))?.split('=').next()?.to_owned();
            let command = Placeholder::command();
            let is_known = command.get_arguments().any(|flag| flag.get_long() == Some(&name));
            is_known.then(|| format!("--{name}"))
        };
        let single = words.iter().find_map(single);
        Placeholder::try_parse_from(words).map(|parsed| parsed.words).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            let meant = match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(flag)) => Some(flag.clone()),
                _ => single,
            };
            WordsError::Flags { text: first.trim_start_matches("error: ").replace('\'', "`"), meant }
        })
    }

    /// Tells image, alias, strategy and constraint apart and checks each.
    ///
    /// # Errors
    ///
    /// See [`WordsError`].
    pub fn spec(self) -> Result<Spec, WordsError> {
        let mut image: Option<String> = self.image.clone();
        let mut alias = None;
        let mut rest: Vec<String> = Vec::new();
        for word in &self.words {
            if let Some(name) = word.strip_prefix('@') {
                alias = Some(name.to_owned());
            } else if word.contains('/') {
                if let Some(first) = &image {
                    return Err(WordsError::TwoImages(first.clone(), word.clone()));
                }
                image = Some(word.clone());
            } else {
                rest.push(word.clone());
            }
        }
        if let Some(alias) = alias {
            let alone = Self { words: vec![format!("@{alias}")], ..Self::default() };
            return match alias.as_str() {
                "" => Err(WordsError::EmptyAlias),
                _ if self != alone => Err(WordsError::AliasWithWords(alias)),
                _ => Ok(Spec { target: PlaceholderSubject::Rule(alias), pull_secret: None }),
            };
        }
        let strategy = rest.first().is_some_and(|word| is_strategy(word)).then(|| rest.remove(0));
        if let Some(image) = image.as_deref().filter(|image| image.contains('@')) {
            let reason = "it holds a digest, which is a pin already";
            return Err(ImageError::Name { text: printable(image), reason }.into());
        }
        let (name, behind) = match image.as_deref().map(split_tag) {
            Some((name, behind)) => (Some(name), behind.filter(|text| !text.is_empty())),
            None => (None, None),
        };
        let constraint = match (behind, rest.is_empty()) {
            (Some(behind), false) => Some(format!("{behind} {}", rest.join(" "))),
            (Some(behind), true) => Some(behind.to_owned()),
            (None, false) => Some(rest.join(" ")),
            (None, true) => None,
        };
        let settings = Settings { strategy, constraint, ..self.settings };
        let policy = Box::new(Policy::parse(&settings, Notation::Placeholder)?);
        let repository = name.map(str::parse).transpose()?;
        Ok(Spec { target: PlaceholderSubject::Image { repository, policy }, pull_secret: settings.pull_secret })
    }
}

/// Constraints start with a digit, an operator, a wildcard or `v1`; a word that starts otherwise is meant as a strategy.
fn is_strategy(word: &str) -> bool {
    let mut chars = word.chars();
    match chars.next() {
        Some('x' | 'X') => chars.next().is_some_and(|c| c.is_ascii_alphabetic()),
        Some('v' | 'V') => chars.next().is_some_and(|c| c.is_ascii_alphabetic() && !matches!(c, 'x' | 'X')),
        Some(first) => first.is_ascii_alphabetic() && !matches!(word, "asc" | "desc"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<Spec, WordsError> {
        Words::parse(text).and_then(Words::spec)
    }

    fn policy(text: &str) -> (Option<String>, String) {
        match spec(text).expect(text).target {
            PlaceholderSubject::Image { repository, policy } => (repository.map(|r| r.text().to_owned()), policy.to_string()),
            PlaceholderSubject::Rule(alias) => (None, format!("@{alias}")),
        }
    }

    /// The placeholders that docs/placeholders.md shows.
    #[test]
    fn words_are_told_apart() {
        let image = |text: &str| Some(text.to_owned());
        assert_eq!(policy("~1.0"), (None, policy("semver ~1.0").1));
        assert_eq!(policy("ghcr.io/acme/chat-api:~0-0"), (image("ghcr.io/acme/chat-api"), policy("~0-0").1));
        assert_eq!(policy("localhost:5000/a/b ~1"), (image("localhost:5000/a/b"), policy("~1").1));
        assert_eq!(policy("--image nginx ~1"), (image("nginx"), policy("~1").1));
        assert_eq!(policy("--image nginx:~1"), (image("nginx"), policy("~1").1));
        assert_eq!(policy("@chat"), (None, "@chat".to_owned()));
        assert_eq!(policy(">=1.2 <2 --platform linux/arm64").1, policy("'>=1.2 <2' --platform=linux/arm64").1);
        assert_ne!(policy("newest-build --allow-tags ^main-").1, policy("newest-build").1);
        assert_eq!(policy("").1, policy("semver '*'").1);
        assert_eq!(policy("a/b:>=1, <2").1, policy("'>=1, <2'").1);
        assert_eq!(policy("1.2 - 1.4").1, policy("'1.2 - 1.4'").1);
        assert_eq!(policy("v1.x").1, policy("semver v1.x").1);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("'~1", "the quote `'` before `~1` is not closed"),
            ("'a b' \"~1 \\\" c", "the quote `\"` before `~1 \\\" c` is not closed"),
            ("~1 --allow", "unexpected argument `--allow` found"),
            ("~1 --allow-tags", "a value is required for `--allow-tags <REGEX>` but none was supplied"),
            ("a/b c/d", "two images are named: `a/b` and `c/d`"),
            ("a/b@sha256:12 ~1", "`a/b@sha256:12` is not an image name: it holds a digest, which is a pin already"),
            ("@web ~1", "`@web` takes no other words: image and policy are the rule's"),
            ("@", "`@` needs the alias of a rule, as in `@web`"),
            ("ghcr.io/Acme/web ~1", "`ghcr.io/Acme/web` is not an image name: repository names are lower case"),
        ] {
            assert_eq!(spec(text).expect_err(text).to_string(), message, "{text}");
        }
        for (text, hint) in [
            ("~1 --allow-tag ^v", "did you mean `--allow-tags`?"),
            ("newest-build -allow-tags=^v", "did you mean `--allow-tags`?"),
            ("~1 --nothing-like-it", "`pinion resolve --help` lists the flags"),
            ("\"~2", "write `\"` also at the end of the word, or remove it; a `\\` before it makes it part of the word"),
        ] {
            assert_eq!(spec(text).expect_err(text).hint().as_deref(), Some(hint), "{text}");
        }
        assert!(matches!(spec("newest ~1"), Err(WordsError::Policy(_))));
        assert!(matches!(spec("latest"), Err(WordsError::Policy(_))));
    }
}
