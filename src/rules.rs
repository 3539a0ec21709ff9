//! What an application asks for without placeholders: rules of alias, image, policy and targets.
//!
//! Texts go in (`.pinion.yaml`, `.pinion-<app>.yaml`, plugin parameters), checked [`Rule`]s come out; later sources win field by
//! field. Field names are those of Image Updater's `ImageUpdater` resource (v1alpha1) and its annotations without their prefix, so
//! that existing blocks paste in. Where the two disagree with a safe render the difference is stated at the field.

mod raw;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::failure::chain;
use crate::image::{Repository, printable, split_tag};
use crate::policy::{Notation, Policy, Settings};
use crate::yaml::{self, Tree};
use raw::{File, NO_EFFECT, Problem, Targets, level_keys};

/// Rules that one application may have.
const MAX_RULES: usize = 500;

/// One image of an application, and what becomes of its pin.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub alias: String,
    pub repository: Repository,
    pub policy: Policy,
    pub pull_secret: Option<String>,
    pub target: RuleTarget,
}

/// Where a rule's pin goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RuleTarget {
    /// The image is rewritten wherever it appears in the rendered manifests.
    #[default]
    Manifests,
    /// Helm values, set with `--set-string`.
    Helm(HelmTarget),
    /// The image of this name is overridden in the kustomization.
    Kustomize(String),
}

/// Dotted paths of Helm values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HelmTarget {
    /// Gets the image's name.
    pub name: Option<String>,
    /// Gets the tag, with the digest if the pin has one.
    pub tag: Option<String>,
    /// Gets name and tag; the other two are then not used.
    pub spec: Option<String>,
}

/// A mistake in a source of rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct RulesError {
    /// A file with line and column, or a parameter.
    pub place: String,
    pub problem: String,
    pub hint: Option<String>,
}

/// The rules of an application and what was noticed while reading them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    pub rules: Vec<Rule>,
    /// Settings that are understood but have no effect here; for the log.
    pub notes: Vec<String>,
}

impl Rules {
    /// The rule with this alias.
    pub fn get(&self, alias: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.alias == alias)
    }
}

/// Where rules come from. The settings of a later source replace those of earlier ones.
#[derive(Clone, Copy, Debug)]
pub enum RuleSource<'a> {
    /// A rules file. The name is for messages.
    File { name: &'a str, text: &'a str },
    /// The parameters `images` (`alias=image[:constraint]`) and `image-settings` (annotation keys without their prefix).
    Parameters { images: &'a [String], settings: &'a BTreeMap<String, String> },
}

/// Collects sources, the earliest first, and merges them.
#[derive(Debug, Default)]
pub struct Reader {
    common: Settings,
    images: Vec<Draft>,
    notes: Vec<String>,
    has_settings: bool,
    errors: Vec<RulesError>,
}

#[derive(Debug, Default)]
struct Draft {
    alias: String,
    place: String,
    image: Option<String>,
    settings: Settings,
    targets: Targets,
}

impl Reader {
    /// Adds a source. Mistakes in it are kept for [`Reader::finish`].
    pub fn add(&mut self, source: RuleSource<'_>) {
        match source {
            RuleSource::File { name, text } => self.file(name, text),
            RuleSource::Parameters { images, settings } => self.parameters(images, settings),
        }
    }

    fn file(&mut self, name: &str, text: &str) {
        let file: File = match crate::yaml::from_str(text) {
            Ok(file) => file,
            Err(error) => {
                let place =
                    error.location().map_or_else(|| name.to_owned(), |at| format!("{name}:{}:{}", at.line(), at.column()));
                let text = error.to_string();
                let problem = text.split(" at line ").next().unwrap_or(&text).to_owned();
                return self.error(
                    place,
                    problem,
                    Some("the file holds `apiVersion: pinion.dev/v1`, `kind: Rules`, `images: […]`".into()),
                );
            }
        };
        if (file.api_version.as_str(), file.kind.as_str()) != ("pinion.dev/v1", "Rules") {
            let problem = format!("`{} {}` is not `pinion.dev/v1 Rules`", printable(&file.api_version), printable(&file.kind));
            return self.error(name.to_owned(), problem, None);
        }
        self.common.merge(file.common_update_settings);
        let mut seen = BTreeSet::new();
        for image in file.images {
            let place = place_of_alias(name, text, &image.alias);
            if !seen.insert(image.alias.clone()) {
                self.error(place.clone(), format!("alias `{}` is given twice", printable(&image.alias)), None);
                continue;
            }
            let Some(draft) = self.draft(&image.alias, &place) else { continue };
            draft.image = image.image_name.or(draft.image.take());
            draft.settings.merge(image.common_update_settings);
            draft.targets.take(image.manifest_targets);
        }
    }

    fn parameters(&mut self, images: &[String], settings: &BTreeMap<String, String>) {
        let mut seen = BTreeSet::new();
        for entry in images.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty()) {
            let place = "parameter `images`";
            // The first `=` separates an alias only behind a legal alias: `nginx:>=1.2` has none (Image Updater misreads it).
            let (alias, image) = match entry.split_once('=') {
                Some((alias, image)) if is_alias(alias.trim()) => (alias.trim().to_owned(), image.trim()),
                _ => (split_tag(entry).0.to_owned(), entry),
            };
            if entry.starts_with('=') {
                self.error(
                    place.into(),
                    format!("`{}` has no alias before `=`", printable(entry)),
                    Some("write `alias=image[:constraint]`".into()),
                );
            } else if !seen.insert(alias.clone()) {
                self.error(place.into(), format!("alias `{}` is given twice", printable(&alias)), None);
            } else if image.is_empty() {
                self.error(
                    place.into(),
                    format!("`{}` names no image", printable(entry)),
                    Some("write `alias=image[:constraint]`".into()),
                );
            } else {
                let is_new = self.images.iter().all(|draft| draft.alias != alias);
                if is_new {
                    self.images.push(Draft { alias: alias.clone(), place: place.into(), ..Draft::default() });
                }
                let draft = self.images.iter_mut().find(|draft| draft.alias == alias).expect("it was just added");
                draft.image = Some(image.to_owned());
                draft.place = place.into();
            }
        }
        self.has_settings |= !settings.is_empty();
        for (key, value) in settings {
            self.setting(key, value);
        }
    }

    fn setting(&mut self, key: &str, value: &str) {
        // Annotations may be pasted as they are.
        let key = key.strip_prefix("argocd-image-updater.argoproj.io/").unwrap_or(key);
        let place = format!("parameter `image-settings`, key `{}`", printable(key));
        if NO_EFFECT.contains(&key) {
            return self.notes.push(format!("{place}: read by `record`, without effect on this render"));
        }
        let level = level_keys().into_iter().find_map(|name| {
            if key == name {
                return (name != "platforms").then_some((None, name));
            }
            Some((Some(key.strip_suffix(name)?.strip_suffix('.')?.to_owned()), name))
        });
        let result = match level {
            None => Err((format!("unknown setting; known are: {}", level_keys().join(", ")), None)),
            Some((None, name)) => raw::set(&mut self.common, name, value),
            Some((Some(alias), name)) => {
                let known: Vec<String> = self.images.iter().map(|draft| draft.alias.clone()).collect();
                match self.images.iter_mut().find(|draft| draft.alias == alias) {
                    None => Err((format!("unknown alias `{}`", printable(&alias)), Some(aliases_hint(&known)))),
                    Some(draft) => match draft.targets.set(name, value) {
                        true => Ok(()),
                        false => raw::set(&mut draft.settings, name, value),
                    },
                }
            }
        };
        if let Err((problem, hint)) = result {
            self.error(place, problem, hint);
        }
    }

    /// The rules, or every mistake in their sources.
    ///
    /// # Errors
    ///
    /// All [`RulesError`]s of all sources.
    pub fn finish(mut self) -> Result<Rules, Vec<RulesError>> {
        let mut rules = Vec::new();
        for draft in std::mem::take(&mut self.images) {
            let place = draft.place.clone();
            let constraint = draft.image.as_deref().and_then(|image| split_tag(image).1).unwrap_or_default().to_owned();
            match draft.check(&self.common) {
                Ok(rule) => {
                    self.notes.extend(ignored_constraint(&rule, &constraint).map(|note| format!("{place}: {note}")));
                    rules.push(rule);
                }
                Err((problem, hint)) => self.error(place, problem, hint),
            }
        }
        if rules.is_empty() && self.has_settings {
            self.notes.push("parameter `image-settings` has no effect: there is no rule".to_owned());
        }
        if rules.len() > MAX_RULES {
            self.error("rules".into(), format!("{} images, at most {MAX_RULES} are allowed", rules.len()), None);
        }
        if self.errors.is_empty() { Ok(Rules { rules, notes: self.notes }) } else { Err(self.errors) }
    }

    fn draft(&mut self, alias: &str, place: &str) -> Option<&mut Draft> {
        if !is_alias(alias) {
            let problem = format!("`{}` is not an alias", printable(alias));
            self.error(
                place.to_owned(),
                problem,
                Some("an alias starts with a letter or digit and holds letters, digits, `-`, `.`, `_`".into()),
            );
            return None;
        }
        let index = self.images.iter().position(|draft| draft.alias == alias).unwrap_or_else(|| {
            self.images.push(Draft { alias: alias.to_owned(), ..Draft::default() });
            self.images.len() - 1
        });
        let draft = &mut self.images[index];
        draft.place = place.to_owned();
        Some(draft)
    }

    fn error(&mut self, place: String, problem: String, hint: Option<String>) {
        self.errors.push(RulesError { place, problem, hint });
    }
}

impl Draft {
    fn check(self, common: &Settings) -> Result<Rule, Problem> {
        let alias = self.alias;
        let Some(image) = self.image else {
            return Err((format!("rule `{alias}` names no image"), Some("add `imageName`".into())));
        };
        let mut settings = common.clone();
        settings.merge(self.settings);
        let (name, constraint) = split_tag(&image);
        settings.strategy = settings.strategy.filter(|text| !text.is_empty());
        settings.constraint = constraint.map(str::to_owned).filter(|text| !text.is_empty());
        let pull_secret = settings.pull_secret.clone().filter(|text| !text.is_empty());
        let repository = name.parse().map_err(|error| (format!("rule `{alias}`: {error}"), None))?;
        let policy = Policy::parse(&settings, Notation::ImageUpdater)
            .map_err(|error| (format!("rule `{alias}`: {}", chain(&error)), error.hint()))?;
        Ok(Rule { alias, repository, policy, pull_secret, target: self.targets.check()? })
    }
}

/// Image Updater ignores a constraint that the strategy does not read. Here a note in the log says so.
fn ignored_constraint(rule: &Rule, constraint: &str) -> Option<String> {
    let strategy = rule.policy.strategy();
    let is_read = constraint.is_empty() || strategy.reads_constraint();
    let (alias, name) = (&rule.alias, strategy.name());
    (!is_read).then(|| {
        let constraint = printable(constraint);
        format!(
            "rule `{alias}`: the constraint `{constraint}` has no effect with `{name}`: `allowTags` says which tags are permitted"
        )
    })
}

/// Lists the aliases that could have been meant.
pub fn aliases_hint(known: &[String]) -> String {
    match known {
        [] => "no rule is defined: add one to `.pinion.yaml` or to the parameter `images`".into(),
        known => format!("known aliases: {}", known.join(", ")),
    }
}

fn is_alias(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// The line and column of an alias in its file.
fn place_of_alias(name: &str, text: &str, alias: &str) -> String {
    let position = Tree::parse(text).ok().and_then(|tree| {
        let images = tree.get(*tree.roots.first()?, "images")?;
        let mut found = tree.items(images).iter().filter_map(|image| tree.get(*image, "alias"));
        let alias = found.find(|id| tree.text(*id) == Some(alias))?;
        Some(yaml::position(text, tree.node(alias).span.start))
    });
    position.map_or_else(|| name.to_owned(), |(line, column)| format!("{name}:{line}:{column}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
apiVersion: pinion.dev/v1
kind: Rules
commonUpdateSettings:
  updateStrategy: newest-build
  allowTags: regexp:^main
images:
- alias: web
  imageName: ghcr.io/acme/web
  manifestTargets:
    helm: {name: web.image, tag: web.tag}
- alias: api
  imageName: ghcr.io/acme/api:~1.2
  commonUpdateSettings: {updateStrategy: semver, allowTags: any, forceUpdate: true}
";

    fn read(files: &[&str], images: &[&str], settings: &[(&str, &str)]) -> Result<Rules, Vec<String>> {
        let mut reader = Reader::default();
        files.iter().for_each(|file| reader.add(RuleSource::File { name: ".pinion.yaml", text: file }));
        let images: Vec<String> = images.iter().map(|&text| text.to_owned()).collect();
        let settings = settings.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        reader.add(RuleSource::Parameters { images: &images, settings: &settings });
        reader.finish().map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_constraint_without_effect_is_told() {
        let settings = [("a.update-strategy", "newest-build"), ("c.update-strategy", "digest")];
        let rules = read(&[], &["a=x/y:~1", "b=x/y:~1", "c=x/y:latest", "d=x/y"], &settings).expect("rules");
        let wanted = "the constraint `~1` has no effect with `newest-build`: `allowTags` says which tags are permitted";
        assert_eq!(rules.notes, [format!("parameter `images`: rule `a`: {wanted}")]);
    }

    #[test]
    fn a_block_of_image_updater_pastes_in() {
        let rules = read(&[FILE], &[], &[]).expect("rules");
        let web = rules.get("web").expect("web");
        assert_eq!(web.repository.text(), "ghcr.io/acme/web");
        assert_eq!(
            web.target,
            RuleTarget::Helm(HelmTarget { name: Some("web.image".into()), tag: Some("web.tag".into()), spec: None })
        );
        assert!(web.policy.to_string().contains("newest-build") && web.policy.to_string().contains("^main"));
        let api = rules.get("api").expect("api");
        assert!(api.policy.to_string().contains("~1.2") && api.target == RuleTarget::Manifests, "{}", api.policy);
    }

    #[test]
    fn later_sources_win_field_by_field() {
        let settings = [
            ("argocd-image-updater.argoproj.io/web.helm.image-tag", "x.tag"),
            ("api.allow-tags", "regexp:^v"),
            ("ignore-tags", "a*, b*"),
        ];
        let rules = read(&[FILE], &["api=ghcr.io/acme/api:~2", "new=nginx", "redis:>=7"], &settings).expect("rules");
        let web = rules.get("web").expect("web");
        assert_eq!(
            web.target,
            RuleTarget::Helm(HelmTarget { name: Some("web.image".into()), tag: Some("x.tag".into()), spec: None })
        );
        let api = rules.get("api").expect("api").policy.to_string();
        assert!(api.contains("~2") && api.contains("^v") && api.contains("a*"), "{api}");
        assert_eq!(rules.get("redis").expect("unaliased").repository.text(), "redis");
    }

    #[test]
    fn targets_have_the_defaults_of_image_updater() {
        let target = |settings: &[(&str, &str)]| read(&[], &["a=b/c"], settings).expect("rules").rules[0].target.clone();
        let helm = |name: Option<&str>, tag: Option<&str>, spec: Option<&str>| {
            RuleTarget::Helm(HelmTarget {
                name: name.map(str::to_owned),
                tag: tag.map(str::to_owned),
                spec: spec.map(str::to_owned),
            })
        };
        assert_eq!(target(&[]), RuleTarget::Manifests);
        assert_eq!(target(&[("a.helm.image-name", "n")]), helm(Some("n"), Some("image.tag"), None));
        assert_eq!(target(&[("a.helm.image-tag", "t")]), helm(None, Some("t"), None));
        assert_eq!(target(&[("a.helm.image-spec", "s"), ("a.helm.image-tag", "t")]), helm(None, None, Some("s")));
        assert_eq!(target(&[("a.kustomize.image-name", "k")]), RuleTarget::Kustomize("k".into()));
        let empty = FILE.replace("helm: {name: web.image, tag: web.tag}", "helm: {}");
        let rules = read(&[&empty], &[], &[]).expect("rules");
        assert_eq!(rules.rules[0].target, helm(Some("image.name"), Some("image.tag"), None));
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let errors =
            |files: &[&str], images: &[&str], settings: &[(&str, &str)]| read(files, images, settings).expect_err("mistakes");
        assert_eq!(
            errors(&[], &["a=b/c", "a=b/d", "x="], &[("z.allow-tags", "any"), ("a.nope", "1"), ("a.force-update", "maybe")]),
            [
                "parameter `images`: alias `a` is given twice",
                "parameter `images`: `x=` names no image",
                "parameter `image-settings`, key `a.force-update`: `maybe` is neither `true` nor `false`",
                &format!("parameter `image-settings`, key `a.nope`: unknown setting; known are: {}", level_keys().join(", ")),
                "parameter `image-settings`, key `z.allow-tags`: unknown alias `z`",
            ]
        );
        let twice = FILE.replace("alias: api", "alias: web");
        assert_eq!(errors(&[&twice], &[], &[]), [".pinion.yaml:7:10: alias `web` is given twice"]);
        let unknown = FILE.replace("  allowTags", "  allowedTags");
        assert!(errors(&[&unknown], &[], &[])[0].starts_with(".pinion.yaml:"), "{:?}", errors(&[&unknown], &[], &[]));
        assert_eq!(
            errors(&["apiVersion: v1\nkind: Rules\n"], &[], &[]),
            [".pinion.yaml: `v1 Rules` is not `pinion.dev/v1 Rules`"]
        );
        let both = FILE.replace("helm: {name: web.image, tag: web.tag}", "{helm: {}, kustomize: {name: x}}");
        assert_eq!(errors(&[&both], &[], &[]), [".pinion.yaml:7:10: an image has a Helm target or a Kustomize target, not both"]);
        let strategy = FILE.replace("newest-build", "newest");
        assert!(errors(&[&strategy], &[], &[])[0].starts_with(".pinion.yaml:7:10: rule `web`: "));
    }

    #[test]
    fn write_back_settings_are_noted() {
        let rules = read(&[], &["a=b/c"], &[("write-back-method", "git")]).expect("rules");
        assert_eq!(rules.notes.len(), 1);
    }

    #[test]
    fn the_number_of_rules_is_bounded() {
        let images: Vec<String> = (0..=MAX_RULES).map(|n| format!("a{n}=b/c")).collect();
        let images: Vec<&str> = images.iter().map(String::as_str).collect();
        assert_eq!(read(&[], &images, &[]).expect_err("too many"), ["rules: 501 images, at most 500 are allowed"]);
    }
}
