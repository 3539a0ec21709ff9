//! Mistakes in the settings of a policy, and what to write instead.

use super::{ConstraintError, GlobError, MAX_IGNORED, PatternError, Strategy, TemplateError};
use crate::image::ImageError;

/// Why settings are not a policy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    #[error("unknown strategy `{name}`")]
    UnknownStrategy { name: String },
    /// An old name of Image Updater's stands in a placeholder.
    #[error("strategy `{old}` has another name here")]
    Renamed { old: &'static str, new: &'static str },
    #[error("`{text}` is not a version constraint")]
    Constraint {
        text: String,
        #[source]
        source: ConstraintError,
    },
    /// Image Updater ignores such a constraint; in a placeholder it can only be a misunderstanding.
    #[error("strategy `{strategy}` takes no constraint: `{text}`")]
    ConstraintUnused { strategy: &'static str, text: String },
    #[error("`{text}` is not an order")]
    Order { text: String },
    #[error("strategy `digest` needs a tag to follow")]
    DigestWithoutTag,
    #[error("strategy `digest` follows one tag, which `{text}` is not")]
    DigestTag { text: String },
    /// In Image Updater's notation, `allow-tags` is neither `any` nor `regexp:…`. (Image Updater then permits no tag.)
    #[error("`{text}` is not a matcher for allow-tags")]
    Allow { text: String },
    #[error("`{text}` is not a regular expression")]
    Pattern {
        text: String,
        #[source]
        source: PatternError,
    },
    #[error("`{text}` is not a glob")]
    Glob {
        text: String,
        #[source]
        source: GlobError,
    },
    #[error("more than {MAX_IGNORED} patterns of tags to ignore: {count}")]
    TooManyIgnored { count: usize },
    #[error("extract needs a regular expression in allow-tags")]
    ExtractWithoutPattern,
    #[error("strategy `{strategy}` does not rank by name, so extract has no effect")]
    ExtractUnused { strategy: &'static str },
    #[error("`{text}` is not a template for extract")]
    Extract {
        text: String,
        #[source]
        source: TemplateError,
    },
    #[error(transparent)]
    Platform(#[from] ImageError),
    #[error("`{text}` is not a duration")]
    MinAge { text: String },
    #[error("fallback `{text}` is not a tag")]
    Fallback { text: String },
}

impl PolicyError {
    /// What to write instead. None: the text of the error says it already.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownStrategy { .. } => format!("write one of `{}`", Strategy::NAMES.join("`, `")),
            Self::Renamed { old: "latest", new } => {
                format!("write `{new}` for the image that was built last, `digest latest` for the tag `latest` with its digest")
            }
            Self::Renamed { new, .. } => format!("write `{new}`"),
            Self::Constraint { text, source } => constraint_hint(text, source),
            Self::ConstraintUnused { .. } => {
                "leave it out; choose among tags by name with allow-tags, as in `--allow-tags ^main-`".to_owned()
            }
            Self::Order { .. } => "write `asc` for the greatest or `desc` for the least".to_owned(),
            Self::DigestWithoutTag | Self::DigestTag { .. } => {
                "name the tag whose digest is wanted, as in `digest latest`".to_owned()
            }
            Self::Allow { text } => format!("write `any`, or `regexp:` and a regular expression, as in `regexp:{text}`"),
            Self::Pattern { .. } => "patterns have RE2's syntax, without look-around and backreferences".to_owned(),
            Self::Glob { .. } => {
                "write a glob such as `*-rc*` or `v[0-9]*`, a backslash before a literal `[`, or `regexp:…`".to_owned()
            }
            Self::TooManyIgnored { .. } => "write one regular expression with alternatives, as in `regexp:-(rc|dev)$`".to_owned(),
            Self::ExtractWithoutPattern => {
                "capture what to rank, as in allow-tags `^main-(?<ts>[0-9]+)$` and extract `$ts`".to_owned()
            }
            Self::ExtractUnused { .. } => "leave extract out".to_owned(),
            Self::Extract { .. } => "refer to a group of allow-tags by name or number, as in `$ts`, `${ts}` or `$1`".to_owned(),
            Self::Platform(_) => return None,
            Self::MinAge { .. } => "write a number and a unit, as in `2h` or `3days`".to_owned(),
            Self::Fallback { .. } => "write a tag, as in `1.2.3`".to_owned(),
        })
    }
}

fn constraint_hint(text: &str, source: &ConstraintError) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let operators =
        |word: &&str| word.trim_start_matches(['=', '!', '<', '>', '~', '^']).contains(['=', '!', '<', '>', '~', '^']);
    if words.iter().any(|word| word.eq_ignore_ascii_case("latest")) {
        "for the image that was built last write `newest-build`, for the tag `latest` with its digest `digest latest`".to_owned()
    } else if text.contains("==") {
        "write one `=`, or none".to_owned()
    } else if words.iter().any(operators) {
        "separate conditions by a space, as in `>=1.2 <2`".to_owned()
    } else if matches!(source, ConstraintError::Version(_)) {
        "write versions as in `1.2`, `1.2.x` or `1.2.3-rc.1`".to_owned()
    } else {
        "write a version range such as `~1.2`, `^1.2`, `>=1.2 <2`, `1.x || 2.x` or `*`".to_owned()
    }
}
