//! One warm Helm: a process that runs command after command without starting again.
//!
//! The other side is `helm-worker/serve.go`, which describes the messages: lengths before JSON texts, on standard input and output. A
//! worker says hello first, so that a Helm that is no worker is known by its silence. One command at a time; after any error a worker is
//! of no use, and dropping it kills it.

use std::io;
use std::path::Path;
use std::process::Stdio;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};

use super::group::Group;
use super::sandbox::Sandbox;
use super::{Child, MAX_STDERR, which};

/// The protocol that is spoken here.
const PROTOCOL: u32 = 2;

/// Longest text of a hello or an answer, in bytes.
const MAX_MESSAGE: u32 = 4096;

/// A worker's own environment, besides `PATH`. A command has another, which it is told.
const ENVIRONMENT: [(&str, &str); 3] = [
    // Much less time for a few megabytes more; past the limit memory comes first.
    ("GOGC", "400"),
    ("GOMEMLIMIT", "192MiB"),
    // The library of Kubernetes looks for a configuration there when it starts. Without a home it would take the chart's directory.
    ("HOME", "/nonexistent"),
];

/// A living worker.
#[derive(Debug)]
pub struct Worker {
    process: tokio::process::Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    hello: Hello,
    _group: Group,
}

/// What a worker says of itself.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Hello {
    helm_worker: u32,
    confined: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    arguments: Vec<&'a str>,
    directory: &'a str,
    environment: Vec<String>,
    deadline_ms: u64,
    max_stdout: usize,
    max_stderr: usize,
}

#[derive(Deserialize)]
struct Header {
    status: i32,
    stdout: usize,
    stderr: usize,
    too_long: bool,
}

/// What a command gave.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Was standard output longer than permitted? Then it is empty here.
    pub is_too_long: bool,
    /// Memory of the worker, in bytes; 0 if it cannot be told.
    pub resident: u64,
}

impl Worker {
    /// Starts a program as a worker, in a sandbox, and waits for its hello; the caller bounds the time.
    ///
    /// # Errors
    ///
    /// When the program is no worker, or one of another version.
    pub async fn start(program: &Path, sandbox: &Sandbox) -> io::Result<Self> {
        // Like a child: by a path from here.
        let program = which(program).ok_or(io::ErrorKind::NotFound)?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .current_dir("/")
            .env_clear()
            // To be found by.
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(ENVIRONMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let (mut process, group) = sandbox.spawn(&mut command)?;
        let requests = process.stdin.take().expect("stdin is piped");
        let mut answers = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let hello: Hello = read(&mut answers).await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("it ended without a hello"),
            _ => error,
        })?;
        if hello.helm_worker != PROTOCOL {
            return Err(invalid(format!("it speaks protocol {}, not {PROTOCOL}", hello.helm_worker)));
        }
        Ok(Self { process, requests, answers, hello, _group: group })
    }

    /// Has it neither network nor other programs?
    pub fn is_confined(&self) -> bool {
        self.hello.confined
    }

    /// Its number for the system, while it lives.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// It cannot read this itself.
    fn resident(&self) -> u64 {
        let text = self.id().and_then(|id| std::fs::read_to_string(format!("/proc/{id}/statm")).ok());
        let pages = text.as_deref().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
        pages.unwrap_or(0) * rustix::param::page_size() as u64
    }

    /// Did it die while nobody looked?
    pub fn is_dead(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Has a command run, with the child's arguments, directory, environment and bounds. Its program is the worker itself. The caller
    /// keeps the deadline; a worker of which nobody hears any more ends itself at that time.
    ///
    /// # Errors
    ///
    /// When the worker died or its answer makes no sense, and when the child has words that are no text.
    pub async fn run(&mut self, child: &Child) -> io::Result<Answer> {
        let request = Request::of(child).ok_or_else(|| invalid("words that are no text"))?;
        let text = serde_json::to_vec(&request)?;
        let length = u32::try_from(text.len()).map_err(invalid)?;
        self.requests.write_all(&[&length.to_be_bytes(), text.as_slice()].concat()).await?;
        let Header { status, stdout, stderr, too_long } = read(&mut self.answers).await?;
        if stdout > child.max_output || stderr > MAX_STDERR {
            return Err(invalid("an answer longer than permitted"));
        }
        let (mut out, mut err) = (vec![0; stdout], vec![0; stderr]);
        self.answers.read_exact(&mut out).await?;
        self.answers.read_exact(&mut err).await?;
        Ok(Answer { status, stdout: out, stderr: err, is_too_long: too_long, resident: self.resident() })
    }
}

impl<'a> Request<'a> {
    /// Nothing for words that are no text.
    fn of(child: &'a Child) -> Option<Self> {
        let variables = child.environment.iter().map(|(name, value)| Some(format!("{}={}", name.to_str()?, value.to_str()?)));
        Some(Self {
            arguments: child.arguments.iter().map(|word| word.to_str()).collect::<Option<_>>()?,
            directory: child.directory.to_str()?,
            environment: variables.collect::<Option<_>>()?,
            deadline_ms: u64::try_from(child.deadline.as_millis()).unwrap_or(u64::MAX >> 24),
            max_stdout: child.max_output,
            max_stderr: MAX_STDERR,
        })
    }
}

async fn read<T: DeserializeOwned>(from: &mut BufReader<ChildStdout>) -> io::Result<T> {
    let length = from.read_u32().await?;
    if length > MAX_MESSAGE {
        return Err(invalid("a message longer than permitted"));
    }
    let mut text = vec![0; length as usize];
    from.read_exact(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
