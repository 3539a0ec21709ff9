//! One Application of an ApplicationSet: its template with values in it.
//!
//! Both of Argo CD's template languages are understood as far as they name a value: `{{env}}`, and with `goTemplate: true` `{{ .env }}`.
//! Whatever else they can do needs Argo CD itself. Source: Argo CD's `applicationset/utils/utils.go`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::ApplicationError;
use crate::image::printable;

/// What to do where only Argo CD knows.
const ARGOCD: &str = "render one of the Applications that it generates: `argocd appset generate FILE` prints them";

/// As deep as a manifest goes.
const MAX_DEPTH: usize = 64;

/// The Application of a template, and what was not looked at. Values that are not given come from the one element of the list generators
/// that has those that are.
///
/// # Errors
///
/// [`ApplicationError::Set`]: a value is missing, or the template does more than name values.
pub(super) fn application(manifest: &Value, given: &BTreeMap<String, String>) -> Result<(Value, Vec<String>), ApplicationError> {
    let spec = &manifest["spec"];
    let elements = elements(spec);
    let values = chosen(&elements, given);
    if let Some((name, value)) = given.iter().find(|(name, _)| !is_named(&spec["template"], spec, name, &elements)) {
        let problem = format!("nothing is named `{}`, which is set to `{}`", printable(name), printable(value));
        return Err(ApplicationError::Set {
            problem,
            hint: "the template and the list generators' elements say the names".to_owned(),
        });
    }
    if spec["generators"].as_array().into_iter().flatten().any(|generator| generator["list"]["template"].is_object()) {
        let problem = "a list generator has a `template` of its own, which is not read".to_owned();
        return Err(ApplicationError::Set { problem, hint: ARGOCD.to_owned() });
    }
    let mut expansion = Expansion::new(values.as_ref().unwrap_or(given), spec["goTemplate"].as_bool().unwrap_or_default());
    let template = expansion.value(&spec["template"], 0);
    if let Some(text) = expansion.functions {
        let problem = format!("`{}` in the template does more than name a value", printable(&text));
        return Err(ApplicationError::Set { problem, hint: ARGOCD.to_owned() });
    }
    if !expansion.missing.is_empty() {
        let names: Vec<&str> = expansion.missing.iter().map(String::as_str).collect();
        let odd = given.iter().find(|(name, value)| {
            let known: Vec<&String> = elements.iter().filter_map(|element| element.get(*name)).collect();
            !known.is_empty() && !known.contains(value)
        });
        let problem = match odd {
            Some((name, value)) => format!(
                "no element of the list generator has `{}={}`, and the template needs a value for {}",
                printable(name),
                printable(value),
                quoted(&names)
            ),
            None => format!("the template needs a value for {}", quoted(&names)),
        };
        return Err(ApplicationError::Set { problem, hint: hint(&elements, &names) });
    }
    let mut notes = Vec::new();
    if values.is_none() && !elements.is_empty() && !given.is_empty() {
        notes.push("no element of the list generator has the given values: Argo CD makes no such Application".to_owned());
    }
    if spec["generators"].as_array().into_iter().flatten().any(|generator| generator["selector"].is_object()) {
        notes.push("the generators' `selector` is not applied".to_owned());
    }
    if !spec["templatePatch"].is_null() {
        notes.push("the ApplicationSet's `templatePatch` is not applied".to_owned());
    }
    let application = json!({"kind": "Application", "metadata": template["metadata"], "spec": template["spec"]});
    Ok((application, notes))
}

/// The elements of the list generators, each as names and values; names of nested values have dots.
fn elements(spec: &Value) -> Vec<BTreeMap<String, String>> {
    let generators = spec["generators"].as_array().into_iter().flatten();
    let elements = generators.filter_map(|generator| generator["list"]["elements"].as_array()).flatten();
    elements
        .map(|element| {
            let mut flat = BTreeMap::new();
            flatten(element, "", &mut flat, 0);
            flat
        })
        .collect()
}

fn flatten(value: &Value, name: &str, flat: &mut BTreeMap<String, String>, depth: usize) {
    match value {
        Value::Object(map) if depth < MAX_DEPTH => {
            for (key, value) in map {
                flatten(value, &if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, flat, depth + 1);
            }
        }
        Value::String(text) => drop(flat.insert(name.to_owned(), text.clone())),
        Value::Number(_) | Value::Bool(_) => drop(flat.insert(name.to_owned(), value.to_string())),
        _ => {}
    }
}

/// The given values with those of the one element that they choose.
fn chosen(elements: &[BTreeMap<String, String>], given: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    let suits = |element: &&BTreeMap<String, String>| {
        given.iter().all(|(name, value)| element.get(name).is_none_or(|own| own == value))
            && (elements.len() == 1 || given.keys().any(|name| element.contains_key(name)))
    };
    let mut suitable = elements.iter().filter(suits);
    let element = suitable.next().filter(|_| suitable.next().is_none())?;
    Some(element.iter().chain(given).map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// Does the template or an element name a value?
fn is_named(template: &Value, spec: &Value, name: &str, elements: &[BTreeMap<String, String>]) -> bool {
    let empty = BTreeMap::new();
    let mut expansion = Expansion::new(&empty, spec["goTemplate"].as_bool().unwrap_or_default());
    expansion.value(template, 0);
    expansion.functions.is_some() || expansion.missing.contains(name) || elements.iter().any(|element| element.contains_key(name))
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{}`", printable(name))).collect::<Vec<_>>().join(", ")
}

/// What to add: a name that tells the elements apart, with its values, if there is one.
fn hint(elements: &[BTreeMap<String, String>], missing: &[&str]) -> String {
    let telling = missing.iter().find_map(|name| {
        let values: BTreeSet<&str> = elements.iter().filter_map(|element| element.get(*name)).map(String::as_str).collect();
        (values.len() == elements.len() && !values.is_empty()).then_some((*name, values))
    });
    match telling {
        Some((name, values)) => {
            let options: Vec<String> =
                values.iter().take(10).map(|value| format!("`--set {name}={}`", printable(value))).collect();
            format!("choose an element of the list generator: {}", options.join(", "))
        }
        None => {
            let options: Vec<String> = missing.iter().map(|name| format!("--set {}=…", printable(name))).collect();
            format!("add `{}`", options.join(" "))
        }
    }
}

/// Puts values into a template.
struct Expansion<'v> {
    values: &'v BTreeMap<String, String>,
    is_go: bool,
    missing: BTreeSet<String>,
    /// The first text that does more than name a value.
    functions: Option<String>,
}

impl<'v> Expansion<'v> {
    fn new(values: &'v BTreeMap<String, String>, is_go: bool) -> Self {
        Self { values, is_go, missing: BTreeSet::new(), functions: None }
    }

    fn value(&mut self, value: &Value, depth: usize) -> Value {
        match value {
            _ if depth > MAX_DEPTH => Value::Null,
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.value(item, depth + 1)).collect()),
            Value::Object(map) => {
                Value::Object(map.iter().map(|(key, value)| (self.text(key), self.value(value, depth + 1))).collect())
            }
            other => other.clone(),
        }
    }

    fn text(&mut self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            expanded.push_str(before);
            let Some((inner, after)) = behind.split_once("}}") else {
                expanded.push_str("{{");
                rest = behind;
                continue;
            };
            rest = after;
            let inner = inner.trim_matches(|c: char| c == '-' || c.is_whitespace());
            let name = if self.is_go { inner.strip_prefix('.').unwrap_or("") } else { inner };
            let is_name = !name.is_empty()
                && name.chars().all(|c| {
                    c.is_ascii_alphanumeric() || matches!(c, '_' | '.') || (!self.is_go && matches!(c, '-' | '/' | '[' | ']'))
                });
            match self.values.get(name) {
                // Argo CD leaves a name that it does not know; one with a dot in front is for another template.
                _ if !self.is_go && name.starts_with('.') => expanded = expanded + "{{" + &behind[..behind.len() - after.len()],
                _ if !is_name => drop(self.functions.get_or_insert_with(|| format!("{{{{{inner}}}}}"))),
                Some(value) => expanded.push_str(value),
                None => drop(self.missing.insert(name.to_owned())),
            }
        }
        expanded + rest
    }
}
