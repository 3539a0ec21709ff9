//! Why an application could not be rendered.

use crate::failure::{Failure, FailureKind, Failures};

/// Why an application could not be rendered: everything that was found, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GenerateError {
    /// The application's files, rules or parameters have to be changed.
    #[error("{0}")]
    Invalid(Failures),
    /// There is nothing to change but the policies: no tag is permitted. Exit status 3.
    #[error("{0}")]
    NoPermittedTag(Failures),
    /// A registry did not answer, and no earlier answer is remembered.
    #[error("{0}")]
    Unavailable(Failures),
    /// Pinion or its machine failed.
    #[error("{0}")]
    Internal(Failures),
}

impl GenerateError {
    /// Every failure.
    pub fn failures(&self) -> &Failures {
        match self {
            Self::Invalid(failures) | Self::NoPermittedTag(failures) | Self::Unavailable(failures) | Self::Internal(failures) => {
                failures
            }
        }
    }

    /// Every failure.
    pub fn into_failures(self) -> Vec<Failure> {
        match self {
            Self::Invalid(Failures(failures))
            | Self::NoPermittedTag(Failures(failures))
            | Self::Unavailable(Failures(failures))
            | Self::Internal(Failures(failures)) => failures,
        }
    }
}

/// The kind that comes last in [`FailureKind`] decides: while a file is wrong, a registry that answers again helps nobody.
impl From<Failures> for GenerateError {
    fn from(failures: Failures) -> Self {
        match failures.0.iter().map(|failure| failure.kind).max().unwrap_or_default() {
            FailureKind::NoPermittedTag => Self::NoPermittedTag(failures),
            FailureKind::Unavailable => Self::Unavailable(failures),
            FailureKind::Invalid => Self::Invalid(failures),
            FailureKind::Internal => Self::Internal(failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_failure_decides() {
        use FailureKind::{Internal, Invalid, NoPermittedTag, Unavailable};
        let of = |kinds: &[FailureKind]| {
            let failures = kinds.iter().map(|kind| Failure::text("", "x", None).of_kind(*kind));
            GenerateError::from(Failures(failures.collect()))
        };
        assert!(matches!(of(&[NoPermittedTag, NoPermittedTag]), GenerateError::NoPermittedTag(_)));
        assert!(matches!(of(&[NoPermittedTag, Unavailable]), GenerateError::Unavailable(_)));
        assert!(matches!(of(&[Invalid, Unavailable, NoPermittedTag]), GenerateError::Invalid(_)));
        assert!(matches!(of(&[Invalid, Internal]), GenerateError::Internal(_)));
        assert_eq!(of(&[Invalid, Internal]).into_failures().len(), 2);
    }
}
