//! Receives a request's stream: the metadata, then the archive, unpacked and verified while it arrives.
//!
//! The stream is always read to its end, also when the answer is known already: a client that is answered before it has sent everything
//! reports `EOF` instead of the answer (`cmpserver/apiclient`, `util/cmp/stream.go`).

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use super::proto::app_stream_request::Request;
use super::proto::{AppStreamRequest, EnvEntry};
use super::shelf::{Shelf, Unpacked};
use crate::failure::chain;
use crate::workspace::archive::{ArchiveError, Bounds, unpack};

/// Chunks between the network and the disk.
const BUFFERED: usize = 64;

/// A request that has arrived.
#[derive(Debug)]
pub struct Received {
    /// Holds the checkout.
    unpacked: Arc<Unpacked>,
    rel_path: String,
    pub environment: Vec<EnvEntry>,
}

impl Received {
    /// The checkout's root.
    pub fn root(&self) -> &Path {
        self.unpacked.path()
    }

    /// The application's directory, which is below the root.
    ///
    /// # Errors
    ///
    /// When the path leads out.
    pub fn app_dir(&self) -> Result<PathBuf, Status> {
        let path = self.root().join(&self.rel_path);
        let is_inside = std::fs::canonicalize(&path)
            .and_then(|found| Ok(found.starts_with(std::fs::canonicalize(self.root())?)))
            .unwrap_or(false);
        if is_inside { Ok(path) } else { Err(Status::invalid_argument("illegal appPath: out of workDir bound")) }
    }

    /// A variable of the application.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.environment.iter().rev().find(|entry| entry.name == name).map(|entry| entry.value.clone())
    }
}

/// Receives everything. An archive that is on the shelf is verified and not unpacked again.
///
/// # Errors
///
/// [`Status`] with the texts of Argo CD's own server, after the stream has ended.
pub async fn receive(
    mut stream: Streaming<AppStreamRequest>,
    work_dir: &Path,
    shelf: Option<&Shelf>,
    unpacks: &Semaphore,
    keep_modes: bool,
    bounds: Bounds,
) -> Result<Received, Status> {
    let broken = |what: &str, error: &Status| Status::invalid_argument(format!("{what}: {}", error.message()));
    let first = stream.message().await.map_err(|error| broken("error receiving stream header", &error))?;
    let Some(Request::Metadata(metadata)) = first.and_then(|message| message.request) else {
        drain(&mut stream).await;
        return Err(Status::invalid_argument("error getting stream metadata: metadata is nil"));
    };
    let on_shelf = || shelf.and_then(|shelf| shelf.get(&metadata.checksum));
    let mut kept = on_shelf();
    let mut unpacking = None;
    // A push makes every application of a repository send the same: those that wait here find it on the shelf.
    let turn = if kept.is_none() { unpacks.acquire().await.ok() } else { None };
    if kept.is_none() {
        kept = on_shelf();
    }
    if kept.is_none() {
        match Unpacking::start(work_dir, keep_modes, bounds) {
            Ok(started) => unpacking = Some(started),
            Err(status) => {
                drain(&mut stream).await;
                return Err(status);
            }
        }
    }
    let mut hash = Sha256::new();
    let mut problem = None;
    while let Some(message) = stream.message().await.map_err(|error| broken("error receiving stream", &error))? {
        let Some(Request::File(file)) = message.request else {
            problem = problem.or(Some("stream request file is nil"));
            continue;
        };
        hash.update(&file.chunk);
        if let Some(unpacking) = &mut unpacking {
            // An unpacker that has stopped reads no more; the rest of the stream is read all the same.
            let _ = unpacking.sender.send(file.chunk).await;
        }
    }
    let unpacked = match unpacking {
        Some(unpacking) => Some(unpacking.end().await?),
        None => None,
    };
    if let Some(problem) = problem {
        return Err(Status::invalid_argument(problem));
    }
    let checksum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if checksum != metadata.checksum {
        return Err(Status::invalid_argument("file checksum validation error"));
    }
    let unpacked = match (kept, unpacked) {
        (Some(kept), _) => kept,
        (None, Some(unpacked)) => Arc::new(unpacked.map_err(|error| Status::invalid_argument(chain(&error)))?),
        (None, None) => return Err(Status::internal("nothing was unpacked")),
    };
    if let Some(shelf) = shelf {
        shelf.put(&checksum, &unpacked);
    }
    drop(turn);
    Ok(Received { unpacked, rel_path: metadata.app_rel_path, environment: metadata.env })
}

/// An archive that is being unpacked on a thread that may block.
struct Unpacking {
    sender: mpsc::Sender<Vec<u8>>,
    task: JoinHandle<Result<Unpacked, ArchiveError>>,
}

impl Unpacking {
    fn start(work_dir: &Path, keep_modes: bool, bounds: Bounds) -> Result<Self, Status> {
        let dir = tempfile::Builder::new().prefix("request-").tempdir_in(work_dir);
        let dir = dir.map_err(|error| Status::internal(format!("error creating work dir: {error}")))?;
        let (sender, receiver) = mpsc::channel::<Vec<u8>>(BUFFERED);
        let task = tokio::task::spawn_blocking(move || {
            let bytes = unpack(Feed { receiver, chunk: Vec::new(), read: 0 }, dir.path(), keep_modes, bounds)?;
            Ok(Unpacked::new(dir, bytes))
        });
        Ok(Self { sender, task })
    }

    async fn end(self) -> Result<Result<Unpacked, ArchiveError>, Status> {
        drop(self.sender);
        self.task.await.map_err(|error| Status::internal(format!("error unpacking: {error}")))
    }
}

async fn drain(stream: &mut Streaming<AppStreamRequest>) {
    while let Ok(Some(_)) = stream.message().await {}
}

/// The chunks as something to read.
struct Feed {
    receiver: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    read: usize,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() {
            match self.receiver.blocking_recv() {
                Some(chunk) => (self.chunk, self.read) = (chunk, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.read);
        buffer[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}
