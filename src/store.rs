//! What must survive restarts and outages: the last known good pins, the last complete listings, and metadata that never changes (P3).
//!
//! One SQLite file with a write-ahead log. Reads and writes have a thread each. A write is done behind the answer, in batches, and a batch
//! that fails is tried again later: a locked or full disk delays no render. [`Store::put_pin`] returns a ticket, so that a caller can wait for
//! a moment until a changed pin is stored.
//!
//! The store never fails its callers. A store that cannot be written is read; one that cannot be read is not used, and memory goes on. Each
//! such state is reported once, and once more when it ends. A damaged file is set aside, and its readable rows and those of the last copy
//! (made every hour) are taken over.
//!
//! The texts in it are the caller's: a record's are those of [`crate::registry`], a choice's those of [`crate::resolve`].

mod changes;
mod database;
mod evict;
mod legacy;
mod reader;
mod rescue;
mod rows;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{oneshot, watch};

pub use changes::{Changes, NewListing, PinRow, StoredChoice, StoredRecord};
use database::Database;
use reader::Reader;
use writer::Writer;

use crate::clock::Clock;
use crate::failure::chain;

/// Bytes that wait to be written. Past this the largest record waits no more: memory still has it.
const MAX_PENDING: usize = 64 << 20;

/// Pins that wait to be written.
const MAX_PENDING_PINS: usize = 20_000;

/// Time between two attempts while writing fails.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest time between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How long another process may take to make the file, and how often that is looked at.
const MADE: Duration = Duration::from_millis(200);
const MOMENT: Duration = Duration::from_millis(10);

/// Longest wait of a caller for something that is read.
const PATIENCE: Duration = Duration::from_secs(2);

/// After this time without a read the file is closed.
const IDLE: Duration = Duration::from_secs(1);

/// How long nothing is read after a read that took too long.
const SLOW: Duration = Duration::from_secs(5);

/// Longest wait of the first read until the JSON files of before are taken over.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// Largest store that is copied by the thread that writes, in bytes: it takes some milliseconds.
const SMALL: u64 = 8 << 20;

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the file cannot be used")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the file cannot be reached")]
    Io(#[from] io::Error),
    #[error("something other than a file is in its place")]
    NoFile,
    #[error("it is on {0}, where several processes cannot share it safely")]
    Network(&'static str),
    #[error("its file system keeps no write-ahead log")]
    NoLog,
    #[error("it was written by a newer Pinion (schema {0})")]
    Newer(i64),
    #[error("the file is damaged")]
    Damaged,
}

/// The operator's choices.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory of the store, which is made when something is written.
    pub dir: PathBuf,
    /// Bound of the file, in bytes. The log beside it takes a few more MiB.
    pub most_bytes: u64,
    /// Look for damage at the start. A server does; a process for one render looks when it would fail otherwise.
    pub check: bool,
    pub clock: Clock,
}

/// What the store counts, for the metrics.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Bytes of the file that are in use.
    pub bytes: Gauge,
    /// Batches that were written.
    pub writes: Counter,
    /// Batches that could not be written, and were or are tried again.
    pub failed_writes: Counter,
    /// Records that waited too long to be written.
    pub dropped: Counter,
}

/// A place in the order of writes, see [`Store::written`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Something could not be read at the moment: it may be known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    reads: mpsc::Sender<Read>,
}

type Read = Box<dyn FnOnce(&mut Reader) + Send>;

#[derive(Debug)]
struct Shared {
    settings: Settings,
    path: PathBuf,
    pending: Mutex<Pending>,
    /// Wakes the writer.
    has_work: Condvar,
    /// The last ticket up to which all pins are stored.
    stored: watch::Sender<Ticket>,
    /// Numbers passes of the writer, and says whether the last one has stored everything.
    passes: watch::Sender<(u64, bool)>,
    /// Were the JSON files of before looked at?
    is_prepared: (Mutex<bool>, Condvar),
    /// Keeps two threads from rescuing at once.
    rescuing: Mutex<()>,
    is_checked: AtomicBool,
    /// When the reader last took too long.
    slow: Mutex<Option<Instant>>,
    /// Has a thread ended?
    has_ended: watch::Sender<bool>,
    counts: Counts,
}

/// Tells when its thread ends, however it does.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.has_ended.send_replace(true);
    }
}

#[derive(Debug, Default)]
struct Pending {
    /// By key and tenant.
    pins: BTreeMap<(String, String), StoredChoice>,
    records: HashMap<String, Changes>,
    bytes: usize,
    /// The last ticket that was given out.
    last: Ticket,
    is_urgent: bool,
    is_writing: bool,
    is_closed: bool,
}

impl Store {
    /// Opens the store. Nothing is made before the first write, unless JSON files of an older Pinion are there.
    pub fn open(settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            path: settings.dir.join("pinion.db"),
            settings,
            pending: Mutex::default(),
            has_work: Condvar::new(),
            stored: watch::Sender::new(Ticket(0)),
            passes: watch::Sender::new((0, true)),
            is_prepared: (Mutex::new(false), Condvar::new()),
            rescuing: Mutex::new(()),
            is_checked: AtomicBool::new(false),
            slow: Mutex::new(None),
            has_ended: watch::Sender::new(false),
            counts: Counts::default(),
        });
        let (reads, jobs) = mpsc::channel::<Read>();
        let (writer, reader) = (Writer::new(Arc::clone(&shared)), Reader::new(Arc::clone(&shared)));
        let [write, read] = [Alive(Arc::clone(&shared)), Alive(Arc::clone(&shared))];
        let started = [thread("store-write", write, move || writer.run()), thread("store-read", read, move || reader.run(&jobs))];
        for error in started.into_iter().filter_map(Result::err) {
            tracing::error!(%error, "a thread of the store cannot be started: pins will not survive a restart");
        }
        Self { shared, reads }
    }

    /// Waits until a thread of the store has ended, which it never should: nothing would be stored from then on.
    pub async fn ended(&self) {
        let _ = self.shared.has_ended.subscribe().wait_for(|has_ended| *has_ended).await;
    }

    /// What the store counts.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// What is stored under a repository's key.
    ///
    /// # Errors
    ///
    /// [`Unreadable`].
    pub async fn record(&self, key: &str) -> Result<Option<StoredRecord>, Unreadable> {
        let key = key.to_owned();
        self.read(move |database| database.record(&key)).await
    }

    /// The newest choice for a question, whichever tenant asked it.
    ///
    /// # Errors
    ///
    /// [`Unreadable`].
    pub async fn pin(&self, key: &str) -> Result<Option<StoredChoice>, Unreadable> {
        let key = key.to_owned();
        self.read(move |database| database.pin(&key)).await
    }

    /// All choices, those with the oldest listing first.
    ///
    /// # Errors
    ///
    /// [`Unreadable`].
    pub async fn pins(&self) -> Result<Vec<PinRow>, Unreadable> {
        Ok(self.read(|database| database.pins().map(Some)).await?.unwrap_or_default())
    }

    /// Looks for damage in the whole file, once, and repairs it. Returns whether there was some: what was not found may be there now.
    pub async fn look_for_damage(&self) -> bool {
        if self.shared.is_checked.swap(true, Ordering::Relaxed) {
            return false;
        }
        let (say, hear) = oneshot::channel();
        let job = move |reader: &mut Reader| {
            let was_damaged = match reader.database() {
                Ok(Some(database)) => database.check().is_err_and(|error| error.is_damage()) && reader.rescue(),
                Ok(None) => false,
                Err(error) => error.is_damage() && reader.rescue(),
            };
            let _ = say.send(was_damaged);
        };
        self.reads.send(Box::new(job)).is_ok() && tokio::time::timeout(PATIENCE, hear).await.is_ok_and(|told| told == Ok(true))
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl Fn(&Database) -> Result<Option<T>, StoreError> + Send + 'static,
    ) -> Result<Option<T>, Unreadable> {
        let is_prepared = *self.shared.is_prepared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slow = |shared: &Shared| {
            shared.slow.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|last| last.elapsed() < SLOW)
        };
        if is_prepared && slow(&self.shared) {
            return Err(Unreadable);
        }
        let (say, hear) = oneshot::channel();
        let job = move |reader: &mut Reader| drop(say.send(reader.read(&work)));
        self.reads.send(Box::new(job)).map_err(|_| Unreadable)?;
        let within = if is_prepared { PATIENCE } else { PATIENCE + TAKE_OVER };
        match tokio::time::timeout(within, hear).await {
            Ok(Ok(read)) => read,
            _ => {
                tracing::warn!(store = %self.shared.path.display(), ?within, "the store does not answer: memory and the registry do");
                *self.shared.slow.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Err(Unreadable)
            }
        }
    }

    /// The choice for a question in the copy of the last hour: better than nothing where the store itself cannot be read.
    pub async fn pin_of_the_copy(&self, key: &str) -> Option<StoredChoice> {
        let (path, key) = (rescue::copy_path(&self.shared.path), key.to_owned());
        let read = tokio::task::spawn_blocking(move || Database::open_copy(&path).ok()?.pin(&key).ok()?);
        tokio::time::timeout(PATIENCE, read).await.ok()?.ok()?
    }

    /// Stores a choice, behind the caller.
    pub fn put_pin(&self, pin: PinRow) -> Ticket {
        let mut pending = self.shared.lock();
        let PinRow { key, tenant, stored } = pin;
        if pending.pins.len() < MAX_PENDING_PINS || pending.pins.contains_key(&(key.clone(), tenant.clone())) {
            pending.pins.insert((key, tenant), stored);
        } else {
            self.shared.counts.dropped.inc();
        }
        pending.last = Ticket(pending.last.0 + 1);
        self.shared.has_work.notify_all();
        pending.last
    }

    /// Stores what was learned about a repository, behind the caller.
    pub fn learn(&self, key: &str, changes: Changes) {
        let mut pending = self.shared.lock();
        let record = pending.records.entry(key.to_owned()).or_default();
        let before = record.bytes();
        record.merge(changes);
        let after = record.bytes();
        pending.bytes = pending.bytes - before + after;
        while pending.bytes > MAX_PENDING {
            let largest = pending.records.iter().max_by_key(|(_, record)| record.bytes()).map(|(key, _)| key.clone());
            let Some(record) = largest.and_then(|key| pending.records.remove(&key)) else { break };
            pending.bytes -= record.bytes();
            self.shared.counts.dropped.inc();
        }
        self.shared.has_work.notify_all();
    }

    /// Waits until the pins up to this ticket are stored, but not longer than this. Returns whether they are.
    pub async fn written(&self, ticket: Ticket, within: Duration) -> bool {
        let mut stored = self.shared.stored.subscribe();
        tokio::time::timeout(within, stored.wait_for(|stored| *stored >= ticket)).await.is_ok_and(|waited| waited.is_ok())
    }

    /// Tries at once to store everything, and waits for the outcome, but not longer than this. For the end of a process. Returns whether
    /// everything is stored; what the last pass gave up is not.
    pub async fn flush(&self, within: Duration) -> bool {
        let mut passes = self.shared.passes.subscribe();
        let until = {
            let mut pending = self.shared.lock();
            if pending.is_empty() && !pending.is_writing {
                return passes.borrow_and_update().1;
            }
            pending.is_urgent = true;
            self.shared.has_work.notify_all();
            // A pass that is under way has not seen all of it.
            passes.borrow_and_update().0 + 1 + u64::from(pending.is_writing && !pending.is_empty())
        };
        let done = tokio::time::timeout(within, passes.wait_for(|(pass, _)| *pass >= until)).await;
        done.is_ok_and(|done| done.is_ok_and(|done| done.1))
    }
}

fn thread(name: &str, alive: Alive, work: impl FnOnce() + Send + 'static) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _alive = alive;
        work();
    })
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pins.is_empty() && self.records.is_empty()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rescue(&self) -> bool {
        let _one = self.rescuing.lock().unwrap_or_else(PoisonError::into_inner);
        match rescue::rescue(&self.path, self.settings.most_bytes, self.settings.clock.now()) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(store = %self.path.display(), error = %chain(&error), "the store is damaged, and a new one cannot be made");
                false
            }
        }
    }
}

/// Reports when the store stops and starts to work, and not each time.
#[derive(Debug)]
struct State {
    what: &'static str,
    is_failing: bool,
}

impl State {
    fn new(what: &'static str) -> Self {
        Self { what, is_failing: false }
    }

    fn works(&mut self, path: &Path) {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(store = %path.display(), "the store can be {} again", self.what);
        }
    }

    fn fails(&mut self, path: &Path, error: &StoreError) {
        if std::mem::replace(&mut self.is_failing, true) {
            return;
        }
        let error_text = chain(error);
        let in_use = if error.is_busy() { "; another process may have locked it" } else { "" };
        tracing::warn!(
            store = %path.display(),
            error = %error_text,
            "the store cannot be {}{in_use}: what is learned is in memory only, and is lost at the end of this process",
            self.what
        );
    }
}

#[cfg(test)]
mod tests;
