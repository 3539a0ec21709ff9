//! What an application asks: its placeholders and rules become questions, each with its place for messages.

use std::collections::BTreeMap;

use super::text::Text;
use crate::failure::Failure;
use crate::image::{Repository, printable};
use crate::pin::Pin;
use crate::placeholder::image::{self as placeholder_image, ImageNotFound};
use crate::placeholder::scans::{PlaceholderId, Scans};
use crate::placeholder::words::PlaceholderSubject;
use crate::placeholder::{Form, Placeholder};
use crate::policy::Policy;
use crate::registry::Access;
use crate::resolve::Question;
use crate::rules::{self, Rule, Rules};

/// Something that wants a pin.
pub(super) struct LookupRequest {
    pub wants: Requester,
    /// For messages.
    pub place: String,
    /// As it is written, for messages.
    pub source: String,
    pub alias: Option<String>,
    pub question: Question,
    /// The image was not named but found beside the placeholder.
    pub is_guess: bool,
    pub form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Requester {
    Placeholder(PlaceholderId),
    /// The rule with this place in the list.
    Rule(usize),
}

/// The pins of those that asked.
pub(super) type Answers = BTreeMap<Requester, Pin>;

/// What stands around placeholders.
#[derive(Default)]
pub(super) struct Images {
    /// The image beside each.
    pub beside: BTreeMap<PlaceholderId, Result<Repository, ImageNotFound>>,
    /// The image that the tool puts before some.
    pub renamed: BTreeMap<PlaceholderId, Repository>,
}

/// The image before the placeholder, else the one that stands beside it, which is a guess. None where the placeholder is overridden.
fn infer(inferred: &Images, site: PlaceholderId, placeholder: &Placeholder) -> Option<Result<(Repository, bool), ImageNotFound>> {
    let beside = inferred.beside.get(&site)?;
    if let Some(image) = inferred.renamed.get(&site) {
        return Some(Ok((image.clone(), false)));
    }
    Some(match placeholder_image::before(&placeholder.before) {
        Ok(Some(image)) => Ok((image, false)),
        Ok(None) => beside.clone().map(|image| (image, true)),
        Err(error) => Err(error),
    })
}

/// What the placeholders of some texts ask, and every one of them that says nothing that can be asked. Without rules, because they
/// cannot be read, nothing is known of aliases.
pub(super) fn lookups_of(
    rules: Option<&Rules>,
    texts: &[Text<'_>],
    scans: &Scans<'_>,
    inferred: &Images,
) -> (Vec<LookupRequest>, Vec<Failure>) {
    let mut lookups = Vec::new();
    let mut failures = Vec::new();
    for (id, placeholder) in scans.placeholders() {
        let place = texts[id.input.0].place(placeholder.line, placeholder.column);
        let Some(image) = infer(inferred, id, placeholder) else { continue };
        let Some(meaning) = meaning(rules, placeholder, image) else { continue };
        match meaning {
            Ok((question, alias, is_guess)) => lookups.push(LookupRequest {
                wants: Requester::Placeholder(id),
                place,
                source: placeholder.source.clone(),
                alias,
                question,
                is_guess,
                form: placeholder.form,
            }),
            Err((error, hint)) => {
                let message = format!("`{}`: {error}", printable(&placeholder.source));
                failures.push(Failure::text(place, message, Some(hint)));
            }
        }
    }
    (lookups, failures)
}

/// The images that placeholders name which another setting overrides, with their places.
pub(super) fn overridden(texts: &[Text<'_>], scans: &Scans<'_>, inferred: &Images) -> Vec<(Repository, String)> {
    let overridden = scans.placeholders().filter(|(id, _)| !inferred.beside.contains_key(id));
    let found = overridden.filter_map(|(id, placeholder)| {
        let named = match &placeholder.spec.target {
            PlaceholderSubject::Image { repository, .. } => repository.clone(),
            PlaceholderSubject::Rule(_) => None,
        };
        let image = named.or_else(|| placeholder_image::before(&placeholder.before).ok().flatten())?;
        Some((image, format!("{}:{}:{}", texts[id.input.0].name, placeholder.line, placeholder.column)))
    });
    found.collect()
}

/// A placeholder's question, its alias, and whether its image is a guess; or what is wrong with it, and what to do.
type Meaning = Result<(Question, Option<String>, bool), (String, String)>;

/// What a placeholder asks. None if that is a rule's business, and the rules are not known.
fn meaning(
    rules: Option<&Rules>,
    placeholder: &Placeholder,
    inferred: Result<(Repository, bool), ImageNotFound>,
) -> Option<Meaning> {
    match &placeholder.spec.target {
        PlaceholderSubject::Rule(alias) => rules.map(|rules| match rules.get(alias) {
            Some(rule) => Ok((rule_question(rule), Some(alias.clone()), false)),
            None => {
                let known: Vec<String> = rules.rules.iter().map(|rule| rule.alias.clone()).collect();
                Err((format!("unknown alias `{}`", printable(alias)), rules::aliases_hint(&known)))
            }
        }),
        PlaceholderSubject::Image { repository, policy } => {
            Some(image_meaning(placeholder, repository.as_ref(), policy, inferred))
        }
    }
}

fn image_meaning(
    placeholder: &Placeholder,
    repository: Option<&Repository>,
    policy: &Policy,
    inferred: Result<(Repository, bool), ImageNotFound>,
) -> Meaning {
    let glued = || {
        let hint =
            "let the placeholder be the whole tag: `--allow-tags` and `--extract` choose among tags with a prefix or suffix";
        ("with the text around it, the tag would not be the one that is chosen".to_owned(), hint.to_owned())
    };
    if placeholder.names_no_image() && placeholder.is_touched {
        return Err(glued());
    }
    let (repository, is_guess) = match repository {
        Some(repository) => (repository.clone(), false),
        None => inferred.map_err(|error| {
            let hint = error.hint();
            // Kubernetes replaces `$(NAME)` in commands and arguments.
            let is_variable = placeholder.source == "$(pin)";
            let hint = if is_variable { format!("{hint}; a variable `pin` is written `$$(pin)`") } else { hint };
            (error.to_string(), hint)
        })?,
    };
    if is_guess && !placeholder.is_alone {
        return Err(glued());
    }
    if placeholder.form == Form::Digest && !policy.pins_digest() {
        let hint = "add `--with-digest`, or follow a tag with `digest TAG`".to_owned();
        return Err(("a digest is wanted here, and the policy gives none".into(), hint));
    }
    Ok((question(repository, policy, placeholder.spec.pull_secret.as_deref()), None, is_guess))
}

fn question(repository: Repository, policy: &Policy, pull_secret: Option<&str>) -> Question {
    let access = pull_secret.map_or(Access::Operator, Access::application);
    Question { repository, policy: policy.clone(), access }
}

fn rule_question(rule: &Rule) -> Question {
    question(rule.repository.clone(), &rule.policy, rule.pull_secret.as_deref())
}

/// What the rules ask. One that only names an image for `$(pin @alias)` would be rewritten to the same tag.
pub(super) fn rule_lookups(rules: &Rules) -> Vec<LookupRequest> {
    let ask = |(index, rule): (usize, &Rule)| LookupRequest {
        wants: Requester::Rule(index),
        place: format!("rule `{}`", rule.alias),
        source: String::new(),
        alias: Some(rule.alias.clone()),
        question: rule_question(rule),
        is_guess: false,
        form: Form::Tag,
    };
    rules.rules.iter().enumerate().map(ask).collect()
}
