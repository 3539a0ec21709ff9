//! A copy of the store from time to time, and what is done when its file is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fail::fail_point;
use jiff::Timestamp;

use super::StoreError;
use super::changes::{Changes, NewListing};
use super::database::{Database, beside};
use super::rows::{Importer, time};

/// How old a copy may be before another one is made.
const COPY_AGE: Duration = Duration::from_secs(3600);

/// The copy beside the store.
pub(super) fn copy_path(path: &Path) -> PathBuf {
    beside(path, ".copy")
}

/// Whether the last copy is older than an hour, or there is none. A copy from the future counts as old: a clock was wrong.
pub(super) fn is_copy_due(path: &Path, now: Timestamp) -> bool {
    let made = fs::metadata(copy_path(path)).and_then(|data| data.modified());
    let made = made.ok().and_then(|made| Timestamp::try_from(made).ok());
    made.is_none_or(|made| {
        let age = now.duration_since(made);
        age.is_negative() || age.unsigned_abs() >= COPY_AGE
    })
}

/// Takes the lock for copies and rescues: one process does them at a time. [`None`] if another one has it.
fn lock(path: &Path) -> Option<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(beside(path, ".lock")).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Copies the store. The copy before is replaced when the new one is complete.
///
/// # Errors
///
/// [`StoreError`]: also when the store is damaged, since all of it is read.
pub(super) fn copy(path: &Path) -> Result<(), StoreError> {
    let Some(_lock) = lock(path) else { return Ok(()) };
    let Some(database) = Database::open_to_read(path)? else { return Ok(()) };
    // A damaged store must not take the place of a good copy.
    database.check()?;
    let new = beside(path, ".copy.new");
    for end in ["", "-journal"] {
        let _ = fs::remove_file(beside(&new, end));
    }
    // SQLite writes into an empty file, which has the mode that it should have.
    File::options().create_new(true).write(true).mode(0o600).open(&new)?;
    // What was lost since must not be lost in the copy, too.
    let before = Database::open_copy(&copy_path(path)).and_then(|copy| copy.count_pins()).unwrap_or(0);
    if before > 0 && database.count_pins()? == 0 {
        return Ok(());
    }
    let copied = database.copy_to(&new);
    fail_point!("store::in_copy", |_| std::process::abort());
    if let Err(error) = copied.and_then(|()| Ok(fs::rename(&new, copy_path(path))?)) {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    Ok(())
}

/// Makes a new store of a damaged one's readable rows and of the last copy, and sets the damaged one aside as `*.damaged`.
///
/// A kill at any moment leaves the damaged store, or a complete new one that [`finish`] puts in its place.
///
/// # Errors
///
/// When the new one cannot be written, or another process is at it. What can be read is then still where it was.
pub(super) fn rescue(path: &Path, most_bytes: u64, now: Timestamp) -> Result<(), StoreError> {
    let Some(_lock) = lock(path) else { return Err(StoreError::Damaged) };
    let new = beside(path, ".rescue");
    let (mut pins, mut repositories) = (0, 0);
    let unfinished = beside(path, ".rescue.new");
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(beside(&unfinished, end));
    }
    {
        let mut database = Database::open(&unfinished, most_bytes)?;
        database.import("rescued", now, |importer| {
            let open = |path: &Path| Database::open_damaged(path).ok();
            let (copy, damaged) = (open(&copy_path(path)), open(path));
            if let Some(source) = &copy {
                repositories = source.salvage_records(importer);
                pins = source.salvage_pins(importer);
            }
            if let Some(source) = &damaged {
                repositories = repositories.max(source.salvage_records(importer));
                // A pin that only the copy has is older than a listing that was read since, which tells more.
                importer.forget_outdated_pins()?;
                pins = pins.max(source.salvage_pins(importer));
            }
            Ok(())
        })?;
    }
    // The last connection is closed, so that all is in the file itself.
    fs::rename(&unfinished, &new)?;
    fail_point!("store::in_rescue", |_| std::process::abort());
    let aside = beside(path, ".damaged");
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(beside(&aside, end));
        let moved = fs::rename(beside(path, end), beside(&aside, end));
        if end.is_empty() {
            moved?;
            fail_point!("store::after_set_aside", |_| std::process::abort());
        }
    }
    finish(path);
    tracing::error!(
        store = %path.display(),
        damaged = %aside.display(),
        pins,
        repositories,
        "the store was damaged: a new one was made of its readable rows and of the last copy, and it is set aside"
    );
    Ok(())
}

/// Puts a rescued store in its place, if a kill has left it beside; or the copy, if the store is gone or empty.
pub(super) fn finish(path: &Path) {
    let new = beside(path, ".rescue");
    let is_gone = fs::symlink_metadata(path).map_or_else(|_| true, |data| data.is_file() && data.len() == 0);
    let has_log = fs::metadata(beside(path, "-wal")).is_ok_and(|data| data.len() > 0);
    if is_gone && !has_log && !new.is_file() && copy_path(path).is_file() {
        let Some(_lock) = lock(path) else { return };
        let unfinished = beside(path, ".rescue.new");
        let restored = fs::copy(copy_path(path), &unfinished).and_then(|_| fs::rename(&unfinished, path));
        if restored.is_ok() {
            tracing::error!(store = %path.display(), "the store was gone: the last copy takes its place");
        }
        return;
    }
    if is_gone && new.is_file() {
        // What is left of the damaged one's log is not this one's.
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(beside(path, end));
        }
        let _ = fs::rename(new, path);
    }
}

impl Database {
    /// Reads the choices that can be read of a damaged file, from both ends of the table, and hands on those with a right checksum. Returns how many.
    fn salvage_pins(&self, into: &mut Importer) -> usize {
        let mut pins = BTreeSet::new();
        for order in ["", " ORDER BY key DESC, tenant DESC"] {
            let _ = self.each_pin(&format!("SELECT key, tenant, at, choice, sum FROM pins{order}"), |pin| {
                if let Ok(pin) = pin
                    && into.pin(&pin).is_ok()
                {
                    pins.insert((pin.key, pin.tenant));
                }
                Ok(())
            });
        }
        pins.len()
    }

    /// The same with records.
    fn salvage_records(&self, into: &mut Importer) -> usize {
        let (mut keys, mut repositories) = (BTreeSet::new(), BTreeSet::new());
        for order in ["", " ORDER BY id DESC"] {
            let Ok(mut statement) = self.connection.prepare(&format!("SELECT key FROM repositories{order}")) else { continue };
            let Ok(mut rows) = statement.query([]) else { continue };
            while let Ok(Some(row)) = rows.next() {
                keys.extend(row.get::<_, String>(0).ok());
            }
        }
        for key in keys {
            let Ok(Some(record)) = self.record(&key) else { continue };
            let mut changes = Changes {
                tags: record.tags.into_iter().map(|(tag, at, digest)| (tag, (at, digest))).collect(),
                metadata: record.metadata.into_iter().collect(),
                ..Changes::default()
            };
            changes.listing =
                record.listing.map(|(at, text)| NewListing { at, bytes: text.len(), text: Arc::new(move || text.clone()) });
            changes.askers = self.askers(&key).unwrap_or_default();
            if into.record(&key, &changes).is_ok() {
                repositories.insert(key);
            }
        }
        repositories.len()
    }

    fn askers(&self, key: &str) -> Result<BTreeMap<String, Timestamp>, StoreError> {
        let sql = "SELECT a.tenant, a.at FROM askers a JOIN repositories r ON r.id = a.repository WHERE r.key = ?1";
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([key])?;
        let mut askers = BTreeMap::new();
        while let Some(row) = rows.next()? {
            askers.insert(row.get(0)?, time(row.get(1)?).unwrap_or_default());
        }
        Ok(askers)
    }
}
