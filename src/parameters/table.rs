//! The table of all parameters. `plugin.yaml`, its copy in the chart and `docs/parameters.md` are generated from it: `make generate`.

use std::collections::BTreeMap;

use super::{Choice, Mode, ParameterError, Parameters};
use Value::{Flag, List, Map, Text, Word};

/// A parameter: its name, what Argo CD's UI shows, and the field that it sets.
#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub title: &'static str,
    /// Plain text for the UI; also the description in `docs/parameters.md`.
    pub tooltip: &'static str,
    pub value: Value,
}

/// The type of a parameter's value, with the field of [`Parameters`] that it sets.
#[derive(Debug)]
pub enum Value {
    Text(fn(&mut Parameters) -> &mut Option<String>),
    /// `true` or `false`, as text.
    Flag(fn(&mut Parameters) -> &mut bool),
    /// One of some words. The first is the default.
    Word {
        words: &'static [&'static str],
        set: fn(&mut Parameters, &str) -> Result<(), ParameterError>,
    },
    List(fn(&mut Parameters) -> &mut Vec<String>),
    Map(fn(&mut Parameters) -> &mut BTreeMap<String, String>),
}

impl Parameter {
    /// The parameter with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TABLE.iter().find(|parameter| parameter.name == name)
    }

    /// The tool that reads it, such as `helm`; none for parameters of Pinion.
    pub fn tool(&self) -> Option<&'static str> {
        let (first, _) = self.name.split_once('-')?;
        ["helm", "kustomize", "directory"].into_iter().find(|tool| *tool == first)
    }
}

fn set_mode(all: &mut Parameters, word: &str) -> Result<(), ParameterError> {
    all.mode = if word == "locked" { Mode::Locked } else { Mode::Follow };
    Ok(())
}

fn set_record(_: &mut Parameters, word: &str) -> Result<(), ParameterError> {
    if word == "none" { Ok(()) } else { Err(ParameterError::Record(word.to_owned())) }
}

fn set_renderer(all: &mut Parameters, word: &str) -> Result<(), ParameterError> {
    all.renderer = match word {
        "helm" => Choice::Helm,
        "kustomize" => Choice::Kustomize,
        "directory" => Choice::Directory,
        _ => Choice::Auto,
    };
    Ok(())
}

/// All parameters, in the order in which Argo CD's UI shows them.
pub static TABLE: [Parameter; 39] = [
    // Which images, and which tags.
    Parameter {
        name: "images",
        title: "Images",
        tooltip: "Images to pin, one per item: alias=image[:constraint], for example chat=ghcr.io/acme/chat-api:~1.0. An image that a placeholder in a file pins needs no entry here.",
        value: List(|all| &mut all.images),
    },
    Parameter {
        name: "image-settings",
        title: "Image settings",
        tooltip: "How to choose the tag and where to write it. Keys are the annotations of Argo CD Image Updater without their prefix: chat.update-strategy, chat.allow-tags, chat.helm.image-tag. A key without an alias, such as update-strategy, applies to all images.",
        value: Map(|all| &mut all.image_settings),
    },
    Parameter {
        name: "pins",
        title: "Pins",
        tooltip: "Exact pins, which no lookup changes: alias or image to tag or tag@sha256:…. Add an entry to hold an image or to roll it back. Remove the entry to follow the registry again.",
        value: Map(|all| &mut all.pins),
    },
    Parameter {
        name: "mode",
        title: "Mode",
        tooltip: "follow: ask the registry. locked: use recorded pins only, so that one Git revision always gives the same manifests. In locked mode an image without a recorded pin is an error.",
        value: Word { words: &["follow", "locked"], set: set_mode },
    },
    Parameter {
        name: "record",
        title: "Record",
        tooltip: "Where to record the chosen pins. This version supports only none; any other value is an error.",
        value: Word { words: &["none", "configmap", "argocd", "git"], set: set_record },
    },
    Parameter {
        name: "renderer",
        title: "Renderer",
        tooltip: "helm, kustomize, directory, or auto. auto decides as Argo CD does: Kustomize if there is a kustomization file, else Helm if there is a Chart.yaml, else plain YAML and JSON.",
        value: Word { words: &["auto", "helm", "kustomize", "directory"], set: set_renderer },
    },
    // Helm: the fields of Argo CD's `source.helm`.
    Parameter {
        name: "helm-value-files",
        title: "Helm value files",
        tooltip: "Value files, merged in this order. Paths are relative to the Application's directory, or to the repository's root if they start with a slash. Globs such as values/*.yaml are allowed. The files may hold placeholders.",
        value: List(|all| &mut all.helm.value_files),
    },
    Parameter {
        name: "helm-values",
        title: "Helm values",
        tooltip: "Values as YAML text, merged after the value files. The text may hold placeholders.",
        value: Text(|all| &mut all.helm.values),
    },
    Parameter {
        name: "helm-parameters",
        title: "Helm parameters",
        tooltip: "Single values, as with --set: dotted path to value, for example replicaCount to 3. Numbers and booleans keep their type. They win over value files.",
        value: Map(|all| &mut all.helm.parameters),
    },
    Parameter {
        name: "helm-force-string-parameters",
        title: "Helm string parameters",
        tooltip: "Single values that stay strings, as with --set-string, for example a build number. Argo CD calls this forceString.",
        value: Map(|all| &mut all.helm.force_string_parameters),
    },
    Parameter {
        name: "helm-file-parameters",
        title: "Helm file parameters",
        tooltip: "Single values that are read from files of the repository, as with --set-file: dotted path to file.",
        value: Map(|all| &mut all.helm.file_parameters),
    },
    Parameter {
        name: "helm-release-name",
        title: "Helm release name",
        tooltip: "The release name in templates. Default: the name of the Application.",
        value: Text(|all| &mut all.helm.release_name),
    },
    Parameter {
        name: "helm-namespace",
        title: "Helm namespace",
        tooltip: "The release namespace in templates. Default: the destination namespace.",
        value: Text(|all| &mut all.helm.namespace),
    },
    Parameter {
        name: "helm-kube-version",
        title: "Helm Kubernetes version",
        tooltip: "The Kubernetes version that templates see, for example 1.33.0. Default: the version of the destination cluster.",
        value: Text(|all| &mut all.helm.kube_version),
    },
    Parameter {
        name: "helm-api-versions",
        title: "Helm API versions",
        tooltip: "The API versions that templates see, as group/version or group/version/Kind. Default: those of the destination cluster.",
        value: List(|all| &mut all.helm.api_versions),
    },
    Parameter {
        name: "helm-skip-crds",
        title: "Helm skip CRDs",
        tooltip: "true leaves out the chart's crds directory.",
        value: Flag(|all| &mut all.helm.skip_crds),
    },
    Parameter {
        name: "helm-skip-schema-validation",
        title: "Helm skip schema validation",
        tooltip: "true does not check values against the chart's values.schema.json.",
        value: Flag(|all| &mut all.helm.skip_schema_validation),
    },
    Parameter {
        name: "helm-skip-tests",
        title: "Helm skip tests",
        tooltip: "true leaves out the chart's test hooks.",
        value: Flag(|all| &mut all.helm.skip_tests),
    },
    Parameter {
        name: "helm-ignore-missing-value-files",
        title: "Helm ignore missing value files",
        tooltip: "true skips value files that do not exist; otherwise a missing file is an error.",
        value: Flag(|all| &mut all.helm.ignore_missing_value_files),
    },
    // Kustomize: the fields of Argo CD's `source.kustomize`.
    Parameter {
        name: "kustomize-name-prefix",
        title: "Kustomize name prefix",
        tooltip: "Prefix for the name of every resource.",
        value: Text(|all| &mut all.kustomize.name_prefix),
    },
    Parameter {
        name: "kustomize-name-suffix",
        title: "Kustomize name suffix",
        tooltip: "Suffix for the name of every resource.",
        value: Text(|all| &mut all.kustomize.name_suffix),
    },
    Parameter {
        name: "kustomize-images",
        title: "Kustomize images",
        tooltip: "Image overrides, in the form that kustomize edit set image takes: [old=]new[:tag or @digest]. The tags are exact. For a tag that follows the registry, write a placeholder in the kustomization, or a rule in images.",
        value: List(|all| &mut all.kustomize.images),
    },
    Parameter {
        name: "kustomize-replicas",
        title: "Kustomize replicas",
        tooltip: "Name of a workload to its number of replicas.",
        value: Map(|all| &mut all.kustomize.replicas),
    },
    Parameter {
        name: "kustomize-common-labels",
        title: "Kustomize common labels",
        tooltip: "Labels for every resource.",
        value: Map(|all| &mut all.kustomize.common_labels),
    },
    Parameter {
        name: "kustomize-common-annotations",
        title: "Kustomize common annotations",
        tooltip: "Annotations for every resource.",
        value: Map(|all| &mut all.kustomize.common_annotations),
    },
    Parameter {
        name: "kustomize-common-annotations-envsubst",
        title: "Kustomize substitute in annotations",
        tooltip: "true replaces $ARGOCD_APP_NAME and the other build variables in the values of common annotations.",
        value: Flag(|all| &mut all.kustomize.common_annotations_envsubst),
    },
    Parameter {
        name: "kustomize-force-common-labels",
        title: "Kustomize force common labels",
        tooltip: "true lets common labels replace labels that the kustomization already sets; otherwise that is an error.",
        value: Flag(|all| &mut all.kustomize.force_common_labels),
    },
    Parameter {
        name: "kustomize-force-common-annotations",
        title: "Kustomize force common annotations",
        tooltip: "true lets common annotations replace annotations that the kustomization already sets; otherwise that is an error.",
        value: Flag(|all| &mut all.kustomize.force_common_annotations),
    },
    Parameter {
        name: "kustomize-label-without-selector",
        title: "Kustomize labels without selector",
        tooltip: "true keeps common labels out of selectors, which cannot change on existing workloads.",
        value: Flag(|all| &mut all.kustomize.label_without_selector),
    },
    Parameter {
        name: "kustomize-label-include-templates",
        title: "Kustomize labels include templates",
        tooltip: "true adds common labels to pod templates too. Needs kustomize-label-without-selector.",
        value: Flag(|all| &mut all.kustomize.label_include_templates),
    },
    Parameter {
        name: "kustomize-namespace",
        title: "Kustomize namespace",
        tooltip: "The namespace for every resource. Default: what the kustomization says.",
        value: Text(|all| &mut all.kustomize.namespace),
    },
    Parameter {
        name: "kustomize-patches",
        title: "Kustomize patches",
        tooltip: "A YAML list of patches, each with path or patch, target and options, as in a kustomization.",
        value: Text(|all| &mut all.kustomize.patches),
    },
    Parameter {
        name: "kustomize-components",
        title: "Kustomize components",
        tooltip: "Directories of components to add, relative to the Application's directory.",
        value: List(|all| &mut all.kustomize.components),
    },
    Parameter {
        name: "kustomize-ignore-missing-components",
        title: "Kustomize ignore missing components",
        tooltip: "true skips components that do not exist; otherwise a missing one is an error.",
        value: Flag(|all| &mut all.kustomize.ignore_missing_components),
    },
    Parameter {
        name: "kustomize-kube-version",
        title: "Kustomize Kubernetes version",
        tooltip: "The Kubernetes version for Helm charts that a kustomization inflates. Default: the version of the destination cluster.",
        value: Text(|all| &mut all.kustomize.kube_version),
    },
    Parameter {
        name: "kustomize-api-versions",
        title: "Kustomize API versions",
        tooltip: "The API versions for Helm charts that a kustomization inflates. Default: those of the destination cluster.",
        value: List(|all| &mut all.kustomize.api_versions),
    },
    // Plain YAML and JSON: the fields of Argo CD's `source.directory`.
    Parameter {
        name: "directory-recurse",
        title: "Directory recurse",
        tooltip: "true reads subdirectories too.",
        value: Flag(|all| &mut all.directory.recurse),
    },
    Parameter {
        name: "directory-include",
        title: "Directory include",
        tooltip: "Reads only files whose path matches this glob, for example *.yaml or {web,worker}/*.yaml. Default: all YAML and JSON files.",
        value: Text(|all| &mut all.directory.include),
    },
    Parameter {
        name: "directory-exclude",
        title: "Directory exclude",
        tooltip: "Leaves out files whose path matches this glob, also files that directory-include matches.",
        value: Text(|all| &mut all.directory.exclude),
    },
];
