//! ssh for Git in a sandbox: run outside, by an operator's keys, for the one thing that Git needs of it.
//!
//! The keys must not be where tenants' tools can read them, and who can use them must not be able to run what it likes: Kustomize hands
//! words of an address on to Git as options (`?ref=--upload-pack=…`). So `pinion ssh`, which Git starts in its sandbox, only passes on what
//! it was told, through the render's proxy; here it is checked, and answered by an ssh in a sandbox of its own, which Git never sees.
//!
//! What ssh writes comes back in pieces: one byte for what it is, four for its length, then the bytes.

use std::io;

use regex::Regex;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::sync::mpsc;

/// Longest piece, in bytes.
pub const MAX_PIECE: usize = 32 << 10;

/// What a piece is.
pub const OUTPUT: u8 = 1;
pub const ERROR: u8 = 2;
/// Its one byte is the exit status.
pub const STATUS: u8 = 3;

/// The header that holds an [`Order`], in base64 of JSON.
pub const HEADER: &str = "pinion-ssh";

/// What Git told its ssh.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub arguments: Vec<String>,
    /// Its variable `GIT_PROTOCOL`.
    pub protocol: Option<String>,
}

/// A repository that is fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// `[user@]host`
    pub destination: String,
    pub port: Option<u16>,
    /// `-4` or `-6`
    pub family: Option<&'static str>,
    /// `git-upload-pack '/path'`
    pub command: String,
    /// The protocol's version, which the host is told.
    pub protocol: Option<String>,
}

impl Order {
    /// What is asked for, if it is what Git asks when it fetches.
    ///
    /// # Errors
    ///
    /// What else it is.
    pub fn remote(&self) -> Result<Remote, String> {
        static DESTINATION: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"^([A-Za-z0-9_][A-Za-z0-9._+-]*@)?[A-Za-z0-9\[][A-Za-z0-9.:\[\]_-]*$").expect("a constant")
        });
        static COMMAND: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"^git-upload-pack '[^'\\!\x00-\x1f]+'$").expect("a constant"));
        static VERSION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^version=[0-9]$").expect("a constant"));
        let (mut port, mut family) = (None, None);
        let mut words = self.arguments.iter().map(String::as_str);
        let destination = loop {
            match words.next() {
                Some("-o") => match words.next() {
                    Some("SendEnv=GIT_PROTOCOL") => {}
                    other => return Err(format!("option `-o {}`", other.unwrap_or_default())),
                },
                Some("-p") => port = Some(words.next().and_then(|text| text.parse().ok()).ok_or("a port that is none")?),
                Some("-4") => family = Some("-4"),
                Some("-6") => family = Some("-6"),
                Some(word) if DESTINATION.is_match(word) => break word.to_owned(),
                Some(word) => return Err(format!("host `{word}`")),
                None => return Err("no host".to_owned()),
            }
        };
        let command = words.next().ok_or("no command")?;
        if !COMMAND.is_match(command) || words.next().is_some() {
            return Err(format!("command `{command}`"));
        }
        let protocol = self.protocol.clone().filter(|text| VERSION.is_match(text));
        Ok(Remote { destination, port, family, command: command.to_owned(), protocol })
    }
}

/// Starts ssh. It has the keys that who asks has not.
pub trait Ssh: Send + Sync + std::fmt::Debug {
    /// An ssh for a remote, with all its streams piped, which reaches the network by this proxy.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or not in its sandbox.
    fn start(&self, remote: &Remote, port: u16, url: &str) -> io::Result<Session>;
}

/// An ssh that runs, until this is dropped.
#[derive(Debug)]
pub struct Session {
    pub child: Child,
    /// Ends what it started.
    pub guard: Box<dyn std::any::Any + Send>,
}

/// Passes on what both sides say until ssh has ended. `behind` is what the client said already.
///
/// # Errors
///
/// When a side breaks off, or ssh writes more than `limit` bytes.
pub async fn relay(stream: &mut TcpStream, behind: &[u8], session: Session, limit: u64) -> io::Result<()> {
    let Session { mut child, guard } = session;
    let _guard = guard;
    let piped = || io::Error::other("its streams are piped");
    let mut stdin = child.stdin.take().ok_or_else(piped)?;
    let stdout = child.stdout.take().ok_or_else(piped)?;
    let stderr = child.stderr.take().ok_or_else(piped)?;
    let (mut from_client, mut to_client) = stream.split();
    let (sender, mut pieces) = mpsc::channel::<(u8, Vec<u8>)>(4);
    let said = async {
        // ssh may end before it has heard everything.
        if stdin.write_all(behind).await.is_ok() {
            let _ = tokio::io::copy(&mut from_client, &mut stdin).await;
        }
        drop(stdin);
        std::future::pending::<()>().await;
    };
    let heard = async {
        let (out, error) =
            tokio::join!(pass(stdout, OUTPUT, sender.clone(), limit), pass(stderr, ERROR, sender.clone(), 1 << 20));
        out.and(error)?;
        let status = child.wait().await?;
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(255);
        let _ = sender.send((STATUS, vec![code])).await;
        drop(sender);
        Ok::<_, io::Error>(())
    };
    let told = async {
        while let Some((kind, bytes)) = pieces.recv().await {
            let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            to_client.write_all(&[&[kind], &length.to_be_bytes()[..], &bytes].concat()).await?;
        }
        to_client.shutdown().await
    };
    tokio::select! {
        () = said => Ok(()),
        done = async { tokio::try_join!(heard, told) } => done.map(drop),
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, kind: u8, to: mpsc::Sender<(u8, Vec<u8>)>, limit: u64) -> io::Result<()> {
    let mut left = limit;
    loop {
        let mut buffer = vec![0; MAX_PIECE];
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        left = left.checked_sub(count as u64).ok_or_else(|| io::Error::other("it writes too much"))?;
        buffer.truncate(count);
        if to.send((kind, buffer)).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(words: &[&str]) -> Result<Remote, String> {
        Order { arguments: words.iter().map(|&word| word.to_owned()).collect(), protocol: Some("version=2".into()) }.remote()
    }

    #[test]
    fn only_what_git_asks_when_it_fetches_is_passed_on() {
        let asked = remote(&["-o", "SendEnv=GIT_PROTOCOL", "-p", "2222", "git@host.example", "git-upload-pack '/a b/c.git'"]);
        let asked = asked.expect("what Git says");
        assert_eq!(
            (asked.destination.as_str(), asked.port, asked.protocol.as_deref()),
            ("git@host.example", Some(2222), Some("version=2"))
        );
        assert!(remote(&["host", "git-upload-pack 'a.git'"]).is_ok());
        for words in [
            &["host", "id>/tmp/x 'a.git'"][..],
            &["host", "id;git-upload-pack 'a.git'"],
            &["host", "git-upload-pack 'a';id'"],
            &["host", "git-upload-pack 'a'\\''b'"],
            &["host", "git-upload-pack a.git"],
            &["host", "git-upload-pack --x 'a.git'"],
            &["host", "git-receive-pack 'a.git'"],
            &["host", "git-upload-pack 'a\nb'"],
            &["host", "git-upload-pack 'a.git'", "more"],
            &["-oProxyCommand=id", "git-upload-pack 'a.git'"],
            &["-o", "ProxyCommand=id", "host", "git-upload-pack 'a.git'"],
            &["-F", "/tmp/x", "host", "git-upload-pack 'a.git'"],
            &["-p", "x", "host", "git-upload-pack 'a.git'"],
            &["-x@host", "git-upload-pack 'a.git'"],
            &["a b@host", "git-upload-pack 'a.git'"],
            &["host"],
            &[],
        ] {
            assert!(remote(words).is_err(), "{words:?}");
        }
        let odd = Order { arguments: vec!["h".into(), "git-upload-pack 'a'".into()], protocol: Some("x\ny".into()) };
        assert_eq!(odd.remote().expect("a remote").protocol, None);
    }
}
