//! The order of the steps of a render, and nothing else.
//!
//! ```text
//! checkout, application
//!   ├─ rules            .pinion.yaml, .pinion-<app>.yaml, parameters
//!   ├─ plan             which tool; which texts it reads as data
//!   ├─ scan, infer      placeholders in them, and the image of each
//!   ├─ resolve          all questions at once: placeholders and rules
//!   ├─ run              substituted copies ─▶ helm | kustomize | files ─▶ text
//!   ├─ scan, resolve    placeholders in the rendered text
//!   ├─ rewrite          images of rules without targets
//!   └─ prove            nothing unresolved leaves
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

mod answers;
pub(crate) mod asks;
pub mod clock;
mod proof;

use crate::application::Application;
use crate::failure::{Failure, Failures};
use crate::manifest::ImagePath;
use crate::parameters::Mode;
use crate::pin::{Freshness, Given, Pin};
use crate::registry::TagSource;
use crate::render::{Plan, RenderError, Tools};
use crate::resolve::{Question, Resolver};
use crate::rules::{Reader, Rules, Target};
use crate::workspace::{Checkout, WorkspaceError};
use answers::{Answering, substitute};
use asks::{Text, asks, rule_asks, scan_all};
use clock::Clock;
use proof::{is_empty, prove, unescape_all};

/// What a render gave.
#[derive(Clone, Debug)]
pub struct Generated {
    pub manifests: String,
    /// Every question's pin once, in the order in which they were met.
    pub pins: Vec<Pin>,
    /// `helm`, `kustomize` or `directory`.
    pub tool: &'static str,
    /// What a person should know though nothing failed.
    pub notes: Vec<String>,
    /// Was the tool's text known already?
    pub is_recalled: bool,
}

impl Generated {
    /// The pins as one text, for the log.
    pub fn pins_text(&self) -> String {
        let pins: Vec<String> = self.pins.iter().map(|pin| format!("{}:{}", pin.repository.text(), pin.pinned)).collect();
        pins.join(" ")
    }

    /// How many pins are not fresh because a registry could not be asked.
    pub fn stale(&self) -> usize {
        self.pins.iter().filter(|pin| matches!(pin.freshness, Freshness::Stale { .. })).count()
    }
}

/// Renders an application. Lookups leave time for the tool before the deadline, if there is one. The clock goes through `prepare` (reading
/// files, rules and placeholders), `lookup` (asking for pins), `tool` (Helm, Kustomize, or putting files together) and `finish` (what is
/// done with the rendered text).
///
/// # Errors
///
/// All [`Failures`] of the step that failed, each with its place.
pub async fn generate<S: TagSource + 'static>(
    checkout: &Checkout,
    application: &Application,
    tools: &Tools,
    image_paths: &[ImagePath],
    resolver: &Resolver<S>,
    deadline: Option<Instant>,
    clock: &Clock,
) -> Result<Generated, Failures> {
    clock.begin("prepare");
    let rules = read_rules(checkout, application)?;
    let given = read_given(checkout, application)?;
    let mut plan = Plan::prepare(checkout, application, tools).await.map_err(|error| render_failure(&error))?;
    misplaced(&rules, plan.tool())?;
    let mut answering = Answering::new(application, &rules, given, resolver, deadline);

    let texts: Vec<Text<'_>> = Text::of(&plan);
    let scans = scan_all(&texts)?;
    let inferred = plan.images(&scans).map_err(|error| render_failure(&error))?;
    let mut asks = asks(&rules, &texts, &scans, &inferred)?;
    asks.extend(rule_asks(&rules));
    clock.begin("lookup");
    let answers = answering.answer(asks).await?;
    clock.begin("tool");
    let changed = substitute(&scans, &answers);
    let targets = answering.targets(&answers);
    drop(scans);

    let rendered = plan.run(&changed, &targets, tools).await.map_err(|error| render_failure(&error))?;
    clock.begin("finish");
    if is_empty(&rendered) {
        return Err(render_failure(&plan.empty()));
    }

    let rendered = answering.substitute_rendered(rendered).await?;
    let (rendered, mut notes) = answering.rewrite(rendered, &answers, image_paths)?;
    prove(&rendered)?;
    let manifests = unescape_all(rendered);

    let idle = application.parameters.of_other_tools(plan.tool());
    notes.extend(
        idle.iter().map(|name| format!("parameter `{name}` has no effect: the application is rendered by `{}`", plan.tool())),
    );
    notes.extend(rules.notes.iter().cloned());
    notes.extend(answering.doubts(&manifests));
    notes.extend(answering.unused());
    let is_recalled = plan.is_recalled();
    Ok(Generated { manifests, pins: answering.pins, tool: plan.tool(), notes, is_recalled })
}

/// Targets that the tool does not have.
fn misplaced(rules: &Rules, tool: &str) -> Result<(), Failures> {
    let mut failures = Vec::new();
    for rule in &rules.rules {
        let wanted = match rule.target {
            Target::Manifests => continue,
            Target::Helm(_) => "helm",
            Target::Kustomize(_) => "kustomize",
        };
        if wanted != tool {
            let message = format!("the target is for `{wanted}`, but the application is rendered by `{tool}`");
            let hint = "without a target the image is rewritten wherever it stands in the rendered manifests".to_owned();
            failures.push(Failure::text(format!("rule `{}`", rule.alias), message, Some(hint)));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failures(failures)) }
}

/// Finds every mistake that can be found without a registry and without running a tool.
///
/// # Errors
///
/// All [`Failures`].
pub async fn check(checkout: &Checkout, application: &Application, tools: &Tools) -> Result<(), Failures> {
    let rules = read_rules(checkout, application)?;
    read_given(checkout, application)?;
    let plan = Plan::prepare(checkout, application, tools).await.map_err(|error| render_failure(&error))?;
    let texts: Vec<Text<'_>> = Text::of(&plan);
    let scans = scan_all(&texts)?;
    let inferred = plan.images(&scans).map_err(|error| render_failure(&error))?;
    asks(&rules, &texts, &scans, &inferred).map(drop)
}

/// The images that an application asks for before it is rendered, by alias or name, with their last pins. Asks no registry.
///
/// # Errors
///
/// As [`check`].
pub async fn survey<S: TagSource + 'static>(
    checkout: &Checkout,
    application: &Application,
    tools: &Tools,
    resolver: &Resolver<S>,
) -> Result<BTreeMap<String, String>, Failures> {
    let rules = read_rules(checkout, application)?;
    let given = read_given(checkout, application)?;
    let plan = Plan::prepare(checkout, application, tools).await.map_err(|error| render_failure(&error))?;
    let texts = Text::of(&plan);
    let scans = scan_all(&texts)?;
    let inferred = plan.images(&scans).map_err(|error| render_failure(&error))?;
    let mut asks = asks(&rules, &texts, &scans, &inferred)?;
    asks.extend(rule_asks(&rules));
    let mut pins = BTreeMap::new();
    for ask in asks {
        let Question { repository, policy, .. } = &ask.question;
        let pinned = match given.get(ask.alias.as_deref(), repository, policy) {
            Some(pinned) => Some(pinned.clone()),
            None => resolver.last(&ask.question).await,
        };
        let name = ask.alias.unwrap_or_else(|| repository.text().to_owned());
        if let Some(pinned) = pinned {
            pins.insert(name, pinned.to_string());
        }
    }
    Ok(pins)
}

/// The rules of an application, from its files and parameters.
///
/// # Errors
///
/// All mistakes in them.
pub fn read_rules(checkout: &Checkout, application: &Application) -> Result<Rules, Failures> {
    let mut reader = Reader::default();
    let own = format!(".pinion-{}.yaml", application.name);
    let names = [".pinion.yaml", own.as_str()];
    for name in names.iter().filter(|name| !name.contains('/') && **name != ".pinion-.yaml") {
        if let Some(text) = checkout.read_if_present(&checkout.app().join(name)).map_err(|error| Failures::from(&error))? {
            reader.file(name, &text);
        }
    }
    reader.parameters(&application.parameters.images, &application.parameters.image_settings);
    reader.finish().map_err(|errors| {
        Failures(errors.into_iter().map(|error| Failure::text(error.place, error.problem, error.hint)).collect())
    })
}

fn read_given(checkout: &Checkout, application: &Application) -> Result<Given, Failures> {
    let failure = |place: &str, error: &dyn std::error::Error| Failures::from(Failure::new(place, error, None));
    let mut given = Given::parameter(&application.parameters.pins).map_err(|error| failure("parameter `pins`", &error))?;
    let name = format!(".pinion-lock-{}.yaml", application.name);
    if application.parameters.mode == Mode::Locked && !name.contains('/') {
        let path = checkout.app().join(&name);
        if let Some(text) = checkout.read_if_present(&path).map_err(|error| Failures::from(&error))? {
            given.add_lock(&text).map_err(|error| failure(&name, &error))?;
        }
    }
    Ok(given)
}

fn render_failure(error: &RenderError) -> Failures {
    Failure::new("", error, error.hint()).into()
}

impl From<&WorkspaceError> for Failures {
    fn from(error: &WorkspaceError) -> Self {
        Failure::new("", error, None).into()
    }
}
