//! The duties of process 1 in a container: the server runs as a child, orphans are reaped, signals are passed on.
//!
//! Helm and Kustomize may leave grandchildren behind; whoever is process 1 inherits them, and nobody else can reap them. Waiting for any
//! child in the server itself would take the status of children that it waits for.

use std::io;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// Runs this program again with the same arguments and ends as it ends.
///
/// # Errors
///
/// When the child cannot be started, or did not succeed.
pub async fn run() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ended = signal(SignalKind::child())?;
    let child = std::process::Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).spawn()?;
    let server = Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::other("the child has no number"))?;
    loop {
        tokio::select! {
            _ = terminate.recv() => kill_process(server, Signal::TERM)?,
            _ = interrupt.recv() => kill_process(server, Signal::INT)?,
            _ = ended.recv() => {}
        }
        while let Some((pid, status)) = wait(WaitOptions::NOHANG).unwrap_or(None) {
            if pid == server {
                return match status.exit_status() {
                    Some(0) => Ok(()),
                    Some(code) => Err(io::Error::other(format!("exit status {code}"))),
                    None => {
                        Err(io::Error::other(format!("killed by signal {}", status.terminating_signal().unwrap_or_default())))
                    }
                };
            }
        }
    }
}
