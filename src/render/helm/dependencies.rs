//! `helm dependency build`, without giving Helm a network: what a chart declares and lacks is fetched by us and put into `charts/`.
//!
//! Follows Helm's `pkg/downloader/manager.go` and `internal/resolver`: `Chart.lock` is obeyed if it fits Chart.yaml, else the newest version
//! that satisfies each constraint is taken; archives of before are removed from `charts/`. Charts of the same repository (`file://`) are
//! packed by Helm itself, in its sandbox, from a chart of ours that declares nothing else.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::child;
use crate::failure::masked;
use crate::image::printable;
use crate::render::chart::{self, Chart, Declared};
use crate::render::{RenderError, Tools};
use crate::workspace::{Checkout, Workspace, WorkspaceError};

/// Bytes of all archives of one render.
const MAX_BYTES: usize = 256 << 20;

/// A lock file: `Chart.lock`, or `requirements.lock` of an `apiVersion: v1` chart.
#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    digest: String,
    #[serde(default)]
    dependencies: Vec<Declared>,
}

/// Copies the chart into the workspace and fetches there what is declared, as Argo CD lets Helm do.
///
/// # Errors
///
/// [`RenderError`].
pub(super) async fn build(
    checkout: &Checkout,
    workspace: &mut Workspace,
    chart: &Chart,
    tools: &Tools,
) -> Result<(), RenderError> {
    workspace.copy(checkout, checkout.app())?;
    let directory = workspace.root().join(checkout.app());
    tracing::info!(
        charts = chart.missing.iter().map(|chart| chart.name.as_str()).collect::<Vec<_>>().join(", "),
        "building dependencies"
    );
    check_places(chart)?;
    let lock = read_lock(checkout, chart)?;
    let (wanted, is_locked) = match &lock {
        Some(lock) => (&lock.dependencies, true),
        None => (&chart.declared, false),
    };
    let into = directory.join("charts");
    fs::create_dir_all(&into).map_err(|error| io(&into, error))?;
    let before = archives(&into)?;
    let mut written = BTreeSet::new();
    let local: Vec<&Declared> = wanted.iter().filter(|chart| chart.repository.starts_with("file://")).collect();
    if !local.is_empty() {
        written.extend(pack(checkout, workspace, &local, &into, tools).await?);
    }
    let mut room = MAX_BYTES;
    let mut fetched = BTreeSet::new();
    for declared in wanted.iter().filter(|chart| !chart.repository.is_empty() && !chart.repository.starts_with("file://")) {
        let Declared { name, repository, version, .. } = declared;
        let place = || format!("dependency `{}` of Chart.yaml", printable(name));
        let failed = |source| RenderError::Chart { what: place(), source };
        let charts = &tools.charts;
        let found = if is_locked {
            charts.find_locked(repository, name, version).await
        } else {
            charts.find(repository, name, version).await
        };
        let found = found.map_err(failed)?;
        let file = file_name(name, &found.version)?;
        if !fetched.insert(file.clone()) {
            continue;
        }
        let bytes = charts.archive(&found).await.map_err(failed)?;
        room = room.checked_sub(bytes.len()).ok_or_else(|| {
            RenderError::invalid(format!("the dependencies of Chart.yaml are longer than {MAX_BYTES} bytes together"))
        })?;
        let path = into.join(&file);
        fs::write(&path, &bytes).map_err(|error| io(&path, error))?;
        tracing::debug!(chart = name, version = found.version, repository = masked(repository), "fetched a chart");
        written.insert(file);
    }
    remove_outdated(&into, &before, &written, wanted)
}

/// Dependencies whose chart is nowhere to be had.
fn check_places(chart: &Chart) -> Result<(), RenderError> {
    for declared in &chart.declared {
        let repository = declared.repository.as_str();
        if let Some(path) = repository.strip_prefix("file://") {
            if path.starts_with('/') {
                let what =
                    format!("dependency `{}`: `{}` leads outside the checkout", printable(&declared.name), printable(repository));
                let hint = Some("write a path relative to the chart: `file://../lib`".into());
                return Err(RenderError::Invalid { what, hint });
            }
            continue;
        }
        let is_remote = ["https://", "http://", "oci://"].iter().any(|scheme| repository.starts_with(scheme));
        let is_missing = chart.missing.iter().any(|missing| missing.name == declared.name);
        if is_missing && !is_remote {
            let what = format!(
                "dependency `{}` is missing in `charts/`, and its repository `{}` is none",
                printable(&declared.name),
                printable(repository)
            );
            let hint =
                "write `repository: https://…`, `oci://…` or `file://…` in Chart.yaml, or commit the chart below `charts/`";
            return Err(RenderError::Invalid { what, hint: Some(hint.into()) });
        }
    }
    Ok(())
}

/// The lock file, if there is one and it fits what is declared.
fn read_lock(checkout: &Checkout, chart: &Chart) -> Result<Option<Lock>, RenderError> {
    let name = if chart.is_old { "requirements.lock" } else { "Chart.lock" };
    let path = checkout.app().join(name);
    let Some(text) = checkout.read_if_present(&path)? else { return Ok(None) };
    let wrong = |error: &dyn std::fmt::Display| RenderError::invalid(format!("`{name}` is not what Helm expects: {error}"));
    let value = chart::folded(&text).map_err(|error| wrong(&error))?;
    let lock: Lock = serde_json::from_value(value).map_err(|error| wrong(&error))?;
    let is_same = lock.digest == hash(&json!([dependencies(&chart.declared), dependencies(&lock.dependencies)]));
    // Helm 2 hashed the requirements alone.
    let is_helm_2 = chart.is_old && lock.digest == hash(&json!({"dependencies": dependencies(&chart.declared)}));
    if is_same || is_helm_2 {
        return Ok(Some(lock));
    }
    let file = if chart.is_old { "requirements.yaml" } else { "Chart.yaml" };
    let what = format!("the lock file ({name}) is out of sync with the dependencies file ({file})");
    Err(RenderError::Invalid { what, hint: Some("run `helm dependency update` and commit what it writes".into()) })
}

/// `resolver.HashReq`: a digest of what Go's JSON makes of the dependencies.
fn hash(value: &Value) -> String {
    // Go escapes what could be HTML.
    let escaped = [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
    let text = escaped.iter().fold(value.to_string(), |text, (c, escape)| text.replace(*c, escape));
    let digest = Sha256::digest(text.as_bytes());
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Dependencies as Go's JSON has them: fields in the order of Helm's type, empty ones left out.
fn dependencies(all: &[Declared]) -> Value {
    let one = |declared: &Declared| {
        let mut map = Map::new();
        let mut add = |name: &str, value: Value, is_empty: bool| {
            if !is_empty {
                map.insert(name.to_owned(), value);
            }
        };
        let Declared { name, version, repository, condition, tags, enabled, import_values, alias } = declared;
        add("name", json!(name), false);
        add("version", json!(version), version.is_empty());
        add("repository", json!(repository), false);
        let condition = condition.clone().unwrap_or_default();
        add("condition", json!(condition), condition.is_empty());
        add("tags", json!(tags), tags.is_empty());
        add("enabled", json!(enabled), !enabled);
        add("import-values", sorted(&Value::Array(import_values.clone())), import_values.is_empty());
        let alias = alias.clone().unwrap_or_default();
        add("alias", json!(alias), alias.is_empty());
        Value::Object(map)
    };
    // A list that is not there is `null` in Go.
    if all.is_empty() { Value::Null } else { Value::Array(all.iter().map(one).collect()) }
}

/// Go sorts the keys of its maps.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: std::collections::BTreeMap<&String, Value> =
                map.iter().map(|(key, value)| (key, sorted(value))).collect();
            ordered.into_iter().map(|(key, value)| (key.clone(), value)).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// Lets Helm pack charts of the same repository, and returns the names of the archives.
async fn pack(
    checkout: &Checkout,
    workspace: &mut Workspace,
    local: &[&Declared],
    into: &Path,
    tools: &Tools,
) -> Result<Vec<String>, RenderError> {
    let mut all = Vec::new();
    for declared in local {
        let path = declared.repository.trim_start_matches("file://");
        let failed = |source| RenderError::File { what: format!("dependency `{}`", printable(&declared.name)), source };
        let found = checkout.resolve_path(checkout.app(), path).map_err(failed)?;
        checkout.check_links(&found)?;
        workspace.copy(checkout, &found)?;
        let place = workspace.root().join(&found).display().to_string();
        let same =
            |known: &Value| known["name"] == json!(declared.name) && known["repository"] == json!(format!("file://{place}"));
        if !all.iter().any(same) {
            // An alias keeps two of one name apart.
            let alias = format!("alias-{}", all.len());
            all.push(json!({
                "name": declared.name, "version": declared.version, "repository": format!("file://{place}"), "alias": alias,
            }));
        }
    }
    let scratch = workspace.path().join("pack");
    let chart = json!({"apiVersion": "v2", "name": "pack", "version": "0.0.0", "dependencies": all});
    let text = serde_yaml::to_string(&chart).map_err(|error| RenderError::invalid(error.to_string()))?;
    let written = fs::create_dir_all(&scratch).and_then(|()| fs::write(scratch.join("Chart.yaml"), text));
    written.map_err(|error| io(&scratch, error))?;
    let arguments: Vec<OsString> = ["dependency", "build"].map(OsString::from).into();
    let mut helm = child(tools, arguments, scratch.clone(), workspace)?;
    helm.sandbox = helm.sandbox.writing(workspace.path());
    helm.run().await?;
    let packed = scratch.join("charts");
    let names = archives(&packed)?;
    for name in &names {
        let to = into.join(name);
        fs::rename(packed.join(name), &to).map_err(|error| io(&to, error))?;
    }
    Ok(names)
}

/// The archives of a directory.
fn archives(dir: &Path) -> Result<Vec<String>, RenderError> {
    let listed = fs::read_dir(dir).map_err(|error| io(dir, error))?;
    let names = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.ends_with(".tgz")).collect())
}

/// Removes the archives of before that no dependency is any more. Helm leaves those of charts without a repository.
fn remove_outdated(dir: &Path, before: &[String], written: &BTreeSet<String>, wanted: &[Declared]) -> Result<(), RenderError> {
    let checkout = Checkout::open(dir, Some(""))?;
    for name in before.iter().filter(|name| !written.contains(*name)) {
        let Some(chart) = chart::name_of_archive(&checkout, Path::new(name))? else { continue };
        let is_local = wanted.iter().any(|declared| declared.repository.is_empty() && declared.name == chart);
        if !is_local {
            let path = dir.join(name);
            fs::remove_file(&path).map_err(|error| io(&path, error))?;
        }
    }
    Ok(())
}

/// A name of our own, whatever the repository calls the file.
fn file_name(name: &str, version: &str) -> Result<String, RenderError> {
    let is_plain = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'))
            && !text.starts_with('.')
    };
    let file = format!("{name}-{version}.tgz");
    if is_plain(name) && is_plain(version) && file.len() <= 200 && !name.starts_with('_') {
        Ok(file)
    } else {
        Err(RenderError::invalid(format!(
            "dependency `{}`, version `{}`: not the name of a chart",
            printable(name),
            printable(version)
        )))
    }
}

fn io(path: &Path, error: std::io::Error) -> RenderError {
    WorkspaceError::Io { path: crate::workspace::shown(path), source: error.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(text: &str) -> Vec<Declared> {
        serde_json::from_value(chart::folded(text).expect("YAML")).expect("dependencies")
    }

    /// What `helm dependency update` of Helm 4.2.1 wrote for these.
    #[test]
    fn the_digest_of_a_lock_file_is_helms() {
        let wanted = "\
- {name: lib, version: '>=0.1.0 <2', repository: 'file://../lib'}
- {name: lib, alias: other, version: 0.1.0, repository: 'file://../lib', condition: a.b, tags: [x, a&b], import-values: [data, {parent: p, child: c}]}
";
        let locked = "\
- {name: lib, version: 0.1.0, repository: 'file://../lib'}
- {name: lib, version: 0.1.0, repository: 'file://../lib'}
";
        let value = json!([dependencies(&declared(wanted)), dependencies(&declared(locked))]);
        assert_eq!(hash(&value), "sha256:dacd4d6aaf34e309e946f6eeaef89e71cc96f8c50532bddef0c081fa8a7016fa", "{value}");
    }

    #[test]
    fn archives_have_plain_names() {
        assert_eq!(file_name("web", "1.2.3+x").expect("plain"), "web-1.2.3+x.tgz");
        for (name, version) in
            [("../web", "1"), ("web", "../1"), ("", "1"), (".web", "1"), ("_web", "1"), ("a/b", "1"), ("a\0", "1")]
        {
            assert!(file_name(name, version).is_err(), "{name} {version}");
        }
    }
}
