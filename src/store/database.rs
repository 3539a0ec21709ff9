//! The store's file: opening it, its schema, reading and writing it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use fail::fail_point;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use rustix::fs::statfs;

use super::StoreError;
use super::changes::{Changes, PinRow, StoredChoice, StoredRecord};
use super::rows::{Importer, listing_row, metadata_row, pin_row, tag_row, write_pin, write_record};

/// Marks the file as one of Pinion's (`PRAGMA application_id`): "pini".
const APPLICATION: i64 = 0x7069_6e69;

/// Each brings the schema from its place in this list to the next version (`PRAGMA user_version`).
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE repositories (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        listed_at INTEGER,
        listing TEXT,
        sum INTEGER NOT NULL DEFAULT 0,
        listed_sum INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE tags (
        repository INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
        tag TEXT NOT NULL,
        at INTEGER NOT NULL,
        digest TEXT,
        sum INTEGER NOT NULL,
        PRIMARY KEY (repository, tag)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE metadata (
        repository INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        content TEXT NOT NULL,
        sum INTEGER NOT NULL,
        PRIMARY KEY (repository, digest)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE askers (
        repository INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
        tenant TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (repository, tenant)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE pins (
        key TEXT NOT NULL,
        tenant TEXT NOT NULL,
        at INTEGER NOT NULL,
        choice TEXT NOT NULL,
        sum INTEGER NOT NULL,
        PRIMARY KEY (key, tenant)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"];

/// The current version of the schema.
#[allow(clippy::cast_possible_wrap, reason = "there are few migrations")]
const VERSION: i64 = MIGRATIONS.len() as i64;

/// The fact that holds the version a second time.
const SCHEMA: &str = "schema";

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Longest wait of a write for other processes.
pub(super) const WRITE_WAIT: Duration = Duration::from_secs(1);

/// Longest wait of a read for a process that locks the file exclusively. Write-ahead logging lets nobody else block a reader.
pub(super) const READ_WAIT: Duration = Duration::from_millis(200);

/// Network file systems (`statfs`'s `f_type`), on which neither locks nor shared memory work as SQLite needs them.
const NETWORK_FILE_SYSTEMS: [(u64, &str); 9] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x5346_414f, "AFS"),
];

/// A connection to the store's file.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) connection: Connection,
    path: PathBuf,
    /// Which file it is: another one may have taken its place.
    file: (u64, u64),
    /// Which its log and the log's index are, when they were first looked at.
    log: Option<[Option<(u64, u64)>; 2]>,
    /// The copy of a file that cannot be opened where it is, removed with this.
    _copy: Option<tempfile::TempDir>,
}

impl Database {
    /// Opens the store for writing, makes it if it is not there, and brings it to the current version.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open(path: &Path, most_bytes: u64) -> Result<Self, StoreError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        refuse_network(dir)?;
        let mut is_new = false;
        // SQLite gives its other files the mode of this one.
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => is_new = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        let file = identity(path)?.ok_or(StoreError::NoFile)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // Before the journal's mode, or two processes that make the file together get in each other's way.
        connection.busy_timeout(WRITE_WAIT)?;
        if is_new {
            // While it is made there is nothing that must reach the disk.
            connection.execute_batch("PRAGMA synchronous = off")?;
        }
        let mode: String = connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::NoLog);
        }
        connection.execute_batch(
            "PRAGMA foreign_keys = on; PRAGMA temp_store = memory; PRAGMA trusted_schema = off;
             PRAGMA cell_size_check = on; PRAGMA journal_size_limit = 4194304;",
        )?;
        let pages = i64::try_from(most_bytes / PAGE).unwrap_or(i64::MAX).max(64);
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        let mut database = Self { connection, path: path.to_owned(), file, log: None, _copy: None };
        database.migrate()?;
        database.connection.execute_batch("PRAGMA synchronous = normal")?;
        Ok(database)
    }

    /// Opens the store for reading. [`None`] if there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open_to_read(path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(file) = identity(path)? else { return Ok(None) };
        refuse_network(path.parent().unwrap_or(Path::new(".")))?;
        let opened = |connection, copy| Ok(Some(Self { connection, path: path.to_owned(), file, log: None, _copy: copy }));
        match open_to_read(path, "") {
            Ok(connection) => opened(connection, None),
            // Made a moment ago by another process, which has not written anything yet.
            Err(StoreError::NoFile) => Ok(None),
            // Readers share an index of the log in a file. On a read-only or full file system there is none: a copy elsewhere has one, and
            // a reader that is alone needs none.
            Err(error) if error.cannot_write() => match copied(path) {
                Ok((connection, copy)) => opened(connection, Some(copy)),
                Err(_) => opened(open_to_read(path, "PRAGMA locking_mode = exclusive;").map_err(|_| error)?, None),
            },
            Err(error) => Err(error),
        }
    }

    /// Opens a copy, which nobody writes.
    pub fn open_copy(path: &Path) -> Result<Self, StoreError> {
        if identity(path)?.is_none() {
            return Err(StoreError::NoFile);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(READ_WAIT)?;
        Ok(Self { connection, path: path.to_owned(), file: (0, 0), log: None, _copy: None })
    }

    /// How many choices there are.
    pub fn count_pins(&self) -> Result<i64, StoreError> {
        Ok(self.connection.query_row("SELECT count(*) FROM pins", [], |row| row.get(0))?)
    }

    /// Opens a file that may be damaged, to read what can be read.
    pub fn open_damaged(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        Ok(Self { connection, path: path.to_owned(), file: (0, 0), log: None, _copy: None })
    }

    /// Whether the file at the path and its log are still those that were opened.
    pub fn is_current(&mut self) -> bool {
        let is_emptied = fs::metadata(&self.path).is_ok_and(|data| data.len() == 0);
        let log = ["-wal", "-shm"].map(|end| identity(&beside(&self.path, end)).ok().flatten());
        let is_same_log = self._copy.is_some() || *self.log.get_or_insert(log) == log;
        !is_emptied && is_same_log && identity(&self.path).is_ok_and(|file| file == Some(self.file))
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > VERSION {
            return Err(newer(&transaction, version));
        }
        if version < VERSION {
            for migration in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(0)) {
                fail_point!("store::before_migration", |_| std::process::abort());
                transaction.execute_batch(migration)?;
                fail_point!("store::after_migration", |_| std::process::abort());
            }
            transaction.execute_batch(&format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"))?;
            let sql = "INSERT INTO facts (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
            transaction.execute(sql, params![SCHEMA, VERSION.to_string()])?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// What is stored under a repository's key. Rows whose checksum is wrong are left out.
    pub fn record(&self, key: &str) -> Result<Option<StoredRecord>, StoreError> {
        // One moment for all three tables.
        let reading = self.connection.unchecked_transaction()?;
        let mut statement = reading.prepare_cached("SELECT id FROM repositories WHERE key = ?1")?;
        let Some(id) = statement.query_row([key], |row| row.get::<_, i64>(0)).optional()? else { return Ok(None) };
        let mut record = StoredRecord::default();
        let mut damaged = 0;
        let sql = "SELECT listed_at, listing, sum, listed_sum FROM repositories WHERE id = ?1 AND listing IS NOT NULL";
        let mut statement = reading.prepare_cached(sql)?;
        let mut rows = statement.query([id])?;
        if let Some(row) = rows.next()? {
            match listing_row(key, row) {
                Ok(listing) => record.listing = Some(listing),
                Err(_) => damaged += 1,
            }
        }
        let mut statement = reading.prepare_cached("SELECT tag, at, digest, sum FROM tags WHERE repository = ?1")?;
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            match tag_row(key, row) {
                Ok(tag) => record.tags.push(tag),
                Err(_) => damaged += 1,
            }
        }
        let mut statement = reading.prepare_cached("SELECT digest, content, sum FROM metadata WHERE repository = ?1")?;
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            match metadata_row(key, row) {
                Ok(metadata) => record.metadata.push(metadata),
                Err(_) => damaged += 1,
            }
        }
        if damaged > 0 {
            tracing::warn!(store = %self.path.display(), repository = key, damaged, "damaged rows of the store are not used");
        }
        Ok(Some(record))
    }

    /// The newest choice for a question, whichever tenant asked it.
    ///
    /// # Errors
    ///
    /// Also when a row's checksum is wrong: [`StoreError::Damaged`].
    pub fn pin(&self, key: &str) -> Result<Option<StoredChoice>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT key, tenant, at, choice, sum FROM pins WHERE key = ?1")?;
        let mut rows = statement.query([key])?;
        let mut newest: Option<StoredChoice> = None;
        while let Some(row) = rows.next()? {
            let pin = pin_row(row)?;
            if newest.as_ref().is_none_or(|newest| newest.at < pin.stored.at) {
                newest = Some(pin.stored);
            }
        }
        Ok(newest)
    }

    /// All choices. Rows whose checksum is wrong are errors.
    pub fn pins(&self) -> Result<Vec<PinRow>, StoreError> {
        let mut pins = Vec::new();
        self.each_pin("SELECT key, tenant, at, choice, sum FROM pins ORDER BY at", |pin| {
            pins.push(pin?);
            Ok(())
        })?;
        Ok(pins)
    }

    pub(super) fn each_pin(
        &self,
        sql: &str,
        mut see: impl FnMut(Result<PinRow, StoreError>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            see(pin_row(row))?;
        }
        Ok(())
    }

    /// Looks for damage in the whole file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] when there is some.
    pub fn check(&self) -> Result<(), StoreError> {
        let told: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if told != "ok" {
            return Err(StoreError::Damaged);
        }
        self.each_pin("SELECT key, tenant, at, choice, sum FROM pins", |pin| pin.map(drop))
    }

    /// Stores choices in one transaction. A newer one that is there stays, unless it lies in the future.
    pub fn write_pins(&mut self, pins: &[PinRow], now: Timestamp) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        pins.iter().try_for_each(|pin| write_pin(&transaction, pin, now.as_microsecond()))?;
        fail_point!("store::before_commit", |_| std::process::abort());
        transaction.commit()?;
        fail_point!("store::after_commit", |_| std::process::abort());
        Ok(())
    }

    /// Stores what was learned about a repository in one transaction. What is there and newer stays, unless it lies in the future.
    pub fn write_record(&mut self, key: &str, changes: &Changes, now: Timestamp) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        write_record(&transaction, key, changes, now.as_microsecond())?;
        fail_point!("store::before_commit_of_a_record", |_| std::process::abort());
        transaction.commit()?;
        Ok(())
    }

    /// Runs work in one transaction with everything that [`Importer`] can write, unless the fact is there already.
    ///
    /// Returns whether the work was done.
    pub fn import(
        &mut self,
        fact: &str,
        now: Timestamp,
        work: impl FnOnce(&mut Importer) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "INSERT INTO facts (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        if transaction.execute(sql, params![fact, now.to_string()])? == 0 {
            return Ok(false);
        }
        work(&mut Importer::new(&transaction, now))?;
        fail_point!("store::before_import", |_| std::process::abort());
        transaction.commit()?;
        Ok(true)
    }

    /// Bytes of the file that are in use.
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        let pages: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let free: i64 = self.connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
        Ok(u64::try_from(pages - free).unwrap_or(0) * PAGE)
    }

    /// Writes a copy to a file that is not there yet.
    pub fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        let path = path.to_str().ok_or(StoreError::NoFile)?;
        self.connection.execute_batch("PRAGMA query_only = off")?;
        self.connection.execute("VACUUM INTO ?1", [path])?;
        Ok(())
    }
}

fn open_to_read(path: &Path, pragma: &str) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(READ_WAIT)?;
    connection.execute_batch(pragma)?;
    connection.execute_batch("PRAGMA query_only = on; PRAGMA trusted_schema = off; PRAGMA cell_size_check = on;")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
        return Err(if tables == 0 { StoreError::NoFile } else { StoreError::Damaged });
    }
    // One of a newer version is read as far as it is the same.
    match newer(&connection, version) {
        StoreError::Damaged if version > VERSION => Err(StoreError::Damaged),
        _ => Ok(connection),
    }
}

/// Tells a store that a newer Pinion wrote from one whose version is damaged: it is written in two places.
fn newer(connection: &Connection, version: i64) -> StoreError {
    let sql = "SELECT value FROM facts WHERE name = ?1";
    let told: rusqlite::Result<String> = connection.query_row(sql, [SCHEMA], |row| row.get(0));
    if told.is_ok_and(|told| told == version.to_string()) { StoreError::Newer(version) } else { StoreError::Damaged }
}

/// Held by what keeps the file open to write it. A process that reads the file other than through SQLite loses SQLite's locks on it
/// ([How To Corrupt An SQLite Database File], §2.2).
///
/// [How To Corrupt An SQLite Database File]: https://www.sqlite.org/howtocorrupt.html
pub(super) fn exclusive() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

static WRITING: Mutex<()> = Mutex::new(());

/// Opens a copy of the file and of its log.
fn copied(path: &Path) -> Result<(Connection, tempfile::TempDir), StoreError> {
    // Not waited for: the thread that writes may be the one that asks.
    let _exclusive = match WRITING.try_lock() {
        Ok(exclusive) => exclusive,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Err(io::Error::from(io::ErrorKind::WouldBlock).into()),
    };
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("pinion.db");
    for end in ["", "-wal"] {
        match fs::read(beside(path, end)) {
            Ok(bytes) => fs::write(beside(&copy, end), bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((open_to_read(&copy, "")?, dir))
}

/// Device and number of a regular file. [`None`] if there is nothing.
fn identity(path: &Path) -> Result<Option<(u64, u64)>, StoreError> {
    match fs::symlink_metadata(path) {
        // Opening a pipe, for example, would wait for ever.
        Ok(data) if !data.is_file() => Err(StoreError::NoFile),
        Ok(data) => Ok(Some((data.dev(), data.ino()))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The path with more at its end, as SQLite names its other files.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn refuse_network(dir: &Path) -> Result<(), StoreError> {
    let Ok(found) = statfs(dir) else { return Ok(()) };
    // The type is signed on some processors and 32 bits long.
    #[allow(clippy::cast_sign_loss, reason = "only its bits are compared")]
    let kind = found.f_type as u64 & 0xffff_ffff;
    network_file_system(kind).map_or(Ok(()), |name| Err(StoreError::Network(name)))
}

/// The name of a network file system, by what `statfs` says of it.
pub(super) fn network_file_system(kind: u64) -> Option<&'static str> {
    NETWORK_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

impl StoreError {
    /// Whether the file is damaged, and not merely in use or out of reach.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged => true,
            Self::Sqlite(error) => match error.sqlite_error_code() {
                // The statements are constants: what SQLite does not understand is the schema.
                Some(code) => matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown),
                // A value that is not of its column's type.
                None => {
                    matches!(
                        error,
                        rusqlite::Error::InvalidColumnType(..)
                            | rusqlite::Error::FromSqlConversionFailure(..)
                            | rusqlite::Error::Utf8Error(..)
                            | rusqlite::Error::IntegralValueOutOfRange(..)
                    ) || matches!(error, rusqlite::Error::SqlInputError { msg, .. } if msg.contains("no such"))
                }
            },
            _ => false,
        }
    }

    /// Whether something could not be written where the file is.
    fn cannot_write(&self) -> bool {
        let code = match self {
            Self::Sqlite(error) => error.sqlite_error_code(),
            _ => None,
        };
        use ErrorCode::{CannotOpen, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure};
        matches!(code, Some(ReadOnly | CannotOpen | PermissionDenied | SystemIoFailure | DiskFull))
    }

    /// Whether another process holds a lock.
    pub(super) fn is_busy(&self) -> bool {
        let code = match self {
            Self::Sqlite(error) => error.sqlite_error_code(),
            _ => None,
        };
        matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Whether trying again is of no use.
    pub(super) fn is_permanent(&self) -> bool {
        matches!(self, Self::Network(_) | Self::NoLog | Self::Newer(_))
    }

    /// Whether there is no room: on the disk, or below the bound.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }
}
