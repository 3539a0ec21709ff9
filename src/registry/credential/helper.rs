//! Programs of the operator's that print a credential: bounded time and output, a chosen environment, and a sandbox of the profile *helper*.
//!
//! What they write to standard error is thrown away: traces (`set -x`) show passwords.

use std::ffi::OsStr;
use std::process::ExitStatus;
use std::time::Duration;

use crate::process::sandbox::Sandboxes;
use crate::process::{Child, Finished, ProcessError};
use crate::registry::error::{Because, Cause};

/// Longest a program may take. Image Updater gives the same.
const TIME: Duration = Duration::from_secs(10);

/// Most that it may print, in bytes.
const OUTPUT: usize = 64 << 10;

/// Runs such programs.
#[derive(Clone, Debug, Default)]
pub struct Helpers {
    /// Variables of our environment that they do not get, besides those of applications.
    pub hidden: Vec<String>,
    pub sandboxes: Sandboxes,
}

impl Helpers {
    /// Runs a program and returns how it ended and what it printed. Dropping the future kills the program and all it started.
    ///
    /// # Errors
    ///
    /// A text without the program's output, which may hold a secret.
    pub async fn run(&self, program: &OsStr, arguments: &[&str], input: &[u8]) -> Result<(ExitStatus, Vec<u8>), Cause> {
        let child = Child {
            program: program.into(),
            arguments: arguments.iter().map(Into::into).collect(),
            directory: "/".into(),
            environment: std::env::vars_os().filter(|(name, _)| !is_hidden(name, &self.hidden)).collect(),
            input: input.to_vec(),
            deadline: TIME,
            max_output: OUTPUT,
            places: Vec::new(),
            sandbox: self.sandboxes.helper(),
        };
        let Finished { status, stdout, .. } = child.finish().await.map_err(|error| {
            Because::cause(match error {
                ProcessError::Start { source, .. } => format!("the program could not be started: {source}"),
                ProcessError::Deadline { .. } => format!("the program did not end within {} seconds", TIME.as_secs()),
                ProcessError::TooLong { .. } => format!("the program printed more than {} KiB", OUTPUT >> 10),
                ProcessError::Read { source, .. } => format!("the program's output could not be read: {source}"),
                ProcessError::Failed { status, .. } => format!("the program failed: {status}"),
                ProcessError::Disk { limit, .. } => format!("the program wrote more than {} MiB", limit >> 20),
            })
        })?;
        Ok((status, stdout))
    }
}

/// The output of a program that ended well.
pub fn successful((status, output): (ExitStatus, Vec<u8>)) -> Result<Vec<u8>, Cause> {
    if status.success() { Ok(output) } else { Err(Because::cause(format!("the program failed: {status}"))) }
}

/// Is this variable not for programs? Argo CD hands applications' variables to its plugins (`ARGOCD_ENV_*`, `PARAM_*`).
fn is_hidden(name: &OsStr, hidden: &[String]) -> bool {
    let Some(name) = name.to_str() else { return true };
    name.starts_with("ARGOCD_") || name.starts_with("PARAM_") || hidden.iter().any(|other| other == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str) -> Result<String, String> {
        let helpers = Helpers { hidden: vec!["PATH".to_owned()], ..Helpers::default() };
        let output = helpers.run(OsStr::new("/bin/sh"), &["-c", script], b"input").await;
        output.and_then(successful).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn output_is_returned_and_input_given() {
        assert_eq!(shell("read line; echo \"$line:ok\"; echo noise >&2").await.as_deref(), Ok("input:ok\n"));
    }

    #[tokio::test]
    async fn a_failing_program_says_its_status_and_not_its_output() {
        let error = shell("echo s3cret; exit 3").await.expect_err("it failed");
        assert!(error.contains('3') && !error.contains("s3cret"), "{error}");
    }

    #[tokio::test]
    async fn too_much_output_is_refused() {
        let error = shell("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done").await.expect_err("endless");
        assert!(error.contains("64 KiB"), "{error}");
    }

    #[tokio::test]
    async fn a_program_and_its_children_end_when_nobody_waits() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join("pid");
        let script = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let started = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = shell(&script) => panic!("it ends by itself"),
            () = started => {}
        }
        let pid = std::fs::read_to_string(&file).expect("a number").trim().to_owned();
        let lives = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..6000 {
            if !lives() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the grandchild lives on");
    }

    #[test]
    fn applications_variables_are_hidden() {
        let hidden = |name: &str| is_hidden(OsStr::new(name), &["GHCR".to_owned()]);
        for name in ["ARGOCD_ENV_X", "ARGOCD_APP_NAME", "PARAM_IMAGES", "GHCR"] {
            assert!(hidden(name), "{name}");
        }
        for name in ["PATH", "HOME", "AWS_WEB_IDENTITY_TOKEN_FILE", "GHCR2"] {
            assert!(!hidden(name), "{name}");
        }
    }

    #[tokio::test]
    async fn hidden_variables_do_not_reach_the_program() {
        assert_eq!(
            shell("tr '\\0' '\\n' < /proc/self/environ | grep -c '^PATH=' || true").await.map(|text| text.trim().to_owned()),
            Ok("0".to_owned())
        );
    }
}
