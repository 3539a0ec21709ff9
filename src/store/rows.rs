//! Rows, with a checksum each over key and content: one that the disk or a defect has changed is never believed.

use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use sha2::{Digest as _, Sha256};

use super::StoreError;
use super::changes::{Changes, NewListing, PinRow, StoredChoice};

/// Bytes that a row takes beside its texts, roughly.
const ROW: i64 = 40;

/// Writes rows within one transaction.
pub(super) struct Importer<'t> {
    transaction: &'t Transaction<'t>,
    now: i64,
}

impl<'t> Importer<'t> {
    pub fn new(transaction: &'t Transaction<'t>, now: Timestamp) -> Self {
        Self { transaction, now: now.as_microsecond() }
    }

    pub fn record(&mut self, key: &str, changes: &Changes) -> Result<(), StoreError> {
        write_record(self.transaction, key, changes, self.now)
    }

    pub fn pin(&mut self, pin: &PinRow) -> Result<(), StoreError> {
        write_pin(self.transaction, pin, self.now)
    }
}

impl Importer<'_> {
    /// Forgets choices whose repository has a newer listing.
    pub fn forget_outdated_pins(&mut self) -> Result<(), StoreError> {
        let sql = "DELETE FROM pins WHERE EXISTS (
                     SELECT 1 FROM repositories r WHERE substr(pins.key, 1, length(r.key) + 1) = r.key || ' '
                     AND r.listing IS NOT NULL AND r.listed_at > pins.at)";
        self.transaction.execute(sql, [])?;
        Ok(())
    }
}

/// Writes a choice. A newer one that is there stays, unless it lies in the future.
pub(super) fn write_pin(transaction: &Transaction, pin: &PinRow, now: i64) -> Result<(), StoreError> {
    let PinRow { key, tenant, stored } = pin;
    let at = stored.at.as_microsecond();
    let sum = checksum(&[key, tenant, &at.to_string(), &stored.choice]);
    let sql = "INSERT INTO pins (key, tenant, at, choice, sum) VALUES (?1, ?2, ?3, ?4, ?5)
               ON CONFLICT (key, tenant) DO UPDATE SET at = excluded.at, choice = excluded.choice, sum = excluded.sum
               WHERE (excluded.at >= pins.at AND excluded.at <= ?6) OR pins.at > ?6";
    transaction.prepare_cached(sql)?.execute(params![key, tenant, at, stored.choice, sum, now])?;
    Ok(())
}

/// Writes what was learned about a repository. What is there and newer stays, unless it lies in the future.
pub(super) fn write_record(transaction: &Transaction, key: &str, changes: &Changes, now: i64) -> Result<(), StoreError> {
    transaction.prepare_cached("INSERT INTO repositories (key) VALUES (?1) ON CONFLICT DO NOTHING")?.execute([key])?;
    let find = "SELECT id, sum FROM repositories WHERE key = ?1";
    let (id, stored_sum): (i64, i64) =
        transaction.prepare_cached(find)?.query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut has_changed = !changes.tags.is_empty() || !changes.metadata.is_empty();
    if let Some(NewListing { at, text, .. }) = &changes.listing {
        let (at, text) = (at.as_microsecond(), text());
        let sum = checksum(&[key, &text]);
        let newer = "id = ?1 AND (listed_at IS NULL OR (listed_at <= ?2 AND ?2 <= ?3) OR listed_at > ?3)";
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
             WHERE (excluded.at >= tags.at AND excluded.at <= ?6) OR tags.at > ?6",
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

pub(super) fn time(microseconds: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(microseconds).ok()
}

/// Ties the time of a listing to its text, which keeps its checksum when it is read again.
fn listed_sum(key: &str, at: i64, sum: i64) -> i64 {
    checksum(&[key, &at.to_string(), &sum.to_string()])
}

pub(super) fn listing_row(key: &str, row: &Row) -> Result<(Timestamp, String), StoreError> {
    let (at, text, sum, own): (i64, String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    match time(at) {
        Some(read) if checksum(&[key, &text]) == sum && listed_sum(key, at, sum) == own => Ok((read, text)),
        _ => Err(StoreError::Damaged),
    }
}

pub(super) fn pin_row(row: &Row) -> Result<PinRow, StoreError> {
    let (key, tenant): (String, String) = (row.get(0)?, row.get(1)?);
    let (at, choice, sum): (i64, String, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
    match time(at) {
        Some(read) if checksum(&[&key, &tenant, &at.to_string(), &choice]) == sum => {
            Ok(PinRow { key, tenant, stored: StoredChoice { at: read, choice } })
        }
        _ => Err(StoreError::Damaged),
    }
}

pub(super) fn tag_row(key: &str, row: &Row) -> Result<(String, Timestamp, Option<String>), StoreError> {
    let (tag, at, digest, sum): (String, i64, Option<String>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    match time(at) {
        Some(read) if checksum(&[key, &tag, &at.to_string(), digest.as_deref().unwrap_or_default()]) == sum => {
            Ok((tag, read, digest))
        }
        _ => Err(StoreError::Damaged),
    }
}

pub(super) fn metadata_row(key: &str, row: &Row) -> Result<(String, String), StoreError> {
    let (digest, content, sum): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    if checksum(&[key, &digest, &content]) == sum { Ok((digest, content)) } else { Err(StoreError::Damaged) }
}
