//! The last look at rendered manifests: nothing unresolved leaves.

use std::collections::BTreeSet;

use base64::Engine as _;

use super::answers::RENDERED;
use super::asks::placeholder_failure;
use crate::failure::{Failure, Failures};
use crate::image::{Reference, printable};
use crate::manifest::{self, Document};
use crate::pin::Pin;
use crate::placeholder::near_miss::near_miss;
use crate::placeholder::{Scan, unescape};
use crate::yaml;

/// P1: nothing unresolved leaves. No placeholder is left, also not in base64, and no image is one that was meant to be resolved.
pub(super) fn verify(rendered: &str, pins: &[&Pin]) -> Result<(), Failures> {
    let mut failures = hidden(rendered);
    let tags: BTreeSet<&str> = pins.iter().map(|pin| pin.pinned.tag.as_str()).collect();
    for Document { range, above } in manifest::documents(rendered) {
        failures.extend(illegal_images(&rendered[range.clone()], above, &tags));
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

/// Images that no container runtime can pull: with a `$(` or `${` that was meant as a placeholder, or around a tag that was chosen. In
/// custom resources another program may read such an image first (Tekton's `$(params.image)`), so only a near miss counts there.
fn illegal_images(document: &str, above: usize, tags: &BTreeSet<&str>) -> Vec<Failure> {
    if !is_open(document) && !has_illegal_image_with(document, tags) {
        return Vec::new();
    }
    // What is no YAML holds no image; Kubernetes will refuse it.
    let Ok(images) = manifest::images(document, &[]) else { return Vec::new() };
    let mut failures = Vec::new();
    for image in images.iter().filter(|image| image.text.parse::<Reference>().is_err()) {
        let hint = match near_miss(&image.text) {
            Some(near) => format!("did you mean `{}`?", near.meant),
            None if !image.is_in_pod => continue,
            None if is_open(&image.text) => {
                "a placeholder is `$(pin …)`, as in `$(pin ~2)`; other variables must be gone before Kubernetes reads the image"
                    .to_owned()
            }
            None if parts(&image.text).any(|part| tags.contains(part)) => {
                "a chosen tag stands in it: look how the chart or manifest puts repository and tag together".to_owned()
            }
            None => continue,
        };
        let (line, column) = yaml::position(document, image.span.start);
        let place = format!("{RENDERED}:{}:{column}", line + above);
        failures.push(Failure::text(place, format!("`{}` is not an image reference", printable(&image.text)), Some(hint)));
    }
    failures
}

fn is_open(text: &str) -> bool {
    text.contains("$(") || text.contains("${")
}

/// Does a value of a key `image` hold one of these tags and is no image? Looks at the text alone: most documents need not be parsed.
fn has_illegal_image_with(document: &str, tags: &BTreeSet<&str>) -> bool {
    const KEY: &str = "image";
    let values = document.match_indices(KEY).filter_map(|(at, _)| {
        let value = document[at + KEY.len()..].trim_start_matches(['"', '\'', ' ']).strip_prefix(':')?;
        let value = value.trim_start_matches(['"', '\'', ' ']);
        value.split(['"', '\'', ' ', ',', '}', '\r', '\n']).next()
    });
    !tags.is_empty()
        && values.filter(|value| parts(value).any(|part| tags.contains(part))).any(|value| value.parse::<Reference>().is_err())
}

/// The parts of an image's text that may be a tag.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
}

/// Placeholders in base64, as Secrets hold it. Too late to resolve them: what was encoded may have been hashed as well.
fn hidden(rendered: &str) -> Vec<Failure> {
    /// `$(pin ` and `$(pin)` in base64 at their three alignments, without the characters that depend on what stands around it.
    const ENCODED: [&str; 5] = ["JChwaW4g", "JChwaW4p", "QocGluI", "QocGluK", "kKHBpbi"];
    let mut failures = Vec::new();
    for (line, text) in rendered.lines().enumerate().filter(|(_, text)| ENCODED.iter().any(|form| text.contains(form))) {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')));
        let decoded = words.filter_map(|word| base64::engine::general_purpose::STANDARD.decode(word).ok());
        if decoded
            .map(|bytes| String::from_utf8_lossy(&bytes).replace("$$(pin", ""))
            .any(|text| text.contains("$(pin ") || text.contains("$(pin)"))
        {
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
