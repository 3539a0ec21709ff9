//! What went wrong, for people: where, what, why, and what to do.
//!
//! Errors of all kinds become [`Failure`]s at the layer that knows the place. Printing code only prints.

use std::error::Error;
use std::fmt;
use std::sync::LazyLock;

use regex::Regex;

/// An error and its causes in one line, from outside in.
pub fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |error: &&(dyn Error + 'static)| (**error).source());
    causes.fold(error.to_string(), |text, cause| text + ": " + &cause.to_string())
}

/// Who can mend a failure, which decides exit status and gRPC status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// No tag of an image is permitted by its policy.
    NoPermittedTag,
    /// A registry did not answer, and nothing is remembered.
    Unavailable,
    /// The application's files, rules or parameters are wrong, or the tool refuses them.
    #[default]
    Invalid,
    /// Pinion or its machine failed: a full disk, a missing program.
    Internal,
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// A file with line and column, a parameter or a rule; empty when there is no place.
    pub place: String,
    /// The error and its causes, from outside in.
    pub message: String,
    pub hint: Option<String>,
}

impl Failure {
    /// An error with its causes.
    pub fn new(place: impl Into<String>, error: &dyn Error, hint: Option<String>) -> Self {
        Self { kind: FailureKind::default(), place: place.into(), message: chain(error), hint }
    }

    /// A failure without a cause of its own.
    pub fn text(place: impl Into<String>, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { kind: FailureKind::default(), place: place.into(), message: message.into(), hint }
    }

    /// The same failure with a kind other than [`FailureKind::Invalid`].
    #[must_use]
    pub fn of_kind(self, kind: FailureKind) -> Self {
        Self { kind, ..self }
    }
}

/// A text without what addresses in it may hold of secrets: user and password, and the query. Tools repeat them, also with one slash.
pub fn masked(text: &str) -> String {
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"(?i)\b([a-z][a-z0-9+.-]*:/{1,2})([^/\s@'"`<>]+@)?([^\s?'"`<>]*)(\?[^\s'"`<>]*)?"#)
            .expect("the pattern is a constant")
    });
    let mask = |found: &regex::Captures<'_>| {
        let part = |index: usize| found.get(index).map(|part| part.as_str());
        let user = part(2).map_or("", |_| "***@");
        let query = part(4).map_or("", |_| "?***");
        format!("{}{user}{}{query}", &found[1], &found[3])
    };
    ADDRESS.replace_all(text, mask).into_owned()
}

/// Writes `place: message`, and the hint on a line of its own.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&masked(&self.message))?;
        self.hint.iter().try_for_each(|hint| write!(f, "\n  hint: {hint}"))
    }
}

/// Everything that went wrong: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures(pub Vec<Failure>);

impl From<Failure> for Failures {
    fn from(failure: Failure) -> Self {
        Self(vec![failure])
    }
}

/// One failure a line, equal ones once.
impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown: Vec<&Failure> = Vec::new();
        for failure in &self.0 {
            if shown.contains(&failure) {
                continue;
            }
            if !shown.is_empty() {
                f.write_str("\n")?;
            }
            write!(f, "{failure}")?;
            shown.push(failure);
        }
        Ok(())
    }
}

impl Error for Failures {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_their_secrets() {
        for (text, expected) in [
            (
                "value file `https://user:hunter2@example.com/x.yaml?token=hunter3` is",
                "value file `https://***@example.com/x.yaml?***` is",
            ),
            (
                "evalsymlink failure on '/o/https:/user:hunter2@localhost:1/x?ref=v1' : no",
                "evalsymlink failure on '/o/https:/***@localhost:1/x?***' : no",
            ),
            (
                "could not resolve `ghcr.io/acme/web semver ~1`: a.yaml:4:9",
                "could not resolve `ghcr.io/acme/web semver ~1`: a.yaml:4:9",
            ),
            ("https://example.com/a@b and oci://x:y@z", "https://example.com/a@b and oci://***@z"),
        ] {
            assert_eq!(Failure::text("", text, None).to_string(), expected);
        }
    }
}
