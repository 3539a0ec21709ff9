//! The application that is rendered: who it is and what it asks, as one checked value.
//!
//! Comes from the environment that Argo CD gives a plugin (`ARGOCD_APP_*`, `KUBE_*`), or from an Application manifest on a laptop or
//! in CI. Source: Argo CD's `reposerver/repository/repository.go` (`newEnv`, `getPluginEnvs`).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::failure::{Failure, Failures};
use crate::image::printable;
use crate::parameters::{ParameterError, Parameters, RawParameter};

/// One application at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Application {
    /// The instance name; `<namespace>_<name>` outside Argo CD's own namespace.
    pub name: String,
    /// The destination's namespace; may be empty.
    pub namespace: String,
    pub project: String,
    pub revision: String,
    pub repo_url: String,
    /// The path in the repository; empty for a chart from a Helm repository.
    pub source_path: Option<String>,
    pub target_revision: String,
    /// Version of the cluster, `x.y.z`; empty when unknown.
    pub kube_version: String,
    pub api_versions: Vec<String>,
    pub parameters: Parameters,
}

/// Why there is no application to render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplicationError {
    #[error("{}", joined(.0))]
    Parameters(Vec<ParameterError>),
    #[error("the manifest cannot be read: {0}")]
    Manifest(String),
    #[error("`.argocd-source.yaml` cannot be read: {0}")]
    Override(String),
    #[error("the manifest is a `{0}`, not an `Application`")]
    Kind(String),
    #[error("Application `{0}` has no source with a `plugin` block")]
    NoPlugin(String),
    #[error(
        "Application `{name}`: `{field}` and `plugin` are both given, which Argo CD refuses (\"multiple application sources\")"
    )]
    TwoTools { name: String, field: &'static str },
}

impl ApplicationError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Parameters(errors) => errors.iter().find_map(ParameterError::hint),
            Self::Kind(kind) if kind == "ApplicationSet" => {
                Some("render one of the Applications that it generates: `argocd appset generate` prints them".into())
            }
            Self::NoPlugin(_) => Some("add `plugin: {name: pinion@v1}` to `spec.source`".into()),
            _ => None,
        }
    }
}

/// The variable that holds the parameters, which is where their mistakes are.
pub const PARAMETERS: &str = "ARGOCD_APP_PARAMETERS";

impl ApplicationError {
    /// The error for people, at a place: one failure for each parameter, each with its own hint.
    pub fn failures(&self, place: &str) -> Failures {
        match self {
            Self::Parameters(errors) => Failures(errors.iter().map(|error| Failure::new(place, error, error.hint())).collect()),
            error => Failure::new(place, error, error.hint()).into(),
        }
    }
}

fn joined(errors: &[ParameterError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[derive(Deserialize)]
struct Manifest {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    project: String,
    source: Option<Source>,
    sources: Vec<Source>,
    destination: Destination,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Destination {
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    #[serde(rename = "repoURL")]
    repo_url: String,
    path: Option<String>,
    target_revision: String,
    plugin: Option<Plugin>,
    helm: Option<serde_json::Value>,
    kustomize: Option<serde_json::Value>,
    directory: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Plugin {
    parameters: Vec<RawParameter>,
}

/// What of `.argocd-source.yaml` concerns a source with a plugin.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Override {
    plugin: Option<PluginOverride>,
    helm: Option<serde_json::Value>,
    kustomize: Option<serde_json::Value>,
    directory: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PluginOverride {
    parameters: Option<Vec<RawParameter>>,
}

impl Application {
    /// The application that Argo CD describes in a plugin's environment.
    ///
    /// # Errors
    ///
    /// [`ApplicationError::Parameters`].
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self, ApplicationError> {
        let text = |name: &str| get(name).unwrap_or_default();
        let parameters = Parameters::from_json(&text(PARAMETERS)).map_err(ApplicationError::Parameters)?;
        Ok(Self {
            name: text("ARGOCD_APP_NAME"),
            namespace: text("ARGOCD_APP_NAMESPACE"),
            project: text("ARGOCD_APP_PROJECT_NAME"),
            revision: text("ARGOCD_APP_REVISION"),
            repo_url: text("ARGOCD_APP_SOURCE_REPO_URL"),
            source_path: get("ARGOCD_APP_SOURCE_PATH"),
            target_revision: text("ARGOCD_APP_SOURCE_TARGET_REVISION"),
            kube_version: text("KUBE_VERSION"),
            api_versions: text("KUBE_API_VERSIONS").split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect(),
            parameters,
        })
    }

    /// The application that a manifest describes: its source with a `plugin` block.
    ///
    /// `overrides` are the texts of `.argocd-source.yaml` and `.argocd-source-<app>.yaml` in the application's directory, which Argo CD
    /// merges into the source before it calls a plugin: a list of parameters replaces the one before.
    ///
    /// # Errors
    ///
    /// [`ApplicationError`].
    pub fn from_manifest(text: &str, overrides: &[String]) -> Result<Self, ApplicationError> {
        let documents: Vec<Manifest> = serde_yaml::Deserializer::from_str(text)
            .map(Option::<Manifest>::deserialize)
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()
            .map_err(|error| ApplicationError::Manifest(error.to_string()))?;
        let [manifest] = <[Manifest; 1]>::try_from(documents)
            .map_err(|documents| ApplicationError::Manifest(format!("it holds {} objects, one is expected", documents.len())))?;
        if manifest.kind != "Application" {
            return Err(ApplicationError::Kind(printable(&manifest.kind)));
        }
        let name = manifest.metadata.name;
        let spec = manifest.spec;
        let mut sources = spec.source.into_iter().chain(spec.sources);
        let source =
            sources.find(|source| source.plugin.is_some()).ok_or_else(|| ApplicationError::NoPlugin(printable(&name)))?;
        let both = [("helm", &source.helm), ("kustomize", &source.kustomize), ("directory", &source.directory)];
        if let Some((field, _)) = both.into_iter().find(|(_, block)| block.is_some()) {
            return Err(ApplicationError::TwoTools { name: printable(&name), field });
        }
        let mut plugin = source.plugin.unwrap_or_default();
        for text in overrides {
            let over: Option<Override> =
                serde_yaml::from_str(text).map_err(|error| ApplicationError::Override(error.to_string()))?;
            let over = over.unwrap_or_default();
            let both = [("helm", &over.helm), ("kustomize", &over.kustomize), ("directory", &over.directory)];
            if let Some((field, _)) = both.into_iter().find(|(_, block)| block.is_some()) {
                return Err(ApplicationError::TwoTools { name: printable(&name), field });
            }
            if let Some(parameters) = over.plugin.and_then(|plugin| plugin.parameters) {
                plugin.parameters = parameters;
            }
        }
        let parameters = Parameters::read(plugin.parameters).map_err(ApplicationError::Parameters)?;
        Ok(Self {
            name,
            namespace: spec.destination.namespace,
            project: spec.project,
            repo_url: source.repo_url,
            source_path: source.path,
            target_revision: source.target_revision,
            parameters,
            ..Self::default()
        })
    }

    /// Fills what the manifest left open from the environment: revision, cluster version, API versions.
    #[must_use]
    pub fn completed_by(mut self, environment: Self) -> Self {
        self.revision = environment.revision;
        self.kube_version = environment.kube_version;
        self.api_versions = environment.api_versions;
        self
    }

    /// The name without the namespace before `_`: Argo CD's default for a Helm release.
    pub fn short_name(&self) -> &str {
        self.name.split_once('_').map_or(&self.name, |(_, name)| name)
    }

    /// The variables that Argo CD substitutes and gives to Kustomize.
    pub fn variables(&self) -> BTreeMap<&'static str, String> {
        let short = |length: usize| self.revision.chars().take(length).collect::<String>();
        BTreeMap::from([
            ("ARGOCD_APP_NAME", self.name.clone()),
            ("ARGOCD_APP_NAMESPACE", self.namespace.clone()),
            ("ARGOCD_APP_PROJECT_NAME", self.project.clone()),
            ("ARGOCD_APP_REVISION", self.revision.clone()),
            ("ARGOCD_APP_REVISION_SHORT", short(7)),
            ("ARGOCD_APP_REVISION_SHORT_8", short(8)),
            ("ARGOCD_APP_SOURCE_REPO_URL", self.repo_url.clone()),
            ("ARGOCD_APP_SOURCE_PATH", self.source_path.clone().unwrap_or_default()),
            ("ARGOCD_APP_SOURCE_TARGET_REVISION", self.target_revision.clone()),
        ])
    }

    /// Substitutes `$NAME` and `${NAME}` as Argo CD does: unknown names become empty, `$$` is `$`. Follows Go's `os.Expand`.
    pub fn expand(&self, text: &str) -> String {
        if !text.contains('$') {
            return text.to_owned();
        }
        let variables = self.variables();
        let value = |name: &str| if name == "$" { "$" } else { variables.get(name).map_or("", String::as_str) }.to_owned();
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            expanded.push_str(&rest[..at]);
            let behind = &rest[at + 1..];
            let word = behind.len() - behind.trim_start_matches(|c: char| c == '_' || c.is_ascii_alphanumeric()).len();
            let special = behind.chars().next().filter(|c| "*#$@!?-0123456789".contains(*c));
            if let Some(braced) = behind.strip_prefix('{') {
                // `${}` and an unclosed brace are bad syntax, which Go drops.
                let end = braced.find('}');
                expanded.push_str(&end.map_or_else(String::new, |end| value(&braced[..end])));
                rest = end.map_or(braced, |end| &braced[end + 1..]);
            } else if let Some(special) = special {
                expanded.push_str(&value(&special.to_string()));
                rest = &behind[1..];
            } else if word == 0 {
                expanded.push('$');
                rest = behind;
            } else {
                expanded.push_str(&value(&behind[..word]));
                rest = &behind[word..];
            }
        }
        expanded + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application() -> Application {
        let environment = [
            ("ARGOCD_APP_NAME", "team_web"),
            ("ARGOCD_APP_NAMESPACE", "prod"),
            ("ARGOCD_APP_REVISION", "0123456789abcdef"),
            ("ARGOCD_APP_SOURCE_PATH", ""),
            ("KUBE_VERSION", "1.36.0"),
            ("KUBE_API_VERSIONS", "apps/v1,apps/v1/Deployment"),
            ("ARGOCD_APP_PARAMETERS", "null"),
        ];
        let get = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Application::from_environment(get).expect("an application")
    }

    #[test]
    fn the_environment_of_argo_cd_is_read() {
        let app = application();
        assert_eq!((app.short_name(), app.namespace.as_str()), ("web", "prod"));
        assert_eq!(app.source_path.as_deref(), Some(""));
        assert_eq!(app.api_versions, ["apps/v1", "apps/v1/Deployment"]);
    }

    /// Rows of Go's `os.Expand`.
    #[test]
    fn variables_are_substituted_as_argo_cd_does() {
        let app = application();
        for (text, expected) in [
            ("$ARGOCD_APP_NAME", "team_web"),
            ("a-${ARGOCD_APP_NAMESPACE}-b", "a-prod-b"),
            ("$ARGOCD_APP_REVISION_SHORT.$ARGOCD_APP_REVISION_SHORT_8", "0123456.01234567"),
            ("$HOME|${NOPE}|", "||"),
            ("$$HOME", "$HOME"),
            ("$(pin ~1)", "$(pin ~1)"),
            ("100$", "100$"),
            ("$1x", "x"),
            ("plain", "plain"),
        ] {
            assert_eq!(app.expand(text), expected, "{text}");
        }
    }

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

    #[test]
    fn an_application_manifest_is_read() {
        let app = Application::from_manifest(MANIFEST, &[]).expect("an application").completed_by(application());
        assert_eq!((app.name.as_str(), app.namespace.as_str(), app.source_path.as_deref()), ("web", "dev", Some("charts/web")));
        assert_eq!(app.parameters.helm.value_files, ["values-dev.yaml"]);
        assert_eq!(app.kube_version, "1.36.0");
        let many =
            MANIFEST.replace("  source:", "  sources:\n  - {repoURL: x, chart: y}\n  -").replace("\n  -\n    repo", "\n  - repo");
        assert_eq!(Application::from_manifest(&many, &[]).expect("an application").name, "web");
    }

    #[test]
    fn argo_cds_override_files_are_merged() {
        let over = |text: &str| Application::from_manifest(MANIFEST, &[text.to_owned()]);
        let replaced = over("plugin: {parameters: [{name: mode, string: locked}]}\n").expect("an application").parameters;
        assert!(replaced.helm.value_files.is_empty() && replaced.mode == crate::parameters::Mode::Locked);
        assert_eq!(over("plugin: {env: []}\n").expect("an application").parameters.helm.value_files.len(), 1);
        assert!(over("").is_ok());
        assert!(matches!(over("helm: {parameters: []}\n"), Err(ApplicationError::TwoTools { field: "helm", .. })));
    }

    #[test]
    fn what_is_no_application_is_named() {
        let error = |text: &str| Application::from_manifest(text, &[]).expect_err(text);
        let set = error(&MANIFEST.replace("kind: Application", "kind: ApplicationSet"));
        assert_eq!(set.to_string(), "the manifest is a `ApplicationSet`, not an `Application`");
        assert!(set.hint().is_some());
        assert_eq!(
            error(&MANIFEST.replace("plugin:", "other:")).to_string(),
            "Application `web` has no source with a `plugin` block"
        );
        let both = error(&MANIFEST.replace("    plugin:", "    helm: {}\n    plugin:"));
        assert!(matches!(both, ApplicationError::TwoTools { field: "helm", .. }));
        assert!(matches!(error("a: ["), ApplicationError::Manifest(_)));
        assert_eq!(
            error(&format!("{MANIFEST}---\n{MANIFEST}")).to_string(),
            "the manifest cannot be read: it holds 2 objects, one is expected"
        );
        let unknown = error(&MANIFEST.replace("helm-value-files", "helm-valuefiles"));
        assert_eq!(unknown.to_string(), "unknown parameter `helm-valuefiles`");
    }
}
