//! Rules as they are written: the fields of a level, its targets, and how a later source is laid over an earlier one.

use serde::Deserialize;

use super::{HelmTarget, RuleTarget};
use crate::image::printable;
use crate::policy::Settings;
use crate::policy::settings::Field;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Targets {
    pub helm: Option<HelmTarget>,
    pub kustomize: Option<KustomizeTarget>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KustomizeTarget {
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    pub api_version: String,
    pub kind: String,
    /// Accepted as Kubernetes objects have it; not used.
    #[serde(default)]
    #[expect(dead_code, reason = "pasted blocks carry it")]
    pub metadata: serde_json::Value,
    #[serde(default)]
    pub common_update_settings: Settings,
    #[serde(default)]
    pub images: Vec<FileImage>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileImage {
    pub alias: String,
    pub image_name: Option<String>,
    #[serde(default)]
    pub common_update_settings: Settings,
    #[serde(default)]
    pub manifest_targets: Targets,
}

/// Keys of targets.
const TARGET_KEYS: [&str; 4] = ["helm.image-name", "helm.image-tag", "helm.image-spec", "kustomize.image-name"];

/// Keys of a level, the longer before those they end with.
pub(super) fn level_keys() -> Vec<&'static str> {
    TARGET_KEYS.into_iter().chain(Settings::default().fields().map(|(key, _)| key)).collect()
}

/// Keys of Image Updater's write-back, which a render does not do.
pub(super) const NO_EFFECT: [&str; 4] = ["write-back-method", "write-back-target", "git-branch", "git-repository"];

pub(super) type Problem = (String, Option<String>);

/// Sets a setting by its annotation key. Values are trimmed, lists are split at commas.
pub(super) fn set(settings: &mut Settings, key: &str, value: &str) -> Result<(), Problem> {
    let Some((_, field)) = settings.fields().into_iter().find(|(known, _)| *known == key) else {
        return Err((format!("`{key}` belongs to an image: write `<alias>.{key}`"), None));
    };
    match field {
        Field::Text(field) => *field = Some(value.trim().to_owned()),
        Field::List(field) => {
            *field = Some(value.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect());
        }
        Field::Flag(field) => *field = Some(boolean(value)?),
    }
    Ok(())
}

impl Targets {
    pub(super) fn take(&mut self, over: Self) {
        if let Some(helm) = over.helm {
            let own = self.helm.get_or_insert_default();
            replace(&mut own.name, helm.name);
            replace(&mut own.tag, helm.tag);
            replace(&mut own.spec, helm.spec);
        }
        replace(&mut self.kustomize, over.kustomize);
    }

    pub(super) fn set(&mut self, key: &str, value: &str) -> bool {
        let value = value.trim().to_owned();
        match key {
            "helm.image-name" => self.helm.get_or_insert_default().name = Some(value),
            "helm.image-tag" => self.helm.get_or_insert_default().tag = Some(value),
            "helm.image-spec" => self.helm.get_or_insert_default().spec = Some(value),
            "kustomize.image-name" => self.kustomize = Some(KustomizeTarget { name: value }),
            _ => return false,
        }
        true
    }

    /// Image Updater's defaults hold where a block names no tag: `image.name` and `image.tag` for an empty block, `image.tag` beside a
    /// name. A block with a tag alone sets the tag alone, where Image Updater would also set `image.name`.
    pub(super) fn check(self) -> Result<RuleTarget, Problem> {
        match (self.helm, self.kustomize) {
            (Some(_), Some(_)) => Err(("an image has a Helm target or a Kustomize target, not both".into(), None)),
            (None, None) => Ok(RuleTarget::Manifests),
            (None, Some(kustomize)) => Ok(RuleTarget::Kustomize(kustomize.name)),
            (Some(HelmTarget { name, tag, spec }), None) => {
                let empty = name.is_none() && tag.is_none() && spec.is_none();
                let name = if empty { Some("image.name".to_owned()) } else { name };
                let tag = if tag.is_none() && spec.is_none() { Some("image.tag".to_owned()) } else { tag };
                Ok(RuleTarget::Helm(if spec.is_some() {
                    HelmTarget { spec, ..HelmTarget::default() }
                } else {
                    HelmTarget { name, tag, spec }
                }))
            }
        }
    }
}

fn replace<T>(field: &mut Option<T>, over: Option<T>) {
    if over.is_some() {
        *field = over;
    }
}

fn boolean(value: &str) -> Result<bool, Problem> {
    match value.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err((format!("`{}` is neither `true` nor `false`", printable(other)), None)),
    }
}
