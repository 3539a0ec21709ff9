//! Receives a request's stream: the metadata, then the archive, read and verified while it arrives.
//!
//! The stream is always read to its end, also when the answer is known already: a client that is answered before it has sent everything
//! reports `EOF` instead of the answer (`cmpserver/apiclient`, `util/cmp/stream.go`).

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use super::archive_cache::ArchiveCache;
use super::proto::app_stream_request::Request;
use super::proto::{AppStreamRequest, EnvEntry};
use crate::failure::chain;
use crate::workspace::archive::{ArchiveError, Bounds, read};
use crate::workspace::archive_index::ArchiveIndex;
use crate::workspace::lazy_checkout::LazyCheckout;
use crate::workspace::{Checkout, WorkspaceError};

/// Bytes that go to the thread that reads the archive at a time: Argo CD sends 1 KiB a message.
const BATCH: usize = 60 * 1024;

/// The longest pause in a stream.
const SILENCE: Duration = Duration::from_secs(30);

/// Batches that wait for that thread.
const BUFFERED: usize = 4;

/// A request that has arrived.
#[derive(Clone, Debug)]
pub struct Upload {
    index: Arc<ArchiveIndex>,
    work_dir: PathBuf,
    keep_modes: bool,
    rel_path: String,
    /// Was the archive known already?
    pub is_known: bool,
    pub environment: Vec<EnvEntry>,
}

impl Upload {
    /// The checkout in a directory of its own, with the application's files in it.
    ///
    /// # Errors
    ///
    /// [`Status`], also when the application's path leads out.
    pub fn checkout(&self) -> Result<Checkout, Status> {
        let failed = |error: io::Error| Status::internal(format!("error creating work dir: {error}"));
        let dir = tempfile::Builder::new().prefix("request-").tempdir_in(&self.work_dir).map_err(failed)?;
        let tree = LazyCheckout::new(Arc::clone(&self.index), dir, self.keep_modes).map_err(failed)?;
        Checkout::lazy(Arc::new(tree), Path::new(&self.rel_path)).map_err(|error| match error {
            WorkspaceError::Io { .. } => Status::internal(chain(&error)),
            WorkspaceError::Missing { .. } | WorkspaceError::NoDirectory { .. } => {
                Status::invalid_argument(format!("illegal appPath: {}", chain(&error)))
            }
            _ => Status::invalid_argument("illegal appPath: out of workDir bound"),
        })
    }

    /// A variable of the application.
    pub fn variable(&self, name: &str) -> Option<String> {
        variable(&self.environment, name)
    }
}

fn variable(environment: &[EnvEntry], name: &str) -> Option<String> {
    environment.iter().rev().find(|entry| entry.name == name).map(|entry| entry.value.clone())
}

/// Where archives go, and how many at a time.
#[derive(Debug)]
pub struct Uploads {
    pub work_dir: PathBuf,
    pub archives: ArchiveCache,
    pub keep_modes: bool,
    pub bounds: Bounds,
    /// Archives that are read at a time.
    pub at_once: Semaphore,
}

impl Uploads {
    /// Receives everything. An archive that is in the cache is verified and not read again. Whose request it is, is told as soon as it is
    /// known: also when the rest does not arrive.
    ///
    /// # Errors
    ///
    /// [`Status`] with the texts of Argo CD's own server, after the stream has ended.
    pub async fn receive(&self, mut stream: Streaming<AppStreamRequest>, whose: &mut String) -> Result<Upload, Status> {
        let broken = |what: &str, error: &Status| Status::invalid_argument(format!("{what}: {}", error.message()));
        let first = next(&mut stream).await.map_err(|error| broken("error receiving stream header", &error))?;
        let Some(Request::Metadata(metadata)) = first.and_then(|message| message.request) else {
            drain(&mut stream).await;
            return Err(Status::invalid_argument("error getting stream metadata: metadata is nil"));
        };
        *whose = variable(&metadata.env, "ARGOCD_APP_NAME").unwrap_or_default();
        // A push makes every application of a repository send the same: those that wait here find it in the cache.
        let slot = self.archives.slot(&metadata.checksum).await;
        let turn = if slot.get().is_none() { self.at_once.acquire().await.ok() } else { None };
        // Somebody else may have filled it since.
        let kept = slot.get();
        let mut reading = match kept.is_none().then(|| Reading::start(&self.work_dir, self.bounds)).transpose() {
            Ok(reading) => reading,
            Err(status) => {
                drain(&mut stream).await;
                return Err(status);
            }
        };
        let mut hash = Sha256::new();
        let mut problem = None;
        while let Some(message) = next(&mut stream).await.map_err(|error| broken("error receiving stream", &error))? {
            let Some(Request::File(file)) = message.request else {
                problem = problem.or(Some("stream request file is nil"));
                continue;
            };
            hash.update(&file.chunk);
            if let Some(reading) = &mut reading {
                reading.feed(&file.chunk).await;
            }
        }
        let read = match reading {
            Some(reading) => Some(reading.end().await?),
            None => None,
        };
        if let Some(problem) = problem {
            return Err(Status::invalid_argument(problem));
        }
        let checksum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if checksum != metadata.checksum {
            return Err(Status::invalid_argument("file checksum validation error"));
        }
        let is_known = kept.is_some();
        let index = match (kept, read) {
            (Some(kept), _) => kept,
            (None, Some(read)) => Arc::new(read.map_err(|error| Status::invalid_argument(chain(&error)))?),
            (None, None) => return Err(Status::internal("nothing was read")),
        };
        slot.put(&index);
        drop(turn);
        Ok(Upload {
            index,
            work_dir: self.work_dir.clone(),
            keep_modes: self.keep_modes,
            rel_path: metadata.app_rel_path,
            is_known,
            environment: metadata.env,
        })
    }
}

/// An archive that is being read on a thread that may block.
struct Reading {
    sender: mpsc::Sender<Bytes>,
    batch: BytesMut,
    task: JoinHandle<Result<ArchiveIndex, ArchiveError>>,
}

impl Reading {
    fn start(work_dir: &Path, bounds: Bounds) -> Result<Self, Status> {
        let contents = tempfile::tempfile_in(work_dir);
        let contents = contents.map_err(|error| Status::internal(format!("error creating work dir: {error}")))?;
        let (sender, receiver) = mpsc::channel::<Bytes>(BUFFERED);
        let task = tokio::task::spawn_blocking(move || read(Feed { receiver, batch: Bytes::new() }, contents, bounds));
        Ok(Self { sender, batch: BytesMut::new(), task })
    }

    async fn feed(&mut self, chunk: &[u8]) {
        self.batch.extend_from_slice(chunk);
        if self.batch.len() >= BATCH {
            // A reader that has stopped takes no more; the rest of the stream is received all the same.
            let _ = self.sender.send(self.batch.split().freeze()).await;
        }
    }

    async fn end(self) -> Result<Result<ArchiveIndex, ArchiveError>, Status> {
        let _ = self.sender.send(self.batch.freeze()).await;
        drop(self.sender);
        self.task.await.map_err(|error| Status::internal(format!("error reading the archive: {error}")))
    }
}

async fn drain(stream: &mut Streaming<AppStreamRequest>) {
    while let Ok(Some(_)) = next(stream).await {}
}

/// The next message. A client that sends nothing for long holds up others that send the same archive.
async fn next(stream: &mut Streaming<AppStreamRequest>) -> Result<Option<AppStreamRequest>, Status> {
    let silent = |_| Status::deadline_exceeded(format!("nothing was sent for {}", humantime::format_duration(SILENCE)));
    tokio::time::timeout(SILENCE, stream.message()).await.map_err(silent)?
}

/// The batches as something to read.
struct Feed {
    receiver: mpsc::Receiver<Bytes>,
    batch: Bytes,
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.batch.is_empty() {
            match self.receiver.blocking_recv() {
                Some(batch) => self.batch = batch,
                None => break,
            }
        }
        Ok(&self.batch)
    }

    fn consume(&mut self, count: usize) {
        self.batch.advance(count);
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
