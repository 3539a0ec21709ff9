//! Asking a `pinion serve` on the same machine before a registry is asked: its memory is warm, and it asks once for all.
//!
//! One line of JSON each way, on a socket of its own: Argo CD takes every socket in the plugin directory for a plugin. Only fresh pins are
//! answered; whatever else happens there, the one who asks finds out by itself.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Question;
use crate::pin::{Choice, Pin, PinState};
use crate::placeholder::words::{PlaceholderSubject, Words};
use crate::registry::Access;

/// The protocol's version: another one is not understood.
const VERSION: u32 = 3;

/// Longest line, in bytes.
pub const MAX_LINE: u64 = 256 * 1024;

/// A `pinion serve` that may be there.
#[derive(Clone, Debug)]
pub struct PeerClient {
    pub socket: PathBuf,
    /// A digest of the registries' configuration: one with another configuration has other answers.
    pub configuration: String,
    /// The longest wait.
    pub patience: Duration,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    version: u32,
    configuration: String,
    /// What the answer is kept under, to tell that both mean the same.
    pub key: String,
    repository: String,
    policy: String,
    secret: Option<String>,
    /// The AppProject that asks.
    pub tenant: String,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerPin {
    pub choice: Choice,
    /// Not when it is the last known good one, because the registry could not be asked.
    pub is_fresh: bool,
}

impl PeerClient {
    /// What the other process knows. [`None`] when it is not there, or knows nothing.
    pub(super) async fn ask(&self, key: &str, question: &Question, tenant: &str) -> Option<PeerPin> {
        let secret = match &question.access {
            Access::Operator => None,
            Access::Application(source) => Some(source.to_string()),
            // What cannot be asked with it is told by this process.
            Access::Anonymous | Access::Unusable(_) => return None,
        };
        let request = Request {
            version: VERSION,
            configuration: self.configuration.clone(),
            key: key.to_owned(),
            repository: question.repository.text().to_owned(),
            policy: question.policy.to_string(),
            secret,
            tenant: tenant.to_owned(),
        };
        match timeout(self.patience, self.exchange(&request)).await {
            Ok(Ok(choice)) => choice,
            Ok(Err(error)) => {
                // Nobody there is the usual case.
                tracing::debug!(socket = %self.socket.display(), %error, "no other pinion was asked");
                None
            }
            Err(_) => {
                tracing::debug!(socket = %self.socket.display(), "the other pinion does not answer");
                None
            }
        }
    }

    async fn exchange(&self, request: &Request) -> io::Result<Option<PeerPin>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(&line(request)?).await?;
        let text = read_line(&mut stream).await?;
        Ok(serde_json::from_str(&text)?)
    }
}

impl Request {
    /// The question, if the one who asks has the same configuration.
    pub fn question(&self, configuration: &str) -> Option<Question> {
        if self.version != VERSION || self.configuration != configuration {
            return None;
        }
        let PlaceholderSubject::Image { repository: None, policy } = Words::parse(&self.policy).ok()?.spec().ok()?.target else {
            return None;
        };
        let access = self.secret.as_deref().map_or(Access::Operator, Access::application);
        Some(Question { repository: self.repository.parse().ok()?, policy: *policy, access })
    }
}

impl PeerPin {
    /// The answer for a pin, if that was chosen from a listing.
    pub fn of(pin: &Pin) -> Option<Self> {
        let is_fresh = match pin.freshness {
            PinState::Fresh => true,
            PinState::Stale { .. } => false,
            PinState::Fallback { .. } | PinState::Given => return None,
        };
        Some(Self { choice: pin.choice.clone(), is_fresh })
    }
}

/// A message as it is sent.
///
/// # Errors
///
/// None that a message of ours can have.
pub fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads one line of at most [`MAX_LINE`] bytes.
///
/// # Errors
///
/// When the line is longer or breaks off.
pub async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut text = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut text).await?;
    if text.ends_with('\n') { Ok(text) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(policy: &str) -> Request {
        let (configuration, key) = ("c".to_owned(), "k".to_owned());
        let repository = "acme/web".to_owned();
        Request { version: VERSION, configuration, key, repository, policy: policy.into(), secret: None, tenant: String::new() }
    }

    #[test]
    fn only_the_same_configuration_and_version_are_understood() {
        let policy = "semver ~1.0 --allow-tags '^a b' --with-digest";
        let question = request(policy).question("c").expect("a question");
        assert_eq!((question.policy.to_string().as_str(), question.repository.text()), (policy, "acme/web"));
        assert!(request(policy).question("other").is_none());
        assert!(Request { version: VERSION + 1, ..request(policy) }.question("c").is_none());
        for policy in ["@alias", "acme/other:~1", "nonsense 1", "semver ~1 --no-such-flag"] {
            assert!(request(policy).question("c").is_none(), "{policy}");
        }
        assert!(Request { repository: "a b".into(), ..request(policy) }.question("c").is_none());
    }

    #[tokio::test]
    async fn a_line_is_bounded_and_whole() {
        for (sent, is_read) in [("{}\n".to_owned(), true), ("{}".to_owned(), false), ("x".repeat(MAX_LINE as usize + 9), false)] {
            let (mut near, mut far) = UnixStream::pair().expect("a pair");
            let writer = tokio::spawn(async move {
                let _ = far.write_all(sent.as_bytes()).await;
            });
            assert_eq!(read_line(&mut near).await.is_ok(), is_read);
            drop(near);
            writer.await.expect("it ends");
        }
    }
}
