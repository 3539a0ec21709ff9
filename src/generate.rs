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

use std::time::{Duration, Instant};

mod check;
mod error;
mod known;
mod list_images;
mod lookups;
mod pass;
pub mod phases;
mod prepared;
mod session;
pub(crate) mod text;
mod usage;
mod verify;

use crate::application::Application;
use crate::failure::Failures;
use crate::manifest::ImagePath;
use crate::pin::{Pin, PinState, Usage};
use crate::placeholder::scans::Substituted;
use crate::render::{Purpose, Rendered, Tools};
use crate::resolve::Resolver;
use crate::workspace::Checkout;
pub use check::check;
pub use error::GenerateError;
use phases::PhaseTimer;
use prepared::{Prepared, render_failure};
pub(crate) use prepared::{meant_name, misnamed};
use session::RenderSession;
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
    /// Does the tool's text come from the render cache?
    pub is_cached: bool,
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

/// Renders applications.
#[derive(Clone, Copy, Debug)]
pub struct Generator<'a> {
    pub tools: &'a Tools,
    /// Places of images beside those that Pinion knows, for rules.
    pub image_paths: &'a [ImagePath],
    pub resolver: &'a Resolver,
}

impl Generator<'_> {
    /// Renders an application. Lookups leave time for the tool before the deadline, if there is one. The timer goes through `prepare`
    /// (reading files, rules and placeholders), `lookup` (asking for pins), `tool` (Helm, Kustomize, or putting files together) and
    /// `finish` (what is done with the rendered text).
    ///
    /// # Errors
    ///
    /// All failures that can be found, each with its place: also those of the rendered text, as far as the tool runs without the pins
    /// that are missing.
    pub async fn generate(
        &self,
        checkout: &Checkout,
        application: &Application,
        deadline: Option<Instant>,
        timer: &PhaseTimer,
    ) -> Result<Generated, GenerateError> {
        timer.begin("prepare");
        let mut prepared = Prepared::read(checkout, application, self.tools, Purpose::Render).await?;
        let mut failures = std::mem::take(&mut prepared.failures);
        let mut inputs = prepared.inputs();
        failures.append(&mut inputs.failures);
        // Without the held pins, every placeholder would be looked up, also those that are held.
        let Some(overrides) = &prepared.overrides else { return Err(Failures(failures).into()) };
        let mut session = RenderSession::new(application, prepared.rules.as_ref(), overrides, self.resolver, deadline);
        session.known.add_overridden(std::mem::take(&mut inputs.overridden));

        timer.begin("lookup");
        let mut lookups = std::mem::take(&mut inputs.lookups);
        lookups.extend(prepared.rule_lookups());
        let (answers, unanswered) = session.answer(lookups, false).await;
        failures.extend(unanswered);

        timer.begin("tool");
        let targets = session.targets(&answers);
        if !failures.is_empty() {
            let (told, changed) = (inputs.misunderstood(), inputs.substitute(&answers, Some(NO_TAG)));
            drop(inputs);
            let targets = targets.of(prepared.plan.tool());
            let render = prepared.plan.run(&changed, &targets, self.tools);
            if let Ok(Ok(Rendered { text, .. })) = tokio::time::timeout(time_to_try(deadline), render).await {
                timer.begin("finish");
                let further = session.further_failures(&text, &told).await;
                // What holds the stand-in would be told in words that nobody wrote.
                failures.extend(further.into_iter().filter(|failure| !failure.message.contains(NO_TAG)));
            }
            return Err(Failures(failures).into());
        }
        // Where manifests are only put together, their placeholders can wait until the rules have seen them.
        let is_substituted = !(prepared.plan.is_text() && session.has_rules_for_manifests());
        let changed = if is_substituted { inputs.substitute(&answers, None) } else { Substituted::new() };
        drop(inputs);
        let rendered = prepared.plan.run(&changed, &targets, self.tools).await;
        let Rendered { text: rendered, is_cached } = rendered.map_err(|error| Failures::from(render_failure(&error)))?;

        timer.begin("finish");
        let mut notes = Vec::new();
        if is_empty(&rendered) {
            notes.push(prepared.plan.empty().map_err(|error| Failures::from(render_failure(&error)))?);
        }
        let rendered = match session.rewrite(&rendered, &answers, is_substituted, self.image_paths) {
            Ok(rewritten) => session.substitute_rendered(rewritten).await?,
            // A placeholder in what is no YAML says more.
            Err(failures) => return Err(session.substitute_rendered(rendered).await.err().unwrap_or(failures).into()),
        };
        session.check_overrides(&rendered)?;
        verify(&rendered, &session.pins(), self.image_paths)?;
        let manifests = unescape_all(rendered);

        notes.extend(prepared.notes(application));
        notes.extend(prepared.rules.iter().flat_map(|rules| rules.notes.iter().cloned()));
        let (pins, found) = session.finish(&manifests)?;
        notes.extend(found);
        Ok(Generated { manifests, pins, tool: prepared.plan.tool(), notes, is_cached })
    }
}

/// The time for a run of the tool whose text is only looked through for more mistakes: it must not cost the answer.
fn time_to_try(deadline: Option<Instant>) -> Duration {
    let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()) / 2);
    left.min(LONGEST_TRY)
}
