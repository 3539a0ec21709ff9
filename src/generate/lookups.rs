//! What an application asks: its placeholders and rules become questions, each with its place for messages.

use std::collections::BTreeMap;

use crate::failure::{Failure, chain};
use crate::image::{Repository, printable};
use crate::placeholder::image::{self as placeholder_image, ImageNotFound};
use crate::placeholder::words::PlaceholderSubject;
use crate::placeholder::{Form, MAX_PLACEHOLDERS, Placeholder, PlaceholderError, Scan, Site};
use crate::policy::Policy;
use crate::registry::Access;
use crate::render::Plan;
use crate::resolve::Question;
use crate::rules::{self, Rule, Rules};

/// A text with its name.
pub(super) struct Text<'a> {
    pub name: &'a str,
    /// What follows a place in it.
    pub origin: &'a str,
    pub text: &'a str,
    /// Is it one string, not YAML?
    pub is_raw: bool,
    /// Do its lines and columns tell where something is?
    pub has_places: bool,
}

impl<'a> Text<'a> {
    /// What a tool will read as data.
    pub(super) fn of(plan: &'a Plan) -> Vec<Self> {
        plan.data()
            .iter()
            .map(|data| Self {
                name: &data.name,
                origin: "",
                text: &data.text,
                is_raw: data.is_raw(),
                has_places: data.is_file(),
            })
            .collect()
    }

    /// A place in a text of one string would count from its own start, where nobody looks.
    fn failure(&self, error: &PlaceholderError) -> Failure {
        let failure = placeholder_failure(self.name, 0, error);
        if self.has_places { failure } else { Failure { place: self.name.to_owned(), ..failure } }
    }
}

/// Scans every text, and finds the mistakes of all of them. A text that cannot be read has no scan.
pub(super) fn scan_all<'t>(texts: &[Text<'t>]) -> (Vec<Option<Scan<'t>>>, Vec<Failure>) {
    let mut failures = Vec::new();
    let mut scans = Vec::new();
    let mut count = 0;
    for text in texts {
        let scan = if text.is_raw { Ok(Scan::raw(text.text)) } else { Scan::of(text.text) };
        match scan {
            Ok(scan) => {
                let (errors, found) = scan.as_ref().map_or((&[][..], 0), |scan| (&scan.errors[..], scan.placeholders.len()));
                failures.extend(errors.iter().map(|error| text.failure(error)));
                count += found;
                scans.push(scan);
            }
            Err(error) => {
                failures.push(text.failure(&error));
                scans.push(None);
            }
        }
        if count > MAX_PLACEHOLDERS {
            break;
        }
    }
    failures.extend(too_many(count));
    scans.resize_with(texts.len(), || None);
    (scans, failures)
}

/// The failure of a render with more placeholders than one may hold.
pub(super) fn too_many(count: usize) -> Option<Failure> {
    let message = format!("more than {MAX_PLACEHOLDERS} placeholders");
    (count > MAX_PLACEHOLDERS).then(|| Failure::text("", message, None))
}

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
    Placeholder(Site),
    /// The rule with this place in the list.
    Rule(usize),
}

/// What stands around placeholders.
#[derive(Default)]
pub(super) struct Images {
    /// The image beside each.
    pub beside: BTreeMap<Site, Result<Repository, ImageNotFound>>,
    /// The image that the tool puts before some.
    pub renamed: BTreeMap<Site, Repository>,
}

/// The image before the placeholder, else the one that stands beside it, which is a guess. None where the placeholder is overridden.
fn infer(inferred: &Images, site: Site, placeholder: &Placeholder) -> Option<Result<(Repository, bool), ImageNotFound>> {
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
    scans: &[Option<Scan<'_>>],
    inferred: &Images,
) -> (Vec<LookupRequest>, Vec<Failure>) {
    let mut asks = Vec::new();
    let mut failures = Vec::new();
    for (data, scan) in scans.iter().enumerate() {
        let Some(scan) = scan else { continue };
        for (index, placeholder) in scan.placeholders.iter().enumerate() {
            let site = (data, index);
            let Placeholder { line, column, .. } = placeholder;
            let Text { name, origin, has_places, .. } = texts[data];
            let place = if has_places { format!("{name}:{line}:{column}{origin}") } else { name.to_owned() };
            let Some(image) = infer(inferred, site, placeholder) else { continue };
            let Some(meaning) = meaning(rules, placeholder, image) else { continue };
            match meaning {
                Ok((question, alias, is_guess)) => {
                    let source = placeholder.source.clone();
                    let form = placeholder.form;
                    asks.push(LookupRequest {
                        wants: Requester::Placeholder(site),
                        place,
                        source,
                        alias,
                        question,
                        is_guess,
                        form,
                    });
                }
                Err((error, hint)) => {
                    let message = format!("`{}`: {error}", printable(&placeholder.source));
                    failures.push(Failure::text(place, message, Some(hint)));
                }
            }
        }
    }
    (asks, failures)
}

/// The images that placeholders name which nobody asks for, because another setting overrides them, with their places.
pub(super) fn not_asked(texts: &[Text<'_>], scans: &[Option<Scan<'_>>], inferred: &Images) -> Vec<(Repository, String)> {
    let mut found = Vec::new();
    for (data, scan) in scans.iter().enumerate() {
        for (index, placeholder) in scan.iter().flat_map(|scan| scan.placeholders.iter().enumerate()) {
            let named = match &placeholder.spec.target {
                PlaceholderSubject::Image { repository, .. } => repository.clone(),
                PlaceholderSubject::Rule(_) => None,
            };
            let image = named.or_else(|| placeholder_image::before(&placeholder.before).ok().flatten());
            if let Some(image) = image.filter(|_| !inferred.beside.contains_key(&(data, index))) {
                found.push((image, format!("{}:{}:{}", texts[data].name, placeholder.line, placeholder.column)));
            }
        }
    }
    found
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

/// A faulty placeholder. `above` counts the lines above the text in which its own line counts.
pub(crate) fn placeholder_failure(name: &str, above: usize, error: &PlaceholderError) -> Failure {
    let message = format!("`{}`: {}", error.source_text, chain(&error.mistake));
    Failure::text(format!("{name}:{}:{}", error.line + above, error.column), message, error.hint())
}
