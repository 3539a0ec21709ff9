//! Rendering: an application's files become manifests, as Argo CD's native sources would have made them.
//!
//! A [`Plan`] is made first: it knows which texts the tool will read as data (so that placeholders in them can be found), which image
//! stands beside each placeholder, and, once those are substituted, runs the tool. What comes out is the tool's own text, untouched.
//! Choice and arguments follow Argo CD's `reposerver/repository/repository.go` and `util/{helm,kustomize}`.

pub mod chart;
pub mod charts;
pub mod directory;
pub mod helm;
mod inputs;
pub mod kustomize;
pub mod render_cache;
pub mod schema;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};

use crate::application::Application;
use crate::egress::Policy;
use crate::image::{Repository, printable};
use crate::parameters::Choice;
use crate::placeholder;
use crate::placeholder::image::{ImageNotFound, beside_each};
use crate::placeholder::scans::{PlaceholderId, Scans, Substituted};
use crate::process::sandbox::{NotKept, Sandboxes};
use crate::process::{ProcessError, Runner};
use crate::values::TooManyValues;
use crate::workspace::{ANY_DEPTH, Checkout, WorkspaceError};
use crate::yaml::YamlError;
use charts::{ChartError, Charts};
use inputs::Source;
pub use inputs::{Input, Inputs};
use render_cache::RenderCache;

/// The tools and the operator's choices about them.
#[derive(Clone, Debug)]
pub struct Tools {
    pub helm: PathBuf,
    pub kustomize: PathBuf,
    /// What runs `helm template`; Helm's other commands are processes.
    pub templates: Runner,
    /// Longest time of one child process.
    pub timeout: Duration,
    /// Longest output of one child process, in bytes.
    pub max_output: usize,
    /// Options for `kustomize build`.
    pub kustomize_build_options: Vec<String>,
    /// Schemes of value files that may be fetched; none by default.
    pub value_file_schemes: Vec<String>,
    /// Largest sum of a directory's manifests, in bytes.
    pub max_directory_bytes: u64,
    /// Texts that were rendered before, where renders share a process.
    pub render_cache: Option<RenderCache>,
    /// What bounds every child.
    pub sandboxes: Sandboxes,
    /// What Kustomize may fetch.
    pub egress: Arc<Policy>,
    /// Charts and value files from elsewhere.
    pub charts: Charts,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Render,
    /// Only looking: no tool runs and nothing is fetched, so that dependencies and remote value files may be missing.
    Inspect,
}

/// Variables that a child inherits: where to find programs and certificates. A proxy's address may hold a password.
const INHERITED: [&str; 3] = ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Longest pattern for paths, in bytes.
const MAX_GLOB: usize = 4096;

/// Braces within braces.
const MAX_GLOB_DEPTH: usize = 8;

/// Files that stand in a message.
const FEW: usize = 3;

/// Why manifests could not be rendered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RenderError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// What a file is for, around what is wrong with it.
    #[error("{what}")]
    File {
        what: String,
        #[source]
        source: WorkspaceError,
    },
    #[error("`{path}` is not YAML")]
    NotYaml { path: String, source: YamlError },
    #[error("{what}")]
    Chart {
        what: String,
        #[source]
        source: ChartError,
    },
    #[error(transparent)]
    NotKept(#[from] NotKept),
    #[error("the proxy for a tool could not be started")]
    Proxy(#[source] Arc<std::io::Error>),
    #[error("{what}")]
    Invalid { what: String, hint: Option<String> },
    #[error(transparent)]
    TooManyValues(#[from] TooManyValues),
    /// There are files, and none of them is a manifest.
    #[error("the render gave no manifests{}", passed_over(skipped))]
    Empty { skipped: Vec<String> },
}

impl RenderError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Process(error) => error.hint(),
            Self::Invalid { hint, .. } => hint.clone(),
            Self::Chart { source, .. } => source.hint(),
            Self::NotKept(error) => Some(error.hint()),
            Self::Empty { .. } => {
                Some("mend them, or leave them out with `directory-exclude`: Argo CD would prune the whole application".into())
            }
            _ => None,
        }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), hint: None }
    }
}

/// What rules add to a render.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Helm value paths and values, for `--set-string`.
    pub helm: Vec<(String, String)>,
    /// Kustomize images, as `name=repository:tag[@digest]`.
    pub kustomize: Vec<String>,
}

impl Targets {
    /// Those that a tool has.
    #[must_use]
    pub fn of(self, tool: &str) -> Self {
        let (is_helm, is_kustomize) = (tool == "helm", tool == "kustomize");
        Self {
            helm: if is_helm { self.helm } else { Vec::new() },
            kustomize: if is_kustomize { self.kustomize } else { Vec::new() },
        }
    }
}

/// What a tool gave.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub text: String,
    /// Does it come from the render cache?
    pub is_cached: bool,
}

/// A render, ready to run.
#[derive(Debug)]
pub enum Plan {
    Helm(Box<helm::Plan>),
    Kustomize(Box<kustomize::Plan>),
    Directory(directory::Plan),
}

impl Plan {
    /// Chooses the tool as Argo CD does, unless the application says which, and reads what the tool will read as data.
    ///
    /// # Errors
    ///
    /// [`RenderError`], for a missing or unreadable file, or a path that leads out of the checkout.
    pub async fn prepare(
        checkout: &Checkout,
        application: &Application,
        tools: &Tools,
        purpose: Purpose,
    ) -> Result<Self, RenderError> {
        let plan = Self::prepare_once(checkout, application, tools, purpose).await;
        if lacks_files(&plan, checkout) { Self::prepare_once(checkout, application, tools, purpose).await } else { plan }
    }

    async fn prepare_once(
        checkout: &Checkout,
        application: &Application,
        tools: &Tools,
        purpose: Purpose,
    ) -> Result<Self, RenderError> {
        let choice = match application.parameters.renderer {
            Choice::Auto => detect(&checkout.app_dir()),
            choice => choice,
        };
        Ok(match choice {
            Choice::Kustomize => Self::Kustomize(Box::new(kustomize::Plan::prepare(checkout, application, tools)?)),
            Choice::Helm => Self::Helm(Box::new(helm::Plan::prepare(checkout, application, tools, purpose).await?)),
            Choice::Directory | Choice::Auto => Self::Directory(directory::Plan::prepare(checkout, application, tools)?),
        })
    }

    /// `helm`, `kustomize` or `directory`.
    pub fn tool(&self) -> &'static str {
        match self {
            Self::Helm(_) => "helm",
            Self::Kustomize(_) => "kustomize",
            Self::Directory(_) => "directory",
        }
    }

    /// Is the rendered text that of [`Plan::inputs`], one after the other?
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// What to say of a render that is empty, which Argo CD itself guards against (`allowEmpty`).
    ///
    /// # Errors
    ///
    /// [`RenderError::Empty`] when there are files that were probably meant as manifests.
    pub fn empty(&self) -> Result<String, RenderError> {
        match self {
            Self::Directory(plan) if !plan.skipped().is_empty() => Err(RenderError::Empty { skipped: plan.skipped().to_vec() }),
            plan => {
                let tool = plan.tool();
                Ok(format!(
                    "`{tool}` gave no manifests: automated sync removes everything then only where `allowEmpty: true` is set"
                ))
            }
        }
    }

    /// Does something read a Helm value with this path, as `--set` writes it? None: there are no values, or they cannot be read.
    pub fn reads_value(&self, path: &str) -> Option<bool> {
        match self {
            Self::Helm(plan) => plan.reads_value(path),
            _ => None,
        }
    }

    /// Is a Helm value's path below a list that only the chart's defaults have? Setting it there replaces the whole list.
    pub fn replaces_list(&self, path: &str) -> bool {
        matches!(self, Self::Helm(plan) if plan.replaces_list(path))
    }

    /// May the rendered text hold placeholders that are not in [`Plan::inputs`]?
    pub fn may_hold_more(&self) -> bool {
        match self {
            Self::Helm(plan) => plan.may_hold_more(),
            Self::Kustomize(plan) => plan.may_hold_more(),
            Self::Directory(_) => false,
        }
    }

    /// The texts in which placeholders are looked for before the tool runs.
    pub fn inputs(&self) -> &Inputs {
        match self {
            Self::Helm(plan) => &plan.inputs,
            Self::Kustomize(plan) => &plan.inputs,
            Self::Directory(plan) => &plan.inputs,
        }
    }

    /// The image that stands beside each placeholder; a placeholder that is absent is overridden and needs none.
    ///
    /// # Errors
    ///
    /// When the values cannot be merged.
    pub fn images(&self, scans: &Scans<'_>) -> Result<BTreeMap<PlaceholderId, Result<Repository, ImageNotFound>>, RenderError> {
        match self {
            Self::Helm(plan) => plan.images(scans),
            Self::Kustomize(plan) => Ok(plan.images(scans)),
            Self::Directory(_) => Ok(beside_each(scans)),
        }
    }

    /// Placeholders before which another image stands once the tool has run than in the text: the one that is meant.
    pub fn renamed(&self, scans: &Scans<'_>) -> BTreeMap<PlaceholderId, Repository> {
        match self {
            Self::Kustomize(plan) => plan.renamed(scans),
            Self::Helm(_) | Self::Directory(_) => BTreeMap::new(),
        }
    }

    /// Finds out what becomes of placeholders, where only the tool can tell. `targets` are those of the rules, with any tag.
    pub async fn probe(&mut self, targets: &Targets, tools: &Tools) {
        match self {
            Self::Kustomize(plan) => plan.probe(targets, tools).await,
            Self::Helm(plan) => plan.set_targets(targets.helm.clone()),
            Self::Directory(_) => {}
        }
    }

    /// Runs the tool. `changed` holds those of [`Plan::inputs`] that are substituted.
    ///
    /// # Errors
    ///
    /// [`RenderError`]; the tool's standard error is in it.
    pub async fn run(&mut self, changed: &Substituted, targets: &Targets, tools: &Tools) -> Result<Rendered, RenderError> {
        let wrong = |kind: &str| {
            Err(RenderError::invalid(format!("a rule has a {kind} target, but the application is rendered otherwise")))
        };
        match self {
            Self::Helm(_) if !targets.kustomize.is_empty() => wrong("Kustomize"),
            Self::Kustomize(_) if !targets.helm.is_empty() => wrong("Helm"),
            Self::Directory(_) if !targets.helm.is_empty() => wrong("Helm"),
            Self::Directory(_) if !targets.kustomize.is_empty() => wrong("Kustomize"),
            Self::Helm(plan) => {
                let rendered = plan.run(changed, targets, tools).await;
                if lacks_files(&rendered, plan.checkout()) { plan.run(changed, targets, tools).await } else { rendered }
            }
            Self::Kustomize(plan) => {
                let rendered = plan.run(changed, targets, tools).await;
                if lacks_files(&rendered, plan.checkout()) { plan.run(changed, targets, tools).await } else { rendered }
            }
            Self::Directory(plan) => Ok(Rendered { text: plan.run(changed), is_cached: false }),
        }
    }
}

/// Did a tool fail that may have looked for a file which is not on disk yet? Then it is now, with all others: what is written out
/// beforehand is a guess, and what is rendered must not depend on it.
fn lacks_files<T>(result: &Result<T, RenderError>, checkout: &Checkout) -> bool {
    match result {
        Err(RenderError::Process(ProcessError::Failed { .. })) => checkout.extract_all().unwrap_or_else(|error| {
            // The tool's own error tells more.
            tracing::warn!(error = %crate::failure::chain(&error), "not everything could be written out for a tool that failed");
            false
        }),
        _ => false,
    }
}

/// Is a directory a kustomization or a chart?
pub fn is_renderable(dir: &Path) -> bool {
    detect(dir) != Choice::Directory
}

/// Argo CD's rule: a kustomization, else a chart, else manifests. With both, the kustomization wins.
fn detect(dir: &Path) -> Choice {
    if kustomize::NAMES.iter().any(|name| dir.join(name).is_file()) {
        Choice::Kustomize
    } else if dir.join("Chart.yaml").is_file() {
        Choice::Helm
    } else {
        Choice::Directory
    }
}

/// A child's environment: what is inherited, a private home, and more.
pub(crate) fn environment(home: &Path, more: &[(&str, OsString)]) -> Vec<(OsString, OsString)> {
    let inherited = INHERITED.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    let homes = ["HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"];
    let homes = homes.iter().map(|name| (OsString::from(name), home.as_os_str().to_owned()));
    // What a tool leaves there when it is killed goes with the home.
    let homes = homes.chain([(OsString::from("TMPDIR"), home.as_os_str().to_owned())]);
    let more = more.iter().map(|(name, value)| (OsString::from(name), value.clone()));
    inherited.chain(homes).chain(more).collect()
}

/// A few of the files that were no manifests, for a message.
fn passed_over(files: &[String]) -> String {
    let more = files.len().saturating_sub(FEW);
    let lines = files.iter().take(FEW).map(|file| format!("\n  {file}"));
    let rest = (more > 0).then(|| format!("\n  and {more} more"));
    lines.chain(rest).collect()
}

/// Does a file below a directory hold a placeholder, other than those that are left out? What cannot be read as text does not.
fn any_placeholder(checkout: &Checkout, dir: &Path, is_left_out: impl Fn(&Path) -> bool) -> bool {
    let mut found = false;
    let searched = checkout.files(dir, ANY_DEPTH, &mut |path| {
        found = found || (!is_left_out(path) && checkout.read(path).is_ok_and(|text| placeholder::is_mentioned(&text)));
    });
    // What leads out of the checkout may hold anything.
    found || searched.is_err()
}

/// A child's output as text.
fn text(stdout: Vec<u8>) -> Result<String, RenderError> {
    String::from_utf8(stdout).map_err(|_| RenderError::invalid("the rendered manifests are not UTF-8 text"))
}

/// A pattern for paths, in which `*` crosses directories unless they are kept apart.
///
/// # Errors
///
/// What is wrong with it, also if it is longer or nests deeper than a person writes: the library answers that by the end of the process.
pub fn glob(pattern: &str, keeps_apart: bool) -> Result<GlobMatcher, String> {
    let mut open = 0_usize;
    let is_deep = pattern.chars().any(|c| {
        match c {
            '{' => open += 1,
            '}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > MAX_GLOB_DEPTH
    });
    if pattern.len() > MAX_GLOB || is_deep {
        return Err(format!("it is longer than {MAX_GLOB} bytes, or its braces nest deeper than {MAX_GLOB_DEPTH}"));
    }
    let glob = GlobBuilder::new(pattern).literal_separator(keeps_apart).build();
    Ok(glob.map_err(|error| error.to_string())?.compile_matcher())
}

/// Refuses a word that a tool could take for a flag.
fn no_flag(parameter: &str, word: &str) -> Result<(), RenderError> {
    if word.starts_with('-') {
        return Err(RenderError::invalid(format!("parameter `{parameter}`: `{}` must not start with `-`", printable(word))));
    }
    Ok(())
}
