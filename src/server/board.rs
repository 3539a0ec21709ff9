//! What is pinned where, and why: the last pins of each application, for the admin port's `/api/v1/pins`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::generate::Generated;
use crate::pin::{Pin, Report};

/// Applications that are remembered; those that were met first go first.
const MAX_APPLICATIONS: usize = 20_000;

/// The last render of an application.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    application: String,
    tool: &'static str,
    rendered: Timestamp,
    pins: Vec<Report>,
}

/// All applications, by name.
#[derive(Debug, Default)]
pub struct Board(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// Each as the JSON that is shown: a fleet's take a fraction of the room so.
    by_name: BTreeMap<String, Box<str>>,
    /// Names, in the order in which they were met.
    order: VecDeque<String>,
}

impl Board {
    /// Remembers a render.
    pub fn set(&self, application: &str, generated: &Generated) {
        let pins = generated.pins.iter().map(Pin::report).collect();
        let entry = Entry { application: application.to_owned(), tool: generated.tool, rendered: Timestamp::now(), pins };
        // Nothing in it fails to be JSON.
        let Ok(entry) = serde_json::to_string(&entry) else { return };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.by_name.insert(application.to_owned(), entry.into()).is_none() {
            entries.order.push_back(application.to_owned());
        }
        while entries.by_name.len() > MAX_APPLICATIONS {
            let Some(oldest) = entries.order.pop_front() else { break };
            entries.by_name.remove(&oldest);
        }
    }

    /// All of it as JSON: an array of applications with their pins.
    pub fn json(&self) -> String {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        format!("[{}]", entries.by_name.values().map(|entry| &**entry).collect::<Vec<_>>().join(","))
    }
}

/// Is this `Authorization` header the token? Compared as digests, so that the time tells nothing.
pub fn is_token(header: Option<&str>, token: Option<&str>) -> bool {
    match (header.and_then(|header| header.strip_prefix("Bearer ")), token) {
        (Some(given), Some(token)) if !token.is_empty() => Sha256::digest(given) == Sha256::digest(token),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated() -> Generated {
        Generated { manifests: String::new(), pins: Vec::new(), tool: "helm", notes: Vec::new(), is_recalled: false }
    }

    #[test]
    fn the_number_of_applications_is_bounded() {
        let board = Board::default();
        for number in 0..=MAX_APPLICATIONS {
            board.set(&format!("app-{number}"), &generated());
        }
        let json = board.json();
        assert!(!json.contains("\"app-0\"") && json.contains(&format!("\"app-{MAX_APPLICATIONS}\"")));
    }

    #[test]
    fn only_the_token_opens() {
        assert!(is_token(Some("Bearer s3cret"), Some("s3cret")));
        for (header, token) in
            [(None, Some("s3cret")), (Some("Bearer x"), Some("s3cret")), (Some("Bearer "), Some("")), (Some("Bearer x"), None)]
        {
            assert!(!is_token(header, token));
        }
    }
}
