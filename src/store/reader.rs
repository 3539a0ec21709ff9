//! The thread that reads, so that a slow disk or a lock holds up none of tokio's threads.

use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::database::Database;
use super::{IDLE, PAUSE, Read, Shared, State, StoreError, TAKE_OVER, Unreadable, rescue};

/// The thread that reads.
pub(super) struct Reader {
    shared: Arc<Shared>,
    database: Option<Database>,
    state: State,
    /// When it failed last.
    failed: Option<Instant>,
}

impl Reader {
    pub fn new(shared: Arc<Shared>) -> Self {
        let state = State::new("read");
        Self { shared, database: None, state, failed: None }
    }

    pub fn run(mut self, jobs: &mpsc::Receiver<Read>) {
        let (is_prepared, prepared) = &self.shared.is_prepared;
        let guard = is_prepared.lock().unwrap_or_else(PoisonError::into_inner);
        drop(prepared.wait_timeout_while(guard, TAKE_OVER, |is_prepared| !*is_prepared));
        loop {
            match jobs.recv_timeout(IDLE) {
                Ok(job) => job(&mut self),
                // What is closed cannot be held open on a file that is gone.
                Err(mpsc::RecvTimeoutError::Timeout) => self.database = None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        // The last handle is gone.
        self.shared.lock().is_closed = true;
        self.shared.has_work.notify_all();
    }

    /// The file as it is now. [`None`] if there is none.
    pub fn database(&mut self) -> Result<Option<&Database>, StoreError> {
        if self.database.as_mut().is_some_and(|database| !database.is_current()) {
            self.database = None;
        }
        if self.database.is_none() {
            rescue::finish(&self.shared.path);
            self.database = Database::open_to_read(&self.shared.path)?;
        }
        Ok(self.database.as_ref())
    }

    pub fn rescue(&mut self) -> bool {
        let is_replaced = self.database.as_mut().is_some_and(|database| !database.is_current());
        self.database = None;
        is_replaced || self.shared.rescue()
    }

    pub fn read<T>(&mut self, work: &impl Fn(&Database) -> Result<Option<T>, StoreError>) -> Result<Option<T>, Unreadable> {
        // Each wait for a lock would delay those behind it.
        if self.failed.is_some_and(|failed| failed.elapsed() < PAUSE) {
            return Err(Unreadable);
        }
        self.failed = None;
        let mut read = self.try_read(work);
        if read.as_ref().is_err_and(StoreError::is_damage) && self.rescue() {
            read = self.try_read(work);
        }
        match read {
            Ok(found) => {
                self.state.works(&self.shared.path);
                Ok(found)
            }
            Err(error) => {
                self.database = None;
                self.failed = Some(Instant::now());
                self.state.fails(&self.shared.path, &error);
                Err(Unreadable)
            }
        }
    }

    fn try_read<T>(&mut self, work: &impl Fn(&Database) -> Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
        self.database()?.map_or(Ok(None), work)
    }
}
