//! What is pinned where, and why: the last pins of each application, for the admin port's `/api/v1/pins`.

use std::collections::BTreeMap;

use prometheus_client::metrics::gauge::Gauge;
use sha2::{Digest, Sha256};

use crate::events::{Asked, Listener};
use crate::shares::SharedCache;

/// All applications, by name: each as the JSON that is shown. Bounded in bytes, which AppProjects share fairly.
#[derive(Debug)]
pub struct PinReport {
    entries: SharedCache<String, Box<str>>,
}

impl PinReport {
    /// An empty one of so many bytes.
    pub fn new(most_bytes: u64) -> Self {
        Self { entries: SharedCache::new(most_bytes) }
    }

    /// Bytes of all of it.
    pub fn gauge(&self) -> &Gauge {
        self.entries.gauge()
    }

    /// All of it as JSON: an array of applications with their pins, by name.
    pub fn json(&self) -> String {
        let mut entries = BTreeMap::new();
        self.entries.each(|application, entry| drop(entries.insert(application.clone(), entry.clone())));
        format!("[{}]", entries.values().map(|entry| &**entry).collect::<Vec<_>>().join(","))
    }
}

impl Listener for PinReport {
    /// Replaces what the application asked before.
    fn asked(&self, event: &Asked) {
        // Nothing in it fails to be JSON.
        let Ok(entry) = serde_json::to_string(event) else { return };
        let Asked { application, project, at, .. } = event;
        let bytes = (entry.len() + 3 * application.len()) as u64;
        self.entries.insert(application.clone(), project, *at, entry.into(), bytes);
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

    fn asked(application: &str, project: &str) -> Asked {
        let (application, project) = (application.to_owned(), project.to_owned());
        Asked { application, project, tool: "helm", at: jiff::Timestamp::now(), pins: Vec::new() }
    }

    #[test]
    fn the_bytes_of_all_applications_are_bounded_and_shared() {
        let report = PinReport::new(100_000);
        report.asked(&asked("honest", "other"));
        for number in 0..1000 {
            report.asked(&asked(&format!("app-{number}"), "greedy"));
            assert!(report.gauge().get() <= 100_000);
        }
        let json = report.json();
        assert!(!json.contains("\"app-0\"") && json.contains("\"app-999\"") && json.contains("\"honest\""));
        let first = json.find("app-99").expect("there");
        assert!(first < json.find("\"honest\"").expect("there"), "by name");
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
