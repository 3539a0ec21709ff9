//! The JSON files that the store was before: a directory `v1` with a file for each repository and each pin.
//!
//! They are taken over once, in one transaction, and the directory is then renamed to `v1.taken-over`.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::StoreError;
use super::changes::{Changes, NewListing, PinRow, StoredChoice};
use super::database::Database;
use super::rows::Importer;

/// The directory of the JSON files, below the store's.
pub(super) const DIRECTORY: &str = "v1";

/// The fact that says that they were taken over.
const FACT: &str = "json-taken-over";

/// Longest file that is read, in bytes, as the JSON store had it.
const MAX_FILE: u64 = 128 << 20;

#[derive(Deserialize)]
struct Known {
    key: String,
    listing: Option<Dated<Value>>,
    #[serde(default)]
    tags: Map<String, Value>,
    #[serde(default)]
    manifests: Map<String, Value>,
    #[serde(default)]
    configs: Map<String, Value>,
}

#[derive(Deserialize)]
struct Dated<T> {
    at: Timestamp,
    value: T,
}

#[derive(Deserialize)]
struct Pin {
    key: String,
    pin: String,
    created: Option<Timestamp>,
    at: Timestamp,
    considered: Option<Value>,
}

/// Takes the JSON files of this directory over, if there are any and they were not yet.
///
/// # Errors
///
/// When the store cannot be written; the files are left as they are then. A file that cannot be read is left out.
pub(super) fn take_over(dir: &Path, database: &mut Database, now: Timestamp) -> Result<(), StoreError> {
    let old = dir.join(DIRECTORY);
    if !old.is_dir() {
        return Ok(());
    }
    let (mut repositories, mut pins, mut unread) = (0, 0, 0);
    let is_new = database.import(FACT, now, |importer| {
        for path in files(&old.join("repositories")) {
            match read::<Known>(&path) {
                Some(known) => {
                    record(importer, known)?;
                    repositories += 1;
                }
                None => unread += 1,
            }
        }
        for path in files(&old.join("pins")) {
            match read::<Pin>(&path) {
                Some(old) => {
                    importer.pin(&pin(old))?;
                    pins += 1;
                }
                None => unread += 1,
            }
        }
        Ok(())
    })?;
    let is_moved = fs::rename(&old, dir.join("v1.taken-over")).is_ok();
    if is_new {
        tracing::info!(store = %dir.display(), repositories, pins, unread, is_moved, "the JSON files of the store before were taken over");
    }
    Ok(())
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|end| end == "json") && path.is_file()).collect()
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn record(importer: &mut Importer, known: Known) -> Result<(), StoreError> {
    let mut changes = Changes::default();
    if let Some(Dated { at, value }) = known.listing {
        let text = value.to_string();
        changes.listing = Some(NewListing { at, bytes: text.len(), text: Arc::new(move || text.clone()) });
        changes.askers.insert(String::new(), at);
    }
    for (tag, value) in known.tags {
        if let Ok(Dated { at, value }) = serde_json::from_value::<Dated<String>>(value) {
            changes.tags.insert(tag, (at, Some(value)));
        }
    }
    for (kind, metadata) in [("manifest", known.manifests), ("config", known.configs)] {
        for (digest, value) in metadata {
            let content = Value::Object(Map::from_iter([(kind.to_owned(), value)]));
            changes.metadata.insert(digest, content.to_string());
        }
    }
    importer.record(&known.key, &changes)
}

fn pin(old: Pin) -> PinRow {
    let (tag, digest) = old.pin.split_once('@').map_or((old.pin.as_str(), None), |(tag, digest)| (tag, Some(digest)));
    let text = |text: &str| Value::String(text.to_owned());
    let mut choice = Map::from_iter([("tag".to_owned(), text(tag)), ("listed".to_owned(), text(&old.at.to_string()))]);
    choice.extend(digest.map(|digest| ("digest".to_owned(), text(digest))));
    choice.extend(old.created.map(|created| ("created".to_owned(), text(&created.to_string()))));
    choice.extend(old.considered.map(|considered| ("considered".to_owned(), considered)));
    let stored = StoredChoice { at: old.at, choice: Value::Object(choice).to_string() };
    PinRow { key: old.key, tenant: String::new(), stored }
}
