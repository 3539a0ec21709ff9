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

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;

use crate::application::Application;
use crate::failure::{Failure, Failures, chain};
use crate::image::{Repository, printable};
use crate::manifest::{self, Document, ImagePath};
use crate::parameters::Mode;
use crate::pin::{Freshness, Given, Pin};
use crate::placeholder::image::{self as placeholder_image, ImageNotFound};
use crate::placeholder::words::Target as Meaning;
use crate::placeholder::{Placeholder, PlaceholderError, Scan, unescape};
use crate::policy::Policy;
use crate::registry::{Access, TagSource};
use crate::render::{Plan, RenderError, Targets, Tools};
use crate::resolve::{Question, Resolver};
use crate::rules::{self, Reader, Rule, Rules, Target};
use crate::values::Site;
use crate::workspace::{Checkout, WorkspaceError};

/// Placeholders that one render may hold.
const MAX_PLACEHOLDERS: usize = 10_000;

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
}

/// Renders an application.
///
/// # Errors
///
/// All [`Failures`] of the step that failed, each with its place.
pub async fn generate<S: TagSource>(
    checkout: &Checkout,
    application: &Application,
    tools: &Tools,
    image_paths: &[ImagePath],
    resolver: &Resolver<S>,
) -> Result<Generated, Failures> {
    let rules = read_rules(checkout, application)?;
    let given = read_given(checkout, application)?;
    let mut plan = Plan::prepare(checkout, application, tools).await.map_err(|error| render_failure(&error))?;
    misplaced(&rules, plan.tool())?;
    let mut render = Render {
        application,
        rules: &rules,
        given,
        resolver,
        pins: Vec::new(),
        guesses: Vec::new(),
        used: BTreeSet::new(),
        mentioned: BTreeSet::new(),
    };

    let texts: Vec<Text<'_>> = plan.texts().collect();
    let scans = scan_all(&texts)?;
    let inferred = plan.images(&scans).map_err(|error| render_failure(&error))?;
    let mut asks = asks(&rules, &texts, &scans, &inferred)?;
    asks.extend(render.rule_asks());
    let answers = render.answer(asks).await?;
    let changed = substitute(&scans, &answers);
    let targets = render.targets(&answers);
    drop(scans);

    let rendered = plan.run(&changed, &targets, tools).await.map_err(|error| render_failure(&error))?;
    if is_empty(&rendered) {
        return Err(render_failure(&RenderError::Empty));
    }

    let rendered = render.substitute_rendered(rendered).await?;
    let (rendered, mut notes) = render.rewrite(rendered, &answers, image_paths)?;
    prove(&rendered)?;
    let manifests = unescape_all(rendered);

    notes.extend(rules.notes.iter().cloned());
    notes.extend(render.doubts(&manifests));
    notes.extend(render.unused());
    Ok(Generated { manifests, pins: render.pins, tool: plan.tool(), notes })
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
    let texts: Vec<Text<'_>> = plan.texts().collect();
    let scans = scan_all(&texts)?;
    let inferred = plan.images(&scans).map_err(|error| render_failure(&error))?;
    asks(&rules, &texts, &scans, &inferred).map(drop)
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
        if let Some(text) = checkout.read_if_present(&checkout.app().join(name)).map_err(|error| workspace_failure(&error))? {
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
        if let Some(text) = checkout.read_if_present(&path).map_err(|error| workspace_failure(&error))? {
            given.add_lock(&text).map_err(|error| failure(&name, &error))?;
        }
    }
    Ok(given)
}

/// A text with its name.
struct Text<'a> {
    name: &'a str,
    text: &'a str,
    is_raw: bool,
}

impl Text<'_> {
    /// A place in a text of one string would count from its own start, where nobody looks.
    fn failure(&self, error: &PlaceholderError) -> Failure {
        let failure = placeholder_failure(self.name, 0, error);
        if self.is_raw { Failure { place: self.name.to_owned(), ..failure } } else { failure }
    }
}

impl Plan {
    fn texts(&self) -> impl Iterator<Item = Text<'_>> {
        self.data().iter().map(|data| Text { name: &data.name, text: &data.text, is_raw: data.is_raw() })
    }
}

/// Scans every text; mistakes of all of them come back together.
fn scan_all<'t>(texts: &[Text<'t>]) -> Result<Vec<Option<Scan<'t>>>, Failures> {
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
            Err(error) => failures.push(text.failure(&error)),
        }
    }
    if count > MAX_PLACEHOLDERS {
        failures.push(Failure::text("", format!("{count} placeholders, at most {MAX_PLACEHOLDERS} are allowed"), None));
    }
    if failures.is_empty() { Ok(scans) } else { Err(Failures(failures)) }
}

/// Something that wants a pin.
struct Ask {
    wants: Wants,
    /// For messages.
    place: String,
    /// As it is written, for messages.
    source: String,
    alias: Option<String>,
    question: Question,
    /// The image was not named but found beside the placeholder.
    is_guess: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wants {
    Placeholder(Site),
    /// The rule with this place in the list.
    Rule(usize),
}

/// The image that stands beside each placeholder.
type Images = BTreeMap<Site, Result<Repository, ImageNotFound>>;

/// The image before the placeholder, else the one that stands beside it, which is a guess. None where the placeholder is overridden.
fn infer(inferred: &Images, site: Site, placeholder: &Placeholder) -> Option<Result<(Repository, bool), ImageNotFound>> {
    let beside = inferred.get(&site)?;
    Some(match placeholder_image::before(&placeholder.before) {
        Ok(Some(image)) => Ok((image, false)),
        Ok(None) => beside.clone().map(|image| (image, true)),
        Err(error) => Err(error),
    })
}

/// What the placeholders of some texts ask, with every image that could not be found.
fn asks(rules: &Rules, texts: &[Text<'_>], scans: &[Option<Scan<'_>>], inferred: &Images) -> Result<Vec<Ask>, Failures> {
    let mut asks = Vec::new();
    let mut failures = Vec::new();
    for (data, scan) in scans.iter().enumerate() {
        let Some(scan) = scan else { continue };
        for (index, placeholder) in scan.placeholders.iter().enumerate() {
            let site = (data, index);
            let Placeholder { line, column, .. } = placeholder;
            let place =
                if texts[data].is_raw { texts[data].name.to_owned() } else { format!("{}:{line}:{column}", texts[data].name) };
            let Some(image) = infer(inferred, site, placeholder) else { continue };
            match meaning(rules, placeholder, image) {
                Ok((question, alias, is_guess)) => {
                    let source = placeholder.source.clone();
                    asks.push(Ask { wants: Wants::Placeholder(site), place, source, alias, question, is_guess });
                }
                Err((error, hint)) => {
                    let message = format!("`{}`: {error}", printable(&placeholder.source));
                    failures.push(Failure::text(place, message, Some(hint)));
                }
            }
        }
    }
    if failures.is_empty() { Ok(asks) } else { Err(Failures(failures)) }
}

/// A placeholder's question, its alias, and whether its image is a guess.
fn meaning(
    rules: &Rules,
    placeholder: &Placeholder,
    inferred: Result<(Repository, bool), ImageNotFound>,
) -> Result<(Question, Option<String>, bool), (String, String)> {
    match &placeholder.spec.target {
        Meaning::Rule(alias) => match rules.get(alias) {
            Some(rule) => Ok((rule_question(rule), Some(alias.clone()), false)),
            None => {
                let known: Vec<String> = rules.rules.iter().map(|rule| rule.alias.clone()).collect();
                Err((format!("unknown alias `{}`", printable(alias)), rules::aliases_hint(&known)))
            }
        },
        Meaning::Image { repository, policy } => {
            let (repository, is_guess) = match repository {
                Some(repository) => (repository.clone(), false),
                None => inferred.map_err(|error| (error.to_string(), error.hint()))?,
            };
            if is_guess && !placeholder.is_alone {
                let hint = "let the placeholder be the whole value, or name the image in it".to_owned();
                return Err(("with the text around it, the tag would not be the one that is chosen".into(), hint));
            }
            Ok((question(repository, policy, placeholder.spec.pull_secret.as_deref()), None, is_guess))
        }
    }
}

fn question(repository: Repository, policy: &Policy, pull_secret: Option<&str>) -> Question {
    let access = pull_secret.map_or_else(Access::operator, Access::secret);
    Question { repository, policy: policy.clone(), access }
}

fn rule_question(rule: &Rule) -> Question {
    question(rule.repository.clone(), &rule.policy, rule.pull_secret.as_deref())
}

/// What is known while one application is rendered.
struct Render<'a, S> {
    application: &'a Application,
    rules: &'a Rules,
    given: Given,
    resolver: &'a Resolver<S>,
    pins: Vec<Pin>,
    /// Pins whose image was found beside the placeholder.
    guesses: Vec<Pin>,
    /// Names under which a given pin may stand.
    used: BTreeSet<String>,
    /// Aliases that placeholders name.
    mentioned: BTreeSet<String>,
}

type Answers = BTreeMap<Wants, Pin>;

impl<S: TagSource> Render<'_, S> {
    /// Rules with a place to go. One that only names an image for `$(pin @alias)` would be rewritten to the same tag.
    fn rule_asks(&self) -> Vec<Ask> {
        let ask = |(index, rule): (usize, &Rule)| Ask {
            wants: Wants::Rule(index),
            place: format!("rule `{}`", rule.alias),
            source: String::new(),
            alias: Some(rule.alias.clone()),
            question: rule_question(rule),
            is_guess: false,
        };
        self.rules.rules.iter().enumerate().map(ask).collect()
    }

    /// Given pins first, then the registries. Every failure is reported.
    async fn answer(&mut self, asks: Vec<Ask>) -> Result<Answers, Failures> {
        let mut answers = Answers::new();
        let mut failures = Vec::new();
        let mut open = Vec::new();
        for ask in asks {
            let Question { repository, policy, .. } = &ask.question;
            self.used.extend(ask.alias.iter().cloned().chain([repository.text().to_owned(), repository.to_string()]));
            if let (Wants::Placeholder(_), Some(alias)) = (&ask.wants, &ask.alias) {
                self.mentioned.insert(alias.clone());
            }
            match self.given.get(ask.alias.as_deref(), repository, policy) {
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
        let pins = if questions.is_empty() { Vec::new() } else { self.resolver.resolve(&questions).await };
        for (ask, pin) in open.into_iter().zip(pins) {
            match pin {
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
        if is_guess {
            self.guesses.push(pin.clone());
        }
        if self.pins.iter().all(|known| (&known.repository, &known.policy) != (&pin.repository, &pin.policy)) {
            self.pins.push(pin);
        }
    }

    /// What rules with targets give to the tool.
    fn targets(&self, answers: &Answers) -> Targets {
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
    async fn substitute_rendered(&mut self, rendered: String) -> Result<String, Failures> {
        if !rendered.contains("(pin") {
            return Ok(rendered);
        }
        let documents = manifest::documents(&rendered);
        let mut scans = Vec::new();
        let mut names = Vec::new();
        let mut failures = Vec::new();
        for Document { range, above } in &documents {
            let name = origin(&rendered[range.clone()]);
            match Scan::of(&rendered[range.clone()]) {
                Ok(mut scan) => {
                    if let Some(scan) = &mut scan {
                        failures.extend(scan.errors.iter().map(|error| placeholder_failure(&name, *above, error)));
                        scan.placeholders.iter_mut().for_each(|placeholder| placeholder.line += *above);
                    }
                    scans.push(scan);
                }
                Err(error) => failures.push(placeholder_failure(&name, *above, &error)),
            }
            names.push(name);
        }
        if !failures.is_empty() {
            return Err(Failures(failures));
        }
        let texts: Vec<Text<'_>> = documents
            .iter()
            .zip(&names)
            .map(|(document, name)| Text { name, text: &rendered[document.range.clone()], is_raw: false })
            .collect();
        let asks = asks(self.rules, &texts, &scans, &placeholder_image::beside_each(&scans))?;
        let answers = self.answer(asks).await?;
        let mut changed = substitute(&scans, &answers);
        Ok(texts.iter().enumerate().map(|(index, text)| changed.remove(&index).unwrap_or_else(|| text.text.to_owned())).collect())
    }

    /// Rewrites the images of rules without targets, and notes rules that met no image.
    fn rewrite(&self, rendered: String, answers: &Answers, further: &[ImagePath]) -> Result<(String, Vec<String>), Failures> {
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
    fn doubts(&self, manifests: &str) -> Vec<String> {
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

    fn unused(&self) -> Vec<String> {
        let unused = self.given.unused(|name| self.used.contains(name));
        unused
            .into_iter()
            .map(|name| format!("parameter `pins`: `{}` is no image or alias of this application", printable(name)))
            .collect()
    }
}

const RENDERED: &str = "rendered manifests";

/// Where a rendered document comes from, if Helm says so; the line is that of the rendered text.
fn origin(document: &str) -> String {
    let source = document.lines().take(3).find_map(|line| line.strip_prefix("# Source: "));
    source.map_or_else(|| RENDERED.to_owned(), |path| format!("{RENDERED}, from {}", printable(path)))
}

fn quoted(source: &str) -> String {
    if source.is_empty() { String::new() } else { format!("`{}`: ", printable(source)) }
}

fn substitute(scans: &[Option<Scan<'_>>], answers: &Answers) -> BTreeMap<usize, String> {
    let mut changed = BTreeMap::new();
    for (data, scan) in scans.iter().enumerate() {
        let Some(scan) = scan else { continue };
        let value = |index| answers.get(&Wants::Placeholder((data, index))).map(|pin| pin.pinned.to_string());
        let values: Vec<Option<String>> = (0..scan.placeholders.len()).map(value).collect();
        if values.iter().any(Option::is_some) {
            changed.insert(data, scan.substitute(&values));
        }
    }
    changed
}

/// P1: nothing unresolved leaves.
fn prove(rendered: &str) -> Result<(), Failures> {
    let mut failures = hidden(rendered);
    for Document { range, above } in manifest::documents(rendered) {
        match Scan::of(&rendered[range]) {
            Ok(None) => {}
            Ok(Some(scan)) => failures.extend(scan.placeholders.iter().map(|placeholder| {
                let place = format!("{RENDERED}:{}:{}", placeholder.line + above, placeholder.column);
                Failure::text(place, format!("`{}` is not resolved", printable(&placeholder.source)), None)
            })),
            Err(error) => failures.push(placeholder_failure(RENDERED, above, &error)),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failures(failures)) }
}

/// Placeholders in base64, as Secrets hold it. Too late to resolve them: what was encoded may have been hashed as well.
fn hidden(rendered: &str) -> Vec<Failure> {
    /// `$(pin ` in base64 at its three alignments, without the characters that depend on what stands around it.
    const ENCODED: [&str; 3] = ["JChwaW4g", "QocGluI", "kKHBpbi"];
    let mut failures = Vec::new();
    for (line, text) in rendered.lines().enumerate().filter(|(_, text)| ENCODED.iter().any(|form| text.contains(form))) {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')));
        let decoded = words.filter_map(|word| base64::engine::general_purpose::STANDARD.decode(word).ok());
        if decoded.map(|bytes| String::from_utf8_lossy(&bytes).replace("$$(pin", "")).any(|text| text.contains("$(pin ")) {
            let hint =
                "write it where it is read as data before it is encoded, such as `values.yaml`; a literal one is `$$(pin `";
            let place = format!("{RENDERED}:{}", line + 1);
            failures.push(Failure::text(place, "a placeholder is hidden in base64", Some(hint.to_owned())));
        }
    }
    failures
}

fn unescape_all(rendered: String) -> String {
    if !rendered.contains("$$(pin") {
        return rendered;
    }
    manifest::documents(&rendered).into_iter().map(|document| unescape(rendered[document.range].to_owned())).collect()
}

/// Does a text hold nothing but comments, separators and white space?
fn is_empty(rendered: &str) -> bool {
    rendered.lines().all(|line| {
        let line = line.trim();
        line.is_empty()
            || line.starts_with('#')
            || line.starts_with("---") && line["---".len()..].trim().is_empty()
            || line == "..."
    })
}

fn placeholder_failure(name: &str, above: usize, error: &PlaceholderError) -> Failure {
    let message = format!("`{}`: {}", error.source_text, chain(&error.mistake));
    Failure::text(format!("{name}:{}:{}", error.line + above, error.column), message, error.hint())
}

fn render_failure(error: &RenderError) -> Failures {
    Failure::new("", error, error.hint()).into()
}

fn workspace_failure(error: &WorkspaceError) -> Failures {
    Failure::new("", error, None).into()
}

/// Checks a single file without knowing the application: the syntax of its placeholders, or its rules.
pub fn check_file(path: &Path, name: &str, text: &str) -> Vec<Failure> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    if file == ".pinion.yaml" || (file.starts_with(".pinion-") && !file.starts_with(".pinion-lock-")) {
        let mut reader = Reader::default();
        reader.file(name, text);
        let errors = reader.finish().err().unwrap_or_default();
        return errors.into_iter().map(|error| Failure::text(error.place, error.problem, error.hint)).collect();
    }
    match Scan::of(text) {
        Ok(scan) => scan.iter().flat_map(|scan| &scan.errors).map(|error| placeholder_failure(name, 0, error)).collect(),
        // A Helm template need not be YAML before it is rendered: its placeholders are read line by line.
        Err(_) if path.components().any(|part| part.as_os_str() == "templates") => {
            let errors = text.lines().enumerate().filter_map(|(line, text)| Some((line, Scan::raw(text)?)));
            errors
                .flat_map(|(line, scan)| {
                    scan.errors.iter().map(|error| placeholder_failure(name, line, error)).collect::<Vec<_>>()
                })
                .collect()
        }
        Err(error) => vec![placeholder_failure(name, 0, &error)],
    }
}
