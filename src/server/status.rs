//! gRPC statuses of errors. Argo CD's repo-server hands the code on to the controller, which asks again at once on `ResourceExhausted` and
//! `Unavailable`: neither is used, since a render that failed is asked for again with the next refresh.

use tonic::Status;

use super::scheduler::Rejected;
use crate::failure::Failures;
use crate::generate::GenerateError;

/// Longest message of an error, in bytes: it lands in the Application's status.
const MAX_MESSAGE: usize = 6000;

/// `FailedPrecondition` for what the user or a registry has to mend, `Internal` for what is Pinion's.
impl From<GenerateError> for Status {
    fn from(error: GenerateError) -> Self {
        let text = short(&format!("error generating manifests: {error}"));
        match error {
            GenerateError::Invalid(_) | GenerateError::NoPermittedTag(_) | GenerateError::Unavailable(_) => {
                Self::failed_precondition(text)
            }
            GenerateError::Internal(_) => Self::internal(text),
        }
    }
}

/// `DeadlineExceeded` for a render that had no turn in time, `Internal` for one that broke off.
impl From<Rejected> for Status {
    fn from(reason: Rejected) -> Self {
        match reason {
            Rejected::TooLate { .. } | Rejected::NoTurn { .. } => {
                Self::deadline_exceeded(format!("{reason}; more renders at a time: `--renders-at-once`"))
            }
            Rejected::BrokeOff => Self::internal(reason.to_string()),
        }
    }
}

/// The failures of an application that cannot be read from its request.
pub(super) fn refused(failures: &Failures) -> Status {
    Status::from(GenerateError::from(failures.clone()))
}

/// A status that says what was done.
pub(super) fn within(what: &str, status: &Status) -> Status {
    Status::new(status.code(), short(&format!("{what}: {}", status.message())))
}

/// A message that fits.
pub(super) fn short(text: &str) -> String {
    match (0..=MAX_MESSAGE.min(text.len())).rev().find(|at| text.is_char_boundary(*at)) {
        Some(end) if end < text.len() => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;
    use crate::failure::Failure;

    #[test]
    fn messages_are_short() {
        assert_eq!(short("x"), "x");
        assert!(short(&"é".repeat(10_000)).len() <= MAX_MESSAGE + '…'.len_utf8());
    }

    #[test]
    fn no_code_makes_the_controller_ask_again_at_once() {
        let failures = || Failures::from(Failure::text("values.yaml:2:7", "no tag", None));
        let wanted = [
            (GenerateError::Invalid(failures()), Code::FailedPrecondition),
            (GenerateError::NoPermittedTag(failures()), Code::FailedPrecondition),
            (GenerateError::Unavailable(failures()), Code::FailedPrecondition),
            (GenerateError::Internal(failures()), Code::Internal),
        ];
        for (error, code) in wanted {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, "error generating manifests: values.yaml:2:7: no tag"));
        }
        let second = Duration::from_secs(1);
        for (reason, code) in [
            (Rejected::TooLate { ahead: 1, expected: second }, Code::DeadlineExceeded),
            (Rejected::NoTurn { running: 1 }, Code::DeadlineExceeded),
            (Rejected::BrokeOff, Code::Internal),
        ] {
            assert_eq!(Status::from(reason).code(), code);
        }
    }
}
