//! Application manifests on the command line: which sources there are to render, and where their files are.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use clap::Args;

use crate::application::Application;
use crate::application::manifest::{Choices, Manifest};
use crate::failure::{Failure, Failures};
use crate::image::printable;
use crate::render::is_renderable;
use crate::workspace::Checkout;

/// What a person says of a manifest.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Manifests")]
pub struct ManifestArguments {
    /// A value of an ApplicationSet's template, such as `env=dev`; may be given again. The element of the list generator that has this
    /// value gives the others
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,

    /// The name in `source.plugin.name` that means Pinion, if it is not `pinion`, `pinion@…` or `pinion-…`
    #[arg(long, env = "PINION_PLUGIN_NAME", value_name = "NAME")]
    plugin_name: Option<String>,
}

impl ManifestArguments {
    /// All choices together.
    ///
    /// # Errors
    ///
    /// When a name is set to two values.
    pub fn choices(&self, source: Option<String>) -> Result<Choices, Failures> {
        let mut set = BTreeMap::new();
        for (name, value) in &self.set {
            if let Some(other) = set.insert(name.clone(), value.clone()).filter(|other| other != value) {
                let what = format!("`{}` is set to `{}` and to `{}`", printable(name), printable(&other), printable(value));
                return Err(Failure::text(
                    "`--set`",
                    what,
                    Some("each value gives one Application: render them one by one".into()),
                )
                .into());
            }
        }
        Ok(Choices { source, set, plugin_name: self.plugin_name.clone() })
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write `name=value`".to_owned()),
    }
}

/// A source that is to be rendered.
#[derive(Debug)]
pub struct Rendered {
    /// How messages name it: empty if it is the only one.
    pub label: String,
    pub application: Application,
    pub checkout: Checkout,
}

/// The sources of a manifest, with the override files that stand in their directories. Says which it leaves to others.
///
/// # Errors
///
/// When the manifest cannot be used, or a source's files are not below the directory.
pub fn read_manifest(dir: &Path, path: &Path, choices: &Choices) -> Result<Vec<Rendered>, Failures> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| unreadable(&place, &error, "`--application` takes the file of a manifest"))?;
    let manifest = Manifest::read(&text, choices).map_err(|error| error.failures(&place))?;
    for note in &manifest.notes {
        tracing::info!(application = manifest.name, "{note}");
    }
    let (mut rendered, mut failures) = (Vec::new(), Vec::new());
    for source in &manifest.sources {
        let place = if source.label.is_empty() { place.clone() } else { format!("{place}, {}", source.label) };
        let read = || {
            let directory = directory(dir, source.path.as_deref()).map_err(|failure| placed(failure, &place))?;
            let names = [".argocd-source.yaml".to_owned(), format!(".argocd-source-{}.yaml", manifest.name)];
            let (mut files, mut overrides) = (Vec::new(), Vec::new());
            for name in names {
                let file = directory.join(&name);
                match std::fs::read_to_string(&file) {
                    Ok(text) => {
                        files.push(file.display().to_string());
                        overrides.push(text);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => {
                        return Err(unreadable(
                            &file.display().to_string(),
                            &error,
                            "it overrides the manifest: make it readable, or remove it",
                        )
                        .into());
                    }
                }
            }
            let application = manifest
                .application(source, &overrides)
                .map_err(|(number, error)| error.failures(number.map_or(&place, |number| &files[number])))?;
            let checkout =
                Checkout::open(&directory, source.path.as_deref()).map_err(|error| Failure::new(&place, &error, None))?;
            Ok::<_, Failures>(Rendered { label: source.label.clone(), application, checkout })
        };
        match read() {
            Ok(source) => rendered.push(source),
            Err(Failures(found)) => failures.extend(found),
        }
    }
    if failures.is_empty() { Ok(rendered) } else { Err(Failures(failures)) }
}

/// The failure of a file or directory that cannot be read.
fn unreadable(place: &str, error: &std::io::Error, hint: &str) -> Failure {
    Failure::text(place, format!("it cannot be read: {error}"), Some(hint.to_owned()))
}

/// A failure with a place, if it has none of its own.
fn placed(failure: Failure, place: &str) -> Failure {
    if failure.place.is_empty() { Failure { place: place.to_owned(), ..failure } } else { failure }
}

/// The directory of a source: `dir` itself if it is the one that the path means, else the path below it.
fn directory(dir: &Path, source_path: Option<&str>) -> Result<PathBuf, Failure> {
    let parts = parts(source_path.unwrap_or_default())?;
    let hint = "DIR is the application's directory or the repository's root";
    let real = std::fs::canonicalize(dir).map_err(|error| unreadable(&dir.display().to_string(), &error, hint))?;
    if !real.is_dir() {
        return Err(Failure::text(dir.display().to_string(), "it is not a directory", Some(hint.to_owned())));
    }
    if parts.as_os_str().is_empty() {
        return Ok(real);
    }
    // Where there is a repository, its root tells what the path means.
    let root = real.ancestors().find(|above| above.join(".git").exists());
    let meant = root.and_then(|root| std::fs::canonicalize(root.join(&parts)).ok()).filter(|found| found.is_dir());
    if let Some(meant) = meant.filter(|found| found.starts_with(&real)) {
        return Ok(meant);
    }
    let below = real.join(&parts);
    let is_suffix = real.ends_with(&parts);
    if below.is_dir() && (!is_suffix || !is_renderable(&real)) {
        return Ok(below);
    }
    if is_suffix {
        return Ok(real);
    }
    let path = printable(source_path.unwrap_or_default());
    let what = if below.is_symlink() {
        "leads to nothing in"
    } else if below.exists() {
        "is a file, not a directory, in"
    } else {
        "is not in"
    };
    let hint = format!("name the repository's root as DIR, or a directory that ends with `{path}`");
    Err(Failure::text("", format!("`source.path` `{path}` {what} `{}`", dir.display()), Some(hint)))
}

/// A path's parts, `.` and `..` resolved as Argo CD's `path.Path` does.
fn parts(path: &str) -> Result<PathBuf, Failure> {
    let wrong = |what: &str| {
        let hint = "it counts from the repository's root".to_owned();
        Failure::text("", format!("`source.path` `{}` {what}", printable(path)), Some(hint))
    };
    let mut parts = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir if parts.pop() => {}
            Component::ParentDir => return Err(wrong("leads out of the repository")),
            Component::RootDir | Component::Prefix(_) => return Err(wrong("is absolute, which Argo CD refuses")),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_path_leads_from_the_root_or_is_the_directory_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = fs::canonicalize(dir.path()).expect("it is there");
        for path in ["repo/charts/web/charts/web", "repo/other", "copy/web", "web/web"] {
            fs::create_dir_all(root.join(path)).expect("made");
        }
        fs::write(root.join("repo/charts/web/Chart.yaml"), "name: web\n").expect("written");
        let found = |dir: &str, path: &str| directory(&root.join(dir), Some(path)).map_err(|failure| failure.message);
        assert_eq!(found("repo", "charts/web"), Ok(root.join("repo/charts/web")));
        assert_eq!(found("repo", "./charts/web/"), Ok(root.join("repo/charts/web")));
        assert_eq!(
            found("repo/charts/web", "charts/web"),
            Ok(root.join("repo/charts/web")),
            "a chart with a subchart of its name"
        );
        assert_eq!(found("repo", "other/../charts/web"), Ok(root.join("repo/charts/web")));
        assert_eq!(found("web", "web"), Ok(root.join("web/web")), "a repository of the same name");
        assert_eq!(found("repo", ""), Ok(root.join("repo")));
        for (dir, path) in [("repo", "charts/api"), ("repo/other", "charts/web"), ("repo", "web"), ("copy/web", "charts/web")] {
            let error = found(dir, path).expect_err(path);
            assert!(error.starts_with(&format!("`source.path` `{path}` is not in `")), "{error}");
        }
        fs::write(root.join("repo/file"), "").expect("written");
        std::os::unix::fs::symlink("nowhere", root.join("repo/link")).expect("linked");
        for (path, wanted) in [
            ("/charts/web", "`source.path` `/charts/web` is absolute"),
            ("charts/../../x", "`source.path` `charts/../../x` leads out"),
            ("file", "`source.path` `file` is a file"),
            ("link", "`source.path` `link` leads to nothing"),
        ] {
            let error = found("repo", path).expect_err(path);
            assert!(error.starts_with(wanted), "{error}");
        }
        fs::create_dir(root.join("repo/.git")).expect("made");
        fs::create_dir_all(root.join("repo/web/web")).expect("made");
        assert_eq!(found("repo/web", "web"), Ok(root.join("repo/web")), "the repository's root tells");
        assert_eq!(found("repo/web", "web/web"), Ok(root.join("repo/web/web")));
    }
}
