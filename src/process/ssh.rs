//! ssh for Git, in a sandbox of its own: it may read the operator's keys, and reaches the render's proxy.

use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::sandbox::Sandboxes;
use super::which;
use crate::egress::ssh::{Remote, Session, Ssh};

impl Ssh for Sandboxes {
    fn start(&self, remote: &Remote, port: u16, url: &str) -> io::Result<Session> {
        let ssh = which(Path::new("ssh")).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no `ssh`"))?;
        let own = std::env::current_exe()?;
        let proxy = format!("ProxyCommand={} connect %h %p", shell_words::quote(&own.to_string_lossy()));
        let mut command = Command::new(&ssh);
        command.args(["-o", "BatchMode=yes", "-o", &proxy, "-o", "SendEnv=GIT_PROTOCOL"]);
        if let Some(config) = self.ssh_config() {
            command.arg("-F").arg(config);
        }
        command.args(remote.family);
        if let Some(port) = remote.port {
            command.args(["-p", &port.to_string()]);
        }
        command
            .args(["--", &remote.destination, &remote.command])
            .current_dir("/")
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(remote.protocol.as_ref().map(|version| ("GIT_PROTOCOL", version)))
            .env("PINION_PROXY", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let sandbox = self.ssh(&ssh, port).map_err(io::Error::other)?;
        let (child, group) = sandbox.spawn(&mut command)?;
        Ok(Session { child, guard: Box::new(group) })
    }
}
