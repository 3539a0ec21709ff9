//! What Argo CD would have rendered without a plugin, byte for byte, as long as the placeholders are concrete.
//!
//! Every chart and kustomization here is rendered twice: by `pinion generate`, with the environment that Argo CD gives, and by the tool
//! itself, with the arguments of Argo CD's native sources written out by hand. With placeholders, the tool sees them replaced by hand.

mod arguments;
mod examples;
mod helm;
mod kustomize;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::cases::{API_VERSIONS, environment};
use crate::fixtures::{needs, write};
use crate::support::driver::{Driver, tool};
use crate::support::registry::FakeRegistry;

/// Files of an application, at their paths in the checkout.
type Files<'a> = &'a [(&'a str, &'a str)];

/// Renders with Pinion, as the plugin of an application `web` in the namespace `prod`.
async fn pinion(files: Files<'_>, path: &str, parameters: Value) -> String {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.2", "1.10.0", "2.0.0"]);
    registry.tags("acme/digits", ["123", "1.10"]);
    pinion_with(&registry, files, path, parameters)
}

fn pinion_with(registry: &FakeRegistry, files: Files<'_>, path: &str, parameters: Value) -> String {
    let place = tempfile::tempdir().expect("a directory");
    write(place.path(), files);
    let driver = environment(Driver::new(env!("CARGO_BIN_EXE_pinion"), registry), path, Some(&parameters.to_string()));
    driver.within(place.path().join(path)).run(["generate"]).ok()
}

/// Runs a tool in a directory with this `HOME` and nothing else.
fn native(name: &str, directory: &Path, home: &Path, arguments: &[&str]) -> String {
    let program = tool(name).expect("the caller asked");
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .current_dir(directory)
        .output()
        .expect("the tool starts");
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Asserts equality without printing two megabytes.
#[track_caller]
fn assert_same(found: &str, expected: &str) {
    if found == expected {
        return;
    }
    let at = found.lines().zip(expected.lines()).take_while(|(a, b)| a == b).count();
    let around =
        |text: &str| text.lines().skip(at.saturating_sub(3)).take(8).map(|line| format!("  {line}\n")).collect::<String>();
    panic!("they differ from line {}:\n--- pinion\n{}--- the tool\n{}", at + 1, around(found), around(expected));
}

/// A plugin parameter.
fn array(name: &str, items: &[&str]) -> Value {
    json!({ "name": name, "array": items })
}

fn map(name: &str, entries: &[(&str, &str)]) -> Value {
    json!({ "name": name, "map": entries.iter().copied().collect::<std::collections::BTreeMap<_, _>>() })
}

fn string(name: &str, text: &str) -> Value {
    json!({ "name": name, "string": text })
}

/// `--api-versions` for each of the cluster's.
fn api_versions() -> impl Iterator<Item = &'static str> {
    API_VERSIONS.into_iter().flat_map(|version| ["--api-versions", version])
}

fn has_tools() -> bool {
    needs("helm") && needs("kustomize")
}
