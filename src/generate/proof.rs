//! The last look at rendered manifests: nothing unresolved leaves, and something leaves.

use base64::Engine as _;

use super::answers::RENDERED;
use super::asks::placeholder_failure;
use crate::failure::{Failure, Failures};
use crate::image::printable;
use crate::manifest::{self, Document};
use crate::placeholder::{Scan, unescape};

/// P1: nothing unresolved leaves.
pub(super) fn prove(rendered: &str) -> Result<(), Failures> {
    let mut failures = hidden(rendered);
    for Document { range, above } in manifest::documents(rendered) {
        match Scan::of(&rendered[range]) {
            Ok(None) => {}
            Ok(Some(scan)) => {
                failures.extend(scan.errors.iter().map(|error| placeholder_failure(RENDERED, above, error)));
                failures.extend(scan.placeholders.iter().map(|placeholder| {
                    let place = format!("{RENDERED}:{}:{}", placeholder.line + above, placeholder.column);
                    Failure::text(place, format!("`{}` is not resolved", printable(&placeholder.source)), None)
                }));
            }
            Err(error) => failures.push(placeholder_failure(RENDERED, above, &error)),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failures(failures)) }
}

/// Placeholders in base64, as Secrets hold it. Too late to resolve them: what was encoded may have been hashed as well.
fn hidden(rendered: &str) -> Vec<Failure> {
    /// `$(pin ` in base64 at its three alignments, without the characters that depend on what stands around it.
    const ENCODED: [&str; 3] = ["JChwaW4g", "QocGluI", "kKHBpbi"];
    let mut failures = Vec::new();
    for (line, text) in rendered.lines().enumerate().filter(|(_, text)| ENCODED.iter().any(|form| text.contains(form))) {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')));
        let decoded = words.filter_map(|word| base64::engine::general_purpose::STANDARD.decode(word).ok());
        if decoded.map(|bytes| String::from_utf8_lossy(&bytes).replace("$$(pin", "")).any(|text| text.contains("$(pin ")) {
            let hint =
                "write it where it is read as data before it is encoded, such as `values.yaml`; a literal one is `$$(pin `";
            let place = format!("{RENDERED}:{}", line + 1);
            failures.push(Failure::text(place, "a placeholder is hidden in base64", Some(hint.to_owned())));
        }
    }
    failures
}

pub(super) fn unescape_all(rendered: String) -> String {
    if !rendered.contains("$$(pin") {
        return rendered;
    }
    manifest::documents(&rendered).into_iter().map(|document| unescape(rendered[document.range].to_owned())).collect()
}

/// Does a text hold nothing but comments, separators and white space?
pub(super) fn is_empty(rendered: &str) -> bool {
    rendered.lines().all(|line| {
        let line = line.trim();
        line.is_empty()
            || line.starts_with('#')
            || line.starts_with("---") && line["---".len()..].trim().is_empty()
            || line == "..."
    })
}
