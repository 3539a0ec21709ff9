//! The thread that writes: in batches, behind those who learned something, and again later what could not be written.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::changes::{Changes, PinRow, StoredChoice};
use super::database::{self, Database};
use super::{MADE, MAX_PAUSE, MOMENT, PAUSE, SMALL, Settings, Shared, State, StoreError, Ticket, legacy, rescue};
use crate::failure::chain;

/// The thread that writes.
pub(super) struct Writer {
    shared: Arc<Shared>,
    database: Option<Database>,
    state: State,
    /// How long it waits after the last failure.
    pause: Duration,
    last_copy: Option<Instant>,
}

impl Writer {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, database: None, state: State::new("written"), pause: Duration::ZERO, last_copy: None }
    }

    pub fn run(mut self) {
        self.prepare();
        let mut pass = 0;
        loop {
            let (pins, records, ticket) = {
                let mut pending = self.shared.lock();
                while pending.is_empty() && !pending.is_closed {
                    pending = self.shared.has_work.wait(pending).unwrap_or_else(PoisonError::into_inner);
                }
                let until = Instant::now() + self.pause;
                while !pending.is_urgent && !pending.is_closed && Instant::now() < until {
                    let left = until.saturating_duration_since(Instant::now());
                    pending = self.shared.has_work.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                pending.is_urgent = false;
                if pending.is_empty() && pending.is_closed {
                    return;
                }
                pending.bytes = 0;
                pending.is_writing = true;
                (std::mem::take(&mut pending.pins), std::mem::take(&mut pending.records), pending.last)
            };
            let exclusive = database::exclusive();
            let (is_done, is_closed) = self.pass(pins, records, ticket);
            if is_done {
                self.copy_if_due();
            }
            pass += 1;
            {
                // Under one lock, so that nobody sees the end of a pass without its outcome.
                let mut pending = self.shared.lock();
                pending.is_writing = false;
                self.shared.passes.send_replace((pass, is_done));
            }
            // Closing brings the log into the file, which nobody need wait for.
            if self.shared.lock().is_empty() {
                self.database = None;
            }
            drop(exclusive);
            if is_closed && !is_done {
                // The process ends; there is nobody to try again for.
                return;
            }
        }
    }

    /// Takes over JSON files, and looks for damage if that is asked for.
    fn prepare(&mut self) {
        let Settings { dir, check, clock, .. } = self.shared.settings.clone();
        let _exclusive = database::exclusive();
        let done = if dir.join(legacy::DIRECTORY).is_dir() {
            self.with_database(|database, _| legacy::take_over(&dir, database, clock.now()))
        } else {
            Ok(())
        };
        if let Err(error) = done {
            self.state.fails(&self.shared.path, &error);
        }
        // A server makes its file now, so that its first pins need not wait for that.
        if check {
            self.shared.is_checked.store(true, Ordering::Relaxed);
            if let Err(error) = self.with_database(|database, _| database.check()) {
                self.state.fails(&self.shared.path, &error);
            }
        }
        self.database = None;
        let (is_prepared, prepared) = &self.shared.is_prepared;
        *is_prepared.lock().unwrap_or_else(PoisonError::into_inner) = true;
        prepared.notify_all();
    }

    /// Writes what waits. What cannot be written waits again. Returns whether all was written, and whether the store is closed.
    fn pass(
        &mut self,
        pins: BTreeMap<(String, String), StoredChoice>,
        records: HashMap<String, Changes>,
        ticket: Ticket,
    ) -> (bool, bool) {
        let rows: Vec<PinRow> = pins.into_iter().map(|((key, tenant), stored)| PinRow { key, tenant, stored }).collect();
        let now = self.shared.settings.clock.now();
        let mut outcome =
            if rows.is_empty() { Ok(()) } else { self.with_database(|database, _| database.write_pins(&rows, now)) };
        let mut left = Vec::new();
        if outcome.is_ok() {
            self.shared.stored.send_if_modified(|stored| std::mem::replace(stored, ticket) != ticket);
        }
        let mut records = records.into_iter();
        if outcome.is_ok() {
            for (key, changes) in records.by_ref() {
                outcome = self.with_database(|database, _| database.write_record(&key, &changes, now));
                if outcome.is_err() {
                    left.push((key, changes));
                    break;
                }
            }
        }
        left.extend(records);
        self.report(outcome, rows, left, ticket)
    }

    fn report(
        &mut self,
        outcome: Result<(), StoreError>,
        rows: Vec<PinRow>,
        left: Vec<(String, Changes)>,
        ticket: Ticket,
    ) -> (bool, bool) {
        let mut pending = self.shared.lock();
        let is_closed = pending.is_closed;
        match outcome {
            Ok(()) => {
                self.pause = Duration::ZERO;
                self.shared.counts.writes.inc();
                self.state.works(&self.shared.path);
                (pending.is_empty(), is_closed)
            }
            Err(error) => {
                self.pause = (self.pause * 2).clamp(PAUSE, MAX_PAUSE);
                self.shared.counts.failed_writes.inc();
                self.state.fails(&self.shared.path, &error);
                if error.is_permanent() {
                    return (false, is_closed);
                }
                if *self.shared.stored.borrow() < ticket {
                    // What came meanwhile is newer.
                    for PinRow { key, tenant, stored } in rows {
                        pending.pins.entry((key, tenant)).or_insert(stored);
                    }
                }
                for (key, mut changes) in left {
                    if let Some(later) = pending.records.remove(&key) {
                        changes.merge(later);
                    }
                    pending.records.insert(key, changes);
                }
                pending.bytes = pending.records.values().map(Changes::bytes).sum();
                (false, is_closed)
            }
        }
    }

    /// Does something with the file. Makes room, or rescues it, and does it once more where that helps.
    fn with_database(&mut self, mut work: impl FnMut(&mut Database, u64) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let most_bytes = self.shared.settings.most_bytes;
        let room = most_bytes / 10 * 8;
        let mut outcome = self.database().and_then(|database| work(database, most_bytes));
        match &outcome {
            Err(error) if error.is_full() => {
                // Perhaps only the bound is reached.
                outcome = self.database().and_then(|database| database.evict(room).and_then(|()| work(database, most_bytes)));
            }
            Err(error) if error.is_damage() => {
                self.database = None;
                if self.shared.rescue() {
                    outcome = self.database().and_then(|database| work(database, most_bytes));
                }
            }
            _ => {}
        }
        if outcome.is_err() {
            self.database = None;
        }
        if outcome.is_ok()
            && let Some(database) = &mut self.database
            && let Ok(used) = database.used_bytes()
        {
            self.shared.counts.bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
            if used > most_bytes / 10 * 9 {
                let _ = database.evict(room);
            }
        }
        outcome
    }

    fn database(&mut self) -> Result<&mut Database, StoreError> {
        if self.database.as_mut().is_some_and(|database| !database.is_current()) {
            self.database = None;
        }
        if self.database.is_none() {
            rescue::finish(&self.shared.path);
            // One that is made now has nothing yet that must be copied.
            if !self.shared.path.exists() {
                self.last_copy = Some(Instant::now());
            }
            let started = Instant::now();
            let mut opened = Database::open(&self.shared.path, self.shared.settings.most_bytes);
            // While another process makes the file, SQLite does not wait for it.
            while opened.as_ref().is_err_and(StoreError::is_busy) && started.elapsed() < MADE {
                std::thread::sleep(MOMENT);
                opened = Database::open(&self.shared.path, self.shared.settings.most_bytes);
            }
            self.database = Some(opened?);
        }
        Ok(self.database.as_mut().expect("it was opened"))
    }

    /// Copies the store every hour: a small one here, a large one on a thread of its own.
    fn copy_if_due(&mut self) {
        const LEAST: Duration = Duration::from_secs(60);
        if self.last_copy.is_some_and(|last| last.elapsed() < LEAST)
            || !rescue::is_copy_due(&self.shared.path, self.shared.settings.clock.now())
        {
            return;
        }
        self.last_copy = Some(Instant::now());
        let path = self.shared.path.clone();
        let copy = move || {
            if let Err(error) = rescue::copy(&path) {
                tracing::warn!(store = %path.display(), error = %chain(&error), "the store could not be copied");
            }
        };
        let is_small = self.database.as_ref().and_then(|database| database.used_bytes().ok()).is_some_and(|bytes| bytes <= SMALL);
        if is_small {
            copy();
        } else {
            let _ = std::thread::Builder::new().name("store-copy".into()).spawn(copy);
        }
    }
}
