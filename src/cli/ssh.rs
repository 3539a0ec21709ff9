//! `pinion ssh`: what Git starts in a sandbox in place of ssh.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use reqwest::Url;

use super::Outcome;
use super::connect::pump;
use crate::egress::ssh::{ERROR, HEADER, MAX_PIECE, OUTPUT, Order, STATUS};

/// Longest head of the answer, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// Ask the render's proxy to run ssh; the keys are not readable in the sandbox
///
/// For `GIT_SSH_COMMAND` of Git in a sandbox. The proxy is that of PINION_PROXY.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The arguments that Git gives ssh
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Arguments {
    /// Ends as ssh ended.
    ///
    /// # Errors
    ///
    /// When there is no proxy, or it refuses.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let proxy = std::env::var("PINION_PROXY").context("PINION_PROXY is not set: this is for Git in a render")?;
        let url = Url::parse(&proxy).context("PINION_PROXY is no address")?;
        let address = (url.host_str().unwrap_or_default(), url.port().unwrap_or_default());
        let mut stream = TcpStream::connect(address).context("the render's proxy cannot be reached")?;
        let order = Order { arguments: self.arguments, protocol: std::env::var("GIT_PROTOCOL").ok() };
        let order = STANDARD.encode(serde_json::to_vec(&order)?);
        let own = STANDARD.encode(format!("{}:{}", url.username(), url.password().unwrap_or_default()));
        write!(stream, "SSH / HTTP/1.1\r\nProxy-Authorization: Basic {own}\r\n{HEADER}: {order}\r\n\r\n")?;
        let mut answer = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        answer.by_ref().take(MAX_HEAD).read_line(&mut first)?;
        loop {
            let mut line = String::new();
            let count = answer.by_ref().take(MAX_HEAD).read_line(&mut line)?;
            if count == 0 || line.trim().is_empty() {
                break;
            }
        }
        if first.split_whitespace().nth(1) != Some("200") {
            let mut text = String::new();
            answer.take(MAX_HEAD).read_to_string(&mut text)?;
            bail!("{}", text.trim());
        }
        // This thread ends with the process.
        std::thread::spawn(move || {
            let _ = pump(&mut io::stdin(), &mut &stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
        let (mut out, mut errors) = (io::stdout(), io::stderr());
        loop {
            let mut head = [0; 5];
            answer.read_exact(&mut head).context("ssh broke off")?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if length > MAX_PIECE {
                bail!("the proxy sends what is no piece");
            }
            let mut bytes = vec![0; length];
            answer.read_exact(&mut bytes).context("ssh broke off")?;
            match head[0] {
                OUTPUT => {
                    out.write_all(&bytes)?;
                    out.flush()?;
                }
                ERROR => errors.write_all(&bytes)?,
                STATUS => return Ok(Outcome::Status(bytes.first().copied().unwrap_or(255))),
                _ => {}
            }
        }
    }
}
