//! What Argo CD changes of a kustomization before it is built (`util/kustomize/kustomize.go`), in its order.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{NAMES, Plan};
use crate::image::printable;
use crate::placeholder::scans::Substituted;
use crate::render::{RenderError, Targets, no_flag};
use crate::workspace::{WorkspaceError, shown};

impl Plan {
    /// The `kustomize edit` commands, in Argo CD's order; patches come before components.
    pub(super) fn edits(&self, changed: &Substituted, targets: &Targets) -> Result<Vec<Vec<OsString>>, RenderError> {
        let options = &self.application.parameters.kustomize;
        let expand = |text: &str| self.application.expand(text);
        let mut edits: Vec<Vec<String>> = Vec::new();
        let mut edit = |words: &[&str], values: Vec<String>| {
            edits.push(["edit"].iter().chain(words).map(|&word| word.to_owned()).chain(values).collect());
        };
        if let Some(prefix) = &options.name_prefix {
            edit(&["set", "nameprefix", "--"], vec![prefix.clone()]);
        }
        if let Some(suffix) = &options.name_suffix {
            edit(&["set", "namesuffix", "--"], vec![suffix.clone()]);
        }
        let substituted = |image: &String| self.images.get(image).and_then(|place| changed.get(place)).unwrap_or(image).clone();
        let own = options.images.iter().map(|image| expand(&substituted(image)));
        let images: Vec<String> = own.chain(targets.kustomize.iter().cloned()).collect();
        for image in &images {
            no_flag("kustomize-images", image)?;
        }
        if !images.is_empty() {
            edit(&["set", "image"], images);
        }
        if !options.replicas.is_empty() {
            let replicas: Vec<String> = options.replicas.iter().map(|(name, count)| format!("{name}={count}")).collect();
            replicas.iter().try_for_each(|word| no_flag("kustomize-replicas", word))?;
            edit(&["set", "replicas"], replicas);
        }
        if !options.common_labels.is_empty() {
            let flags = [
                ("--force", options.force_common_labels),
                ("--without-selector", options.label_without_selector),
                ("--include-templates", options.label_include_templates),
            ];
            let mut words = vec!["add", "label"];
            words.extend(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| *flag));
            let labels: Vec<String> =
                options.common_labels.iter().map(|(key, value)| format!("{key}:{}", expand(value))).collect();
            labels.iter().try_for_each(|word| no_flag("kustomize-common-labels", word))?;
            edit(&words, labels);
        }
        if !options.common_annotations.is_empty() {
            let mut words = vec!["add", "annotation"];
            words.extend(options.force_common_annotations.then_some("--force"));
            let value = |value: &String| if options.common_annotations_envsubst { expand(value) } else { value.clone() };
            let annotations: Vec<String> =
                options.common_annotations.iter().map(|(key, text)| format!("{key}:{}", value(text))).collect();
            annotations.iter().try_for_each(|word| no_flag("kustomize-common-annotations", word))?;
            edit(&words, annotations);
        }
        if let Some(namespace) = &options.namespace {
            edit(&["set", "namespace", "--"], vec![namespace.clone()]);
        }
        let components: Vec<String> = self.present_components()?.into_iter().map(|(text, _)| text).collect();
        components.iter().try_for_each(|word| no_flag("kustomize-components", word))?;
        if !components.is_empty() {
            edit(&["add", "component"], components);
        }
        Ok(edits.into_iter().map(|words| words.into_iter().map(OsString::from).collect()).collect())
    }

    /// The parameter's components with their directories, if local.
    pub(super) fn present_components(&self) -> Result<Vec<(String, Option<PathBuf>)>, RenderError> {
        let options = &self.application.parameters.kustomize;
        let mut present = Vec::new();
        for component in &options.components {
            match self.checkout.resolve_path(self.checkout.app(), component) {
                Ok(path) => present.push((component.clone(), Some(path))),
                Err(WorkspaceError::Missing { .. }) if component.contains("://") => present.push((component.clone(), None)),
                Err(WorkspaceError::Missing { .. }) if options.ignore_missing_components => {}
                Err(source) => {
                    let what = format!("parameter `kustomize-components`, `{}`", printable(component));
                    return Err(RenderError::File { what, source });
                }
            }
        }
        Ok(present)
    }
}

/// Appends `kustomize-patches`, a YAML list, to the copied kustomization's own.
pub(super) fn add_patches(app: &Path, patches: &str) -> Result<(), RenderError> {
    let wrong = |error: &dyn std::fmt::Display| RenderError::Invalid {
        what: format!("parameter `kustomize-patches` is not a YAML list of patches: {error}"),
        hint: Some("write `- {target: {kind: Deployment}, patch: …}`".into()),
    };
    let added: Vec<serde_yaml::Value> = crate::yaml::from_str(patches).map_err(|error| wrong(&error))?;
    let path = NAMES.iter().map(|name| app.join(name)).find(|path| path.is_file());
    let path = path.ok_or_else(|| RenderError::invalid("the kustomization is gone"))?;
    let io = |source: std::io::Error| WorkspaceError::Io { path: shown(&path), source: source.into() };
    let text = std::fs::read_to_string(&path).map_err(io)?;
    let mut file: serde_yaml::Mapping = crate::yaml::from_str(&text)
        .map_err(|error| RenderError::invalid(format!("`{}` is not a kustomization: {error}", shown(&path))))?;
    let own = file.entry("patches".into()).or_insert_with(|| serde_yaml::Value::Sequence(Vec::new()));
    match own {
        serde_yaml::Value::Sequence(own) => own.extend(added),
        _ => return Err(RenderError::invalid("`patches` of the kustomization is not a list")),
    }
    let text = serde_yaml::to_string(&file).map_err(|error| wrong(&error))?;
    std::fs::write(&path, text).map_err(io)?;
    Ok(())
}
