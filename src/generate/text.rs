//! A text in which placeholders are looked for, and how messages name a place in it.

use crate::failure::{Failure, chain};
use crate::image::printable;
use crate::placeholder::PlaceholderError;

/// A text with what messages say of it.
pub(super) struct Text<'t> {
    pub text: &'t str,
    pub name: &'t str,
    /// Lines above the text, in which its own lines are counted.
    pub above: usize,
    /// The template of a rendered document, as ` (from web/templates/x.yaml)`.
    pub template: String,
    /// Is it one string, not YAML?
    pub is_raw: bool,
    /// Do lines and columns tell where something is? In a parameter they would be counted where nobody looks.
    pub has_places: bool,
}

impl Text<'_> {
    /// A line and column of the text, for messages.
    pub(super) fn place(&self, line: usize, column: usize) -> String {
        match self.has_places {
            true => format!("{}:{}:{column}{}", self.name, line + self.above, self.template),
            false => self.name.to_owned(),
        }
    }

    pub(super) fn failure(&self, error: &PlaceholderError) -> Failure {
        Failure { place: self.place(error.line, error.column), ..placeholder_failure(self.name, self.above, error) }
    }
}

/// What messages call the rendered text.
pub(super) const RENDERED: &str = "rendered manifests";

/// What follows a place in a rendered document: the template that it comes from, if Helm says so.
pub(super) fn template(document: &str) -> String {
    let source = document.lines().take(3).find_map(|line| line.strip_prefix("# Source: "));
    source.map_or_else(String::new, |path| format!(" (from {})", printable(path)))
}

/// A faulty placeholder. `above` counts the lines above the text in which its own line counts.
pub(crate) fn placeholder_failure(name: &str, above: usize, error: &PlaceholderError) -> Failure {
    let message = format!("`{}`: {}", error.source_text, chain(&error.mistake));
    Failure::text(format!("{name}:{}:{}", error.line + above, error.column), message, error.hint())
}
