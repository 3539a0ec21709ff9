//! Finds mistakes without a registry and without running a tool.

use super::error::GenerateError;
use super::known::Known;
use super::lookups::LookupRequest;
use super::prepared::Prepared;
use crate::application::Application;
use crate::failure::{Failure, Failures};
use crate::image::printable;
use crate::placeholder::near_miss::near_miss;
use crate::render::{Plan, Purpose, Tools};
use crate::rules::{RuleTarget, Rules};
use crate::workspace::Checkout;

/// Finds every mistake that can be found without a registry and without running a tool. Returns what a person should know beside.
/// `permits_credentials`: may applications name `env:` and `ext:` credentials?
///
/// # Errors
///
/// All failures.
pub async fn check(
    checkout: &Checkout,
    application: &Application,
    tools: &Tools,
    permits_credentials: bool,
) -> Result<Vec<String>, GenerateError> {
    let mut prepared = Prepared::read(checkout, application, tools, Purpose::Inspect).await?;
    let mut failures = std::mem::take(&mut prepared.failures);
    let mut inputs = prepared.inputs();
    failures.append(&mut inputs.failures);
    inputs.lookups.extend(prepared.rule_lookups());
    failures.extend(near_misses(&prepared.plan));
    if let Prepared { rules: Some(rules), overrides: Some(overrides), plan, .. } = &prepared {
        failures.extend(unread_targets(rules, plan));
        // Templates may hold further placeholders.
        if !plan.may_hold_more() {
            let mut known = Known::default();
            inputs.lookups.iter().for_each(|lookup| known.add(lookup));
            known.add_overridden(std::mem::take(&mut inputs.overridden));
            failures.extend(known.check(overrides, ""));
        }
    }
    if !failures.is_empty() {
        return Err(Failures(failures).into());
    }
    let problem =
        |lookup: &LookupRequest| Some(format!("{}: {}", lookup.place, lookup.question.access.problem(permits_credentials)?));
    Ok(inputs.lookups.iter().filter_map(problem).chain(prepared.notes(application)).collect())
}

/// Values of parameters that were probably meant as placeholders.
fn near_misses(plan: &Plan) -> Vec<Failure> {
    let parameters = plan.inputs().iter().filter(|(_, input)| input.name.starts_with("parameter `"));
    let failures = parameters.filter_map(|(_, input)| {
        let near = near_miss(&input.text)?;
        let message = format!("`{}` is no placeholder", printable(&input.text[near.range]));
        (!near.is_bare).then(|| Failure::text(input.name.clone(), message, Some(format!("did you mean `{}`?", near.meant))))
    });
    failures.collect()
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
