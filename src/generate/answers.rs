//! Questions answered while one application is rendered, and what becomes of the pins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::asks::{Ask, Text, Wants, asks, placeholder_failure, too_many};
use crate::application::Application;
use crate::failure::{Failure, Failures};
use crate::image::{Repository, printable};
use crate::manifest::{self, Document, ImagePath};
use crate::parameters::Mode;
use crate::pin::{Freshness, Given, Pin, Pinned};
use crate::placeholder::image::beside_each;
use crate::placeholder::{Form, MAX_PLACEHOLDERS, Placeholder, Scan};
use crate::registry::TagSource;
use crate::render::Targets;
use crate::resolve::{Question, Resolver};
use crate::rules::{Rule, Rules, Target};

/// What is known while one application is rendered.
pub(super) struct Answering<'a, S> {
    application: &'a Application,
    rules: &'a Rules,
    given: Given,
    resolver: &'a Resolver<S>,
    /// When the caller gives up.
    deadline: Option<Instant>,
    /// Every question's pin once.
    pub pins: Vec<Pin>,
    /// Pins whose image was found beside the placeholder.
    guesses: Vec<Pin>,
    /// Names under which a given pin may stand.
    used: BTreeSet<String>,
    /// Aliases that placeholders name.
    mentioned: BTreeSet<String>,
}

pub(super) type Answers = BTreeMap<Wants, Pin>;

impl<'a, S: TagSource + 'static> Answering<'a, S> {
    pub(super) fn new(
        application: &'a Application,
        rules: &'a Rules,
        given: Given,
        resolver: &'a Resolver<S>,
        deadline: Option<Instant>,
    ) -> Self {
        let (pins, guesses) = (Vec::new(), Vec::new());
        let (used, mentioned) = (BTreeSet::new(), BTreeSet::new());
        Self { application, rules, given, resolver, deadline, pins, guesses, used, mentioned }
    }

    /// Given pins first, then the registries. Every failure is reported.
    pub(super) async fn answer(&mut self, asks: Vec<Ask>) -> Result<Answers, Failures> {
        let mut answers = Answers::new();
        let mut failures = Vec::new();
        let mut open = Vec::new();
        for ask in asks {
            let needs_digest = ask.form == Form::Digest;
            let Question { repository, policy, .. } = &ask.question;
            self.used.extend(ask.alias.iter().cloned().chain([repository.text().to_owned(), repository.to_string()]));
            if let (Wants::Placeholder(_), Some(alias)) = (&ask.wants, &ask.alias) {
                self.mentioned.insert(alias.clone());
            }
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
                        pinned: pinned.clone(),
                        created: None,
                        freshness: Freshness::Given,
                        listed: None,
                        considered: None,
                    };
                    self.note(pin.clone(), ask.is_guess);
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
                None => open.push(ask),
            }
        }
        let questions: Vec<Question> = open.iter().map(|ask| ask.question.clone()).collect();
        let pins = if questions.is_empty() { Vec::new() } else { self.resolver.resolve(&questions, self.deadline).await };
        for (ask, pin) in open.into_iter().zip(pins) {
            match pin {
                Ok(pin) if ask.form == Form::Digest && pin.pinned.digest.is_none() => {
                    let message =
                        format!("{}a digest is wanted here, and the fallback `{}` has none", quoted(&ask.source), pin.pinned);
                    failures.push(Failure::text(ask.place, message, None));
                }
                Ok(pin) => {
                    self.note(pin.clone(), ask.is_guess);
                    answers.insert(ask.wants, pin);
                }
                Err(error) => {
                    let mut failure = Failure::new(ask.place, &error, error.hint());
                    failure.message.insert_str(0, &quoted(&ask.source));
                    failures.push(failure);
                }
            }
        }
        if failures.is_empty() { Ok(answers) } else { Err(Failures(failures)) }
    }

    fn note(&mut self, pin: Pin, is_guess: bool) {
        let is_known = |known: &Pin| (&known.repository, &known.pinned.tag) == (&pin.repository, &pin.pinned.tag);
        if is_guess && !self.guesses.iter().any(is_known) {
            self.guesses.push(pin.clone());
        }
        if self.pins.iter().all(|known| (&known.repository, &known.policy) != (&pin.repository, &pin.policy)) {
            self.pins.push(pin);
        }
    }

    /// What rules with targets give to the tool.
    pub(super) fn targets(&self, answers: &Answers) -> Targets {
        let mut targets = Targets::default();
        for (index, rule) in self.rules.rules.iter().enumerate() {
            let Some(pin) = answers.get(&Wants::Rule(index)) else { continue };
            let name = pin.repository.text();
            match &rule.target {
                Target::Manifests => {}
                Target::Kustomize(target) => targets.kustomize.push(format!("{target}={name}:{}", pin.pinned)),
                Target::Helm(target) => {
                    let mut set =
                        |path: &Option<String>, value: String| targets.helm.extend(path.clone().map(|path| (path, value)));
                    set(&target.name, name.to_owned());
                    set(&target.tag, pin.pinned.to_string());
                    set(&target.spec, format!("{name}:{}", pin.pinned));
                }
            }
        }
        targets
    }

    /// Resolves what the rendered text still holds: templates, plain YAML, any string scalar.
    pub(super) async fn substitute_rendered(&mut self, rendered: String) -> Result<String, Failures> {
        if !rendered.contains("(pin") {
            return Ok(rendered);
        }
        let documents = manifest::documents(&rendered);
        let mut scans = Vec::new();
        let mut names = Vec::new();
        let mut failures = Vec::new();
        let mut count = 0;
        for Document { range, above } in &documents {
            let name = origin(&rendered[range.clone()]);
            match Scan::of(&rendered[range.clone()]) {
                Ok(mut scan) => {
                    if let Some(scan) = &mut scan {
                        count += scan.placeholders.len();
                        failures.extend(scan.errors.iter().map(|error| placeholder_failure(&name, *above, error)));
                        scan.placeholders.iter_mut().for_each(|placeholder| placeholder.line += *above);
                    }
                    scans.push(scan);
                }
                Err(error) => failures.push(placeholder_failure(&name, *above, &error)),
            }
            names.push(name);
            if count > MAX_PLACEHOLDERS {
                break;
            }
        }
        failures.extend(too_many(count));
        if !failures.is_empty() {
            return Err(Failures(failures));
        }
        let texts: Vec<Text<'_>> = documents
            .iter()
            .zip(&names)
            .map(|(document, name)| Text { name, text: &rendered[document.range.clone()], is_raw: false })
            .collect();
        let asks = asks(self.rules, &texts, &scans, &beside_each(&scans))?;
        let answers = self.answer(asks).await?;
        let mut changed = substitute(&scans, &answers);
        Ok(texts.iter().enumerate().map(|(index, text)| changed.remove(&index).unwrap_or_else(|| text.text.to_owned())).collect())
    }

    /// Rewrites the images of rules without targets, and notes rules that met no image.
    pub(super) fn rewrite(
        &self,
        rendered: String,
        answers: &Answers,
        further: &[ImagePath],
    ) -> Result<(String, Vec<String>), Failures> {
        let rules: Vec<(&Rule, &Pin)> = self
            .rules
            .rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.target == Target::Manifests)
            .filter_map(|(index, rule)| Some((rule, answers.get(&Wants::Rule(index))?)))
            .collect();
        if rules.is_empty() {
            return Ok((rendered, Vec::new()));
        }
        for (index, (rule, pin)) in rules.iter().enumerate() {
            let other = rules[..index].iter().find(|(other, _)| other.repository == rule.repository);
            if let Some((other, _)) = other.filter(|(_, other)| other.pinned != pin.pinned) {
                let message =
                    format!("rule `{}` and rule `{}` give `{}` different tags", other.alias, rule.alias, rule.repository);
                let hint = "give each a target, such as `manifestTargets.helm`".to_owned();
                return Err(Failure::text("", message, Some(hint)).into());
            }
        }
        let pins: Vec<(&Repository, String)> =
            rules.iter().map(|(rule, pin)| (&rule.repository, format!(":{}", pin.pinned))).collect();
        let rewritten = manifest::rewrite(&rendered, &pins, further)
            .map_err(|error| Failure::text(RENDERED, format!("cannot be read as YAML: {error}"), None))?;
        let is_unused = |rule: &Rule, count: usize| count == 0 && !self.mentioned.contains(&rule.alias);
        let unmatched = rules.iter().zip(&rewritten.matched).filter(|((rule, _), count)| is_unused(rule, **count));
        let notes = unmatched.map(|((rule, _), _)| {
            format!("rule `{}`: no image `{}` stands in the rendered manifests", rule.alias, rule.repository)
        });
        Ok((rewritten.text, notes.collect()))
    }

    /// Guesses that the rendered text speaks against.
    pub(super) fn doubts(&self, manifests: &str) -> Vec<String> {
        let doubt = |pin: &Pin| {
            let beside = manifest::repositories_with_tag(manifests, pin.pinned.tag.as_str());
            let is_wrong = !beside.is_empty() && !beside.contains(&pin.repository);
            let others: BTreeSet<String> = beside.iter().map(ToString::to_string).collect();
            is_wrong.then(|| {
                let others = others.into_iter().collect::<Vec<_>>().join(", ");
                format!("tag `{}` was chosen for `{}` but stands beside `{others}` in the manifests: name the image in the placeholder", pin.pinned.tag, pin.repository)
            })
        };
        let doubts: BTreeSet<String> = self.guesses.iter().filter_map(doubt).collect();
        doubts.into_iter().collect()
    }

    pub(super) fn unused(&self) -> Vec<String> {
        let unused = self.given.unused(|name| self.used.contains(name));
        unused
            .into_iter()
            .map(|name| format!("parameter `pins`: `{}` is no image or alias of this application", printable(name)))
            .collect()
    }
}

pub(super) const RENDERED: &str = "rendered manifests";

/// Where a rendered document comes from, if Helm says so; the line is that of the rendered text.
fn origin(document: &str) -> String {
    let source = document.lines().take(3).find_map(|line| line.strip_prefix("# Source: "));
    source.map_or_else(|| RENDERED.to_owned(), |path| format!("{RENDERED}, from {}", printable(path)))
}

fn quoted(source: &str) -> String {
    if source.is_empty() { String::new() } else { format!("`{}`: ", printable(source)) }
}

/// The texts with each placeholder's pin in its place, by the number of the text; those that stay as they are left out.
pub(super) fn substitute(scans: &[Option<Scan<'_>>], answers: &Answers) -> BTreeMap<usize, String> {
    let mut changed = BTreeMap::new();
    for (data, scan) in scans.iter().enumerate() {
        let Some(scan) = scan else { continue };
        let value = |(index, placeholder): (usize, &Placeholder)| {
            let Pinned { digest, .. } = &answers.get(&Wants::Placeholder((data, index)))?.pinned;
            Some(match (placeholder.form, digest) {
                (Form::Digest, Some(digest)) => digest.to_string(),
                _ => answers[&Wants::Placeholder((data, index))].pinned.to_string(),
            })
        };
        let values: Vec<Option<String>> = scan.placeholders.iter().enumerate().map(value).collect();
        if values.iter().any(Option::is_some) {
            changed.insert(data, scan.substitute(&values));
        }
    }
    changed
}
