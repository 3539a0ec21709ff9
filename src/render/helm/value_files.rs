//! Which value files a chart gets: `helm-value-files` as Argo CD resolves them.

use std::path::{Component, Path, PathBuf};

use crate::application::Application;
use crate::image::printable;
use crate::parameters::HelmOptions;
use crate::render::{RenderError, Tools};
use crate::workspace::{ANY_DEPTH, Checkout, WorkspaceError};

/// Files that a glob of value files may match.
const MAX_GLOB: usize = 1000;

/// What to do about a file that is not there.
const MISSING_HINT: &str = "paths are relative to the chart, or to the repository with a leading `/`; `helm-ignore-missing-value-files: \"true\"` skips missing ones";

/// A value file.
pub(super) enum Found {
    /// Relative to the checkout's root.
    Local(PathBuf),
    Remote(String),
}

/// Resolves `helm-value-files`: order kept, globs expanded in lexical order, files that are also named explicitly in their own place.
pub(super) fn find(
    checkout: &Checkout,
    application: &Application,
    options: &HelmOptions,
    tools: &Tools,
) -> Result<Vec<Found>, RenderError> {
    let names: Vec<String> = options.value_files.iter().map(|name| application.expand(name)).collect();
    let explicit: Vec<PathBuf> =
        names.iter().filter(|name| !is_glob(name)).filter_map(|name| checkout.resolve_path(checkout.app(), name).ok()).collect();
    let mut found: Vec<Found> = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    for (raw, name) in options.value_files.iter().zip(&names) {
        let what = |problem: &str| format!("value file `{}`{problem}", printable(raw));
        if raw.starts_with('$') && name.starts_with('/') && raw.contains('/') {
            let hint =
                "Argo CD gives a plugin no files of `ref` sources: keep the file in the application's own repository".to_owned();
            return Err(RenderError::Invalid { what: what(" stands in another source"), hint: Some(hint) });
        }
        if let Some((scheme, _)) = name.split_once("://") {
            if !tools.value_file_schemes.iter().any(|allowed| allowed == scheme) {
                let hint = if ["https", "http"].contains(&scheme) {
                    format!("the operator permits schemes with `--value-file-schemes {scheme}`")
                } else {
                    "only `https` and `http` can be permitted, written like that: keep the file in the repository".to_owned()
                };
                return Err(RenderError::Invalid {
                    what: what(" is fetched from elsewhere, which is not permitted"),
                    hint: Some(hint),
                });
            }
            found.push(Found::Remote(name.clone()));
            continue;
        }
        let matched = if is_glob(name) { glob(checkout, name)? } else { Vec::new() };
        if is_glob(name) {
            if matched.is_empty() && !options.ignore_missing_value_files {
                return Err(RenderError::Invalid { what: what(" matches no file"), hint: Some(MISSING_HINT.into()) });
            }
            for path in matched {
                if !explicit.contains(&path) && !seen.contains(&path) {
                    seen.push(path.clone());
                    found.push(Found::Local(path));
                }
            }
            continue;
        }
        match checkout.resolve_path(checkout.app(), name) {
            Ok(path) if seen.contains(&path) => {}
            Ok(path) => {
                seen.push(path.clone());
                found.push(Found::Local(path));
            }
            Err(WorkspaceError::Missing { .. }) if options.ignore_missing_value_files => {}
            Err(WorkspaceError::Missing { .. }) => {
                return Err(RenderError::Invalid { what: what(" does not exist"), hint: Some(MISSING_HINT.into()) });
            }
            Err(source) => return Err(RenderError::File { what: "parameter `helm-value-files`".into(), source }),
        }
    }
    Ok(found)
}

fn is_glob(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// Files that match a glob, sorted. `**` crosses directories, as in the doublestar library that Argo CD uses.
fn glob(checkout: &Checkout, pattern: &str) -> Result<Vec<PathBuf>, RenderError> {
    let full = match pattern.strip_prefix('/') {
        Some(rooted) => PathBuf::from(rooted),
        None => checkout.app().join(pattern),
    };
    let outside = || {
        let source = WorkspaceError::Outside { path: printable(pattern) };
        RenderError::File { what: "parameter `helm-value-files`".into(), source }
    };
    let mut parts: Vec<String> = Vec::new();
    for part in full.components() {
        match part {
            Component::ParentDir => drop(parts.pop().ok_or_else(outside)?),
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    let matcher = crate::render::glob(&parts.join("/"), true)
        .map_err(|error| RenderError::invalid(format!("value file `{}` is not a pattern: {error}", printable(pattern))))?;
    let fixed: PathBuf = parts.iter().take_while(|part| !is_glob(part)).collect();
    let mut found = Vec::new();
    let start = match checkout.resolve_path(Path::new(""), &fixed.to_string_lossy()) {
        Err(WorkspaceError::Missing { .. } | WorkspaceError::Outside { .. }) => return Ok(found),
        start => start?,
    };
    checkout.files(&start, ANY_DEPTH, &mut |path| {
        if matcher.is_match(path) {
            found.push(path.to_owned());
        }
    })?;
    if found.len() > MAX_GLOB {
        return Err(RenderError::invalid(format!("value file `{}` matches more than {MAX_GLOB} files", printable(pattern))));
    }
    let inside = found.iter().map(|path| checkout.resolve_path(Path::new(""), &path.to_string_lossy()));
    Ok(inside.collect::<Result<_, _>>()?)
}
