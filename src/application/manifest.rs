//! Applications as manifests: on a laptop or in CI, an `Application` or an `ApplicationSet` says what Argo CD would ask.
//!
//! Text goes in; the sources that Pinion renders come out, each as an [`Application`], with those that are left to others. Read as
//! Kubernetes reads it: a parameter that is no text is an error, since the API server would refuse it. Source: Argo CD's
//! `pkg/apis/application/v1alpha1/types.go`.

use std::collections::{BTreeMap, BTreeSet};

use granit_parser::ScalarStyle;
use serde::Deserialize;
use serde_json::Value;

use super::native::replacement;
use super::{Application, ApplicationError, Native, set};
use crate::image::printable;
use crate::parameters::{Parameters, RawParameter};
use crate::yaml::{self, Kind, NodeId, Tree};

/// What a person says beside the manifest.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// The one source to render, by its name or its number, counted from 1. None: all of ours.
    pub source: Option<String>,
    /// Values of an ApplicationSet's template.
    pub set: BTreeMap<String, String>,
    /// A further name under which Pinion is installed.
    pub plugin_name: Option<String>,
}

impl Choices {
    /// Is this the name of our plugin? Without a name, Argo CD looks which plugin wants the application.
    fn is_ours(&self, name: &str) -> bool {
        let is_default = name.is_empty() || name == "pinion" || name.starts_with("pinion@") || name.starts_with("pinion-");
        is_default || self.plugin_name.as_deref() == Some(name)
    }
}

/// An application as its manifest describes it.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub name: String,
    namespace: String,
    project: String,
    /// Those to render, in the order of the manifest.
    pub sources: Vec<Source>,
    /// What a person should know: sources that others render, and what is not looked at.
    pub notes: Vec<String>,
}

/// A source that Pinion renders.
#[derive(Clone, Debug)]
pub struct Source {
    /// How messages name it: empty if it is the only one.
    pub label: String,
    pub path: Option<String>,
    repo_url: String,
    target_revision: String,
    parameters: Vec<RawParameter>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSource {
    name: String,
    #[serde(rename = "repoURL")]
    repo_url: String,
    path: Option<String>,
    chart: String,
    #[serde(rename = "ref")]
    reference: String,
    target_revision: String,
    plugin: Option<Plugin>,
    helm: Option<Value>,
    kustomize: Option<Value>,
    directory: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Plugin {
    name: String,
    parameters: Vec<RawParameter>,
}

/// What of `.argocd-source.yaml` concerns a source with a plugin.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Override {
    plugin: Option<PluginOverride>,
    helm: Option<Value>,
    kustomize: Option<Value>,
    directory: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PluginOverride {
    parameters: Option<Vec<RawParameter>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    project: String,
    source: Option<Value>,
    sources: Vec<Value>,
    source_hydrator: Option<Hydrator>,
    destination: Destination,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hydrator {
    dry_source: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Destination {
    namespace: String,
}

impl RawSource {
    /// The block of a tool of Argo CD's own.
    fn tool(&self) -> Option<&'static str> {
        let blocks = [("helm", &self.helm), ("kustomize", &self.kustomize), ("directory", &self.directory)];
        blocks.into_iter().find(|(_, block)| block.is_some()).map(|(name, _)| name)
    }

    /// Where it comes from, for messages.
    fn origin(&self) -> String {
        let what = if self.chart.is_empty() { self.path.as_deref().unwrap_or_default() } else { &self.chart };
        printable(if what.is_empty() { &self.repo_url } else { what })
    }
}

impl Manifest {
    /// Reads the one Application, or the one Application that an ApplicationSet's template describes, of a text.
    ///
    /// # Errors
    ///
    /// [`ApplicationError`]: there is none, or none of its sources is ours.
    pub fn read(text: &str, choices: &Choices) -> Result<Self, ApplicationError> {
        let tree = Tree::parse(text).map_err(|error| ApplicationError::Manifest(error.to_string()))?;
        no_text(text, &tree).map_or(Ok(()), Err)?;
        let mut documents: Vec<Value> = documents(text)?;
        documents.retain(|document| !document.is_null());
        let [manifest] = <[Value; 1]>::try_from(documents)
            .map_err(|documents| ApplicationError::Objects(documents.iter().map(described).collect()))?;
        let (manifest, mut notes) = match manifest["kind"].as_str().unwrap_or_default() {
            "Application" if !choices.set.is_empty() => {
                let problem = "values can be set for an ApplicationSet only, and this is an Application".to_owned();
                return Err(ApplicationError::Set { problem, hint: "leave `--set` out".to_owned() });
            }
            "Application" => (manifest, Vec::new()),
            "ApplicationSet" => set::application(&manifest, &choices.set)?,
            kind => return Err(ApplicationError::Kind(printable(kind))),
        };
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let spec: Spec = typed(manifest["spec"].clone())?;
        let (raw, place) = match spec.source_hydrator.and_then(|hydrator| hydrator.dry_source) {
            Some(dry) => (vec![dry], "spec.sourceHydrator.drySource"),
            None if spec.sources.is_empty() => (spec.source.into_iter().collect(), "spec.source"),
            None => (spec.sources, "spec.sources"),
        };
        let sources = Self::choose(&name, raw, place, choices, &mut notes)?;
        Ok(Self { name, namespace: spec.destination.namespace, project: spec.project, sources, notes })
    }

    fn choose(
        name: &str,
        raw: Vec<Value>,
        place: &'static str,
        choices: &Choices,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Source>, ApplicationError> {
        let count = raw.len();
        let (mut ours, mut known, mut error, mut natives) = (Vec::new(), Vec::new(), None, Vec::new());
        for (index, value) in raw.into_iter().enumerate() {
            let number = index + 1;
            let source: RawSource = typed(value.clone())?;
            let label = if count == 1 { String::new() } else { format!("source {number} (`{}`)", source.origin()) };
            known.push(if source.name.is_empty() { number.to_string() } else { source.name.clone() });
            let is_asked = choices.source.as_ref().is_none_or(|wanted| *wanted == source.name || *wanted == number.to_string());
            if !is_asked {
                continue;
            }
            match (&source.plugin, source.tool()) {
                (Some(_), Some(field)) => return Err(ApplicationError::TwoTools { name: printable(name), field }),
                (Some(plugin), None) if choices.is_ours(&plugin.name) => {
                    let parameters = source.plugin.map(|plugin| plugin.parameters).unwrap_or_default();
                    let RawSource { path, repo_url, target_revision, .. } = source;
                    ours.push(Source { label, path, repo_url, target_revision, parameters });
                }
                (Some(plugin), None) => {
                    notes.push(format!("{label} is left to the plugin `{}`", printable(&plugin.name)));
                    let (name, plugin) = (printable(name), printable(&plugin.name));
                    error.get_or_insert(ApplicationError::OtherPlugin { name, plugin });
                }
                (None, _) if !source.reference.is_empty() && source.path.is_none() && source.chart.is_empty() => {}
                (None, tool) => {
                    notes.push(format!("{label} is left to Argo CD's own {}", tool.unwrap_or("renderer")));
                    let place = if count == 1 { place.to_owned() } else { format!("{place}[{index}]") };
                    natives.push(Native { place, replaced: tool.zip(replacement(&value)) });
                }
            }
        }
        let number = |wanted: &String| wanted.parse().ok().filter(|number: &usize| (1..=count).contains(number));
        let is_double = |wanted: &&String| {
            let named = known.iter().enumerate().filter(|(_, name)| name == wanted).map(|(index, _)| index + 1);
            named.chain(number(wanted)).collect::<BTreeSet<usize>>().len() > 1
        };
        if let Some(wanted) = choices.source.as_ref().filter(is_double) {
            let what = format!("several sources go by `{}`: give each its own name", printable(wanted));
            return Err(ApplicationError::Manifest(what));
        }
        if let Some(wanted) = choices.source.as_ref().filter(|wanted| !known.contains(wanted) && !is_number(wanted, count)) {
            return Err(ApplicationError::NoSuchSource { wanted: printable(wanted), known });
        }
        if ours.is_empty() {
            let name = printable(name);
            return Err(error.unwrap_or_else(|| match choices.source.as_deref() {
                Some(wanted) => ApplicationError::NotOurs { name, wanted: printable(wanted), natives },
                None => ApplicationError::NoPlugin { name, place, natives },
            }));
        }
        Ok(ours)
    }

    /// The application of one of its sources.
    ///
    /// `overrides` are the texts of `.argocd-source.yaml` and `.argocd-source-<app>.yaml` in the source's directory, which Argo CD merges
    /// into the source before it calls a plugin: a list of parameters replaces the one before.
    ///
    /// # Errors
    ///
    /// [`ApplicationError::Override`], [`ApplicationError::TwoTools`] and [`ApplicationError::Parameters`], with the number of the
    /// override that it is in; without one it is in the manifest.
    pub fn application(&self, source: &Source, overrides: &[String]) -> Result<Application, (Option<usize>, ApplicationError)> {
        let (mut parameters, mut place) = (source.parameters.clone(), None);
        for (number, text) in overrides.iter().enumerate() {
            if let Some(over) = self.overridden(text).map_err(|error| (Some(number), error))? {
                (parameters, place) = (over, Some(number));
            }
        }
        Ok(Application {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            project: self.project.clone(),
            repo_url: source.repo_url.clone(),
            source_path: source.path.clone(),
            target_revision: source.target_revision.clone(),
            parameters: Parameters::read(parameters).map_err(|errors| (place, ApplicationError::Parameters(errors)))?,
            ..Application::default()
        })
    }

    /// The parameters of an override file, if it has any.
    fn overridden(&self, text: &str) -> Result<Option<Vec<RawParameter>>, ApplicationError> {
        let wrong = |error: &dyn std::fmt::Display| ApplicationError::Override(error.to_string());
        let tree = Tree::parse(text).map_err(|error| wrong(&error))?;
        no_text(text, &tree).map_or(Ok(()), Err)?;
        let over: Option<Override> = crate::yaml::from_str(text).map_err(|error| wrong(&error))?;
        let over = over.unwrap_or_default();
        let blocks = [("helm", &over.helm), ("kustomize", &over.kustomize), ("directory", &over.directory)];
        if let Some((field, _)) = blocks.into_iter().find(|(_, block)| block.is_some()) {
            return Err(ApplicationError::TwoTools { name: printable(&self.name), field });
        }
        Ok(over.plugin.and_then(|plugin| plugin.parameters))
    }
}

/// An object as messages name it: kind and name.
fn described(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("object without a kind");
    let name = object["metadata"]["name"].as_str().map(|name| format!(" `{}`", printable(name))).unwrap_or_default();
    printable(kind) + &name
}

fn is_number(text: &str, count: usize) -> bool {
    text.parse().is_ok_and(|number: usize| (1..=count).contains(&number))
}

/// Every document, with merge keys applied as Kubernetes' own parser does.
fn documents(text: &str) -> Result<Vec<Value>, ApplicationError> {
    // `path: {{path}}` is a mapping to YAML.
    let is_template = |line: &str| line.contains(": {{") || line.trim_start().starts_with("- {{");
    let template = text.lines().position(is_template).map(|line| line + 1);
    let wrong = |error: serde_yaml::Error| match template {
        Some(line) => ApplicationError::Manifest(format!("{error}; line {line}: `{{{{…}}}}` must be in quotes")),
        None => ApplicationError::Manifest(error.to_string()),
    };
    let read = serde_yaml::Deserializer::from_str(text).map(|document| {
        let mut value = serde_yaml::Value::deserialize(document)?;
        value.apply_merge()?;
        serde_yaml::from_value::<Value>(value)
    });
    read.collect::<Result<_, _>>().map_err(wrong)
}

fn typed<T: serde::de::DeserializeOwned + Default>(value: Value) -> Result<T, ApplicationError> {
    if value.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(value).map_err(|error| ApplicationError::Manifest(error.to_string()))
}

/// The first value of a parameter that Kubernetes takes for something else than text.
///
/// Its parser reads YAML 1.1 (`yes`, `0123` and `1_000` are no text), so that what counts is how the value is written.
fn no_text(source: &str, tree: &Tree<'_>) -> Option<ApplicationError> {
    let lists = tree.nodes().flat_map(|(id, _)| tree.own_entries(id)).filter(|(key, _)| tree.text(*key) == Some("parameters"));
    let parameters = lists.flat_map(|(_, list)| tree.items(*list)).filter(|parameter| is_parameter(tree, **parameter));
    parameters.into_iter().find_map(|parameter| {
        let name = tree.get(*parameter, "name").and_then(|name| tree.text(name)).unwrap_or_default();
        let field = |key: &str| tree.get(*parameter, key);
        let mut values: Vec<(String, NodeId)> = field("string").map(|id| ("string".to_owned(), id)).into_iter().collect();
        let items = field("array").map(|id| tree.items(id)).unwrap_or_default();
        values.extend(items.iter().enumerate().map(|(index, id)| (format!("array[{index}]"), *id)));
        let entries = field("map").map(|id| tree.entries(id)).unwrap_or_default();
        values.extend(entries.iter().map(|(key, id)| (format!("map.{}", tree.text(*key).unwrap_or_default()), *id)));
        let (field, id) = values.into_iter().find(|(field, id)| !is_text(source, tree, *id, field == "string"))?;
        let node = tree.node(tree.follow(id));
        let written = tree.text(id).map_or_else(|| "a list or mapping".to_owned(), |text| format!("`{}`", printable(text)));
        let fix = tree.text(id).map(|text| format!("\"{}\"", printable(text)));
        Some(ApplicationError::NoText { line: node.line, name: printable(name), field: printable(&field), written, fix })
    })
}

/// Is a list's item a plugin parameter? Helm's own `parameters` have `name` and `value`.
fn is_parameter(tree: &Tree<'_>, item: NodeId) -> bool {
    ["string", "array", "map"].iter().any(|key| tree.get(item, key).is_some())
}

/// Is a value text? Where none need be given, it may be empty.
fn is_text(source: &str, tree: &Tree<'_>, id: NodeId, may_be_empty: bool) -> bool {
    let node = tree.node(tree.follow(id));
    match &node.kind {
        Kind::Scalar { value, style: ScalarStyle::Plain } => {
            let is_empty = matches!(&**value, "" | "~" | "null");
            let is_tagged = source[..node.span.start].trim_end().ends_with("!!str");
            is_tagged || (is_empty && may_be_empty) || yaml::reads_as_string(value) || is_date(value)
        }
        Kind::Scalar { .. } => true,
        _ => false,
    }
}

/// Kubernetes' parser leaves dates as text.
fn is_date(text: &str) -> bool {
    text.contains('-')
        && text.bytes().all(|b| b.is_ascii_digit() || b"-:TZ.tz+ ".contains(&b))
        && text.bytes().filter(|b| *b == b'-').count() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Choice, Mode};

    const MANIFEST: &str = "\
apiVersion: argoproj.io/v1alpha1
kind: Application
metadata: {name: web}
spec:
  project: default
  destination: {namespace: dev, server: https://kubernetes.default.svc}
  source:
    repoURL: https://git.example.com/x.git
    path: charts/web
    targetRevision: main
    plugin:
      name: pinion@v1
      parameters:
      - {name: helm-value-files, array: [values-dev.yaml]}
";

    const SOURCES: &str = "\
kind: Application
metadata: {name: web}
spec:
  sources:
  - {repoURL: x, chart: redis, helm: {valueFiles: [a.yaml]}}
  - {repoURL: x, ref: values}
  - {repoURL: x, path: one, name: one, plugin: {name: pinion@v1}}
  - {repoURL: x, path: two, plugin: {name: cdk8s}}
  - {repoURL: x, path: three, plugin: {name: pinion}}
";

    fn read(text: &str) -> Result<Manifest, ApplicationError> {
        Manifest::read(text, &Choices::default())
    }

    fn only(text: &str, overrides: &[&str]) -> Result<Application, ApplicationError> {
        let manifest = read(text)?;
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        manifest.application(&manifest.sources[0], &overrides).map_err(|(_, error)| error)
    }

    #[test]
    fn an_application_is_read() {
        let app = only(MANIFEST, &[]).expect("an application");
        assert_eq!((app.name.as_str(), app.namespace.as_str(), app.source_path.as_deref()), ("web", "dev", Some("charts/web")));
        assert_eq!(app.parameters.helm.value_files, ["values-dev.yaml"]);
        let unnamed = only(&MANIFEST.replace("      name: pinion@v1\n", ""), &[]).expect("an application");
        assert_eq!(unnamed.name, "web", "without a name, Argo CD asks every plugin");
    }

    #[test]
    fn every_source_of_ours_is_read_and_the_others_are_told() {
        let manifest = read(SOURCES).expect("sources");
        let labels: Vec<&str> = manifest.sources.iter().map(|source| source.label.as_str()).collect();
        assert_eq!(labels, ["source 3 (`one`)", "source 5 (`three`)"]);
        assert_eq!(
            manifest.notes,
            ["source 1 (`redis`) is left to Argo CD's own helm", "source 4 (`two`) is left to the plugin `cdk8s`"]
        );
        let chosen = |source: &str| {
            let choices = Choices { source: Some(source.to_owned()), ..Choices::default() };
            Manifest::read(SOURCES, &choices).map(|manifest| manifest.sources[0].path.clone().unwrap_or_default())
        };
        assert_eq!(chosen("one").as_deref(), Ok("one"));
        assert_eq!(chosen("5").as_deref(), Ok("three"));
        let error = chosen("six").expect_err("no such source");
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_deref()),
            ("there is no source `six`", Some("the sources are 1, 2, one, 4, 5"))
        );
        assert!(matches!(chosen("4"), Err(ApplicationError::OtherPlugin { .. })));
        assert!(matches!(chosen("1"), Err(ApplicationError::NotOurs { .. })));
    }

    #[test]
    fn an_application_of_another_plugin_is_refused() {
        let other = MANIFEST.replace("pinion@v1", "cdk8s");
        let error = read(&other).expect_err("another plugin");
        assert_eq!(error.to_string(), "Application `web` is rendered by the plugin `cdk8s`, which is not Pinion");
        let choices = Choices { plugin_name: Some("cdk8s".into()), ..Choices::default() };
        assert!(Manifest::read(&other, &choices).is_ok());
    }

    #[test]
    fn the_dry_source_of_the_hydrator_is_read() {
        let text = MANIFEST.replace("  source:\n", "  sourceHydrator:\n   syncSource: {targetBranch: env/dev}\n   drySource:\n");
        let app = only(&text, &[]).expect("an application");
        assert_eq!((app.source_path.as_deref(), app.parameters.helm.value_files.len()), (Some("charts/web"), 1));
    }

    #[test]
    fn argo_cds_override_files_are_merged() {
        let over = |text: &str| only(MANIFEST, &[text]);
        let replaced = over("plugin: {parameters: [{name: mode, string: locked}]}\n").expect("an application").parameters;
        assert!(replaced.helm.value_files.is_empty() && replaced.mode == Mode::Locked);
        assert_eq!(over("plugin: {env: []}\n").expect("an application").parameters.helm.value_files.len(), 1);
        assert!(over("").is_ok());
        assert!(matches!(over("helm: {parameters: []}\n"), Err(ApplicationError::TwoTools { field: "helm", .. })));
        let no_text = over("plugin: {parameters: [{name: helm-skip-crds, string: true}]}\n");
        assert!(matches!(no_text, Err(ApplicationError::NoText { .. })), "{no_text:?}");
    }

    #[test]
    fn what_is_no_application_is_named() {
        let error = |text: &str| read(text).expect_err(text);
        assert_eq!(
            error(&MANIFEST.replace("kind: Application", "kind: AppProject")).to_string(),
            "the manifest is a `AppProject`, not an `Application` or `ApplicationSet`"
        );
        let other = error(&MANIFEST.replace("plugin:", "other:"));
        assert_eq!(other.to_string(), "Application `web` has no source with a `plugin` block");
        assert_eq!(other.hint().as_deref(), Some("add `plugin: {name: pinion@v1}` to `spec.source`"));
        let dry =
            "kind: Application\nmetadata: {name: web}\nspec: {sourceHydrator: {drySource: {path: x, helm: {releaseName: r}}}}\n";
        let hint = error(dry).hint().expect("a hint");
        assert!(hint.starts_with("replace `helm` in `spec.sourceHydrator.drySource` with\n    plugin:\n"), "{hint}");
        let dry = error("kind: Application\nmetadata: {name: web}\nspec: {sourceHydrator: {drySource: {path: x}}}\n");
        assert_eq!(dry.hint().as_deref(), Some("add `plugin: {name: pinion@v1}` to `spec.sourceHydrator.drySource`"));
        let both = error(&MANIFEST.replace("    plugin:", "    helm: {}\n    plugin:"));
        assert!(matches!(both, ApplicationError::TwoTools { field: "helm", .. }));
        assert!(matches!(error("a: ["), ApplicationError::Manifest(_)));
        let unquoted = error(&MANIFEST.replace("path: charts/web", "path: {{path}}")).to_string();
        assert!(unquoted.ends_with("line 9: `{{…}}` must be in quotes"), "{unquoted}");
        let natives = "kind: Application\nmetadata: {name: web}\nspec:\n  sources:\n  - {path: a, helm: {}}\n  - {path: b, name: b, kustomize: {}}\n";
        let hint = error(natives).hint().expect("a hint");
        assert!(hint.contains("`helm` in `spec.sources[0]`") && hint.contains("`kustomize` in `spec.sources[1]`"), "{hint}");
        let chosen = Choices { source: Some("b".to_owned()), ..Choices::default() };
        let one = Manifest::read(natives, &chosen).expect_err("not ours");
        assert_eq!(one.to_string(), "Application `web`: source `b` has no `plugin` block");
        assert!(one.hint().is_some_and(|hint| hint.starts_with("replace `kustomize` in `spec.sources[1]` with\n")));
        assert_eq!(
            error(&format!("{MANIFEST}---\n{MANIFEST}")).to_string(),
            "the manifest holds 2 objects (Application `web`, Application `web`), one is expected"
        );
        let unknown = only(&MANIFEST.replace("helm-value-files", "helm-valuefiles"), &[]).expect_err("unknown");
        assert_eq!(unknown.to_string(), "unknown parameter `helm-valuefiles`");
    }

    #[test]
    fn values_that_kubernetes_refuses_are_refused() {
        for (parameter, message) in [
            ("{name: a, string: true}", "line 14: parameter `a`: `string` is `true`, which Kubernetes does not read as text"),
            ("{name: a, string: yes}", "line 14: parameter `a`: `string` is `yes`, which Kubernetes does not read as text"),
            ("{name: a, map: {x: 3}}", "line 14: parameter `a`: `map.x` is `3`, which Kubernetes does not read as text"),
            (
                "{name: a, array: [ok, 0123]}",
                "line 14: parameter `a`: `array[1]` is `0123`, which Kubernetes does not read as text",
            ),
            ("{name: a, map: {x: ~}}", "line 14: parameter `a`: `map.x` is `~`, which Kubernetes does not read as text"),
            (
                "{name: a, map: {x: [1]}}",
                "line 14: parameter `a`: `map.x` is a list or mapping, which Kubernetes does not read as text",
            ),
        ] {
            let error =
                read(&MANIFEST.replace("{name: helm-value-files, array: [values-dev.yaml]}", parameter)).expect_err(parameter);
            assert_eq!(error.to_string(), message);
        }
        for parameter in [
            "{name: helm-skip-crds, string: 'true'}",
            "{name: helm-parameters, map: {x: \"3\", y: 1.2.3, z: 2026-01-01}}",
            "{name: helm-values, string: }",
            "{name: helm-parameters, map: {x: !!str 12}}",
        ] {
            let text = MANIFEST.replace("{name: helm-value-files, array: [values-dev.yaml]}", parameter);
            assert_eq!(only(&text, &[]).map(drop), Ok(()), "{parameter}");
        }
    }

    #[test]
    fn a_native_application_gets_the_block_that_replaces_it() {
        let native = "\
kind: Application
metadata: {name: web}
spec:
  source:
    path: web
    helm:
      valueFiles: [a.yaml]
      valuesObject: {image: {tag: x}}
      parameters:
      - {name: a, value: '1'}
      - {name: b, value: '2', forceString: true}
      fileParameters: [{name: c, path: files/c}]
      releaseName: rel
      skipCrds: true
      ignoreMissingValueFiles: false
      passCredentials: true
";
        let error = read(native).expect_err("no plugin");
        let hint = error.hint().expect("a hint");
        assert!(hint.starts_with("replace `helm` in `spec.source` with\n    plugin:\n      name: pinion@v1\n"), "{hint}");
        assert!(hint.ends_with("# `helm.passCredentials` has no counterpart"), "{hint}");
        let (_, block) = hint.split_once(" with\n").expect("a block");
        let text = native.split("    helm:").next().expect("a head").to_owned() + block + "\n";
        let helm = only(&text, &[]).expect("what is proposed can be used").parameters.helm;
        assert_eq!(helm.value_files, ["a.yaml"]);
        assert_eq!(helm.values.as_deref(), Some("image:\n  tag: x\n"));
        assert_eq!((helm.parameters["a"].as_str(), helm.force_string_parameters["b"].as_str()), ("1", "2"));
        assert_eq!((helm.file_parameters["c"].as_str(), helm.release_name.as_deref()), ("files/c", Some("rel")));
        assert!(helm.skip_crds && !helm.ignore_missing_value_files);
        assert_eq!(only(&text, &[]).expect("usable").parameters.renderer, Choice::Helm, "as Argo CD takes the block");
        let kustomize = native.split("    helm:").next().expect("a head").to_owned()
            + "    kustomize: {namePrefix: p-, images: ['a=b:1'], replicas: [{name: x, count: 3}], commonLabels: {a: b}, patches: [{patch: x}]}\n";
        let hint = read(&kustomize).expect_err("no plugin").hint().expect("a hint");
        for wanted in ["kustomize-name-prefix", "kustomize-images", "x: '3'", "kustomize-common-labels", "patch: x"] {
            assert!(hint.contains(wanted), "{wanted}: {hint}");
        }
    }

    #[test]
    fn what_replaces_a_block_says_the_same_to_kubernetes() {
        let words = ["yes", "no", "on", "off", "y", "n", "1_000", "12:30:45", "0o17", "true", "12", "plain", "2026-01-01"];
        let values: Value =
            words.iter().map(|word| (format!("k-{word}"), Value::from(*word))).collect::<serde_json::Map<_, _>>().into();
        let labels = values.clone();
        let keys: Value = words.iter().map(|word| ((*word).to_owned(), Value::from(1))).collect::<serde_json::Map<_, _>>().into();
        let head = serde_json::json!({"kind": "Application", "metadata": {"name": "web"}});
        let text = |source: Value| {
            let mut manifest = head.clone();
            manifest["spec"] = serde_json::json!({"source": source});
            serde_yaml::to_string(&manifest).expect("YAML")
        };
        let helm = serde_json::json!({"path": "x", "helm": {"valuesObject": {"a": values, "b": keys, "t": true, "n": 12, "z": null}, "values": "\n"}});
        let kustomize = serde_json::json!({"path": "x", "kustomize": {"commonLabels": labels}});
        for source in [helm, kustomize, serde_json::json!({"path": "x", "directory": {"recurse": true}})] {
            let hint = read(&text(source.clone())).expect_err("no plugin").hint().expect("a hint");
            let (_, block) = hint.split_once(" with\n").expect("a block");
            let usable = format!("kind: Application\nmetadata: {{name: web}}\nspec:\n  source:\n    path: x\n{block}\n");
            let app = only(&usable, &[]).expect(&usable);
            assert_ne!(app.parameters.renderer, Choice::Auto, "{usable}");
            for word in ["yes", "1_000", "12:30:45", "y"] {
                let plain = regex::Regex::new(&format!(r"(?m)(^|: ){word}(:|$)")).expect("a pattern");
                assert!(!plain.is_match(&block.replace("  ", "")), "`{word}` is not in quotes: {block}");
            }
            if source["kustomize"].is_object() {
                assert_eq!(serde_json::json!(app.parameters.kustomize.common_labels), source["kustomize"]["commonLabels"]);
            }
            if let Some(values) = &app.parameters.helm.values {
                let read: Value = serde_yaml::from_str(values).expect("YAML");
                assert_eq!(read, source["helm"]["valuesObject"]);
            }
        }
    }

    const SET: &str = "\
kind: ApplicationSet
metadata: {name: web}
spec:
  generators:
  - list:
      elements:
      - {env: dev, file: dev.yaml}
      - {env: prd, file: prd.yaml}
  template:
    metadata: {name: 'web-{{env}}'}
    spec:
      source:
        path: web
        plugin: {name: pinion@v1, parameters: [{name: helm-value-files, array: ['{{ file }}']}]}
      destination: {namespace: 'ns-{{env}}'}
";

    fn with(text: &str, set: &[(&str, &str)]) -> Result<Application, ApplicationError> {
        let set = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let manifest = Manifest::read(text, &Choices { set, ..Choices::default() })?;
        manifest.application(&manifest.sources[0], &[]).map_err(|(_, error)| error)
    }

    #[test]
    fn an_application_set_is_read_with_the_values_of_one_element() {
        let go = SET
            .replace("spec:\n  generators", "spec:\n  goTemplate: true\n  generators")
            .replace("{{env}}", "{{.env}}")
            .replace("{{ file }}", "{{ .file }}");
        for text in [SET, &go] {
            let app = with(text, &[("env", "prd")]).expect("an application");
            assert_eq!((app.name.as_str(), app.namespace.as_str()), ("web-prd", "ns-prd"));
            assert_eq!(app.parameters.helm.value_files, ["prd.yaml"]);
            let own = with(text, &[("env", "qa"), ("file", "qa.yaml")]).expect("an application");
            assert_eq!((own.name.as_str(), own.parameters.helm.value_files[0].as_str()), ("web-qa", "qa.yaml"));
            let error = with(text, &[]).expect_err("which?");
            assert_eq!(error.to_string(), "the template needs a value for `env`, `file`");
            assert_eq!(
                error.hint().as_deref(),
                Some("choose an element of the list generator: `--set env=dev`, `--set env=prd`")
            );
        }
        let error = with(SET, &[("env", "qa")]).expect_err("no such element");
        assert_eq!(error.to_string(), "no element of the list generator has `env=qa`, and the template needs a value for `file`");
        let error = with(SET, &[("env", "dev"), ("evn", "prd")]).expect_err("a name that nothing has");
        assert_eq!(error.to_string(), "nothing is named `evn`, which is set to `prd`");
        let error = with(MANIFEST, &[("env", "dev")]).expect_err("no set");
        assert_eq!(error.to_string(), "values can be set for an ApplicationSet only, and this is an Application");
        let own = SET
            .replace("      - {env: prd, file: prd.yaml}\n", "      - {env: prd, file: prd.yaml}\n      template: {spec: {}}\n");
        let error = with(&own, &[("env", "dev")]).expect_err("a template of a generator");
        assert!(error.to_string().contains("`template` of its own"), "{error}");
        let foreign = SET.replace("path: web", "path: 'web{{ .Values.x }}'");
        let app = with(&foreign, &[("env", "dev")]).expect("an application");
        assert_eq!(app.source_path.as_deref(), Some("web{{ .Values.x }}"), "as Argo CD leaves it");
        let notes = |text: &str, set: &[(&str, &str)]| {
            let set = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Manifest::read(text, &Choices { set, ..Choices::default() }).expect("a manifest").notes
        };
        assert_eq!(notes(SET, &[("env", "dev")]), [] as [&str; 0]);
        assert!(notes(SET, &[("env", "dev"), ("file", "prd.yaml")])[0].contains("makes no such Application"));
        let selector = SET.replace("  - list:", "  - selector: {matchLabels: {env: prd}}\n    list:");
        assert!(notes(&selector, &[("env", "dev")])[0].contains("`selector` is not applied"));
        let functions = go.replace("{{ .file }}", "{{ .file | default \"x\" }}");
        let error = with(&functions, &[("env", "dev")]).expect_err("a function");
        assert!(error.to_string().contains("does more than name a value") && error.hint().is_some());
    }
}
