//! The process group of a child: how the child is ended with all that it started.
//!
//! The standard library has a child enter its group after the sandbox was laid on, so that a filter must let that one call pass, for the
//! child and for all that it starts. If the call made a new group (`setpgid(0, 0)`), what the child starts could make another one and
//! outlive it. So the group is there before the child: a [`Leader`] made it, and the filter permits to enter this group alone.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::which;

/// Kills the whole process group when it is dropped.
#[derive(Debug)]
pub struct Group(pub Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // The group may be gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// A process that ends at once, with a group of its own. Until this is dropped it is waited for by nobody, so that the group stays.
#[derive(Debug)]
pub struct Leader(Child);

impl Leader {
    /// Nothing where the system has no program `true`: then a child makes its own group, and what it starts can leave it.
    pub fn start() -> Option<Self> {
        let places = ["/bin/true", "/usr/bin/true"].map(PathBuf::from);
        let program = which(Path::new("true")).or_else(|| places.into_iter().find(|place| place.exists()))?;
        let mut command = Command::new(program);
        command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                tracing::warn!(%error, "what a tool starts could leave its process group");
                None
            }
        }
    }

    /// The group.
    pub fn group(&self) -> Option<Pid> {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // It has ended, or is about to.
        let _ = self.0.wait();
    }
}
