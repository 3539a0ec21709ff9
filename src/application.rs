//! The application that is rendered: who it is and what it asks, as one checked value.
//!
//! Comes from the environment that Argo CD gives a plugin (`ARGOCD_APP_*`, `KUBE_*`), or from an Application manifest on a laptop or
//! in CI. Source: Argo CD's `reposerver/repository/repository.go` (`newEnv`, `getPluginEnvs`).

pub mod manifest;
mod native;
mod set;

use std::collections::BTreeMap;

use crate::failure::{Failure, Failures};
use crate::parameters::{ParameterError, Parameters};

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

/// A source without a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    /// Where it stands in the manifest.
    place: String,
    /// The block of Argo CD's own that is there, and the `plugin` block that stands for it, as YAML.
    replaced: Option<(&'static str, String)>,
}

impl Native {
    fn hint(&self) -> String {
        let place = &self.place;
        match &self.replaced {
            Some((tool, block)) => {
                let block = block.trim_end().replace('\n', "\n    ");
                format!("replace `{tool}` in `{place}` with\n    {block}")
            }
            None => format!("add `plugin: {{name: pinion@v1}}` to `{place}`"),
        }
    }
}

/// Why there is no application to render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplicationError {
    #[error("{}", joined(.0))]
    Parameters(Vec<ParameterError>),
    #[error("the manifest cannot be read: {0}")]
    Manifest(String),
    /// It holds another number of objects than one. Each is described by kind and name.
    #[error("{}", counted(.0))]
    Objects(Vec<String>),
    #[error("the override file cannot be read: {0}")]
    Override(String),
    #[error("the manifest is a `{0}`, not an `Application` or `ApplicationSet`")]
    Kind(String),
    #[error("{problem}")]
    Set { problem: String, hint: String },
    #[error("Application `{name}` has no source with a `plugin` block")]
    NoPlugin {
        name: String,
        /// Where the block would stand.
        place: &'static str,
        natives: Vec<Native>,
    },
    #[error("Application `{name}`: source `{wanted}` has no `plugin` block")]
    NotOurs { name: String, wanted: String, natives: Vec<Native> },
    #[error("Application `{name}` is rendered by the plugin `{plugin}`, which is not Pinion")]
    OtherPlugin { name: String, plugin: String },
    #[error("there is no source `{wanted}`")]
    NoSuchSource {
        wanted: String,
        /// Names, or numbers where there is none.
        known: Vec<String>,
    },
    #[error(
        "Application `{name}`: `{field}` and `plugin` are both given, which Argo CD refuses (\"multiple application sources\")"
    )]
    TwoTools { name: String, field: &'static str },
    /// Kubernetes' API takes only text there.
    #[error("line {line}: parameter `{name}`: `{field}` is {written}, which Kubernetes does not read as text")]
    NoText { line: usize, name: String, field: String, written: String, fix: Option<String> },
}

impl ApplicationError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Parameters(errors) => errors.iter().find_map(ParameterError::hint),
            Self::Objects(_) => {
                Some("give `--application` a file that holds one Application or ApplicationSet and nothing else".into())
            }
            Self::Set { hint, .. } => Some(hint.clone()),
            Self::NoPlugin { natives, .. } | Self::NotOurs { natives, .. } if !natives.is_empty() => {
                Some(natives.iter().map(Native::hint).collect::<Vec<_>>().join("\n  "))
            }
            Self::NoPlugin { place, .. } => Some(format!("add `plugin: {{name: pinion@v1}}` to `{place}`")),
            Self::OtherPlugin { plugin, .. } => {
                Some(format!("if Pinion is installed under that name, say so: `--plugin-name {plugin}`"))
            }
            Self::NoSuchSource { known, .. } => Some(format!("the sources are {}", known.join(", "))),
            Self::NoText { fix, .. } => fix.as_ref().map(|fix| format!("write it in quotes: `{fix}`")),
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

fn counted(objects: &[String]) -> String {
    match objects.len() {
        0 => "the manifest is empty".to_owned(),
        count => format!("the manifest holds {count} objects ({}), one is expected", objects.join(", ")),
    }
}

fn joined(errors: &[ParameterError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
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
}
