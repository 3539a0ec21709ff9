//! The lookups of one render: each question is answered once, from the pins that are held, else by the resolver.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::known::Known;
use super::lookups::{Answers, LookupRequest, Requester};
use super::pass::Pass;
use super::text::RENDERED;
use crate::application::Application;
use crate::failure::{Failure, FailureKind, Failures};
use crate::image::{Reference, Repository, printable};
use crate::manifest::{self, Document, ImagePath};
use crate::parameters::Mode;
use crate::pin::{Choice, Pin, PinOverrides, PinState, Pinned, Usage};
use crate::placeholder::Form;
use crate::placeholder::scans::InputId;
use crate::render::Targets;
use crate::resolve::{Caller, Question, ResolveError, Resolver};
use crate::rules::{HelmTarget, Rule, RuleTarget, Rules};
use crate::turn::aside;

/// What is known while one application is rendered.
pub(super) struct RenderSession<'a> {
    application: &'a Application,
    /// None if they cannot be read.
    rules: Option<&'a Rules>,
    pub(super) overrides: &'a PinOverrides,
    resolver: &'a Resolver,
    /// When the caller gives up.
    deadline: Option<Instant>,
    /// Every question's pin once, in the order in which they were met.
    pub(super) asked: Vec<Asked>,
    /// Their places in that list, by the question's name.
    by_name: BTreeMap<String, Vec<usize>>,
    /// What was asked for: what an entry of the parameter `pins` may name.
    pub(super) known: Known,
}

/// A pin and what asked for it.
pub(super) struct Asked {
    pub question: Question,
    pub pin: Pin,
    pub by: Vec<Asker>,
}

impl Asked {
    /// The aliases that ask.
    pub(super) fn aliases<'r>(&self, rules: &'r [Rule]) -> impl Iterator<Item = &'r str> {
        let rules = self.by.iter().filter_map(|asker| match asker {
            Asker::Rule(index) => Some(rules[*index].alias.as_str()),
            _ => None,
        });
        rules.collect::<Vec<_>>().into_iter()
    }
}

/// A placeholder or a rule that a pin answers.
#[derive(Clone, PartialEq)]
pub(super) enum Asker {
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

    pub(super) fn is_guess(&self) -> bool {
        matches!(self, Self::Input { is_guess: true, .. } | Self::Rendered { is_guess: true, .. })
    }
}

/// Different questions that one render may ask. Each costs a lookup, a pin in memory and one in the store.
const MAX_QUESTIONS: usize = 1000;

impl<'a> RenderSession<'a> {
    pub(super) fn new(
        application: &'a Application,
        rules: Option<&'a Rules>,
        overrides: &'a PinOverrides,
        resolver: &'a Resolver,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            application,
            rules,
            overrides,
            resolver,
            deadline,
            asked: Vec::new(),
            by_name: BTreeMap::new(),
            known: Known::default(),
        }
    }

    /// Given pins first, then the registries. Every failure is reported, and every other answer given.
    pub(super) async fn answer(&mut self, lookups: Vec<LookupRequest>, is_rendered: bool) -> (Answers, Vec<Failure>) {
        let mut answers = Answers::new();
        let mut failures = Vec::new();
        let mut open = Vec::new();
        for ask in lookups {
            let needs_digest = ask.form == Form::Digest;
            let Question { repository, policy, .. } = &ask.question;
            self.known.add(&ask);
            match self.overrides.get(ask.alias.as_deref(), repository, policy) {
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
        let known = self.asked.iter().filter(|asked| asked.pin.freshness != PinState::Given).count();
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
                    let mut failure = Failure::new(ask.place, &error, error.hint()).of_kind(kind(&error));
                    failure.message.insert_str(0, &quoted(&ask.source));
                    failures.push(failure);
                }
            }
        }
        (answers, failures)
    }

    /// What a question was answered before, if not by a given pin: that may be another alias's.
    fn answered(&self, question: &Question) -> Option<Pin> {
        let pins = self.by_name.get(&question.name())?.iter().map(|index| &self.asked[*index]);
        let mut same = pins.filter(|asked| asked.question == *question && asked.pin.freshness != PinState::Given);
        same.next().map(|asked| Pin { repository: question.repository.clone(), ..asked.pin.clone() })
    }

    fn note(&mut self, ask: &LookupRequest, pin: Pin, is_rendered: bool) {
        let asker = Asker::of(ask, is_rendered);
        let named = self.by_name.entry(ask.question.name()).or_default();
        let is_same = |index: &&usize| {
            let known: &Asked = &self.asked[**index];
            known.question == ask.question && known.pin.choice.pinned == pin.choice.pinned
        };
        match named.iter().find(is_same).copied() {
            Some(index) => self.asked[index].by.push(asker),
            None => {
                named.push(self.asked.len());
                self.asked.push(Asked { question: ask.question.clone(), pin, by: vec![asker] });
            }
        }
    }

    pub(super) fn rules(&self) -> &'a [Rule] {
        self.rules.map_or(&[], |rules| &rules.rules)
    }

    /// What rules with targets give to the tool.
    pub(super) fn targets(&self, answers: &Answers) -> Targets {
        rule_targets(self.rules(), |index| Some(answers.get(&Requester::Rule(index))?.choice.pinned.to_string()))
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
        let documents = manifest::documents(&rendered);
        let mut pass = Pass::over_rendered(&rendered, &documents, self.rules);
        let mut failures = std::mem::take(&mut pass.failures);
        let (answers, unanswered) = self.answer(std::mem::take(&mut pass.lookups), true).await;
        failures.extend(unanswered);
        if !failures.is_empty() {
            return Err(Failures(failures));
        }
        let mut changed = pass.substitute(&answers, None);
        let text = |(number, document): (usize, &Document)| {
            changed.remove(&InputId(number)).unwrap_or_else(|| rendered[document.range.clone()].to_owned())
        };
        Ok(documents.iter().enumerate().map(text).collect())
    }

    /// The mistakes in rendered text, also of placeholders that cannot be resolved. Those whose text is among `told` are in what the tool
    /// has read, and have their failures already.
    pub(super) async fn further_failures(&mut self, rendered: &str, told: &BTreeSet<String>) -> Vec<Failure> {
        if !rendered.contains("(pin") {
            return Vec::new();
        }
        let documents = manifest::documents(rendered);
        let Pass { lookups, mut failures, .. } = Pass::over_rendered(rendered, &documents, self.rules);
        failures.retain(|failure| told.iter().all(|source| !failure.message.starts_with(&format!("`{source}`: "))));
        failures.extend(self.answer(lookups, true).await.1);
        failures
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
    pub(super) fn check_overrides(&self, manifests: &str) -> Result<(), Failures> {
        let failures = self.known.check(self.overrides, manifests);
        if failures.is_empty() { Ok(()) } else { Err(Failures(failures)) }
    }

    /// Are there rules that rewrite images wherever they are?
    pub(super) fn has_rules_for_manifests(&self) -> bool {
        self.rules().iter().any(|rule| rule.target == RuleTarget::Manifests)
    }

    /// Every pin so far.
    pub(super) fn pins(&self) -> Vec<&Pin> {
        self.asked.iter().map(|asked| &asked.pin).collect()
    }
}

/// The references that a placeholder's pin may have become.
fn references(pin: &Pin) -> [Reference; 2] {
    let Pinned { tag, digest } = pin.choice.pinned.clone();
    let whole = Reference { repository: pin.repository.clone(), tag: Some(tag), digest };
    let by_digest = Reference { tag: whole.digest.is_none().then(|| pin.choice.pinned.tag.clone()), ..whole.clone() };
    [whole, by_digest]
}

fn quoted(source: &str) -> String {
    if source.is_empty() { String::new() } else { format!("`{}`: ", printable(source)) }
}

/// What rules with targets give to the tool, with the tag of each rule. A rule without a tag gives nothing.
pub(super) fn rule_targets(rules: &[Rule], tag_of: impl Fn(usize) -> Option<String>) -> Targets {
    let mut targets = Targets::default();
    for (index, rule) in rules.iter().enumerate() {
        let Some(pinned) = tag_of(index) else { continue };
        let name = rule.repository.text();
        match &rule.target {
            RuleTarget::Manifests => {}
            RuleTarget::Kustomize(target) => targets.kustomize.push(format!("{target}={name}:{pinned}")),
            RuleTarget::Helm(HelmTarget { name: at, tag, spec }) => {
                let values = [(at, name.to_owned()), (tag, pinned.clone()), (spec, format!("{name}:{pinned}"))];
                targets.helm.extend(values.into_iter().filter_map(|(path, value)| Some((path.clone()?, value))));
            }
        }
    }
    targets
}

fn kind(error: &ResolveError) -> FailureKind {
    match error {
        ResolveError::NoMatch { .. } => FailureKind::NoPermittedTag,
        ResolveError::Registry { .. } | ResolveError::Budget { .. } => FailureKind::Unavailable,
        ResolveError::TooManyTags { .. } => FailureKind::Invalid,
        ResolveError::Broken { .. } => FailureKind::Internal,
    }
}
