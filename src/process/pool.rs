//! Warm workers for `helm template`, which takes 32 of its 35 ms to start.
//!
//! A worker is started when a render finds none that is idle, so that there are as many as renders at once, and is let go when it was
//! idle for long. It is killed at the deadline of a render and when the caller goes away, and replaced after many renders or when it
//! grew. When it dies of a render, or cannot do it, that render is done once more by a process: whatever is wrong, what comes out is
//! what a process gives.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

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
    /// The one that was used last is the last.
    idle: Mutex<Vec<(Counted, Instant)>>,
}

/// A worker, and the renders that it did.
#[derive(Debug)]
struct Counted {
    worker: Worker,
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
    pub async fn start(program: &Path, limits: Limits, counts: Counts) -> io::Result<Arc<Self>> {
        let pool = Arc::new(Self { program: program.to_owned(), limits, counts, idle: Mutex::default() });
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
            let answer = worker.worker.run(child).await?;
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
                told(child, answer)
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
        let worker = tokio::time::timeout(self.limits.start, Worker::start(&self.program)).await??;
        self.counts.workers.inc();
        Ok(Counted { worker, renders: 0, living: self.counts.workers.clone() })
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

/// An answer as what a process gives.
fn told(child: &Child, answer: Answer) -> Result<Output, ProcessError> {
    let Answer { status, stdout, stderr, is_too_long, .. } = answer;
    if is_too_long {
        return Err(ProcessError::TooLong { command: child.command(), limit: child.max_output });
    }
    child.ended((status != 0).then(|| format!("exit status {status}")), stdout, &stderr)
}
