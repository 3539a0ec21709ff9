//! What is known of an application before any registry is asked: its rules, the pins that are held, the tool, and what each placeholder
//! asks. Shared by `generate`, `check` and the announcement of parameters.

use super::lookups::{Images, LookupRequest, rule_lookups};
use super::pass::Pass;
use super::session::rule_targets;
use crate::application::Application;
use crate::failure::{Failure, FailureKind, Failures};
use crate::image::printable;
use crate::parameters::{Mode, Parameters};
use crate::pin::PinOverrides;
use crate::process::ProcessError;
use crate::render::{Plan, Purpose, RenderError, Tools};
use crate::rules::{Reader, RuleSource, RuleTarget, Rules};
use crate::workspace::{Checkout, WorkspaceError, shown};

/// An application that was read.
pub(super) struct Prepared {
    /// None if the rules cannot be read.
    pub rules: Option<Rules>,
    /// The parameter `pins` and the lock file. None if one of them cannot be read.
    pub overrides: Option<PinOverrides>,
    pub plan: Plan,
    /// Mistakes in the rules, in the pins, and in how the rules fit the tool.
    pub failures: Vec<Failure>,
}

impl Prepared {
    /// Reads an application's rules, held pins and the files of its tool.
    ///
    /// # Errors
    ///
    /// What keeps the tool's files from being read, with the failures found until then.
    pub(super) async fn read(
        checkout: &Checkout,
        application: &Application,
        tools: &Tools,
        purpose: Purpose,
    ) -> Result<Self, Failures> {
        let mut failures = Vec::new();
        let mut keep = |Failures(found)| failures.extend(found);
        let rules = read_rules(checkout, application).map_err(&mut keep).ok();
        let overrides = read_overrides(checkout, application).map_err(&mut keep).ok();
        let mut plan = match Plan::prepare(checkout, application, tools, purpose).await {
            Ok(plan) => plan,
            Err(error) => {
                failures.push(render_failure(&error));
                return Err(Failures(failures));
            }
        };
        failures.extend(rules.iter().flat_map(|rules| misplaced(rules, plan.tool())));
        failures.extend(rules.iter().flat_map(|rules| replaced_lists(rules, &plan)));
        if purpose == Purpose::Render {
            // Only a build tells which placeholders of a kustomization are overridden.
            let targets = rules.as_ref().map(|rules| rule_targets(&rules.rules, |_| Some("0".to_owned()))).unwrap_or_default();
            plan.probe(&targets.of(plan.tool()), tools).await;
        }
        Ok(Self { rules, overrides, plan, failures })
    }

    /// The placeholders of what the tool reads.
    pub(super) fn inputs(&self) -> Pass<'_> {
        let images = |scans: &_| Ok(Images { beside: self.plan.images(scans)?, renamed: self.plan.renamed(scans) });
        Pass::over_inputs(self.plan.inputs(), self.rules.as_ref(), images)
    }

    /// What the rules ask.
    pub(super) fn rule_lookups(&self) -> Vec<LookupRequest> {
        self.rules.as_ref().map(rule_lookups).unwrap_or_default()
    }

    /// What a person should know of parameters that are for another tool.
    pub(super) fn notes(&self, application: &Application) -> Vec<String> {
        let tool = self.plan.tool();
        let idle = application.parameters.of_other_tools(tool);
        idle.iter().map(|name| format!("parameter `{name}` has no effect: the application is rendered by `{tool}`")).collect()
    }
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
            reader.add(RuleSource::File { name, text: &text });
        }
    }
    let misnamed = misnamed_files(checkout, application);
    if !misnamed.is_empty() {
        return Err(Failures(misnamed));
    }
    let Parameters { images, image_settings: settings, .. } = &application.parameters;
    reader.add(RuleSource::Parameters { images, settings });
    reader.finish().map_err(|errors| {
        Failures(errors.into_iter().map(|error| Failure::text(error.place, error.problem, error.hint)).collect())
    })
}

/// Files that nothing reads, though they were probably meant as ours.
fn misnamed_files(checkout: &Checkout, application: &Application) -> Vec<Failure> {
    let name = &application.name;
    if name.contains('/') {
        return Vec::new();
    }
    let ends = [String::new(), format!("-{name}"), format!("-lock-{name}")];
    // A listing would bring the whole directory to the disk.
    let near = ends.iter().flat_map(|end| {
        let underscored = end.replacen('-', "_", 1);
        let names = [
            format!(".pinion{end}.yml"),
            format!(".pinion{end}.json"),
            format!(".pinions{end}.yaml"),
            format!(".Pinion{end}.yaml"),
        ];
        names.into_iter().chain((underscored != *end).then(|| format!(".pinion{underscored}.yaml")))
    });
    let found = near.filter(|near| checkout.resolve_path(checkout.app(), near).is_ok());
    found.filter_map(|near| Some(misnamed(shown(&checkout.app().join(&near)), &meant_name(&near)?))).collect()
}

/// The name that was meant by the name of a file which is nearly that of a rules file or lock file.
pub(crate) fn meant_name(file: &str) -> Option<String> {
    let (stem, end) = file.rsplit_once('.')?;
    if !["yaml", "yml", "json"].iter().any(|known| end.eq_ignore_ascii_case(known)) {
        return None;
    }
    let (head, rest) = stem.find(['-', '_']).map_or((stem, None), |at| (&stem[..at], Some(&stem[at + 1..])));
    let head = head.to_ascii_lowercase();
    // One letter too much, too few or wrong, or two exchanged.
    if !head.starts_with(".p") || strsim::osa_distance(&head, ".pinion") > 1 {
        return None;
    }
    let meant = rest.map_or_else(|| ".pinion.yaml".to_owned(), |rest| format!(".pinion-{rest}.yaml"));
    (meant != file).then_some(meant)
}

/// The failure of a file that nothing reads.
pub(crate) fn misnamed(place: String, meant: &str) -> Failure {
    Failure::text(place, "a file of this name is not read", Some(format!("name it `{}`", printable(meant))))
}

fn read_overrides(checkout: &Checkout, application: &Application) -> Result<PinOverrides, Failures> {
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

impl From<&WorkspaceError> for Failures {
    fn from(error: &WorkspaceError) -> Self {
        Failure::new("", error, None).into()
    }
}

/// The failure of a tool or of its preparation.
pub(super) fn render_failure(error: &RenderError) -> Failure {
    let kind = match error {
        RenderError::Process(ProcessError::Start { .. } | ProcessError::Read { .. })
        | RenderError::Workspace(WorkspaceError::Io { .. })
        | RenderError::NotKept(_)
        | RenderError::Proxy(_) => FailureKind::Internal,
        _ => FailureKind::Invalid,
    };
    Failure::new("", error, error.hint()).of_kind(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_spellings_of_our_files_are_known() {
        for (file, meant) in [
            (".pinion.yml", ".pinion.yaml"),
            (".pinion.YAML", ".pinion.yaml"),
            (".pinion.json", ".pinion.yaml"),
            (".Pinion.yaml", ".pinion.yaml"),
            (".pinions.yaml", ".pinion.yaml"),
            (".pinoin.yaml", ".pinion.yaml"),
            (".pinion-web.yml", ".pinion-web.yaml"),
            (".pinion_web.yaml", ".pinion-web.yaml"),
            (".pinion-lock-my_app.yml", ".pinion-lock-my_app.yaml"),
        ] {
            assert_eq!(meant_name(file).as_deref(), Some(meant), "{file}");
        }
        for file in [
            ".pinion.yaml",
            ".pinion-web.yaml",
            ".pinion-my_app.yaml",
            ".pinion-lock-web.yaml",
            "pinion.yaml",
            ".onion.yaml",
            ".pinion",
            ".pinion.txt",
        ] {
            assert_eq!(meant_name(file), None, "{file}");
        }
    }
}
