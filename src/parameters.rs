//! Plugin parameters: `spec.source.plugin.parameters`, read into one checked value.
//!
//! Argo CD sends them as JSON in `ARGOCD_APP_PARAMETERS`: an array of `{name, string | array | map}`, or `null`. [`table`] declares each
//! once. An unknown name or a value of another type is an error, because a setting that is silently ignored deploys the wrong thing. An
//! empty value counts as not given: Argo CD's UI sends those.

pub mod table;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::image::printable;
use table::{Parameter, TABLE, Value};

/// What an application asks for. Field names are the parameters' names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    pub images: Vec<String>,
    pub image_settings: BTreeMap<String, String>,
    pub pins: BTreeMap<String, String>,
    pub mode: Mode,
    pub renderer: Choice,
    pub helm: HelmOptions,
    pub kustomize: KustomizeOptions,
    pub directory: DirectoryOptions,
    /// Names of those that were given a value.
    pub given: BTreeSet<String>,
}

/// Where pins come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// From the registry, as the policies say.
    #[default]
    Follow,
    /// From the record alone: the parameter `pins` and the lock file.
    Locked,
}

/// Which tool renders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// As Argo CD chooses: a kustomization, else a chart, else a directory of manifests.
    #[default]
    Auto,
    Helm,
    Kustomize,
    Directory,
}

/// Argo CD's `source.helm`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HelmOptions {
    pub value_files: Vec<String>,
    pub values: Option<String>,
    pub parameters: BTreeMap<String, String>,
    pub force_string_parameters: BTreeMap<String, String>,
    pub file_parameters: BTreeMap<String, String>,
    pub release_name: Option<String>,
    pub namespace: Option<String>,
    pub kube_version: Option<String>,
    pub api_versions: Vec<String>,
    pub skip_crds: bool,
    pub skip_schema_validation: bool,
    pub skip_tests: bool,
    pub ignore_missing_value_files: bool,
}

/// Argo CD's `source.kustomize`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KustomizeOptions {
    pub name_prefix: Option<String>,
    pub name_suffix: Option<String>,
    pub images: Vec<String>,
    pub replicas: BTreeMap<String, String>,
    pub common_labels: BTreeMap<String, String>,
    pub common_annotations: BTreeMap<String, String>,
    pub common_annotations_envsubst: bool,
    pub force_common_labels: bool,
    pub force_common_annotations: bool,
    pub label_without_selector: bool,
    pub label_include_templates: bool,
    pub namespace: Option<String>,
    pub patches: Option<String>,
    pub components: Vec<String>,
    pub ignore_missing_components: bool,
    pub kube_version: Option<String>,
    pub api_versions: Vec<String>,
}

/// Argo CD's `source.directory`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryOptions {
    pub recurse: bool,
    pub include: Option<String>,
    pub exclude: Option<String>,
}

/// A parameter that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("the parameters are not a JSON array of `{{name, string | array | map}}`: {0}")]
    Json(String),
    #[error("unknown parameter `{0}`")]
    Unknown(String),
    #[error("parameter `{0}` is given twice")]
    Twice(String),
    #[error("parameter `{name}` takes {takes}")]
    Type { name: String, takes: &'static str },
    #[error("parameter `{name}`: `{value}` is not one of {allowed}")]
    Value { name: String, value: String, allowed: String },
    #[error("parameter `record`: `{0}` is not available in this version, which records nothing")]
    Record(String),
}

impl ParameterError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown(name) => Some(match closest(name) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known parameters: {}", names().collect::<Vec<_>>().join(", ")),
            }),
            Self::Record(_) => Some("use `none`, and commit the file that `pinion generate --write-pins` writes".into()),
            _ => None,
        }
    }
}

/// A parameter as Argo CD sends it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawParameter {
    pub name: String,
    pub string: Option<String>,
    pub array: Option<Vec<String>>,
    pub map: Option<BTreeMap<String, String>>,
}

impl RawParameter {
    fn is_filled(&self) -> bool {
        let text = self.string.as_ref().is_some_and(|text| !text.is_empty());
        text || self.array.as_ref().is_some_and(|array| !array.is_empty()) || self.map.as_ref().is_some_and(|map| !map.is_empty())
    }

    fn wrong(&self, takes: &'static str) -> ParameterError {
        ParameterError::Type { name: printable(&self.name), takes }
    }

    fn text(self) -> Result<Option<String>, ParameterError> {
        if self.array.as_ref().is_some_and(|array| !array.is_empty()) || self.map.as_ref().is_some_and(|map| !map.is_empty()) {
            return Err(self.wrong("a string"));
        }
        Ok(self.string.filter(|text| !text.is_empty()))
    }

    fn array(self) -> Result<Vec<String>, ParameterError> {
        if self.string.as_ref().is_some_and(|text| !text.is_empty()) || self.map.as_ref().is_some_and(|map| !map.is_empty()) {
            return Err(self.wrong("an array"));
        }
        Ok(self.array.unwrap_or_default())
    }

    fn map(self) -> Result<BTreeMap<String, String>, ParameterError> {
        if self.string.as_ref().is_some_and(|text| !text.is_empty()) || self.array.as_ref().is_some_and(|array| !array.is_empty())
        {
            return Err(self.wrong("a map"));
        }
        Ok(self.map.unwrap_or_default())
    }

    fn flag(self) -> Result<bool, ParameterError> {
        let name = self.name.clone();
        match self.text()?.as_deref() {
            Some("true") => Ok(true),
            Some("false") | None => Ok(false),
            Some(value) => Err(ParameterError::Value { name, value: printable(value), allowed: quoted(&["true", "false"]) }),
        }
    }
}

impl Parameters {
    /// Reads Argo CD's JSON. An empty text and `null` are no parameters.
    ///
    /// # Errors
    ///
    /// Every [`ParameterError`] in it.
    pub fn from_json(json: &str) -> Result<Self, Vec<ParameterError>> {
        if json.trim().is_empty() {
            return Ok(Self::default());
        }
        let raw: Option<Vec<RawParameter>> =
            serde_json::from_str(json).map_err(|error| vec![ParameterError::Json(error.to_string())])?;
        Self::read(raw.unwrap_or_default())
    }

    /// Checks parameters one by one.
    ///
    /// # Errors
    ///
    /// Every [`ParameterError`] in them.
    pub fn read(raw: Vec<RawParameter>) -> Result<Self, Vec<ParameterError>> {
        let mut parameters = Self::default();
        let mut errors = Vec::new();
        let mut seen = BTreeSet::new();
        for parameter in raw {
            if !seen.insert(parameter.name.clone()) {
                errors.push(ParameterError::Twice(printable(&parameter.name)));
                continue;
            }
            if parameter.is_filled() {
                parameters.given.insert(parameter.name.clone());
            }
            if let Err(error) = parameters.take(parameter) {
                errors.push(error);
            }
        }
        if errors.is_empty() { Ok(parameters) } else { Err(errors) }
    }

    /// Parameters of other tools than this one, which have no effect.
    pub fn of_other_tools(&self, tool: &str) -> Vec<&str> {
        let is_idle = |name: &&String| Parameter::named(name).and_then(Parameter::tool).is_some_and(|own| own != tool);
        self.given.iter().filter(is_idle).map(String::as_str).collect()
    }

    fn take(&mut self, raw: RawParameter) -> Result<(), ParameterError> {
        let Some(parameter) = Parameter::named(&raw.name) else { return Err(ParameterError::Unknown(printable(&raw.name))) };
        match parameter.value {
            Value::Text(field) => *field(self) = raw.text()?,
            Value::Flag(field) => *field(self) = raw.flag()?,
            Value::List(field) => *field(self) = raw.array()?,
            Value::Map(field) => *field(self) = raw.map()?,
            Value::Word { words, set } => match raw.text()? {
                None => {}
                Some(word) if words.contains(&word.as_str()) => set(self, &word)?,
                Some(word) => {
                    let name = parameter.name.to_owned();
                    return Err(ParameterError::Value { name, value: printable(&word), allowed: quoted(words) });
                }
            },
        }
        Ok(())
    }
}

/// Words for a message.
fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// All names.
fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|parameter| parameter.name)
}

/// The known name that an unknown one was probably meant to be: most of its parts are the same.
fn closest(name: &str) -> Option<&'static str> {
    let normal = |text: &str| text.to_ascii_lowercase().replace(['_', '.'], "-");
    let name = normal(name);
    let flat = |text: &str| text.replace('-', "").trim_end_matches('s').to_owned();
    let same = names().find(|known| flat(known) == flat(&name));
    same.or_else(|| names().find(|known| known.split_once('-').is_some_and(|(_, rest)| flat(rest) == flat(&name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_argo_cd_sends_them() {
        let json = r#"[
            {"array":["values.yaml","/clusters/dev.yaml"],"name":"helm-value-files"},
            {"map":{"a":"1"},"name":"helm-parameters"},
            {"name":"helm-skip-crds","string":"true"},
            {"name":"mode","string":"locked"},
            {"name":"helm-values","string":""},
            {"array":[],"map":{},"name":"renderer","string":"kustomize"}
        ]"#;
        let parameters = Parameters::from_json(json).expect("parameters");
        assert_eq!(parameters.helm.value_files.len(), 2);
        assert!(parameters.helm.skip_crds && parameters.helm.values.is_none());
        assert_eq!((parameters.mode, parameters.renderer), (Mode::Locked, Choice::Kustomize));
        assert_eq!(Parameters::from_json("null").expect("none"), Parameters::default());
        assert_eq!(Parameters::from_json("").expect("none"), Parameters::default());
    }

    #[test]
    fn every_mistake_is_named() {
        let json = r#"[
            {"name":"helmValueFiles","array":["x"]},
            {"name":"helm-value-files","string":"values.yaml"},
            {"name":"mode","string":"lock"},
            {"name":"mode","string":"follow"},
            {"name":"helm-skip-crds","string":"yes"},
            {"name":"record","string":"git"}
        ]"#;
        let errors = Parameters::from_json(json).expect_err("mistakes");
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "unknown parameter `helmValueFiles`",
                "parameter `helm-value-files` takes an array",
                "parameter `mode`: `lock` is not one of `follow`, `locked`",
                "parameter `mode` is given twice",
                "parameter `helm-skip-crds`: `yes` is not one of `true`, `false`",
                "parameter `record`: `git` is not available in this version, which records nothing",
            ]
        );
        assert_eq!(errors[0].hint().as_deref(), Some("did you mean `helm-value-files`?"));
        assert_eq!(ParameterError::Unknown("value-files".into()).hint().as_deref(), Some("did you mean `helm-value-files`?"));
        assert!(Parameters::from_json("{}").is_err());
    }

    #[test]
    fn every_parameter_takes_its_type_and_has_texts() {
        for Parameter { name, title, tooltip, value } in &TABLE {
            assert!(!title.is_empty() && tooltip.ends_with('.'), "{name}");
            let empty = RawParameter { name: (*name).to_owned(), ..RawParameter::default() };
            assert_eq!(Parameters::read(vec![empty.clone()]), Ok(Parameters::default()), "{name}");
            let text = |text: &str| RawParameter { string: Some(text.into()), ..empty.clone() };
            let map = RawParameter { map: Some(BTreeMap::from([("x".into(), "y".into())])), ..empty.clone() };
            let filled = match value {
                Value::List(_) => RawParameter { array: Some(vec!["x".into()]), ..empty.clone() },
                Value::Map(_) => map.clone(),
                Value::Text(_) | Value::Flag(_) => text("true"),
                Value::Word { words, .. } => {
                    assert_eq!(
                        Parameters::read(vec![text(words[0])]).map(|all| Parameters { given: BTreeSet::new(), ..all }),
                        Ok(Parameters::default()),
                        "{name}: the default"
                    );
                    text(words[words.len() - 1])
                }
            };
            if *name != "record" {
                let read = Parameters::read(vec![filled]).expect(name);
                assert_ne!(Parameters { given: BTreeSet::new(), ..read }, Parameters::default(), "{name} sets something");
            }
            let wrong = if matches!(value, Value::Map(_)) { text("x") } else { map };
            assert!(
                matches!(Parameters::read(vec![wrong]).map_err(|errors| errors[0].clone()), Err(ParameterError::Type { .. })),
                "{name}"
            );
        }
    }
}
