//! The last look at rendered manifests: nothing unresolved leaves.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;

use super::text::{RENDERED, placeholder_failure, template};
use crate::failure::{Failure, Failures};
use crate::image::{Reference, printable};
use crate::manifest::{self, Document, ImagePath};
use crate::pin::Pin;
use crate::placeholder::near_miss::near_miss;
use crate::placeholder::{Scan, unescape};
use crate::yaml::{self, Kind, Tree};

/// P1: nothing unresolved leaves. No placeholder is left, also not in base64, and no image is one that was meant to be resolved.
///
/// `further` are places of images by the operator's word.
pub(super) fn verify(rendered: &str, pins: &[&Pin], further: &[ImagePath]) -> Result<(), Failures> {
    let mut failures = Vec::new();
    let tags: BTreeSet<&str> = pins.iter().map(|pin| pin.choice.pinned.tag.as_str()).collect();
    let pinned: BTreeSet<String> = pins.iter().map(|pin| pin.choice.pinned.to_string()).collect();
    for Document { range, above } in manifest::documents(rendered) {
        let document = &rendered[range];
        let first = failures.len();
        failures.extend(hidden(document, above));
        failures.extend(illegal_images(document, above, &tags, &pinned, further));
        match Scan::of(document) {
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
        let template = template(document);
        failures[first..].iter_mut().for_each(|failure| failure.place.push_str(&template));
    }
    if failures.is_empty() { Ok(()) } else { Err(Failures(failures)) }
}

/// Images that no container runtime can pull: with a `$(` or `${` that was meant as a placeholder, around a tag that was chosen, or that
/// tag without a repository, which is an image of Docker Hub's library. In custom resources another program may read an image first
/// (Tekton's `$(params.image)`), so only a near miss counts there.
fn illegal_images(
    document: &str,
    above: usize,
    tags: &BTreeSet<&str>,
    pinned: &BTreeSet<String>,
    further: &[ImagePath],
) -> Vec<Failure> {
    let is_odd = |line: &str| line.contains("mage") && (line.contains('$') || line.contains("{{"));
    let may_be_wrong = !further.is_empty() || is_open(document) || document.lines().any(is_odd);
    if !may_be_wrong && !has_wrong_image_with(document, tags) {
        return Vec::new();
    }
    // What is no YAML holds no image; Kubernetes will refuse it.
    let Ok(images) = manifest::images(document, further) else { return Vec::new() };
    let mut failures = BTreeMap::new();
    let mut tell = |at: usize, text: &str, what: &str, hint: String| {
        let (line, column) = yaml::position(document, at);
        let place = format!("{RENDERED}:{}:{column}", line + above);
        failures.insert(at, Failure::text(place, format!("`{}` {what}", printable(text)), Some(hint)));
    };
    for image in &images {
        let text = image.text.as_str();
        let is_legal = text.parse::<Reference>().is_ok();
        if is_legal && pinned.contains(text) && text.contains(|c: char| c.is_ascii_digit()) {
            let hint =
                "a placeholder gives a tag alone: write the image before it, as in `ghcr.io/acme/web:$(pin ~2)`".to_owned();
            tell(image.span.start, text, "is a tag, not an image", hint);
        } else if is_legal && image.is_padded && image.is_in_pod && parts(text).any(|part| tags.contains(part)) {
            let hint = "mend the template or manifest: Kubernetes refuses it".to_owned();
            tell(image.span.start, text, "has white space around it", hint);
        } else if !is_legal && image.is_in_pod && near_miss(text).is_none() {
            let hint = if text.contains('$') || text.contains("{{") {
                "a placeholder is `$(pin …)`, as in `$(pin ~2)`; other variables must be gone before Kubernetes reads the image"
            } else if parts(text).any(|part| tags.contains(part)) {
                "a chosen tag stands in it: look how the chart or manifest puts repository and tag together"
            } else {
                continue;
            };
            tell(image.span.start, text, "is not an image reference", hint.to_owned());
        }
    }
    let in_images = images.iter().map(|image| (image.span.start, image.text.clone()));
    let all: BTreeMap<usize, String> = in_images.chain(manifest::values_of_image_keys(document)).collect();
    for (at, text) in all {
        if let Some(near) = near_miss(&text) {
            tell(at, text.trim(), "is not an image reference", format!("did you mean `{}`?", near.meant));
        }
    }
    failures.into_values().collect()
}

fn is_open(text: &str) -> bool {
    text.contains("$(") || text.contains("${")
}

/// Does a value of a key `image` hold one of these tags and is no image, or that tag alone? Looks at the text alone: most documents need
/// not be parsed.
fn has_wrong_image_with(document: &str, tags: &BTreeSet<&str>) -> bool {
    const KEY: &str = "image";
    let values = document.match_indices(KEY).filter_map(|(at, _)| {
        let value = document[at + KEY.len()..].trim_start_matches(['"', '\'', ' ']).strip_prefix(':')?.trim_start_matches(' ');
        Some(match value.chars().next()? {
            open @ ('"' | '\'') => value[1..].split(open).next()?,
            // Its text is on the next lines.
            '|' | '>' => value.split('\n').nth(1)?,
            _ => value.split([' ', ',', '}', '\r', '\n']).next()?,
        })
    });
    let is_wrong = |value: &str| {
        let word = value.split('@').next().unwrap_or_default();
        tags.contains(word) || value.parse::<Reference>().is_err()
    };
    !tags.is_empty() && values.filter(|value| parts(value).any(|part| tags.contains(part))).any(is_wrong)
}

/// The parts of an image's text that may be a tag.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
}

/// Placeholders in base64, as Secrets hold it. Too late to resolve them: what was encoded may have been hashed as well.
fn hidden(document: &str, above: usize) -> Vec<Failure> {
    /// `$(pin ` and `$(pin)` in base64 at their three alignments, without the characters that depend on what stands around it.
    const ENCODED: [&str; 5] = ["JChwaW4g", "JChwaW4p", "QocGluI", "QocGluK", "kKHBpbi"];
    let mut failures = wrapped(document, above);
    if !failures.is_empty() {
        return failures;
    }
    for (line, text) in document.lines().enumerate().filter(|(_, text)| ENCODED.iter().any(|form| text.contains(form))) {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')));
        let decoded = words.filter_map(|word| base64::engine::general_purpose::STANDARD.decode(word).ok());
        if decoded.into_iter().any(|bytes| is_hidden(&bytes)) {
            failures.push(hidden_at(line + above + 1));
        }
    }
    failures
}

/// Those in the scalars of a Secret or of `binaryData`, which tools wrap.
fn wrapped(document: &str, above: usize) -> Vec<Failure> {
    if !(document.contains("Secret") || document.contains("binaryData")) {
        return Vec::new();
    }
    let Ok(tree) = Tree::parse(document) else { return Vec::new() };
    let hidden = tree.nodes().filter(|(_, node)| match &node.kind {
        Kind::Scalar { value, .. } if value.len() > 8 => {
            let word: String = value.split_ascii_whitespace().collect();
            base64::engine::general_purpose::STANDARD.decode(word).is_ok_and(|bytes| is_hidden(&bytes))
        }
        _ => false,
    });
    hidden.map(|(_, node)| hidden_at(node.line + above)).collect()
}

fn is_hidden(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).replace("$$(pin", "");
    text.contains("$(pin ") || text.contains("$(pin)")
}

fn hidden_at(line: usize) -> Failure {
    let hint = "write it where it is read as data before it is encoded, such as `values.yaml`; a literal one is `$$(pin `";
    Failure::text(format!("{RENDERED}:{line}"), "a placeholder is hidden in base64", Some(hint.to_owned()))
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
