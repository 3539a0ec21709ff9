//! What a chart's `values.schema.json` would make Helm read: schemas elsewhere, by address or from any file of the machine.
//!
//! Helm follows every `$ref` while it validates values (`pkg/chart/common/util/jsonschema.go`). An application must not make the sidecar
//! ask arbitrary hosts, or read outside its checkout, so that such a reference is an error unless the operator permits its scheme.

use serde_json::Value;

/// Schemas that validators have built in, and that need not be fetched.
const BUILT_IN: [&str; 2] = ["http://json-schema.org/", "https://json-schema.org/"];

/// Keys whose value Helm fetches.
const REFERENCES: [&str; 4] = ["$ref", "$dynamicRef", "$recursiveRef", "$schema"];

/// References of a schema that lead elsewhere, in the order in which they stand. What is no JSON is left to Helm to complain about.
///
/// Every reference counts that is more than a fragment: Helm resolves them from the root of the file system, and which `$id` a validator
/// goes by depends on the schema's version.
pub fn foreign(text: &str) -> Vec<String> {
    let Ok(schema) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let mut found = Vec::new();
    search(&schema, &mut found);
    found
}

/// The parser bounds the depth.
fn search(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(text) if REFERENCES.contains(&key.as_str()) => {
                        if leads_elsewhere(text) {
                            found.push(text.clone());
                        }
                    }
                    value => search(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| search(item, found)),
        _ => {}
    }
}

/// A URN is never fetched: Helm takes it for a schema that permits everything.
fn leads_elsewhere(text: &str) -> bool {
    let document = text.split('#').next().unwrap_or_default();
    let is_built_in = BUILT_IN.iter().any(|start| document.starts_with(start));
    !document.is_empty() && !is_built_in && !document.starts_with("urn:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_lead_elsewhere_are_found_wherever_they_stand() {
        for (text, expected) in [
            (r##"{"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"$ref": "#/$defs/b"}}}"##, &[][..]),
            (r##"{"$id": "https://example.com/x.json", "$ref": "#a", "allOf": [{"$ref": "urn:acme:x"}]}"##, &[]),
            (r#"{"properties": {"$ref": {"type": "string"}, "id": {"type": "string"}}}"#, &[]),
            (r#"{"allOf": [{"properties": {"a": {"$ref": "http://10.0.0.1/x"}}}]}"#, &["http://10.0.0.1/x"]),
            (r#"{"$ref": "file:///etc/passwd"}"#, &["file:///etc/passwd"]),
            (r#"{"$ref": "/etc/passwd"}"#, &["/etc/passwd"]),
            (r#"{"$ref": "other.json#/a"}"#, &["other.json#/a"]),
            (r#"{"$schema": "https://example.com/meta"}"#, &["https://example.com/meta"]),
            (r#"{"$dynamicRef": "//example.com/x"}"#, &["//example.com/x"]),
            ("no json", &[]),
        ] {
            assert_eq!(foreign(text), expected, "{text}");
        }
    }
}
