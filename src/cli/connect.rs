//! `pinion connect`: what ssh starts in a sandbox to reach a host.

use std::io::{self, Write};
use std::net::Shutdown;

use anyhow::Context;
use clap::Args;

use super::Outcome;
use crate::egress::proxy::tunnel;

/// Join standard input and output with a host, through the proxy of a render
///
/// For `ProxyCommand` of ssh, which Git in a sandbox uses. The proxy is that of PINION_PROXY.
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
        let to_host = stream.try_clone()?;
        // What the host says last is received also when there is nothing more to say to it. This thread ends with the process.
        std::thread::spawn(move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut &to_host);
            let _ = to_host.shutdown(Shutdown::Write);
        });
        let mut output = io::stdout().lock();
        io::copy(&mut &stream, &mut output)?;
        output.flush()?;
        Ok(Outcome::Done)
    }
}
