//! `pinion check`: finds mistakes without a network.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::generate::{directory, read_manifest};
use super::{Outcome, configured};
use crate::config;
use crate::failure::{Failure, Failures};
use crate::generate::asks::placeholder_failure;
use crate::generate::check;
use crate::placeholder::{PlaceholderError, Scan};
use crate::rules::Reader;
use crate::workspace::{ANY_DEPTH, Checkout, shown};

/// Find mistakes in placeholders and rules; needs no network
///
/// Reads every YAML file below DIR and lists each mistake with file, line and column: for CI and for pre-commit hooks. With
/// `--application` it also looks for the image that each placeholder means, as a render of that application would.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The directory to look through
    #[arg(default_value = ".")]
    dir: PathBuf,

    /// Application manifests to check as a whole; may be given again. DIR is then the application's directory
    #[arg(long, short, value_name = "FILE")]
    application: Vec<PathBuf>,

    #[command(flatten)]
    config: config::Raw,
}

impl Arguments {
    /// Checks and reports everything that was found.
    ///
    /// # Errors
    ///
    /// [`Failures`], one for each mistake.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let config = configured(self.config)?;
        let checkout = Checkout::open(&self.dir, None)?;
        let mut failures = Vec::new();
        let mut files = 0;
        let mut problem = None;
        checkout.files(checkout.app(), ANY_DEPTH, &mut |path| {
            let is_yaml = ["yaml", "yml", "json", "tpl"].iter().any(|end| path.extension().is_some_and(|own| own == *end));
            let is_named = path.file_name().is_some_and(|name| name == "Kustomization");
            if !(is_yaml || is_named) {
                return;
            }
            match checkout.read(path) {
                Ok(text) => {
                    files += 1;
                    failures.extend(check_file(path, &name(&checkout, &self.dir, path), &text));
                }
                // A file that is no text holds no placeholder.
                Err(crate::workspace::WorkspaceError::NotText { .. }) => {}
                Err(error) => problem = Some(error),
            }
        })?;
        problem.map_or(Ok(()), Err)?;
        for path in &self.application {
            let text = std::fs::read_to_string(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
            match read_manifest(&self.dir, path, &text) {
                Err(Failures(found)) => failures.extend(found),
                Ok(application) => {
                    let checkout =
                        Checkout::open(&directory(self.dir.clone(), &application), application.source_path.as_deref())?;
                    if let Err(Failures(found)) = check(&checkout, &application, &config.tools).await {
                        failures.extend(found);
                    }
                }
            }
        }
        if failures.is_empty() {
            tracing::info!(files, applications = self.application.len(), "no mistakes found");
            return Ok(Outcome::Done);
        }
        failures.dedup();
        Err(Failures(failures).into())
    }
}

/// A file's path as the user would write it.
fn name(checkout: &Checkout, dir: &Path, path: &Path) -> String {
    let below = path.strip_prefix(checkout.app()).unwrap_or(path);
    shown(&if dir == Path::new(".") { below.to_owned() } else { dir.join(below) })
}

/// Checks a single file without knowing the application: the syntax of its placeholders, or its rules.
fn check_file(path: &Path, name: &str, text: &str) -> Vec<Failure> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    if file == ".pinion.yaml" || (file.starts_with(".pinion-") && !file.starts_with(".pinion-lock-")) {
        let mut reader = Reader::default();
        reader.file(name, text);
        let errors = reader.finish().err().unwrap_or_default();
        return errors.into_iter().map(|error| Failure::text(error.place, error.problem, error.hint)).collect();
    }
    let is_template = path.components().any(|part| part.as_os_str() == "templates");
    // What a template writes into a placeholder is known once it is rendered.
    let is_known = |error: &&PlaceholderError| !(is_template && error.source_text.contains("{{"));
    match Scan::of(text) {
        Ok(scan) => {
            scan.iter().flat_map(|scan| &scan.errors).filter(is_known).map(|error| placeholder_failure(name, 0, error)).collect()
        }
        // A Helm template need not be YAML before it is rendered: its placeholders are read line by line.
        Err(_) if is_template => {
            let errors = text.lines().enumerate().filter_map(|(line, text)| Some((line, Scan::raw(text)?)));
            errors
                .flat_map(|(line, scan)| {
                    scan.errors.iter().filter(is_known).map(|error| placeholder_failure(name, line, error)).collect::<Vec<_>>()
                })
                .collect()
        }
        Err(error) => vec![placeholder_failure(name, 0, &error)],
    }
}
