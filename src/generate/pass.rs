//! One pass over a set of texts: find placeholders, tell what each asks. Done for the tool's inputs, and again for the rendered text.

use std::collections::BTreeSet;

use super::lookups::{Answers, Images, LookupRequest, Requester, lookups_of, overridden};
use super::text::{RENDERED, Text, template};
use crate::failure::Failure;
use crate::image::Repository;
use crate::manifest;
use crate::pin::{Choice, Pin};
use crate::placeholder::image::beside_each;
use crate::placeholder::scans::{Scans, Substituted};
use crate::placeholder::{Form, MAX_PLACEHOLDERS, Scan};
use crate::render::{Inputs, RenderError};
use crate::rules::Rules;

/// Texts, their placeholders, and what those ask.
pub(super) struct Pass<'t> {
    scans: Scans<'t>,
    pub lookups: Vec<LookupRequest>,
    /// Every mistake in them.
    pub failures: Vec<Failure>,
    /// Images of placeholders that another setting overrides, with their places.
    pub overridden: Vec<(Repository, String)>,
}

impl<'t> Pass<'t> {
    /// Scans what a tool reads. `images` tells the images that the tool will put beside placeholders. Without rules, because they cannot
    /// be read, nothing is known of aliases.
    pub(super) fn over_inputs(
        inputs: &'t Inputs,
        rules: Option<&Rules>,
        images: impl FnOnce(&Scans<'t>) -> Result<Images, RenderError>,
    ) -> Self {
        let text = |input: &'t crate::render::Input| Text {
            text: &input.text,
            name: &input.name,
            above: 0,
            template: String::new(),
            is_raw: input.is_raw(),
            has_places: input.is_file(),
        };
        Self::over(&inputs.iter().map(|(_, input)| text(input)).collect::<Vec<_>>(), rules, images)
    }

    /// Scans the documents of rendered text.
    pub(super) fn over_rendered(rendered: &'t str, documents: &[manifest::Document], rules: Option<&Rules>) -> Self {
        let text = |document: &manifest::Document| {
            let text = &rendered[document.range.clone()];
            Text { text, name: RENDERED, above: document.above, template: template(text), is_raw: false, has_places: true }
        };
        let images = |scans: &Scans<'_>| Ok(Images { beside: beside_each(scans), ..Images::default() });
        Self::over(&documents.iter().map(text).collect::<Vec<_>>(), rules, images)
    }

    fn over(texts: &[Text<'t>], rules: Option<&Rules>, images: impl FnOnce(&Scans<'t>) -> Result<Images, RenderError>) -> Self {
        let mut failures = Vec::new();
        let mut scans = Scans::default();
        let mut count = 0;
        for text in texts {
            let scan = if text.is_raw { Ok(Scan::raw(text.text)) } else { Scan::of(text.text) };
            let scan = scan.unwrap_or_else(|error| {
                failures.push(text.failure(&error));
                None
            });
            if let Some(scan) = &scan {
                count += scan.placeholders.len();
                failures.extend(scan.errors.iter().map(|error| text.failure(error)));
            }
            scans.push(scan);
            if count > MAX_PLACEHOLDERS {
                failures.push(Failure::text("", format!("more than {MAX_PLACEHOLDERS} placeholders"), None));
                return Self { scans, lookups: Vec::new(), failures, overridden: Vec::new() };
            }
        }
        let (lookups, overridden) = match images(&scans) {
            Ok(images) => {
                let (lookups, misunderstood) = lookups_of(rules, texts, &scans, &images);
                failures.extend(misunderstood);
                (lookups, overridden(texts, &scans, &images))
            }
            Err(error) => {
                // A file that is no YAML has a failure already if it holds a placeholder.
                if failures.is_empty() {
                    failures.push(Failure::new("", &error, error.hint()));
                }
                (Vec::new(), Vec::new())
            }
        };
        Self { scans, lookups, failures, overridden }
    }

    /// The placeholders that are mistakes, as messages show them.
    pub(super) fn misunderstood(&self) -> BTreeSet<String> {
        self.scans.iter().flat_map(|(_, scan)| &scan.errors).map(|error| error.source_text.clone()).collect()
    }

    /// The texts with pins in the place of placeholders. A placeholder without a pin becomes `other`, or stays.
    pub(super) fn substitute(&self, answers: &Answers, other: Option<&str>) -> Substituted {
        self.scans.substitute(|id, placeholder| {
            let Some(Pin { choice: Choice { pinned, .. }, .. }) = answers.get(&Requester::Placeholder(id)) else {
                return other.map(str::to_owned);
            };
            Some(match (placeholder.form, &pinned.digest) {
                (Form::Digest, Some(digest)) => digest.to_string(),
                _ => pinned.to_string(),
            })
        })
    }
}
