//! `pinion connect`: what ssh starts to reach a host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;

use anyhow::Context;
use clap::Args;

use super::Outcome;
use crate::egress::proxy::tunnel;

/// Join standard input and output with a host, through the proxy of a render
///
/// For `ProxyCommand` of the ssh that `pinion ssh` asks for. The proxy is that of PINION_PROXY.
#[derive(Args, Debug)]
pub struct Arguments {
    host: String,
    port: u16,
}

impl Arguments {
    /// Copies both ways until the host has ended.
    ///
    /// # Errors
    ///
    /// When there is no proxy, or it refuses.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let proxy = std::env::var("PINION_PROXY").context("PINION_PROXY is not set: this is for ssh in a render")?;
        let stream = tunnel(&proxy, None, &self.host, self.port).await;
        let stream = stream.with_context(|| format!("`{}:{}` cannot be reached", self.host, self.port))?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        // Without buffers: each side waits for what the other says.
        let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let to_host = stream.try_clone()?;
        // What the host says last is received also when there is nothing more to say to it. This thread ends with the process.
        std::thread::spawn(move || {
            let _ = pump(&mut input, &mut &to_host);
            let _ = to_host.shutdown(Shutdown::Write);
        });
        pump(&mut &stream, &mut output)?;
        Ok(Outcome::Done)
    }
}

/// Passes on what there is as soon as it is there. [`io::copy`] splices into a pipe, and then holds short messages back.
pub(super) fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
