//! What is pinned where, and why: the last pins of each application, for the admin port's `/api/v1/pins`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::clock::Clock;
use crate::generate::Generated;
use crate::pin::{Pin, Report};
use crate::shares::SharedCache;

/// The last render of an application.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    application: String,
    tool: &'static str,
    rendered: Timestamp,
    pins: Vec<Report>,
}

/// All applications, by name: each as the JSON that is shown. Bounded in bytes, which AppProjects share fairly.
#[derive(Debug)]
pub struct PinReport {
    entries: SharedCache<String, Box<str>>,
    clock: Clock,
}

impl PinReport {
    /// An empty one of so many bytes.
    pub fn new(most_bytes: u64, clock: Clock) -> Self {
        Self { entries: SharedCache::new(most_bytes), clock }
    }

    /// Remembers a render.
    pub fn set(&self, application: &str, project: &str, generated: &Generated) {
        let pins = generated.pins.iter().map(Pin::report).collect();
        let now = self.clock.now();
        let entry = Entry { application: application.to_owned(), tool: generated.tool, rendered: now, pins };
        // Nothing in it fails to be JSON.
        let Ok(entry) = serde_json::to_string(&entry) else { return };
        let bytes = (entry.len() + 3 * application.len()) as u64;
        self.entries.insert(application.to_owned(), project, now, entry.into(), bytes);
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
        Generated { manifests: String::new(), pins: Vec::new(), tool: "helm", notes: Vec::new(), is_cached: false }
    }

    #[test]
    fn the_bytes_of_all_applications_are_bounded_and_shared() {
        let report = PinReport::new(100_000, Clock::default());
        report.set("honest", "other", &generated());
        for number in 0..1000 {
            report.set(&format!("app-{number}"), "greedy", &generated());
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
