//! `pinion generate`: renders an application.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Outcome, client, configured, resolver};
use crate::application::{Application, PARAMETERS};
use crate::config;
use crate::generate::clock::{self, Clock};
use crate::generate::generate;
use crate::pin::{self, Freshness, Pin};
use crate::resolve::neighbour::Neighbour;
use crate::telemetry::{Hits, Requests};
use crate::workspace::Checkout;

/// The longest wait for a `pinion serve`, before the registry is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// Render an application and print its manifests
///
/// In Argo CD (as the `generate` command of plugin.yaml) the application comes from the environment: ARGOCD_APP_NAME,
/// ARGOCD_APP_PARAMETERS and so on. On a laptop or in CI, name a manifest: `pinion generate charts/web --application app.yaml` prints
/// exactly what Argo CD would get. DIR is only read.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The application's directory; or the repository's root, where the manifest's `source.path` is below it
    #[arg(default_value = ".")]
    dir: PathBuf,

    /// An Application manifest that says name, namespace and parameters, instead of the environment
    #[arg(long, short, value_name = "FILE")]
    application: Option<PathBuf>,

    /// Version of the cluster, for charts that ask [default: KUBE_VERSION]
    #[arg(long, value_name = "VERSION")]
    kube_version: Option<String>,

    /// API versions of the cluster, for charts that ask; may be given again [default: KUBE_API_VERSIONS]
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
    /// [`crate::failure::Failures`], configuration and output errors.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let clock = Clock::start("start");
        let config = configured(self.config)?;
        let environment = Application::from_environment(|name| std::env::var(name).ok());
        let mut application = match &self.application {
            None => environment.map_err(|error| error.failures(PARAMETERS))?,
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
                read_manifest(&self.dir, path, &text)?.completed_by(environment.unwrap_or_default())
            }
        };
        if let Some(version) = self.kube_version {
            application.kube_version = version;
        }
        if !self.api_versions.is_empty() {
            application.api_versions = self.api_versions;
        }
        let checkout = Checkout::open(&directory(self.dir, &application), application.source_path.as_deref())?;
        if application.name.is_empty() {
            // On a laptop, without a manifest: a name that tells something.
            application.name = checkout.app_dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
        }
        let client = client(&config, Requests::default());
        let neighbour =
            Neighbour { socket: config.pins_socket.clone(), configuration: client.configuration(), patience: PATIENCE };
        let resolver = resolver(&config, client, Hits::default(), Some(neighbour));
        let generated = generate(&checkout, &application, &config.tools, &config.image_paths, &resolver, None, &clock).await?;
        let parts = clock.parts();
        for note in &generated.notes {
            tracing::warn!(application = application.name, "{note}");
        }
        if let Some(path) = &self.write_pins {
            std::fs::write(path, pin::lock(&generated.pins))
                .with_context(|| format!("`{}` cannot be written", path.display()))?;
        }
        if self.explain {
            eprint!("{}", table(&generated.pins));
        }
        tracing::info!(
            application = application.name,
            tool = generated.tool,
            milliseconds = clock::milliseconds(&parts),
            stale = generated.stale(),
            phases = clock::text(&parts),
            pins = generated.pins_text(),
            "rendered"
        );
        let mut out = std::io::stdout().lock();
        out.write_all(generated.manifests.as_bytes()).and_then(|()| out.flush()).context("the manifests cannot be written")?;
        Ok(Outcome::Done)
    }
}

/// The application's directory: the given one, or the source's path below it where a manifest is rendered from the repository's root.
pub fn directory(dir: PathBuf, application: &Application) -> PathBuf {
    match &application.source_path {
        Some(path) if !path.is_empty() && !dir.ends_with(path) && dir.join(path).is_dir() => dir.join(path),
        _ => dir,
    }
}

/// The application of a manifest, with the override files that stand in its directory.
pub fn read_manifest(dir: &Path, path: &Path, text: &str) -> Result<Application, crate::failure::Failures> {
    let place = path.display().to_string();
    let read = Application::from_manifest(text, &[]).map_err(|error| error.failures(&place))?;
    let dir = directory(dir.to_owned(), &read);
    let names = [".argocd-source.yaml".to_owned(), format!(".argocd-source-{}.yaml", read.name)];
    let overrides: Vec<String> = names.iter().filter_map(|name| std::fs::read_to_string(dir.join(name)).ok()).collect();
    Application::from_manifest(text, &overrides).map_err(|error| error.failures(&place))
}

/// The pins as a table: image, policy, tag, and how current it is.
pub fn table(pins: &[Pin]) -> String {
    let state = |pin: &Pin| match &pin.freshness {
        Freshness::Fresh => "fresh".to_owned(),
        Freshness::Given => "given".to_owned(),
        Freshness::Fallback { reason } => format!("fallback: {reason}"),
        Freshness::Stale { since, reason } => format!("stale since {since:.0}: {reason}"),
    };
    let chosen = |pin: &Pin| match &pin.considered {
        Some(considered) => format!("1 of {} ({} permitted)", considered.tags, considered.permitted),
        None => String::new(),
    };
    let mut rows = vec![["IMAGE", "POLICY", "PIN", "CHOSEN", "STATE"].map(str::to_owned)];
    rows.extend(
        pins.iter().map(|pin| {
            [pin.repository.text().to_owned(), pin.policy.to_string(), pin.pinned.to_string(), chosen(pin), state(pin)]
        }),
    );
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
