//! Which names an entry of the parameter `pins` may have: the aliases and images that an application asks for.

use std::collections::{BTreeMap, BTreeSet};

use super::lookups::LookupRequest;
use crate::failure::Failure;
use crate::image::{Repository, printable, split_tag};
use crate::manifest;
use crate::pin::{PinOverrides, Pinned};

const PINS: &str = "parameter `pins`";

/// Names in a message, at most.
const MAX_LISTED: usize = 20;

/// What an application asks for.
#[derive(Debug, Default)]
pub(super) struct Known {
    aliases: BTreeSet<String>,
    images: BTreeSet<Repository>,
    /// Images of placeholders that another setting overrides, with their places.
    overridden: BTreeMap<Repository, String>,
}

impl Known {
    pub(super) fn add(&mut self, ask: &LookupRequest) {
        self.images.insert(ask.question.repository.clone());
        self.aliases.extend(ask.alias.iter().cloned());
    }

    pub(super) fn add_overridden(&mut self, overridden: impl IntoIterator<Item = (Repository, String)>) {
        self.overridden.extend(overridden);
    }

    /// Entries that hold nothing: their name is unknown, or contradicts another. `manifests` is the rendered text, if there is one.
    pub(super) fn check(&self, given: &PinOverrides, manifests: &str) -> Vec<Failure> {
        let unknown = given.names().filter(|(name, _)| !self.has(name)).map(|(name, _)| {
            let message = format!("`{}` is no alias and no image that the application asks for", printable(name));
            Failure::text(PINS, message, Some(self.hint(name, manifests)))
        });
        unknown.chain(self.contradictions(given)).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.aliases.contains(name) || name.parse().is_ok_and(|image: Repository| self.images.contains(&image))
    }

    /// Two spellings of one image with different pins.
    fn contradictions(&self, given: &PinOverrides) -> Vec<Failure> {
        let mut by_image: BTreeMap<Repository, (&str, &Pinned)> = BTreeMap::new();
        let mut failures = Vec::new();
        for (name, pinned) in given.names().filter(|(name, _)| !self.aliases.contains(*name)) {
            let Ok(image) = name.parse::<Repository>() else { continue };
            let (first, other) = *by_image.entry(image).or_insert((name, pinned));
            if other != pinned {
                let message = format!("`{}` and `{}` are one image, with two pins", printable(first), printable(name));
                failures.push(Failure::text(PINS, message, Some("keep one of them".to_owned())));
            }
        }
        failures
    }

    /// What to write in place of an unknown name.
    fn hint(&self, name: &str, manifests: &str) -> String {
        if let Some(place) = name.parse().ok().and_then(|image: Repository| self.overridden.get(&image)) {
            return format!(
                "another setting overrides its placeholder at {place}, such as `images` of a kustomization or a parameter: hold it there"
            );
        }
        let known: Vec<&str> = self.aliases.iter().map(String::as_str).chain(self.images.iter().map(Repository::text)).collect();
        let listed = listed(&known);
        if let Some(meant) = known.iter().find(|known| is_near(name, known)) {
            return format!("did you mean `{}`? {listed}", printable(meant));
        }
        if name.parse::<Repository>().is_ok_and(|image| manifest::mentions(manifests, &image)) {
            let name = printable(name);
            return format!(
                "the image is in the manifests, but nothing asks for it: add `{name}` to the parameter `images`; {listed}"
            );
        }
        listed
    }
}

fn listed(known: &[&str]) -> String {
    if known.is_empty() {
        return "the application asks for no image: it has neither placeholders nor rules".to_owned();
    }
    let names: Vec<String> = known.iter().take(MAX_LISTED).map(|name| format!("`{}`", printable(name))).collect();
    let more = known.len().saturating_sub(MAX_LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("it asks for {}{more}", names.join(", "))
}

/// Is one name the last part of the other, or the same in another case, or with a tag?
fn is_near(name: &str, known: &str) -> bool {
    let plain = |text: &str| split_tag(text.split('@').next().unwrap_or_default()).0.to_ascii_lowercase();
    let (name, known) = (plain(name), plain(known));
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    name == known || last(&name) == last(&known)
}
