//! The texts that a tool reads, in which placeholders are looked for before it runs.

use std::ops::Index;
use std::path::PathBuf;

use crate::placeholder::scans::{InputId, Substituted};

/// A text that the tool reads.
#[derive(Clone, Debug)]
pub struct Input {
    /// For messages: a path, or a parameter.
    pub name: String,
    pub text: String,
    pub(crate) source: Source,
}

impl Input {
    /// Is the text one string, not YAML?
    pub fn is_raw(&self) -> bool {
        matches!(self.source, Source::Parameter | Source::Text(_))
    }

    /// Has it lines that a user can look up?
    pub fn is_file(&self) -> bool {
        self.source != Source::Parameter
    }
}

/// Where a text comes from, which decides where its substituted copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file that the tool finds without being told, so that its whole directory is copied when the file changes.
    InPlace(PathBuf),
    /// Such a file which the tool reads as one text, whatever it holds.
    Text(PathBuf),
    /// A file whose path is an argument of the tool, or a text without a file.
    Named,
    /// The value of one `--set`.
    Parameter,
}

/// All texts that a tool reads.
#[derive(Clone, Debug, Default)]
pub struct Inputs(Vec<Input>);

impl Inputs {
    /// Adds a text.
    pub(super) fn add(&mut self, name: impl Into<String>, text: impl Into<String>, source: Source) -> InputId {
        self.0.push(Input { name: name.into(), text: text.into(), source });
        InputId(self.0.len() - 1)
    }

    /// The text that has a source.
    pub(super) fn with_source(&self, source: &Source) -> Option<InputId> {
        self.iter().find(|(_, input)| input.source == *source).map(|(id, _)| id)
    }

    /// All texts in order.
    pub fn iter(&self) -> impl Iterator<Item = (InputId, &Input)> {
        self.0.iter().enumerate().map(|(number, input)| (InputId(number), input))
    }

    /// Each text as the tool shall read it: substituted, or as it is.
    pub(super) fn with<'t>(&'t self, changed: &'t Substituted) -> impl Iterator<Item = &'t str> {
        self.iter().map(|(id, input)| changed.get(&id).unwrap_or(&input.text).as_str())
    }
}

impl Index<InputId> for Inputs {
    type Output = Input;

    fn index(&self, id: InputId) -> &Input {
        &self.0[id.0]
    }
}

impl Extend<Input> for Inputs {
    fn extend<T: IntoIterator<Item = Input>>(&mut self, inputs: T) {
        self.0.extend(inputs);
    }
}
