//! Runs one program that prints a credential: bounded time, bounded output, its own process group, a chosen environment.
//!
//! What it writes to standard error is not read: traces (`set -x`) show passwords.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::registry::error::{Because, Cause};

/// Longest a program may take. Image Updater gives the same.
const TIME: Duration = Duration::from_secs(10);

/// Most that it may print, in bytes.
const OUTPUT: u64 = 64 << 10;

/// Runs a program and returns how it ended and what it printed.
///
/// Dropping the future kills the program and all it started.
///
/// # Errors
///
/// A text without the program's output, which may hold a secret.
pub async fn run(program: &OsStr, arguments: &[&str], input: &[u8], hidden: &[String]) -> Result<(ExitStatus, Vec<u8>), Cause> {
    match tokio::time::timeout(TIME, finish(program, arguments, input, hidden)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Because::cause(format!("the program did not end within {} seconds", TIME.as_secs()))),
    }
}

async fn finish(program: &OsStr, arguments: &[&str], input: &[u8], hidden: &[String]) -> Result<(ExitStatus, Vec<u8>), Cause> {
    let failed = |what: &'static str| move |error: std::io::Error| Because::cause(format!("{what}: {error}"));
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.process_group(0).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if is_hidden(&name, hidden) {
            command.env_remove(name);
        }
    }
    let mut group = Group(command.spawn().map_err(failed("the program could not be started"))?);
    let (stdin, stdout) = (group.0.stdin.take(), group.0.stdout.take());
    if let Some(mut stdin) = stdin {
        // A program that doesn't read its input is free to do so.
        let _ = stdin.write_all(input).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = stdout {
        stdout.take(OUTPUT + 1).read_to_end(&mut output).await.map_err(failed("the program's output could not be read"))?;
    }
    if output.len() as u64 > OUTPUT {
        return Err(Because::cause(format!("the program printed more than {} KiB", OUTPUT >> 10)));
    }
    let status = group.0.wait().await.map_err(failed("the program could not be waited for"))?;
    Ok((status, output))
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

/// Kills the whole group when dropped, since `kill_on_drop` kills its leader alone and a grandchild would live on with our pipe.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // `id` is none once the leader was waited for; its number may be somebody else's then.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str) -> Result<String, String> {
        let output = run(OsStr::new("/bin/sh"), &["-c", script], b"input", &["PATH".to_owned()]).await;
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
