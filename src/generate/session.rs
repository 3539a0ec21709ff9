//! Questions answered while one application is rendered, and what becomes of the pins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::known::Known;
use super::lookups::{Images, LookupRequest, Requester, Text, lookups_of, placeholder_failure, too_many};
use crate::application::Application;
use crate::failure::{Failure, Failures};
use crate::image::{Reference, Repository, printable};
use crate::manifest::sightings::{Sighting, Sought};
use crate::manifest::{self, Document, ImagePath};
use crate::parameters::Mode;
use crate::pin::{Choice, Pin, PinOverrides, PinState, Pinned, Usage};
use crate::placeholder::image::beside_each;
use crate::placeholder::{Form, MAX_PLACEHOLDERS, Placeholder, PlaceholderError, Scan};
use crate::render::Targets;
use crate::resolve::{Caller, Question, Resolver};
use crate::rules::{HelmTarget, Rule, RuleTarget, Rules};
use crate::turn::aside;

/// What is known while one application is rendered.
pub(super) struct RenderSession<'a> {
    application: &'a Application,
    /// None if they cannot be read.
    rules: Option<&'a Rules>,
    given: PinOverrides,
    resolver: &'a Resolver,
    /// When the caller gives up.
    deadline: Option<Instant>,
    /// Every question's pin once, in the order in which they were met.
    pins: Vec<Asked>,
    /// Their places in that list, by the question's name.
    by_name: BTreeMap<String, Vec<usize>>,
    /// What was asked for: what an entry of the parameter `pins` may name.
    pub(super) known: Known,
}

/// A pin and what asked for it.
struct Asked {
    question: Question,
    pin: Pin,
    by: Vec<Asker>,
}

impl Asked {
    /// The aliases that ask.
    fn aliases<'r>(&self, rules: &'r [Rule]) -> impl Iterator<Item = &'r str> {
        let rules = self.by.iter().filter_map(|asker| match asker {
            Asker::Rule(index) => Some(rules[*index].alias.as_str()),
            _ => None,
        });
        rules.collect::<Vec<_>>().into_iter()
    }
}

/// A placeholder or a rule that a pin answers.
#[derive(Clone, PartialEq)]
enum Asker {
    /// In what the tool reads: its place and text.
    Input { place: String, source: String, is_guess: bool },
    /// In the rendered text, which is substituted directly.
    Rendered { place: String, is_guess: bool },
    /// The rule with this place in the list.
    Rule(usize),
}

impl Asker {
    fn of(ask: &LookupRequest, is_rendered: bool) -> Self {
        let (place, is_guess) = (ask.place.clone(), ask.is_guess);
        match ask.wants {
            Requester::Rule(index) => Self::Rule(index),
            Requester::Placeholder(_) if is_rendered => Self::Rendered { place, is_guess },
            Requester::Placeholder(_) => Self::Input { place, source: ask.source.clone(), is_guess },
        }
    }

    fn is_guess(&self) -> bool {
        matches!(self, Self::Input { is_guess: true, .. } | Self::Rendered { is_guess: true, .. })
    }
}

/// Different questions that one render may ask. Each costs a lookup, a pin in memory and one in the store.
const MAX_QUESTIONS: usize = 1000;

/// Rendered text with its placeholders and what they ask.
struct Rendered<'t> {
    documents: Vec<Document>,
    /// One for each document.
    scans: Vec<Option<Scan<'t>>>,
    asks: Vec<LookupRequest>,
    failures: Vec<Failure>,
}

pub(super) type Answers = BTreeMap<Requester, Pin>;

impl<'a> RenderSession<'a> {
    pub(super) fn new(
        application: &'a Application,
        rules: Option<&'a Rules>,
        given: PinOverrides,
        resolver: &'a Resolver,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            application,
            rules,
            given,
            resolver,
            deadline,
            pins: Vec::new(),
            by_name: BTreeMap::new(),
            known: Known::default(),
        }
    }

    /// Given pins first, then the registries. Every failure is reported, and every other answer given.
    pub(super) async fn answer(&mut self, asks: Vec<LookupRequest>, is_rendered: bool) -> (Answers, Vec<Failure>) {
        let mut answers = Answers::new();
        let mut failures = Vec::new();
        let mut open = Vec::new();
        for ask in asks {
            let needs_digest = ask.form == Form::Digest;
            let Question { repository, policy, .. } = &ask.question;
            self.known.add(&ask);
            match self.given.get(ask.alias.as_deref(), repository, policy) {
                Some(pinned) if needs_digest && pinned.digest.is_none() => {
                    let message =
                        format!("{}a digest is wanted here, and the given pin `{pinned}` has none", quoted(&ask.source));
                    failures.push(Failure::text(ask.place, message, Some("write it as `tag@sha256:…`".into())));
                }
                Some(pinned) => {
                    let pin = Pin {
                        repository: repository.clone(),
                        policy: policy.clone(),
                        choice: Choice::told(pinned.clone()),
                        freshness: PinState::Given,
                        usage: Usage::Unknown,
                    };
                    self.note(&ask, pin.clone(), is_rendered);
                    answers.insert(ask.wants, pin);
                }
                None if self.application.parameters.mode == Mode::Locked => {
                    let message = format!(
                        "{}the application is locked, and its record has no pin for `{}`",
                        quoted(&ask.source),
                        ask.question.name()
                    );
                    let hint = "add it to the parameter `pins` or to the lock file, or set `mode: follow`".to_owned();
                    failures.push(Failure::text(ask.place, message, Some(hint)));
                }
                None => match self.answered(&ask.question) {
                    // One render has one answer to a question, whenever it is asked.
                    Some(pin) if !needs_digest || pin.choice.pinned.digest.is_some() => {
                        self.note(&ask, pin.clone(), is_rendered);
                        answers.insert(ask.wants, pin);
                    }
                    _ => open.push(ask),
                },
            }
        }
        let different: BTreeSet<String> = open.iter().map(|ask| ask.question.name()).collect();
        let known = self.pins.iter().filter(|asked| asked.pin.freshness != PinState::Given).count();
        if known + different.len() > MAX_QUESTIONS {
            let message = format!(
                "it asks {} different questions about images, at most {MAX_QUESTIONS} are answered",
                known + different.len()
            );
            let hint = "let images share policies, hold some with `pins` or a lock file, or split the application".to_owned();
            failures.push(Failure::text("", message, Some(hint)));
            return (answers, failures);
        }
        let questions: Vec<Question> = open.iter().map(|ask| ask.question.clone()).collect();
        let caller = Caller { tenant: &self.application.project, deadline: self.deadline };
        let pins = if questions.is_empty() { Vec::new() } else { aside(self.resolver.resolve(&questions, caller)).await };
        for (ask, pin) in open.into_iter().zip(pins) {
            match pin {
                Ok(pin) if ask.form == Form::Digest && pin.choice.pinned.digest.is_none() => {
                    let message =
                        format!("{}a digest is wanted here, and the pin `{}` has none", quoted(&ask.source), pin.choice.pinned);
                    let hint = match &pin.freshness {
                        PinState::Fallback { reason } => format!("it is the fallback, because {reason}"),
                        _ => "let the policy pin it: `--with-digest` in a placeholder, `withDigest` in a rule".to_owned(),
                    };
                    failures.push(Failure::text(ask.place, message, Some(hint)));
                }
                Ok(pin) => {
                    self.note(&ask, pin.clone(), is_rendered);
                    answers.insert(ask.wants, pin);
                }
                Err(error) => {
                    let mut failure = Failure::new(ask.place, &error, error.hint());
                    failure.message.insert_str(0, &quoted(&ask.source));
                    failures.push(failure);
                }
            }
        }
        (answers, failures)
    }

    /// What a question was answered before, if not by a given pin: that may be another alias's.
    fn answered(&self, question: &Question) -> Option<Pin> {
        let pins = self.by_name.get(&question.name())?.iter().map(|index| &self.pins[*index]);
        let mut same = pins.filter(|asked| asked.question == *question && asked.pin.freshness != PinState::Given);
        same.next().map(|asked| Pin { repository: question.repository.clone(), ..asked.pin.clone() })
    }

    fn note(&mut self, ask: &LookupRequest, pin: Pin, is_rendered: bool) {
        let asker = Asker::of(ask, is_rendered);
        let named = self.by_name.entry(ask.question.name()).or_default();
        let is_same = |index: &&usize| {
            let known: &Asked = &self.pins[**index];
            known.question == ask.question && known.pin.choice.pinned == pin.choice.pinned
        };
        match named.iter().find(is_same).copied() {
            Some(index) => self.pins[index].by.push(asker),
            None => {
                named.push(self.pins.len());
                self.pins.push(Asked { question: ask.question.clone(), pin, by: vec![asker] });
            }
        }
    }

    fn rules(&self) -> &'a [Rule] {
        self.rules.map_or(&[], |rules| &rules.rules)
    }

    /// What rules with targets will give to the tool, with any tag.
    pub(super) fn places(rules: &Rules) -> Targets {
        let mut targets = Targets::default();
        for rule in &rules.rules {
            let name = rule.repository.text();
            match &rule.target {
                RuleTarget::Manifests => {}
                RuleTarget::Kustomize(target) => targets.kustomize.push(format!("{target}={name}:0")),
                RuleTarget::Helm(HelmTarget { name: at, tag, spec }) => {
                    let values = [(at, name.to_owned()), (tag, "0".to_owned()), (spec, format!("{name}:0"))];
                    targets.helm.extend(values.into_iter().filter_map(|(path, value)| Some((path.clone()?, value))));
                }
            }
        }
        targets
    }

    /// What rules with targets give to the tool.
    pub(super) fn targets(&self, answers: &Answers) -> Targets {
        let mut targets = Targets::default();
        for (index, rule) in self.rules().iter().enumerate() {
            let Some(pin) = answers.get(&Requester::Rule(index)) else { continue };
            let name = pin.repository.text();
            match &rule.target {
                RuleTarget::Manifests => {}
                RuleTarget::Kustomize(target) => targets.kustomize.push(format!("{target}={name}:{}", pin.choice.pinned)),
                RuleTarget::Helm(target) => {
                    let mut set =
                        |path: &Option<String>, value: String| targets.helm.extend(path.clone().map(|path| (path, value)));
                    set(&target.name, name.to_owned());
                    set(&target.tag, pin.choice.pinned.to_string());
                    set(&target.spec, format!("{name}:{}", pin.choice.pinned));
                }
            }
        }
        targets
    }

    /// Resolves what the rendered text still holds: templates, plain YAML, any string scalar.
    ///
    /// # Errors
    ///
    /// All faulty placeholders, and all that could not be resolved.
    pub(super) async fn substitute_rendered(&mut self, rendered: String) -> Result<String, Failures> {
        if !rendered.contains("(pin") {
            return Ok(rendered);
        }
        let Rendered { documents, scans, asks, mut failures } = self.scan_rendered(&rendered);
        let (answers, unanswered) = self.answer(asks, true).await;
        failures.extend(unanswered);
        if !failures.is_empty() {
            return Err(Failures(failures));
        }
        let mut changed = substitute(&scans, &answers, None);
        let text = |(index, document): (usize, &Document)| {
            changed.remove(&index).unwrap_or_else(|| rendered[document.range.clone()].to_owned())
        };
        Ok(documents.iter().enumerate().map(text).collect())
    }

    /// The mistakes in rendered text, also of placeholders that cannot be resolved. Those whose text is among `told` stand in what the
    /// tool has read, and are told already.
    pub(super) async fn faults(&mut self, rendered: &str, told: &BTreeSet<String>) -> Vec<Failure> {
        if !rendered.contains("(pin") {
            return Vec::new();
        }
        let Rendered { asks, mut failures, .. } = self.scan_rendered(rendered);
        failures.retain(|failure| told.iter().all(|source| !failure.message.starts_with(&format!("`{source}`: "))));
        failures.extend(self.answer(asks, true).await.1);
        failures
    }

    fn scan_rendered<'t>(&self, rendered: &'t str) -> Rendered<'t> {
        let documents = manifest::documents(rendered);
        let (mut scans, mut origins, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        let mut count = 0;
        for Document { range, above } in &documents {
            let origin = origin(&rendered[range.clone()]);
            let place = |error: &PlaceholderError| {
                let mut failure = placeholder_failure(RENDERED, *above, error);
                failure.place.push_str(&origin);
                failure
            };
            let scan = Scan::of(&rendered[range.clone()]).unwrap_or_else(|error| {
                failures.push(place(&error));
                None
            });
            let scan = scan.map(|mut scan| {
                count += scan.placeholders.len();
                failures.extend(scan.errors.iter().map(place));
                scan.placeholders.iter_mut().for_each(|placeholder| placeholder.line += *above);
                scan
            });
            scans.push(scan);
            origins.push(origin);
            if count > MAX_PLACEHOLDERS {
                failures.extend(too_many(count));
                return Rendered { documents, scans, asks: Vec::new(), failures };
            }
        }
        let texts: Vec<Text<'_>> = documents
            .iter()
            .zip(&origins)
            .map(|(document, origin)| Text {
                name: RENDERED,
                origin,
                text: &rendered[document.range.clone()],
                is_raw: false,
                has_places: true,
            })
            .collect();
        let (asks, misunderstood) =
            lookups_of(self.rules, &texts, &scans, &Images { beside: beside_each(&scans), ..Images::default() });
        failures.extend(misunderstood);
        Rendered { documents, scans, asks, failures }
    }

    /// Rewrites the images of rules without targets. Placeholders that the text still holds stay. Where those of what the tool read are
    /// substituted, images with one of their tags stay, too: a placeholder is written for its place, a rule for any.
    ///
    /// # Errors
    ///
    /// Rules that contradict each other; a document that mentions an image and is no YAML.
    pub(super) fn rewrite(
        &self,
        rendered: &str,
        answers: &Answers,
        is_substituted: bool,
        further: &[ImagePath],
    ) -> Result<String, Failures> {
        let rules: Vec<(&Rule, &Pin)> = self
            .rules()
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.target == RuleTarget::Manifests)
            .filter_map(|(index, rule)| Some((rule, answers.get(&Requester::Rule(index))?)))
            .collect();
        for (index, (rule, pin)) in rules.iter().enumerate() {
            let other = rules[..index].iter().find(|(other, _)| other.repository == rule.repository);
            if let Some((other, _)) = other.filter(|(_, other)| other.choice.pinned != pin.choice.pinned) {
                let message =
                    format!("rule `{}` and rule `{}` give `{}` different tags", other.alias, rule.alias, rule.repository);
                let hint = "give each a target, such as `manifestTargets.helm`".to_owned();
                return Err(Failure::text("", message, Some(hint)).into());
            }
        }
        if rules.is_empty() {
            return Ok(rendered.to_owned());
        }
        let pins: Vec<(&Repository, String)> =
            rules.iter().map(|(rule, pin)| (&rule.repository, format!(":{}", pin.choice.pinned))).collect();
        let settled = answers.iter().filter(|(wants, _)| is_substituted && matches!(wants, Requester::Placeholder(_)));
        let settled: Vec<Reference> = settled.flat_map(|(_, pin)| references(pin)).collect();
        manifest::rewrite(rendered, &pins, &settled, further)
            .map_err(|error| Failure::text(RENDERED, format!("cannot be read as YAML: {error}"), None).into())
    }

    /// Entries of the parameter `pins` that hold nothing.
    ///
    /// # Errors
    ///
    /// One for each, with the names that exist.
    pub(super) fn check_given(&self, manifests: &str) -> Result<(), Failures> {
        let failures = self.known.check(&self.given, manifests);
        if failures.is_empty() { Ok(()) } else { Err(Failures(failures)) }
    }

    /// Are there rules that rewrite images wherever they are?
    pub(super) fn has_rules_for_manifests(&self) -> bool {
        self.rules().iter().any(|rule| rule.target == RuleTarget::Manifests)
    }

    /// Every pin so far.
    pub(super) fn pins(&self) -> Vec<&Pin> {
        self.pins.iter().map(|asked| &asked.pin).collect()
    }

    /// The pins, each looked for in the manifests, and what a person should know of them.
    ///
    /// # Errors
    ///
    /// A pin that the parameter `pins` holds, while the image runs with another tag.
    pub(super) fn finish(self, manifests: &str) -> Result<(Vec<Pin>, Vec<String>), Failures> {
        let sought: Vec<Sought<'_>> = self.pins.iter().map(|asked| sought(&asked.pin)).collect();
        let sightings = manifest::sightings::sightings(manifests, &sought);
        let mut notes = self.precedence();
        let (mut pins, mut failures) = (Vec::new(), Vec::new());
        for (asked, sighting) in self.pins.iter().zip(&sightings) {
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
                && self.given.is_told(repository, asked.aliases(self.rules()))
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
            && self.pins.iter().any(|other| other.pin.repository == asked.pin.repository && other.by.iter().any(is_placeholder))
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
        for asked in &self.pins {
            let rule = asked.by.iter().find_map(|asker| match asker {
                Asker::Rule(index) => Some(&self.rules()[*index]).filter(|rule| rule.target == RuleTarget::Manifests),
                _ => None,
            });
            let Some(rule) = rule else { continue };
            let others = self.pins.iter().filter(|other| {
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

/// The references that a placeholder's pin may have become.
fn references(pin: &Pin) -> [Reference; 2] {
    let Pinned { tag, digest } = pin.choice.pinned.clone();
    let whole = Reference { repository: pin.repository.clone(), tag: Some(tag), digest };
    let by_digest = Reference { tag: whole.digest.is_none().then(|| pin.choice.pinned.tag.clone()), ..whole.clone() };
    [whole, by_digest]
}

fn sought(pin: &Pin) -> Sought<'_> {
    Sought { repository: &pin.repository, tag: &pin.choice.pinned.tag, digest: pin.choice.pinned.digest.as_ref() }
}

pub(super) const RENDERED: &str = "rendered manifests";

/// What follows a place in a rendered document: the template that it comes from, if Helm says so.
pub(super) fn origin(document: &str) -> String {
    let source = document.lines().take(3).find_map(|line| line.strip_prefix("# Source: "));
    source.map_or_else(String::new, |path| format!(" (from {})", printable(path)))
}

fn quoted(source: &str) -> String {
    if source.is_empty() { String::new() } else { format!("`{}`: ", printable(source)) }
}

/// The texts of placeholders that cannot be understood, as they are told.
pub(super) fn misunderstood(scans: &[Option<Scan<'_>>]) -> BTreeSet<String> {
    scans.iter().flatten().flat_map(|scan| &scan.errors).map(|error| error.source_text.clone()).collect()
}

/// The texts with each placeholder's pin in its place, by the number of the text; those that stay as they are left out. What has no pin
/// stays too, unless there is something to put in its place.
pub(super) fn substitute(scans: &[Option<Scan<'_>>], answers: &Answers, other: Option<&str>) -> BTreeMap<usize, String> {
    let mut changed = BTreeMap::new();
    for (data, scan) in scans.iter().enumerate() {
        let Some(scan) = scan else { continue };
        let value = |(index, placeholder): (usize, &Placeholder)| {
            let Some(Pin { choice: Choice { pinned, .. }, .. }) = answers.get(&Requester::Placeholder((data, index))) else {
                return other.map(str::to_owned);
            };
            Some(match (placeholder.form, &pinned.digest) {
                (Form::Digest, Some(digest)) => digest.to_string(),
                _ => pinned.to_string(),
            })
        };
        let values: Vec<Option<String>> = scan.placeholders.iter().enumerate().map(value).collect();
        if values.iter().any(Option::is_some) {
            changed.insert(data, scan.substitute(&values));
        }
    }
    changed
}
