//! `pinion check`: finds mistakes without a network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;

use super::manifest::{ManifestArguments, Rendered, read_manifest};
use super::{Outcome, configured};
use crate::config;
use crate::failure::{Failure, Failures};
use crate::generate::text::placeholder_failure;
use crate::generate::{check, meant_name, misnamed};
use crate::image::printable;
use crate::placeholder::near_miss::{NearMiss, near_miss};
use crate::placeholder::words::PlaceholderSubject;
use crate::placeholder::{PlaceholderError, Scan, image};
use crate::render::chart::check_chart;
use crate::rules::{Reader, RuleSource};
use crate::workspace::{ANY_DEPTH, Checkout, WorkspaceError, shown};
use crate::yaml::{self, Kind, NodeId, Tree};

const LONG_ABOUT: &str = "\
Find mistakes in placeholders and rules; needs no network

Reads every YAML file below DIR and lists each mistake with file, line and column: for CI and for pre-commit hooks. With \
`--application` it also finds the image of each placeholder, as a render of that application would.

    pinion check
    pinion check charts/web --application apps/web.yaml

Exit status: 0 no mistake was found; 1 there are mistakes, or a file cannot be read; 2 wrong arguments.";

/// The settings that a check reads.
const USED: [&str; 6] = [
    "config",
    "registries-conf",
    "allow-application-credentials",
    "kustomize-build-options",
    "value-file-schemes",
    "max-directory-bytes",
];

/// Find mistakes in placeholders and rules; needs no network
///
/// Reads every YAML file below DIR and lists each mistake with file, line and column.
#[derive(Args, Debug)]
#[command(long_about = LONG_ABOUT, mut_args(|flag| config::shown_if_used(flag, &USED)))]
pub struct Arguments {
    /// The directory to check
    #[arg(default_value = ".")]
    dir: PathBuf,

    /// Also check this Application or ApplicationSet as a render would read it; may be given again. DIR is then the application's
    /// directory, or the root of the repository that `source.path` counts from
    #[arg(long, short, value_name = "FILE")]
    application: Vec<PathBuf>,

    #[command(flatten)]
    manifest: ManifestArguments,

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
        config.registries.credential_problems().iter().for_each(|problem| tracing::warn!("{problem}"));
        let checkout = Checkout::open(&self.dir, None)?;
        let mut failures = Vec::new();
        let mut files = 0;
        let mut aliases = Aliases::default();
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
                    let name = name(&checkout, &self.dir, path);
                    failures.extend(check_file(path, &name, &text));
                    aliases.read(path, &name, &text);
                }
                // Others that are no text hold no placeholder.
                Err(WorkspaceError::NotText { .. }) if is_read_by_tools(path) => {
                    let hint = "Helm and Kustomize read UTF-8: save the file in this encoding".to_owned();
                    failures.push(Failure::text(name(&checkout, &self.dir, path), "it is not UTF-8 text", Some(hint)));
                }
                Err(WorkspaceError::NotText { .. }) => {}
                Err(error) => problem = Some(error),
            }
        })?;
        problem.map_or(Ok(()), Err)?;
        // A manifest says which rules its parameters add.
        if self.application.is_empty() {
            aliases.unknown().for_each(|(place, alias)| {
                tracing::warn!("{place}: no rules file below DIR has the alias `{alias}`: a render fails unless the parameter `images` has it (check with `--application`)");
            });
        }
        let mut sources = 0;
        let choices = self.manifest.choices(None)?;
        for path in &self.application {
            match read_manifest(&self.dir, path, &choices) {
                Err(Failures(found)) => failures.extend(found),
                Ok(renders) => {
                    for Rendered { application, checkout: own, .. } in renders {
                        sources += 1;
                        match check(&own, &application, &config.tools, config.allow_application_credentials).await {
                            Ok(notes) => {
                                notes.iter().for_each(|note| tracing::warn!(application = application.name, "{note}"));
                            }
                            Err(error) => {
                                failures.extend(
                                    error.into_failures().into_iter().map(|failure| placed(failure, &own, &checkout, &self.dir)),
                                );
                            }
                        }
                    }
                }
            }
        }
        if failures.is_empty() {
            tracing::info!(files, applications = sources, "no mistakes found");
            return Ok(Outcome::Done);
        }
        Err(Failures(failures).into())
    }
}

/// A failure whose file has the path that the user would write: that of an application counts from its repository's root.
fn placed(failure: Failure, own: &Checkout, checkout: &Checkout, dir: &Path) -> Failure {
    let (path, rest) = failure.place.split_once(':').map_or((failure.place.as_str(), ""), |(path, rest)| (path, rest));
    let file = own.root().join(path);
    match file.strip_prefix(checkout.root()) {
        Ok(below) if !path.is_empty() && file.is_file() => {
            let separator = if rest.is_empty() { "" } else { ":" };
            Failure { place: format!("{}{separator}{rest}", name(checkout, dir, below)), ..failure }
        }
        _ => failure,
    }
}

/// A file's path as the user would write it.
fn name(checkout: &Checkout, dir: &Path, path: &Path) -> String {
    let Ok(below) = path.strip_prefix(checkout.app()) else { return shown(&checkout.root().join(path)) };
    shown(&if dir == Path::new(".") { below.to_owned() } else { dir.join(below) })
}

/// The aliases of the rules files, and those that placeholders name.
#[derive(Default)]
struct Aliases {
    known: BTreeSet<String>,
    /// With the place of the placeholder.
    named: Vec<(String, String)>,
}

impl Aliases {
    fn read(&mut self, path: &Path, name: &str, text: &str) {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(".pinion") {
            let mut reader = Reader::default();
            reader.add(RuleSource::File { name, text });
            self.known.extend(reader.finish().into_iter().flat_map(|rules| rules.rules).map(|rule| rule.alias));
            return;
        }
        let Ok(Some(scan)) = Scan::of(text) else { return };
        self.named.extend(scan.placeholders.iter().filter_map(|placeholder| match &placeholder.spec.target {
            PlaceholderSubject::Rule(alias) => {
                Some((format!("{name}:{}:{}", placeholder.line, placeholder.column), alias.clone()))
            }
            PlaceholderSubject::Image { .. } => None,
        }));
    }

    fn unknown(&self) -> impl Iterator<Item = &(String, String)> {
        self.named.iter().filter(|(_, alias)| !self.known.contains(alias))
    }
}

/// Is a file of this name input of a tool, or ours, wherever it is?
fn is_read_by_tools(path: &Path) -> bool {
    let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    ["values", "chart.yaml", "kustomization", ".pinion"].iter().any(|start| file.starts_with(start))
}

/// Checks a single file without knowing the application: the syntax of its placeholders, or its rules.
fn check_file(path: &Path, name: &str, text: &str) -> Vec<Failure> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(meant) = meant_name(&file) {
        return vec![misnamed(name.to_owned(), &meant)];
    }
    if file == ".pinion.yaml" || (file.starts_with(".pinion-") && !file.starts_with(".pinion-lock-")) {
        let mut reader = Reader::default();
        reader.add(RuleSource::File { name, text });
        let errors = reader.finish().err().unwrap_or_default();
        return errors.into_iter().map(|error| Failure::text(error.place, error.problem, error.hint)).collect();
    }
    let is_template = path.components().any(|part| part.as_os_str() == "templates");
    // What a template writes into a placeholder is known once it is rendered.
    let is_known = |error: &&PlaceholderError| !(is_template && error.source_text.contains("{{"));
    let mut failures = near_misses(name, text);
    if file == "Chart.yaml" && !is_template {
        failures.extend(check_chart(Path::new(name), text).err().map(|error| Failure::new("", &error, error.hint())));
    }
    if file == "values.yaml" && !is_template && !text.contains("$(pin") {
        failures.extend(Tree::parse(text).err().map(|error| Failure::text("", format!("{name}:{error}"), None)));
    }
    failures.extend(match Scan::of(text) {
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
    });
    failures
}

/// Text that was probably meant as a placeholder. One without words counts only where an image or a tag is expected.
fn near_misses(name: &str, text: &str) -> Vec<Failure> {
    if !(text.contains("$(") || text.contains("${")) {
        return Vec::new();
    }
    let failure = |line: usize, column: usize, near: &NearMiss, text: &str| {
        let message = format!("`{}` is no placeholder", printable(&text[near.range.clone()]));
        Failure::text(format!("{name}:{line}:{column}"), message, Some(format!("did you mean `{}`?", near.meant)))
    };
    if let Ok(tree) = Tree::parse(text) {
        let parents = tree.parents();
        let key = |id: NodeId| {
            let entries = tree.own_entries(parents[id]?);
            entries.iter().find(|(_, value)| *value == id).and_then(|(key, _)| tree.text(*key))
        };
        let scalars = tree.nodes().filter_map(|(id, node)| match &node.kind {
            Kind::Scalar { value, style } if value.contains('$') => Some((id, node, *style)),
            _ => None,
        });
        let found = scalars.filter_map(|(id, node, style)| {
            let (value, offsets) = yaml::decode(&text[node.span.clone()], style);
            let near = near_miss(&value)?;
            let is_expected = || ["image", "tag", "newTag", "digest"].contains(&key(id).unwrap_or_default());
            let has_image = || matches!(image::before(&value[..near.range.start]), Ok(Some(_)));
            let (line, column) = yaml::position(text, node.span.start + offsets[near.range.start]);
            (!near.is_bare || is_expected() || has_image()).then(|| failure(line, column, &near, &value))
        });
        return found.collect();
    }
    // A Helm template need not be YAML before it is rendered; and `${…}` without quotes may be what keeps a file from being YAML.
    let found = text.lines().enumerate().filter_map(|(line, text)| {
        let near = near_miss(text)?;
        let has_image = matches!(image::before(&text[..near.range.start]), Ok(Some(_)));
        let column = yaml::column(text, near.range.start);
        (!near.is_bare || has_image).then(|| failure(line + 1, column, &near, text))
    });
    found.collect()
}
