//! The order of the steps of a render, and nothing else.
//!
//! ```text
//! checkout, application
//!   ├─ rules            .pinion.yaml, .pinion-<app>.yaml, parameters
//!   ├─ plan             which tool; which texts it reads as data
//!   ├─ scan, infer      placeholders in them, and the image of each
//!   ├─ resolve          all questions at once: placeholders and rules
//!   ├─ run              substituted copies ─▶ helm | kustomize | files ─▶ text
//!   ├─ rewrite          images of rules without targets
//!   ├─ scan, resolve    placeholders in the rendered text
//!   ├─ verify           nothing unresolved leaves
//!   └─ look             which pins stand in the manifests
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

mod known;
pub(crate) mod lookups;
pub mod phases;
mod session;
mod verify;

use crate::application::Application;
use crate::failure::{Failure, Failures};
use crate::image::{Repository, printable};
use crate::manifest::ImagePath;
use crate::parameters::Mode;
use crate::pin::{Pin, PinOverrides, PinState, Usage};
use crate::placeholder::Scan;
use crate::placeholder::near_miss::near_miss;
use crate::render::{Plan, Purpose, RenderError, Tools};
use crate::resolve::{Question, Resolver};
use crate::rules::{Reader, RuleTarget, Rules};
use crate::workspace::{Checkout, WorkspaceError, shown};
use known::Known;
use lookups::{Images, LookupRequest, Text, lookups_of, not_asked, rule_lookups, scan_all};
use phases::PhaseTimer;
use session::{RenderSession, misunderstood, substitute};
use verify::{is_empty, unescape_all, verify};

/// What stands in place of a placeholder without a pin, when the tool runs only to find further mistakes.
const NO_TAG: &str = "0.0.0-unresolved";

/// Longest run of the tool after a mistake was found, to find those in the rendered text, too.
const LONGEST_TRY: Duration = Duration::from_secs(10);

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
        let pins: Vec<String> = self.pins.iter().map(|pin| format!("{}:{}", pin.repository.text(), pin.choice.pinned)).collect();
        pins.join(" ")
    }

    /// How many pins are nowhere in the manifests.
    pub fn unused(&self) -> usize {
        self.pins.iter().filter(|pin| pin.usage == Usage::Unused).count()
    }

    /// How many pins are not fresh because a registry could not be asked.
    pub fn stale(&self) -> usize {
        self.pins.iter().filter(|pin| matches!(pin.freshness, PinState::Stale { .. })).count()
    }
}

/// Renders an application. Lookups leave time for the tool before the deadline, if there is one. The timer goes through `prepare` (reading
/// files, rules and placeholders), `lookup` (asking for pins), `tool` (Helm, Kustomize, or putting files together) and `finish` (what is
/// done with the rendered text).
///
/// # Errors
///
/// All [`Failures`] that can be found, each with its place: also those of the rendered text, as far as the tool runs without the pins
/// that are missing.
pub async fn generate(
    checkout: &Checkout,
    application: &Application,
    tools: &Tools,
    image_paths: &[ImagePath],
    resolver: &Resolver,
    deadline: Option<Instant>,
    timer: &PhaseTimer,
) -> Result<Generated, Failures> {
    timer.begin("prepare");
    let mut failures = Vec::new();
    let rules = keep(read_rules(checkout, application), &mut failures);
    let given = keep(read_given(checkout, application), &mut failures);
    let mut plan = match Plan::prepare(checkout, application, tools, Purpose::Render).await {
        Ok(plan) => plan,
        Err(error) => return Err(with(failures, render_failure(&error))),
    };
    failures.extend(rules.iter().flat_map(|rules| misplaced(rules, plan.tool())));
    failures.extend(rules.iter().flat_map(|rules| replaced_lists(rules, &plan)));
    let places = rules.as_ref().map(RenderSession::places).unwrap_or_default();
    plan.probe(&places.of(plan.tool()), tools).await;
    let Inputs { scans, mut asks, failures: found, overridden } = Inputs::read(&plan, rules.as_ref());
    failures.extend(found);
    asks.extend(rules.iter().flat_map(rule_lookups));
    // Without the record, every placeholder would be told to have none.
    let Some(given) = given else { return Err(Failures(failures)) };
    let mut session = RenderSession::new(application, rules.as_ref(), given, resolver, deadline);
    session.known.add_overridden(overridden);

    timer.begin("lookup");
    let (answers, unanswered) = session.answer(asks, false).await;
    failures.extend(unanswered);
    timer.begin("tool");
    let targets = session.targets(&answers);
    if !failures.is_empty() {
        let (told, changed) = (misunderstood(&scans), substitute(&scans, &answers, Some(NO_TAG)));
        drop(scans);
        let targets = targets.of(plan.tool());
        let rendered = tokio::time::timeout(time_to_try(deadline), plan.run(&changed, &targets, tools)).await;
        if let Ok(Ok(rendered)) = rendered {
            timer.begin("finish");
            let faults = session.faults(&rendered, &told).await;
            // What stands around the stand-in would be told in words that nobody wrote.
            failures.extend(faults.into_iter().filter(|failure| !failure.message.contains(NO_TAG)));
        }
        return Err(Failures(failures));
    }
    // Where manifests are only put together, their placeholders can wait until the rules have seen them.
    let is_substituted = !(plan.is_text() && session.has_rules_for_manifests());
    let changed = if is_substituted { substitute(&scans, &answers, None) } else { BTreeMap::new() };
    drop(scans);
    let rendered = plan.run(&changed, &targets, tools).await.map_err(|error| render_failure(&error))?;
    timer.begin("finish");
    let mut notes = Vec::new();
    if is_empty(&rendered) {
        notes.push(plan.empty().map_err(|error| render_failure(&error))?);
    }
    let rendered = match session.rewrite(&rendered, &answers, is_substituted, image_paths) {
        Ok(rewritten) => session.substitute_rendered(rewritten).await?,
        // A placeholder in what is no YAML says more.
        Err(failures) => return Err(session.substitute_rendered(rendered).await.err().unwrap_or(failures)),
    };
    session.check_given(&rendered)?;
    verify(&rendered, &session.pins(), image_paths)?;
    let manifests = unescape_all(rendered);

    let idle = application.parameters.of_other_tools(plan.tool());
    notes.extend(
        idle.iter().map(|name| format!("parameter `{name}` has no effect: the application is rendered by `{}`", plan.tool())),
    );
    notes.extend(rules.iter().flat_map(|rules| rules.notes.iter().cloned()));
    let (pins, found) = session.finish(&manifests)?;
    notes.extend(found);
    let is_recalled = plan.is_recalled();
    Ok(Generated { manifests, pins, tool: plan.tool(), notes, is_recalled })
}

/// What the tool reads as data: its placeholders, what they ask, and every mistake in them.
struct Inputs<'p> {
    /// One for each of [`Plan::data`].
    scans: Vec<Option<Scan<'p>>>,
    asks: Vec<LookupRequest>,
    failures: Vec<Failure>,
    /// Images of placeholders that are overridden, with their places.
    overridden: Vec<(Repository, String)>,
}

impl<'p> Inputs<'p> {
    fn read(plan: &'p Plan, rules: Option<&Rules>) -> Self {
        let texts = Text::of(plan);
        let (scans, mut failures) = scan_all(&texts);
        let mut overridden = Vec::new();
        let asks = match plan.images(&scans) {
            Ok(beside) => {
                let inferred = Images { beside, renamed: plan.renamed(&scans) };
                overridden = not_asked(&texts, &scans, &inferred);
                let (asks, misunderstood) = lookups_of(rules, &texts, &scans, &inferred);
                failures.extend(misunderstood);
                asks
            }
            Err(error) => {
                // A file that is no YAML was told already if it holds a placeholder.
                if failures.is_empty() {
                    failures.extend(render_failure(&error).0);
                }
                Vec::new()
            }
        };
        Self { scans, asks, failures, overridden }
    }
}

/// What was read, or nothing and its failures.
fn keep<T>(read: Result<T, Failures>, failures: &mut Vec<Failure>) -> Option<T> {
    read.map_err(|Failures(found)| failures.extend(found)).ok()
}

fn with(mut failures: Vec<Failure>, Failures(more): Failures) -> Failures {
    failures.extend(more);
    Failures(failures)
}

/// The time for a run of the tool whose text is only looked through for more mistakes: none of it shall cost the answer.
fn time_to_try(deadline: Option<Instant>) -> Duration {
    let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()) / 2);
    left.min(LONGEST_TRY)
}

/// Targets that the tool does not have.
fn misplaced(rules: &Rules, tool: &str) -> Vec<Failure> {
    let mut failures = Vec::new();
    for rule in &rules.rules {
        let wanted = match rule.target {
            RuleTarget::Manifests => continue,
            RuleTarget::Helm(_) => "helm",
            RuleTarget::Kustomize(_) => "kustomize",
        };
        if wanted != tool {
            let message = format!("the target is for `{wanted}`, but the application is rendered by `{tool}`");
            let hint = "without a target the image is rewritten wherever it stands in the rendered manifests".to_owned();
            failures.push(Failure::text(format!("rule `{}`", rule.alias), message, Some(hint)));
        }
    }
    failures
}

/// Finds every mistake that can be found without a registry and without running a tool. Returns what a person should know beside.
/// `permits_credentials`: may applications name `env:` and `ext:` credentials?
///
/// # Errors
///
/// All [`Failures`].
pub async fn check(
    checkout: &Checkout,
    application: &Application,
    tools: &Tools,
    permits_credentials: bool,
) -> Result<Vec<String>, Failures> {
    let mut failures = Vec::new();
    let rules = keep(read_rules(checkout, application), &mut failures);
    let given = keep(read_given(checkout, application), &mut failures);
    let plan = match Plan::prepare(checkout, application, tools, Purpose::Inspect).await {
        Ok(plan) => plan,
        Err(error) => return Err(with(failures, render_failure(&error))),
    };
    let Inputs { mut asks, failures: found, overridden, .. } = Inputs::read(&plan, rules.as_ref());
    failures.extend(found);
    asks.extend(rules.iter().flat_map(rule_lookups));
    let parameters = plan.data().iter().filter(|data| data.name.starts_with("parameter `"));
    failures.extend(parameters.filter_map(|data| {
        let near = near_miss(&data.text)?;
        let message = format!("`{}` is no placeholder", printable(&data.text[near.range]));
        (!near.is_bare).then(|| Failure::text(data.name.clone(), message, Some(format!("did you mean `{}`?", near.meant))))
    }));
    if let (Some(rules), Some(given)) = (&rules, &given) {
        failures.extend(misplaced(rules, plan.tool()));
        failures.extend(unread_targets(rules, &plan));
        failures.extend(replaced_lists(rules, &plan));
        failures.extend(unknown_names(given, &asks, overridden, &plan));
    }
    if !failures.is_empty() {
        return Err(Failures(failures));
    }
    let problem = |ask: &LookupRequest| Some(format!("{}: {}", ask.place, ask.question.access.problem(permits_credentials)?));
    let idle = application.parameters.of_other_tools(plan.tool());
    let idle =
        idle.iter().map(|name| format!("parameter `{name}` has no effect: the application is rendered by `{}`", plan.tool()));
    Ok(asks.iter().filter_map(problem).chain(idle).collect())
}

/// Rules whose Helm target would take a list of the chart's defaults with it.
fn replaced_lists(rules: &Rules, plan: &Plan) -> Vec<Failure> {
    let mut failures = Vec::new();
    for rule in &rules.rules {
        let RuleTarget::Helm(target) = &rule.target else { continue };
        for path in [&target.name, &target.tag, &target.spec].into_iter().flatten().filter(|path| plan.replaces_list(path)) {
            let message = format!(
                "Helm would put a list with this value alone in the place of the chart's own, for the target `{}`",
                printable(path)
            );
            let hint =
                "write the whole list in a value file, or leave the target out: then the image is rewritten where it stands"
                    .to_owned();
            failures.push(Failure::text(format!("rule `{}`", rule.alias), message, Some(hint)));
        }
    }
    failures
}

/// Rules whose Helm target is no single value that the chart's templates read.
fn unread_targets(rules: &Rules, plan: &Plan) -> Vec<Failure> {
    let mut failures = Vec::new();
    for rule in &rules.rules {
        let RuleTarget::Helm(target) = &rule.target else { continue };
        for path in [&target.name, &target.tag, &target.spec].into_iter().flatten() {
            if plan.reads_value(path) == Some(false) {
                let message = format!("the target `{}` is no single value that the chart reads", printable(path));
                let hint = "the image would keep its tag; write the path as `values.yaml` has it, such as `image.tag`".to_owned();
                failures.push(Failure::text(format!("rule `{}`", rule.alias), message, Some(hint)));
            }
        }
    }
    failures
}

/// Names of the parameter `pins` that nothing asks for. Only where all placeholders are in what was read: templates may hold more.
fn unknown_names(
    given: &PinOverrides,
    asks: &[LookupRequest],
    overridden: Vec<(Repository, String)>,
    plan: &Plan,
) -> Vec<Failure> {
    if plan.may_hold_more() {
        return Vec::new();
    }
    let mut known = Known::default();
    asks.iter().for_each(|ask| known.add(ask));
    known.add_overridden(overridden);
    known.check(given, "")
}

/// The images that an application asks for before it is rendered, by alias or name, with their last pins. Asks no registry.
///
/// # Errors
///
/// As [`check`].
pub async fn list_images(
    checkout: &Checkout,
    application: &Application,
    tools: &Tools,
    resolver: &Resolver,
) -> Result<BTreeMap<String, String>, Failures> {
    let rules = read_rules(checkout, application)?;
    let given = read_given(checkout, application)?;
    let plan = Plan::prepare(checkout, application, tools, Purpose::Inspect).await.map_err(|error| render_failure(&error))?;
    let Inputs { mut asks, failures, .. } = Inputs::read(&plan, Some(&rules));
    if !failures.is_empty() {
        return Err(Failures(failures));
    }
    asks.extend(rule_lookups(&rules));
    let mut pins = BTreeMap::new();
    for ask in asks {
        let Question { repository, policy, .. } = &ask.question;
        let pinned = match given.get(ask.alias.as_deref(), repository, policy) {
            Some(pinned) => Some(pinned.clone()),
            None => resolver.last(&ask.question, &application.project).await,
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
    let misnamed = misnamed_files(checkout, application);
    if !misnamed.is_empty() {
        return Err(Failures(misnamed));
    }
    reader.parameters(&application.parameters.images, &application.parameters.image_settings);
    reader.finish().map_err(|errors| {
        Failures(errors.into_iter().map(|error| Failure::text(error.place, error.problem, error.hint)).collect())
    })
}

/// Files that nothing reads, though they were probably meant as ours.
fn misnamed_files(checkout: &Checkout, application: &Application) -> Vec<Failure> {
    let name = &application.name;
    let names = [".pinion".to_owned(), format!(".pinion-{name}"), format!(".pinion-lock-{name}")];
    let is_there = |name: &String| checkout.resolve_path(checkout.app(), &format!("{name}.yml")).is_ok();
    let found = names.iter().filter(|name| !name.contains('/') && is_there(name));
    found.map(|name| misnamed(shown(&checkout.app().join(format!("{name}.yml"))), name)).collect()
}

/// The failure of a file that is named as we name none.
pub(crate) fn misnamed(place: String, stem: &str) -> Failure {
    Failure::text(place, "a file of this name is not read", Some(format!("name it `{}.yaml`", printable(stem))))
}

fn read_given(checkout: &Checkout, application: &Application) -> Result<PinOverrides, Failures> {
    let failure = |place: &str, error: &dyn std::error::Error| Failures::from(Failure::new(place, error, None));
    let mut given = PinOverrides::parameter(&application.parameters.pins).map_err(|error| failure("parameter `pins`", &error))?;
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
