//! `pinion generate`: renders an application.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::manifest::{ManifestArguments, Rendered, read_manifest};
use super::{Outcome, configured, resolver};
use crate::application::{Application, PARAMETERS};
use crate::config;
use crate::failure::{Failure, Failures};
use crate::generate::phases::{self, PhaseTimer};
use crate::generate::{GenerateError, Generated, Generator};
use crate::metrics::Hits;
use crate::pin::{self, Pin, PinState, Usage};
use crate::resolve::peer::PeerClient;
use crate::workspace::Checkout;

/// The longest wait for a `pinion serve`, before the registry is asked.
const PATIENCE: Duration = Duration::from_secs(2);

const LONG_ABOUT: &str = "\
Render an application and print its manifests

In Argo CD (as the `generate` command of plugin.yaml) the application comes from the environment: ARGOCD_APP_NAME, \
ARGOCD_APP_PARAMETERS and so on. On a laptop or in CI, name its manifest with `--application`: the output is exactly what Argo CD would \
get. Files in DIR are read, never written.

An Application; its `source.path` counts from DIR:
    pinion generate . --application apps/web.yaml
One of several sources:
    pinion generate . --application apps/web.yaml --source 2
One Application of an ApplicationSet:
    pinion generate . --application appset.yaml --set env=dev

Exit status: 0 rendered; 1 failed; 2 wrong arguments; 3 failed only because no tag of an image is permitted.";

/// Render an application and print its manifests
#[derive(Args, Debug)]
#[command(long_about = LONG_ABOUT)]
pub struct Arguments {
    /// The application's directory, or the root of the repository that the manifest's `source.path` counts from
    #[arg(default_value = ".")]
    dir: PathBuf,

    /// Manifest of an Application or ApplicationSet, which gives name, namespace and parameters instead of the environment
    #[arg(long, short, value_name = "FILE")]
    application: Option<PathBuf>,

    /// Render only this source of an Application with several: its name or its number from 1 [default: every source that uses Pinion]
    #[arg(long, value_name = "NAME|NUMBER", requires = "application")]
    source: Option<String>,

    #[command(flatten)]
    manifest: ManifestArguments,

    /// Kubernetes version for charts that read it [default: KUBE_VERSION]
    #[arg(long, value_name = "VERSION")]
    kube_version: Option<String>,

    /// API versions of the cluster for charts that read them; may be given again [default: KUBE_API_VERSIONS]
    #[arg(long, value_name = "GROUP/VERSION[/KIND]", value_delimiter = ',')]
    api_versions: Vec<String>,

    /// Also write the pins as a lock file, for `mode: locked`
    #[arg(long, value_name = "FILE")]
    write_pins: Option<PathBuf>,

    /// Also print a table of the pins, on standard error
    #[arg(long)]
    explain: bool,

    #[command(flatten)]
    config: config::Raw,
}

impl Arguments {
    /// Renders, and prints nothing unless everything went well.
    ///
    /// # Errors
    ///
    /// [`GenerateError`], configuration and output errors.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let started = PhaseTimer::start("start");
        let config = configured(self.config)?;
        let environment = Application::from_environment(|name| std::env::var(name).ok());
        let mut renders = match &self.application {
            None => {
                let application = environment.map_err(|error| error.failures(PARAMETERS))?;
                let checkout = Checkout::open(&self.dir, application.source_path.as_deref())?;
                vec![Rendered { label: String::new(), application, checkout }]
            }
            Some(path) => {
                let environment = environment.unwrap_or_default();
                let mut renders = read_manifest(&self.dir, path, &self.manifest.choices(self.source)?)?;
                for render in &mut renders {
                    render.application = std::mem::take(&mut render.application).completed_by(environment.clone());
                }
                renders
            }
        };
        let peer =
            PeerClient { socket: config.pins_socket.clone(), configuration: config.client.configuration(), patience: PATIENCE };
        let resolver = resolver(&config, Hits::default(), Some(peer), false);
        let generator = Generator { tools: &config.tools, image_paths: &config.image_paths, resolver: &resolver };
        let (mut failures, mut done) = (Vec::new(), Vec::new());
        let mut timer = started;
        for Rendered { label, application, checkout } in &mut renders {
            if let Some(version) = &self.kube_version {
                application.kube_version.clone_from(version);
            }
            if !self.api_versions.is_empty() {
                application.api_versions.clone_from(&self.api_versions);
            }
            if application.name.is_empty() {
                // On a laptop, without a manifest: a name that tells something.
                application.name = checkout.app_dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
            }
            match generator.generate(checkout, application, None, &timer).await {
                Ok(generated) => {
                    tell(application, label, &generated, &timer);
                    done.push((label.clone(), generated));
                }
                Err(error) => failures.extend(error.into_failures().into_iter().map(|failure| labelled(label, failure))),
            }
            timer = PhaseTimer::start("prepare");
        }
        super::stored(&resolver).await;
        if !failures.is_empty() {
            return Err(GenerateError::from(Failures(failures)).into());
        }
        let pins: Vec<Pin> = done.iter().flat_map(|(_, generated)| generated.pins.iter().cloned()).collect();
        if let Some(path) = &self.write_pins {
            std::fs::write(path, pin::lock(&pins)?).with_context(|| format!("`{}` cannot be written", path.display()))?;
        }
        if self.explain {
            for (label, generated) in &done {
                let title = if label.is_empty() { String::new() } else { format!("{label}\n") };
                eprint!("{title}{}", table(&generated.pins));
            }
        }
        let manifests = joined(done.into_iter().map(|(_, generated)| generated.manifests));
        let mut out = std::io::stdout().lock();
        out.write_all(manifests.as_bytes()).and_then(|()| out.flush()).context("the manifests cannot be written")?;
        Ok(Outcome::Done)
    }
}

/// Logs a render, and what a person should know of it.
fn tell(application: &Application, label: &str, generated: &Generated, timer: &PhaseTimer) {
    let application = if label.is_empty() { application.name.clone() } else { format!("{}, {label}", application.name) };
    for note in &generated.notes {
        tracing::warn!(application, "{note}");
    }
    let parts = timer.parts();
    tracing::info!(
        application,
        tool = generated.tool,
        milliseconds = phases::milliseconds(&parts),
        stale = generated.stale(),
        unused = generated.unused(),
        phases = phases::text(&parts),
        pins = generated.pins_text(),
        "rendered"
    );
}

/// A failure that says which source it is of.
fn labelled(label: &str, failure: Failure) -> Failure {
    let place = match (label, failure.place.as_str()) {
        ("", place) => place.to_owned(),
        (label, "") => label.to_owned(),
        (label, place) => format!("{label}: {place}"),
    };
    Failure { place, ..failure }
}

/// The manifests of several sources as one text.
fn joined(texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |mut all, text| {
        if !all.is_empty() && !all.ends_with('\n') {
            all.push('\n');
        }
        if !all.is_empty() && !text.is_empty() && !text.starts_with("---") {
            all.push_str("---\n");
        }
        all + &text
    })
}

/// The pins as a table: image, policy, tag, and how current it is.
pub fn table(pins: &[Pin]) -> String {
    let freshness = |pin: &Pin| match &pin.freshness {
        PinState::Fresh => "fresh".to_owned(),
        PinState::Given => "given".to_owned(),
        PinState::Fallback { reason } => format!("fallback: {reason}"),
        PinState::Stale { since, reason } => format!("stale since {since:.0}: {reason}"),
    };
    let state = |pin: &Pin| match pin.usage {
        Usage::Unused => format!("unused, {}", freshness(pin)),
        Usage::Used | Usage::Unknown => freshness(pin),
    };
    let chosen = |pin: &Pin| match &pin.choice.considered {
        Some(considered) => format!("1 of {} ({} permitted)", considered.tags, considered.permitted),
        None => String::new(),
    };
    let mut rows = vec![["IMAGE", "POLICY", "PIN", "CHOSEN", "STATE"].map(str::to_owned)];
    rows.extend(pins.iter().map(|pin| {
        [pin.repository.text().to_owned(), pin.policy.to_string(), pin.choice.pinned.to_string(), chosen(pin), state(pin)]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
