//! Argo CD's own `helm`, `kustomize` and `directory` blocks, as the plugin parameters that replace them.

use granit_parser::ScalarStyle;
use serde_json::{Map, Value, json};

use crate::placeholder::{quote, splice};
use crate::yaml::{self, Kind, Tree};

/// The `plugin` block, as YAML, that replaces the blocks of a source; none if it has none.
pub(super) fn replacement(source: &Value) -> Option<String> {
    let tool = ["helm", "kustomize", "directory"].into_iter().find(|tool| source[tool].is_object())?;
    let mut block = Block::default();
    // Argo CD takes the block for the choice, whatever files there are.
    block.push("renderer", "string", json!(tool));
    block.helm(&source["helm"]);
    block.kustomize(&source["kustomize"]);
    block.directory(&source["directory"]);
    let mut text = to_yaml(&json!({"plugin": {"name": "pinion@v1", "parameters": block.parameters}}));
    for name in &block.without {
        text += &format!("# `{name}` has no counterpart\n");
    }
    Some(text)
}

#[derive(Default)]
struct Block {
    parameters: Vec<Value>,
    /// Fields that no parameter stands for.
    without: Vec<String>,
}

impl Block {
    fn helm(&mut self, block: &Value) {
        self.read("helm", block, |own, field, value| {
            match field {
                "valueFiles" => own.array("helm-value-files", value),
                // The object wins over the text.
                "values" if !block["valuesObject"].is_object() => own.text("helm-values", value),
                "values" => {}
                "valuesObject" => {
                    own.push("helm-values", "string", json!(to_yaml(value)));
                }
                "parameters" => {
                    let is_forced = |entry: &&Value| entry["forceString"].as_bool().unwrap_or_default();
                    let entries = value.as_array().cloned().unwrap_or_default();
                    own.pairs("helm-parameters", entries.iter().filter(|entry| !is_forced(entry)), "value");
                    own.pairs("helm-force-string-parameters", entries.iter().filter(is_forced), "value");
                }
                "fileParameters" => own.pairs("helm-file-parameters", value.as_array().into_iter().flatten(), "path"),
                "apiVersions" => own.array("helm-api-versions", value),
                "releaseName" | "namespace" | "kubeVersion" => own.text(&format!("helm-{}", kebab(field)), value),
                "skipCrds" | "skipSchemaValidation" | "skipTests" | "ignoreMissingValueFiles" => {
                    own.flag(&format!("helm-{}", kebab(field)), value);
                }
                "version" if value == "v3" || value == "" => {}
                _ => return false,
            }
            true
        });
    }

    fn kustomize(&mut self, block: &Value) {
        self.read("kustomize", block, |own, field, value| {
            let name = format!("kustomize-{}", kebab(field));
            match field {
                "images" | "components" | "apiVersions" => own.array(&name, value),
                "replicas" => own.pairs(&name, value.as_array().into_iter().flatten(), "count"),
                "commonLabels" | "commonAnnotations" => own.push(&name, "map", texts(value)),
                "patches" => own.push(&name, "string", json!(to_yaml(value))),
                "namePrefix" | "nameSuffix" | "namespace" | "kubeVersion" => own.text(&name, value),
                "commonAnnotationsEnvsubst"
                | "forceCommonLabels"
                | "forceCommonAnnotations"
                | "labelWithoutSelector"
                | "labelIncludeTemplates"
                | "ignoreMissingComponents" => own.flag(&name, value),
                "version" if value == "" => {}
                _ => return false,
            }
            true
        });
    }

    fn directory(&mut self, block: &Value) {
        self.read("directory", block, |own, field, value| {
            match field {
                "recurse" => own.flag("directory-recurse", value),
                "include" | "exclude" => own.text(&format!("directory-{field}"), value),
                "jsonnet" if value.as_object().is_some_and(Map::is_empty) => {}
                _ => return false,
            }
            true
        });
    }

    fn read(&mut self, tool: &str, block: &Value, mut take: impl FnMut(&mut Self, &str, &Value) -> bool) {
        for (field, value) in block.as_object().into_iter().flatten() {
            if !value.is_null() && !take(self, field, value) {
                self.without.push(format!("{tool}.{field}"));
            }
        }
    }

    fn push(&mut self, name: &str, kind: &str, value: Value) {
        let is_empty = value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(Map::is_empty)
            || value.as_str().is_some_and(|text| text.trim().is_empty());
        if !is_empty {
            self.parameters.push(json!({"name": name, kind: value}));
        }
    }

    fn text(&mut self, name: &str, value: &Value) {
        self.push(name, "string", json!(text(value)));
    }

    fn flag(&mut self, name: &str, value: &Value) {
        if value.as_bool().unwrap_or_default() {
            self.push(name, "string", json!("true"));
        }
    }

    fn array(&mut self, name: &str, value: &Value) {
        let items: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
        self.push(name, "array", json!(items));
    }

    /// A list of names with a value each.
    fn pairs<'v>(&mut self, name: &str, entries: impl Iterator<Item = &'v Value>, field: &str) {
        let map: Map<String, Value> = entries.map(|entry| (text(&entry["name"]), json!(text(&entry[field])))).collect();
        self.push(name, "map", Value::Object(map));
    }
}

/// YAML that says the same to parsers of YAML 1.1, which is what Kubernetes and Helm have: texts like `yes` and `1_000` are in quotes.
fn to_yaml(value: &Value) -> String {
    let text = serde_yaml::to_string(value).unwrap_or_default();
    let Ok(tree) = Tree::parse(&text) else { return text };
    let is_text = |plain: &str| matches!(serde_yaml::from_str(plain), Ok(serde_yaml::Value::String(_)));
    let mut edits: Vec<_> = tree
        .nodes()
        .filter_map(|(_, node)| match &node.kind {
            Kind::Scalar { value, style: ScalarStyle::Plain } if !yaml::reads_as_string(value) && is_text(value) => {
                Some((node.span.clone(), quote(value)))
            }
            _ => None,
        })
        .collect();
    edits.sort_by_key(|(span, _)| span.start);
    splice(&text, 0, &edits)
}

fn texts(map: &Value) -> Value {
    map.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), json!(text(value)))).collect::<Map<_, _>>().into()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

/// `valueFiles` as `value-files`.
fn kebab(field: &str) -> String {
    let mut kebab = String::new();
    for c in field.chars() {
        if c.is_ascii_uppercase() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}
