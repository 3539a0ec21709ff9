//! The placeholders of a set of texts: the inputs of a tool, or the documents of rendered manifests.

use std::collections::BTreeMap;

use super::{Placeholder, Scan};

/// A text of a set, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputId(pub usize);

/// A placeholder of a set of texts: its text, and its number in that text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceholderId {
    pub input: InputId,
    pub index: usize,
}

/// Texts after substitution. A text that did not change is absent.
pub type Substituted = BTreeMap<InputId, String>;

/// One scan for each text of a set; none for a text without placeholders.
#[derive(Debug, Default)]
pub struct Scans<'t>(Vec<Option<Scan<'t>>>);

impl<'t> FromIterator<Option<Scan<'t>>> for Scans<'t> {
    fn from_iter<T: IntoIterator<Item = Option<Scan<'t>>>>(scans: T) -> Self {
        Self(scans.into_iter().collect())
    }
}

impl<'t> Scans<'t> {
    /// Adds the scan of the next text.
    pub fn push(&mut self, scan: Option<Scan<'t>>) {
        self.0.push(scan);
    }

    /// The scan of a text. None also for a text that was not scanned.
    pub fn get(&self, input: InputId) -> Option<&Scan<'t>> {
        self.0.get(input.0)?.as_ref()
    }

    /// Has no text a placeholder?
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// The scans of texts with placeholders.
    pub fn iter(&self) -> impl Iterator<Item = (InputId, &Scan<'t>)> {
        self.0.iter().enumerate().filter_map(|(number, scan)| Some((InputId(number), scan.as_ref()?)))
    }

    /// All placeholders, in the order of texts and places.
    pub fn placeholders(&self) -> impl Iterator<Item = (PlaceholderId, &Placeholder)> {
        self.iter().flat_map(|(input, scan)| scan.placeholders_of(input))
    }

    /// The texts with placeholders replaced by their values. A placeholder without a value stays as it is.
    pub fn substitute(&self, value: impl Fn(PlaceholderId, &Placeholder) -> Option<String>) -> Substituted {
        let mut substituted = Substituted::new();
        for (input, scan) in self.iter() {
            let values: Vec<Option<String>> =
                scan.placeholders_of(input).map(|(id, placeholder)| value(id, placeholder)).collect();
            if values.iter().any(Option::is_some) {
                substituted.insert(input, scan.substitute(&values));
            }
        }
        substituted
    }
}

impl Scan<'_> {
    /// The placeholders of this text with their ids, if it is the text `input` of a set.
    pub fn placeholders_of(&self, input: InputId) -> impl Iterator<Item = (PlaceholderId, &Placeholder)> {
        self.placeholders.iter().enumerate().map(move |(index, placeholder)| (PlaceholderId { input, index }, placeholder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_texts_with_a_value_are_substituted() {
        let texts = ["a: $(pin ~1)\n", "b: 2\n", "c: [$(pin ~3), $(pin ~4)]\n"];
        let scans: Scans<'_> = texts.iter().map(|text| Scan::of(text).expect("YAML")).collect();
        let ids: Vec<(usize, usize)> = scans.placeholders().map(|(id, _)| (id.input.0, id.index)).collect();
        assert_eq!(ids, [(0, 0), (2, 0), (2, 1)]);
        assert!(scans.get(InputId(1)).is_none() && scans.get(InputId(9)).is_none() && !scans.is_empty());
        let last = PlaceholderId { input: InputId(2), index: 1 };
        let substituted = scans.substitute(|id, _| (id == last).then(|| "4.1".to_owned()));
        assert_eq!(substituted, BTreeMap::from([(InputId(2), "c: [$(pin ~3), \"4.1\"]\n".to_owned())]));
    }
}
