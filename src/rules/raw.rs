//! Rules as they are written: the fields of a level, its targets, and how a later source is laid over an earlier one.

use serde::Deserialize;

use super::{HelmTarget, RuleTarget};
use crate::image::printable;

/// Fields of one level, as written. `None` leaves the level below in force.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Common {
    pub update_strategy: Option<String>,
    /// Accepted and without meaning: a render asks for what stands in the files, not for what runs in the cluster.
    pub force_update: Option<bool>,
    pub allow_tags: Option<String>,
    pub ignore_tags: Option<Vec<String>>,
    pub pull_secret: Option<String>,
    pub platforms: Option<Vec<String>>,
    pub extract: Option<String>,
    pub min_age: Option<String>,
    pub with_digest: Option<bool>,
    pub fallback: Option<String>,
}

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
    pub common_update_settings: Common,
    #[serde(default)]
    pub images: Vec<FileImage>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileImage {
    pub alias: String,
    pub image_name: Option<String>,
    #[serde(default)]
    pub common_update_settings: Common,
    #[serde(default)]
    pub manifest_targets: Targets,
}

/// Keys of a level, the longer before those they end with.
pub(super) const LEVEL_KEYS: [&str; 14] = [
    "helm.image-name",
    "helm.image-tag",
    "helm.image-spec",
    "kustomize.image-name",
    "update-strategy",
    "force-update",
    "allow-tags",
    "ignore-tags",
    "pull-secret",
    "platforms",
    "extract",
    "min-age",
    "with-digest",
    "fallback",
];

/// Keys of Image Updater's write-back, which a render does not do.
pub(super) const NO_EFFECT: [&str; 4] = ["write-back-method", "write-back-target", "git-branch", "git-repository"];

pub(super) type Problem = (String, Option<String>);

impl Common {
    /// Fields of `over` that are given win; lists replace.
    pub(super) fn take(&mut self, over: Self) {
        let Self {
            update_strategy,
            force_update: _,
            allow_tags,
            ignore_tags,
            pull_secret,
            platforms,
            extract,
            min_age,
            with_digest,
            fallback,
        } = over;
        replace(&mut self.update_strategy, update_strategy);
        replace(&mut self.allow_tags, allow_tags);
        replace(&mut self.ignore_tags, ignore_tags);
        replace(&mut self.pull_secret, pull_secret);
        replace(&mut self.platforms, platforms);
        replace(&mut self.extract, extract);
        replace(&mut self.min_age, min_age);
        replace(&mut self.with_digest, with_digest);
        replace(&mut self.fallback, fallback);
    }

    /// Sets a field by its annotation key. Values are trimmed, lists are split at commas.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        let text = || Some(value.trim().to_owned());
        let list = || Some(value.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect());
        match key {
            "update-strategy" => self.update_strategy = text(),
            "force-update" => self.force_update = Some(boolean(value)?),
            "allow-tags" => self.allow_tags = text(),
            "ignore-tags" => self.ignore_tags = list(),
            "pull-secret" => self.pull_secret = text(),
            "platforms" => self.platforms = list(),
            "extract" => self.extract = text(),
            "min-age" => self.min_age = text(),
            "with-digest" => self.with_digest = Some(boolean(value)?),
            "fallback" => self.fallback = text(),
            _ => return Err((format!("`{key}` belongs to an image: write `<alias>.{key}`"), None)),
        }
        Ok(())
    }
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
