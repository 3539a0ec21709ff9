//! The tables of the store, and reading and writing them.
//!
//! Every row has a checksum over its key and its content, so that a row which the disk or a defect has changed is never believed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fail::fail_point;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use rustix::fs::statfs;
use sha2::{Digest as _, Sha256};

use super::StoreError;
use crate::shares::Shares;

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

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Bytes that a row takes beside its texts, roughly.
const ROW: i64 = 40;

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

/// What is stored of one repository by one credential. Texts are as they were put in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredRecord {
    /// The last complete listing, and when it was read.
    pub listing: Option<(Timestamp, String)>,
    /// By tag: when it was asked, and the digest; [`None`] if the registry said that the tag does not exist.
    pub tags: Vec<(String, Timestamp, Option<String>)>,
    /// By digest: manifests and configurations.
    pub metadata: Vec<(String, String)>,
}

/// The last choice for a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChoice {
    /// When the listing was read that it was made from.
    pub at: Timestamp,
    pub choice: String,
}

/// A choice to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRow {
    pub key: String,
    pub tenant: String,
    pub stored: StoredChoice,
}

/// What was learned about a repository and is not stored yet.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub listing: Option<NewListing>,
    /// As in [`StoredRecord::tags`].
    pub tags: BTreeMap<String, (Timestamp, Option<String>)>,
    pub metadata: BTreeMap<String, String>,
    /// Tags that are no longer listed.
    pub forgotten_tags: BTreeSet<String>,
    /// Digests that no tag leads to any more.
    pub forgotten_metadata: BTreeSet<String>,
    /// Tenants that asked, and when.
    pub askers: BTreeMap<String, Timestamp>,
}

/// A listing that was read.
#[derive(Clone)]
pub struct NewListing {
    pub at: Timestamp,
    /// Writes it out, on the writer's thread.
    pub text: Arc<dyn Fn() -> String + Send + Sync>,
    /// Bytes that it holds in memory until then.
    pub bytes: usize,
}

impl std::fmt::Debug for NewListing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewListing").field("at", &self.at).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Changes {
    /// Adds later changes.
    pub fn merge(&mut self, later: Self) {
        self.listing = later.listing.or(self.listing.take());
        for (tag, known) in later.tags {
            self.forgotten_tags.remove(&tag);
            self.tags.insert(tag, known);
        }
        for (digest, content) in later.metadata {
            self.forgotten_metadata.remove(&digest);
            self.metadata.insert(digest, content);
        }
        for tag in later.forgotten_tags {
            self.tags.remove(&tag);
            self.forgotten_tags.insert(tag);
        }
        for digest in later.forgotten_metadata {
            self.metadata.remove(&digest);
            self.forgotten_metadata.insert(digest);
        }
        self.askers.extend(later.askers);
    }

    /// Bytes in memory, roughly.
    pub fn bytes(&self) -> usize {
        const ENTRY: usize = 200;
        let listing = self.listing.as_ref().map_or(0, |listing| listing.bytes);
        let tags: usize = self.tags.keys().map(|tag| tag.len() + ENTRY).sum();
        let metadata: usize = self.metadata.values().map(|content| content.len() + ENTRY).sum();
        let forgotten = (self.forgotten_tags.len() + self.forgotten_metadata.len() + self.askers.len()) * ENTRY;
        listing + tags + metadata + forgotten
    }
}

/// A connection to the store's file.
#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    /// Which file it is: another one may have taken its place.
    file: (u64, u64),
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
        // SQLite gives its other files the mode of this one.
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        let file = identity(path)?.ok_or(StoreError::NoFile)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // Before the journal's mode, or two processes that make the file together get in each other's way.
        connection.busy_timeout(WRITE_WAIT)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::NoLog);
        }
        connection.execute_batch(
            "PRAGMA synchronous = normal; PRAGMA foreign_keys = on; PRAGMA temp_store = memory; PRAGMA trusted_schema = off;
             PRAGMA cell_size_check = on; PRAGMA journal_size_limit = 4194304;",
        )?;
        let pages = i64::try_from(most_bytes / PAGE).unwrap_or(i64::MAX).max(64);
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        let mut database = Self { connection, path: path.to_owned(), file, _copy: None };
        database.migrate()?;
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
        let opened = |connection, copy| Ok(Some(Self { connection, path: path.to_owned(), file, _copy: copy }));
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

    /// Opens a file that may be damaged, to read what can be read.
    pub fn open_damaged(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        Ok(Self { connection, path: path.to_owned(), file: (0, 0), _copy: None })
    }

    /// Whether the file at the path is still the one that was opened.
    pub fn is_current(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file == Some(self.file))
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > VERSION {
            return Err(StoreError::Newer(version));
        }
        if version < VERSION {
            for migration in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(0)) {
                fail_point!("store::before_migration", |_| std::process::abort());
                transaction.execute_batch(migration)?;
                fail_point!("store::after_migration", |_| std::process::abort());
            }
            transaction.execute_batch(&format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"))?;
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

    fn each_pin(
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
        {
            let mut statement = transaction.prepare_cached(
                "INSERT INTO pins (key, tenant, at, choice, sum) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (key, tenant) DO UPDATE SET at = excluded.at, choice = excluded.choice, sum = excluded.sum
                 WHERE excluded.at >= pins.at OR pins.at > ?6",
            )?;
            for PinRow { key, tenant, stored } in pins {
                let at = stored.at.as_microsecond();
                let sum = checksum(&[key, tenant, &at.to_string(), &stored.choice]);
                statement.execute(params![key, tenant, at, stored.choice, sum, now.as_microsecond()])?;
            }
        }
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
        work(&mut Importer { transaction: &transaction, now: now.as_microsecond() })?;
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

    /// Evicts rows until at most so many bytes are used. The tenant with the largest charge gives first, see [`Shares`]: the records of
    /// repositories are taken before pins, since a registry can give them again.
    pub fn evict(&mut self, most_bytes: u64) -> Result<(), StoreError> {
        let used = self.used_bytes()?;
        if used <= most_bytes {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut shares = Shares::default();
        {
            let mut weights: BTreeMap<i64, u64> = BTreeMap::new();
            let mut statement = transaction.prepare("SELECT r.id, a.tenant, a.at, r.bytes FROM repositories r LEFT JOIN askers a ON a.repository = r.id ORDER BY a.at")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let tenant: Option<String> = row.get(1)?;
                let at: Option<i64> = row.get(2)?;
                shares.hold(
                    &Stored::Repository(id),
                    tenant.as_deref().unwrap_or_default(),
                    at.and_then(time).unwrap_or_default(),
                );
                weights.insert(id, u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0));
            }
            weights.into_iter().for_each(|(id, bytes)| shares.weigh(&Stored::Repository(id), bytes));
            let repositories = shares.total();
            let mut statement = transaction
                .prepare("SELECT key, tenant, at, length(key) + length(tenant) + length(choice) FROM pins ORDER BY at")?;
            let mut rows = statement.query([])?;
            let mut pins = Shares::default();
            while let Some(row) = rows.next()? {
                let (key, tenant): (String, String) = (row.get(0)?, row.get(1)?);
                let pin = Stored::Pin(key, tenant.clone());
                pins.hold(&pin, &tenant, time(row.get(2)?).unwrap_or_default());
                pins.weigh(&pin, u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0));
            }
            // Rows are counted, pages are used: the one in proportion to the other. Records may take what pins leave of it.
            let all = repositories + pins.total();
            let most = u64::try_from(u128::from(all) * u128::from(most_bytes) / u128::from(used.max(1))).unwrap_or(u64::MAX);
            let evicted = pins.shrink(most / 2).into_iter().chain(shares.shrink(most.saturating_sub(pins.total())));
            let evicted: Vec<Stored> = evicted.collect();
            tracing::info!(
                rows = evicted.len(),
                used,
                most_bytes,
                "the store is full: what the largest tenants used longest ago is removed"
            );
            for row in evicted {
                match row {
                    Stored::Repository(id) => {
                        transaction.prepare_cached("DELETE FROM repositories WHERE id = ?1")?.execute([id])?;
                    }
                    Stored::Pin(key, tenant) => {
                        transaction.prepare_cached("DELETE FROM pins WHERE key = ?1 AND tenant = ?2")?.execute([key, tenant])?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Writes a copy to a file that is not there yet.
    pub fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        let path = path.to_str().ok_or(StoreError::NoFile)?;
        self.connection.execute_batch("PRAGMA query_only = off")?;
        self.connection.execute("VACUUM INTO ?1", [path])?;
        Ok(())
    }

    /// Reads what can be read of a damaged file, from both ends of each table, and hands on what has a right checksum.
    pub fn salvage(&self, into: &mut Importer) -> (usize, usize) {
        let (mut pins, mut repositories) = (BTreeSet::new(), BTreeSet::new());
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
        let mut keys = BTreeSet::new();
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
        (pins.len(), repositories.len())
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

fn open_to_read(path: &Path, pragma: &str) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(READ_WAIT)?;
    connection.execute_batch(pragma)?;
    connection.execute_batch("PRAGMA query_only = on; PRAGMA trusted_schema = off; PRAGMA cell_size_check = on;")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        0 => Err(StoreError::NoFile),
        _ if version > VERSION => Err(StoreError::Newer(version)),
        _ => Ok(connection),
    }
}

/// Opens a copy of the file and of its log.
fn copied(path: &Path) -> Result<(Connection, tempfile::TempDir), StoreError> {
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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stored {
    Repository(i64),
    Pin(String, String),
}

/// Writes rows within [`Database::import`].
pub(super) struct Importer<'t> {
    transaction: &'t Transaction<'t>,
    now: i64,
}

impl Importer<'_> {
    pub fn record(&mut self, key: &str, changes: &Changes) -> Result<(), StoreError> {
        write_record(self.transaction, key, changes, self.now)
    }

    pub fn pin(&mut self, pin: &PinRow) -> Result<(), StoreError> {
        let PinRow { key, tenant, stored } = pin;
        let at = stored.at.as_microsecond();
        let sum = checksum(&[key, tenant, &at.to_string(), &stored.choice]);
        let sql = "INSERT INTO pins (key, tenant, at, choice, sum) VALUES (?1, ?2, ?3, ?4, ?5)
                   ON CONFLICT (key, tenant) DO UPDATE SET at = excluded.at, choice = excluded.choice, sum = excluded.sum
                   WHERE excluded.at >= pins.at OR pins.at > ?6";
        self.transaction.prepare_cached(sql)?.execute(params![key, tenant, at, stored.choice, sum, self.now])?;
        Ok(())
    }
}

fn write_record(transaction: &Transaction, key: &str, changes: &Changes, now: i64) -> Result<(), StoreError> {
    transaction.prepare_cached("INSERT INTO repositories (key) VALUES (?1) ON CONFLICT DO NOTHING")?.execute([key])?;
    let find = "SELECT id, sum FROM repositories WHERE key = ?1";
    let (id, stored_sum): (i64, i64) =
        transaction.prepare_cached(find)?.query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut has_changed = !changes.tags.is_empty() || !changes.metadata.is_empty();
    if let Some(NewListing { at, text, .. }) = &changes.listing {
        let (at, text) = (at.as_microsecond(), text());
        let sum = checksum(&[key, &text]);
        let newer = "id = ?1 AND (listed_at IS NULL OR listed_at <= ?2 OR listed_at > ?3)";
        let listed_sum = listed_sum(key, at, sum);
        if sum == stored_sum {
            // The same tags again: their text is not written anew.
            let sql = format!("UPDATE repositories SET listed_at = ?2, listed_sum = ?4 WHERE {newer}");
            transaction.prepare_cached(&sql)?.execute([id, at, now, listed_sum])?;
        } else {
            let sql = format!("UPDATE repositories SET listed_at = ?2, listed_sum = ?4, listing = ?5, sum = ?6 WHERE {newer}");
            transaction.prepare_cached(&sql)?.execute(params![id, at, now, listed_sum, text, sum])?;
            has_changed = true;
        }
    }
    {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO tags (repository, tag, at, digest, sum) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (repository, tag) DO UPDATE SET at = excluded.at, digest = excluded.digest, sum = excluded.sum
             WHERE excluded.at >= tags.at OR tags.at > ?6",
        )?;
        for (tag, (at, digest)) in &changes.tags {
            let at = at.as_microsecond();
            let sum = checksum(&[key, tag, &at.to_string(), digest.as_deref().unwrap_or_default()]);
            statement.execute(params![id, tag, at, digest, sum, now])?;
        }
    }
    {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO metadata (repository, digest, content, sum) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (repository, digest) DO UPDATE SET content = excluded.content, sum = excluded.sum",
        )?;
        for (digest, content) in &changes.metadata {
            statement.execute(params![id, digest, content, checksum(&[key, digest, content])])?;
        }
    }
    for (forgotten, sql) in [
        (&changes.forgotten_tags, "DELETE FROM tags WHERE repository = ?1 AND tag = ?2"),
        (&changes.forgotten_metadata, "DELETE FROM metadata WHERE repository = ?1 AND digest = ?2"),
    ] {
        let mut statement = transaction.prepare_cached(sql)?;
        for name in forgotten {
            has_changed |= statement.execute(params![id, name])? > 0;
        }
    }
    for (tenant, at) in &changes.askers {
        let sql = "INSERT INTO askers (repository, tenant, at) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET at = excluded.at";
        transaction.prepare_cached(sql)?.execute(params![id, tenant, at.as_microsecond()])?;
    }
    if has_changed {
        let sql = format!(
            "UPDATE repositories SET bytes = length(key) + coalesce(length(listing), 0)
             + (SELECT coalesce(sum(length(tag) + coalesce(length(digest), 0) + {ROW}), 0) FROM tags WHERE repository = ?1)
             + (SELECT coalesce(sum(length(digest) + length(content) + {ROW}), 0) FROM metadata WHERE repository = ?1)
             WHERE id = ?1"
        );
        transaction.prepare_cached(&sql)?.execute([id])?;
    }
    Ok(())
}

/// The first eight bytes of a SHA-256 over the texts and their lengths.
fn checksum(texts: &[&str]) -> i64 {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    let digest = hasher.finalize();
    i64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

fn time(microseconds: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(microseconds).ok()
}

/// Ties the time of a listing to its text, which keeps its checksum when it is read again.
fn listed_sum(key: &str, at: i64, sum: i64) -> i64 {
    checksum(&[key, &at.to_string(), &sum.to_string()])
}

fn listing_row(key: &str, row: &Row) -> Result<(Timestamp, String), StoreError> {
    let (at, text, sum, own): (i64, String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    match time(at) {
        Some(read) if checksum(&[key, &text]) == sum && listed_sum(key, at, sum) == own => Ok((read, text)),
        _ => Err(StoreError::Damaged),
    }
}

fn pin_row(row: &Row) -> Result<PinRow, StoreError> {
    let (key, tenant): (String, String) = (row.get(0)?, row.get(1)?);
    let (at, choice, sum): (i64, String, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
    match time(at) {
        Some(read) if checksum(&[&key, &tenant, &at.to_string(), &choice]) == sum => {
            Ok(PinRow { key, tenant, stored: StoredChoice { at: read, choice } })
        }
        _ => Err(StoreError::Damaged),
    }
}

fn tag_row(key: &str, row: &Row) -> Result<(String, Timestamp, Option<String>), StoreError> {
    let (tag, at, digest, sum): (String, i64, Option<String>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    match time(at) {
        Some(read) if checksum(&[key, &tag, &at.to_string(), digest.as_deref().unwrap_or_default()]) == sum => {
            Ok((tag, read, digest))
        }
        _ => Err(StoreError::Damaged),
    }
}

fn metadata_row(key: &str, row: &Row) -> Result<(String, String), StoreError> {
    let (digest, content, sum): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    if checksum(&[key, &digest, &content]) == sum { Ok((digest, content)) } else { Err(StoreError::Damaged) }
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
                Some(code) => matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase),
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
