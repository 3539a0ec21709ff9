//! Which pins reached the manifests, and what to say of those that did not.

use super::session::{Asked, Asker, RenderSession};
use crate::failure::{Failure, Failures};
use crate::image::{Repository, printable};
use crate::manifest;
use crate::manifest::sightings::{Sighting, Sought};
use crate::pin::{Choice, Pin, Usage};
use crate::rules::RuleTarget;

impl RenderSession<'_> {
    /// The pins, each looked for in the manifests, and what a person should know of them.
    ///
    /// # Errors
    ///
    /// A pin that the parameter `pins` holds, while the image runs with another tag.
    pub(super) fn finish(self, manifests: &str) -> Result<(Vec<Pin>, Vec<String>), Failures> {
        let sought: Vec<Sought<'_>> = self.asked.iter().map(|asked| sought(&asked.pin)).collect();
        let sightings = manifest::sightings::sightings(manifests, &sought);
        let mut notes = self.precedence();
        let (mut pins, mut failures) = (Vec::new(), Vec::new());
        for (asked, sighting) in self.asked.iter().zip(&sightings) {
            let is_placed = asked.by.iter().any(|asker| matches!(asker, Asker::Rendered { .. }));
            // As a part of a word: `web-1.2`, `v1.2`, `f-1.2.tgz`.
            let is_part = || {
                sighting.other_tags.is_empty()
                    && !self.is_for_images_alone(asked)
                    && manifests.contains(asked.pin.choice.pinned.tag.as_str())
            };
            let usage = if is_placed || self.is_found(asked, sighting) || is_part() { Usage::Used } else { Usage::Unused };
            let Pin { repository, choice: Choice { pinned, .. }, .. } = &asked.pin;
            if usage == Usage::Unused
                && !sighting.other_tags.is_empty()
                && self.overrides.is_told(repository, asked.aliases(self.rules()))
            {
                let hint = "another setting replaces its tag, such as `images` of a kustomization or a parameter: hold it there";
                failures.push(Failure::text("parameter `pins`", self.unused(asked, sighting), Some(hint.to_owned())));
            } else if usage == Usage::Unused && self.is_settled(asked) {
                // Told by the order of precedence.
            } else if usage == Usage::Unused {
                notes.push(self.unused(asked, sighting));
            } else if self.is_elsewhere(asked, sighting) {
                let others = sighting.others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let todo = match &asked.by[0] {
                    Asker::Rule(index) => {
                        format!("does rule `{}` name the image that its target has?", self.rules()[*index].alias)
                    }
                    asker if asker.is_guess() => "name the image in the placeholder".to_owned(),
                    _ => "does the placeholder name the image that it stands behind?".to_owned(),
                };
                let tag = &pinned.tag;
                notes.push(format!(
                    "tag `{tag}` was chosen for `{repository}` but stands beside `{others}` in the manifests: {todo}"
                ));
            } else if let Some(digest) = pinned.digest.as_ref().filter(|_| !is_placed && !sighting.has_digest) {
                notes.push(format!("`{repository}:{}` is in the manifests without its digest `{digest}`", pinned.tag));
            }
            pins.push(Pin { usage, ..asked.pin.clone() });
        }
        if failures.is_empty() { Ok((pins, notes)) } else { Err(Failures(failures)) }
    }

    /// Did a pin reach the manifests?
    fn is_found(&self, asked: &Asked, sighting: &Sighting) -> bool {
        if self.is_for_images_alone(asked) {
            return sighting.is_beside_own;
        }
        let is_rule = |asker: &Asker| matches!(asker, Asker::Rule(_));
        sighting.is_found(asked.by.iter().any(|asker| is_rule(asker) || asker.is_guess()))
    }

    /// Did rules without a target ask alone? Only images of that name are rewritten.
    fn is_for_images_alone(&self, asked: &Asked) -> bool {
        asked.by.iter().all(|asker| matches!(asker, Asker::Rule(index) if self.rules()[*index].target == RuleTarget::Manifests))
    }

    /// Is a pin that of a rule for images which placeholders have settled?
    fn is_settled(&self, asked: &Asked) -> bool {
        let is_placeholder = |asker: &Asker| !matches!(asker, Asker::Rule(_));
        self.is_for_images_alone(asked)
            && self.asked.iter().any(|other| other.pin.repository == asked.pin.repository && other.by.iter().any(is_placeholder))
    }

    /// Does a pin's tag stand behind other images alone? One of the same name in another registry is probably a mirror of it.
    fn is_elsewhere(&self, asked: &Asked, sighting: &Sighting) -> bool {
        let own = &asked.pin.repository;
        let last = |repository: &Repository| repository.path().rsplit('/').next().map(str::to_owned);
        let is_mirror = || sighting.others.iter().any(|other| other.registry() != own.registry() && last(other) == last(own));
        let is_elsewhere = !sighting.is_beside_own && !sighting.others.is_empty();
        is_elsewhere && (asked.by.iter().any(Asker::is_guess) || !(sighting.is_alone || is_mirror()))
    }

    /// Says where a pin that is nowhere in the manifests should have gone.
    fn unused(&self, asked: &Asked, sighting: &Sighting) -> String {
        let Pin { repository, choice: Choice { pinned, .. }, .. } = &asked.pin;
        let other_tags: Vec<String> = sighting.other_tags.iter().take(3).map(|tag| format!("`{tag}`")).collect();
        let instead =
            if other_tags.is_empty() { String::new() } else { format!(", which have the image with {}", other_tags.join(", ")) };
        let nowhere = format!("`{repository}:{pinned}` is nowhere in the rendered manifests{instead}");
        match &asked.by[0] {
            Asker::Input { place, source, .. } => format!("{place}: `{}`: the pin {nowhere}", printable(source)),
            Asker::Rendered { place, .. } => format!("{place}: the pin {nowhere}"),
            Asker::Rule(index) => {
                let rule = &self.rules()[*index];
                let why = match &rule.target {
                    RuleTarget::Manifests if other_tags.is_empty() => "no image of that name is there".to_owned(),
                    RuleTarget::Manifests => {
                        "no image that Pinion looks at has that name; `--image-paths` names further places".to_owned()
                    }
                    RuleTarget::Kustomize(name) => format!("no image `{}` is there", printable(name)),
                    RuleTarget::Helm(target) => {
                        let paths = [&target.name, &target.tag, &target.spec].into_iter().flatten();
                        let paths: Vec<String> = paths.map(|path| format!("`{}`", printable(path))).collect();
                        format!("does the chart use {}?", paths.join(" and "))
                    }
                };
                format!("rule `{}`: the pin {nowhere}: {why}", rule.alias)
            }
        }
    }

    /// Where a placeholder goes before a rule without target for the same image.
    fn precedence(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for asked in &self.asked {
            let rule = asked.by.iter().find_map(|asker| match asker {
                Asker::Rule(index) => Some(&self.rules()[*index]).filter(|rule| rule.target == RuleTarget::Manifests),
                _ => None,
            });
            let Some(rule) = rule else { continue };
            let others = self.asked.iter().filter(|other| {
                other.pin.repository == asked.pin.repository && other.pin.choice.pinned != asked.pin.choice.pinned
            });
            for other in others {
                let place = other.by.iter().find_map(|asker| match asker {
                    Asker::Input { place, .. } | Asker::Rendered { place, .. } => Some(place),
                    Asker::Rule(_) => None,
                });
                let Some(place) = place else { continue };
                notes.push(format!(
                    "rule `{}` gives `{}` the tag `{}`, but not where a placeholder stands: {place} gives `{}`",
                    rule.alias, asked.pin.repository, asked.pin.choice.pinned, other.pin.choice.pinned
                ));
            }
        }
        notes
    }
}

fn sought(pin: &Pin) -> Sought<'_> {
    Sought { repository: &pin.repository, tag: &pin.choice.pinned.tag, digest: pin.choice.pinned.digest.as_ref() }
}
