//! Warm workers for `helm template`, which takes 32 of its 35 ms to start.
//!
//! A worker is started when a render finds none that is idle, so that there are as many as renders at once, and is let go when it was
//! idle for long. It is killed at the deadline of a render and when the caller goes away, and replaced after many renders or when it
//! grew. When it dies of a render, or cannot do it, that render is done once more by a process, in a sandbox of the same profile: whatever
//! is wrong, what comes out is what a process gives, and nothing is repeated with fewer restrictions.
//!
//! A worker can read one directory, its own and empty between renders. What a render is made of is moved there for its time.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tempfile::TempDir;
use tokio::time::Instant;

use super::sandbox::Sandboxes;
use super::worker::{Answer, Worker};
use super::{Child, Output, ProcessError};

/// When a worker is let go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for a start until its hello.
    pub start: Duration,
    /// Time without a render.
    pub idle: Duration,
    /// Renders that it did.
    pub renders: usize,
    /// Its memory after a render, in bytes.
    pub resident: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { start: Duration::from_secs(5), idle: Duration::from_secs(120), renders: 10_000, resident: 256 << 20 }
    }
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Workers that live.
    pub workers: Gauge,
    /// Renders that a worker did.
    pub renders: Counter,
    /// Renders that a process did because a worker could not.
    pub again: Counter,
}

/// Workers of one program.
#[derive(Debug)]
pub struct Pool {
    program: PathBuf,
    limits: Limits,
    counts: Counts,
    sandboxes: Sandboxes,
    /// The one that was used last is the last.
    idle: Mutex<Vec<(Counted, Instant)>>,
}

/// A worker, its directory, and the renders that it did.
#[derive(Debug)]
struct Counted {
    worker: Worker,
    dir: TempDir,
    renders: usize,
    living: Gauge,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.living.dec();
    }
}

impl Pool {
    /// Finds out whether a program is a worker by starting the first.
    ///
    /// # Errors
    ///
    /// When it is none: it cannot be started, says nothing in time, or something else.
    pub async fn start(program: &Path, limits: Limits, counts: Counts, sandboxes: Sandboxes) -> io::Result<Arc<Self>> {
        let pool = Arc::new(Self { program: program.to_owned(), limits, counts, sandboxes, idle: Mutex::default() });
        let first = pool.fresh().await?;
        pool.put_back(first);
        let weak = Arc::downgrade(&pool);
        // Ends with the pool.
        tokio::spawn(async move {
            while let Some(pool) = weak.upgrade() {
                pool.release();
                drop(pool);
                tokio::time::sleep(limits.idle / 4).await;
            }
        });
        Ok(pool)
    }

    /// Have the workers neither network nor other programs? Tells it of the one that was used last.
    pub fn is_confined(&self) -> bool {
        self.lock().last().is_some_and(|(last, _)| last.worker.is_confined())
    }

    /// Runs a child in a worker, or else as a process. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// [`ProcessError`], as of a process.
    pub async fn run(&self, child: &Child) -> Result<Output, ProcessError> {
        let started = Instant::now();
        let in_worker = async {
            let mut worker = self.take().await?;
            // Moved back before the worker's directory can go.
            let moved = Moved::new(child, worker.dir.path())?;
            let answer = worker.worker.run(&moved.child).await?;
            drop(moved);
            Ok::<_, io::Error>((worker, answer))
        };
        match tokio::time::timeout(child.deadline, in_worker).await {
            Err(_) => Err(ProcessError::Deadline { command: child.command(), after: child.deadline }),
            Ok(Ok((mut worker, answer))) => {
                self.counts.renders.inc();
                worker.renders += 1;
                if worker.renders < self.limits.renders && answer.resident < self.limits.resident {
                    self.put_back(worker);
                }
                reply_output(child, answer)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "a Helm worker was lost, so a process renders instead");
                self.counts.again.inc();
                let left = child.deadline.saturating_sub(started.elapsed());
                let again = Child { deadline: left, ..child.clone() }.run().await;
                again.map_err(|error| match error {
                    ProcessError::Deadline { command, .. } => ProcessError::Deadline { command, after: child.deadline },
                    error => error,
                })
            }
        }
    }

    /// An idle worker that lives, or a new one.
    async fn take(&self) -> io::Result<Counted> {
        while let Some((mut worker, _)) = self.pop() {
            if !worker.worker.is_dead() {
                return Ok(worker);
            }
        }
        self.fresh().await
    }

    async fn fresh(&self) -> io::Result<Counted> {
        let dir = tempfile::Builder::new().prefix("worker-").tempdir()?;
        let sandbox = self.sandboxes.offline(&self.program).map_err(io::Error::other)?.reading(dir.path());
        let worker = tokio::time::timeout(self.limits.start, Worker::start(&self.program, &sandbox)).await??;
        self.counts.workers.inc();
        Ok(Counted { worker, dir, renders: 0, living: self.counts.workers.clone() })
    }

    fn put_back(&self, worker: Counted) {
        self.lock().push((worker, Instant::now()));
    }

    fn pop(&self) -> Option<(Counted, Instant)> {
        self.lock().pop()
    }

    /// Lets go who was idle for too long.
    fn release(&self) {
        self.lock().retain(|(_, since)| since.elapsed() < self.limits.idle);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Counted, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A child whose places are in a worker's directory, until this is dropped.
struct Moved {
    child: Child,
    /// From where, and to where.
    places: Vec<(PathBuf, PathBuf)>,
}

impl Moved {
    fn new(child: &Child, dir: &Path) -> io::Result<Self> {
        let mut moved = Self { child: child.clone(), places: Vec::new() };
        for place in &child.places {
            let name = place.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let to = dir.join(name);
            std::fs::rename(place, &to)?;
            moved.places.push((place.clone(), to.clone()));
            moved.child.relocate(place, &to);
        }
        Ok(moved)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        for (place, to) in self.places.drain(..) {
            if let Err(error) = std::fs::rename(&to, &place) {
                tracing::error!(%error, "the files of a render could not be moved back");
            }
        }
    }
}

impl Child {
    /// Writes one path in place of another wherever it stands. The names of places are random, so they mean nothing else.
    fn relocate(&mut self, from: &Path, to: &Path) {
        let (Some(from), Some(to)) = (from.to_str(), to.to_str()) else { return };
        let replace = |word: &mut OsString| {
            if let Some(text) = word.to_str().filter(|text| text.contains(from)) {
                *word = text.replace(from, to).into();
            }
        };
        self.arguments.iter_mut().for_each(replace);
        self.environment.iter_mut().map(|(_, value)| value).for_each(replace);
        let mut directory = std::mem::take(&mut self.directory).into_os_string();
        replace(&mut directory);
        self.directory = directory.into();
    }
}

/// An answer as what a process gives.
fn reply_output(child: &Child, answer: Answer) -> Result<Output, ProcessError> {
    let Answer { status, stdout, stderr, is_too_long, .. } = answer;
    if is_too_long {
        return Err(ProcessError::TooLong { command: child.command(), limit: child.max_output });
    }
    child.ended((status != 0).then(|| format!("exit status {status}")), stdout, &stderr)
}
