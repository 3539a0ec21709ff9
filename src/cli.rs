//! The command line: one file a subcommand. Data goes to standard output, all else to standard error.

pub mod check;
mod connect;
pub mod generate;
mod manifest;
pub mod resolve;
pub mod select;
pub mod serve;
mod ssh;

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::registry::{self, CacheTtls, Registry};
use crate::resolve::neighbour::Neighbour;
use crate::resolve::{Resolver, Settings};
use crate::store::{self, Store};
use crate::telemetry::Hits;

/// Resolves image tags while Argo CD renders.
///
/// Pinion is an Argo CD config management plugin. It replaces placeholders such as `$(pin ~1.2)` in Helm values, kustomizations and
/// manifests by the newest permitted tag of the image, renders, and prints the manifests.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub log: Log,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(Box<serve::Arguments>),
    Generate(generate::Arguments),
    Resolve(resolve::Arguments),
    Select(select::Arguments),
    Check(check::Arguments),
    #[command(hide = true)]
    Connect(connect::Arguments),
    #[command(hide = true)]
    Ssh(ssh::Arguments),
}

/// What is logged, on standard error.
#[derive(Args, Debug)]
#[command(next_help_heading = "Logging")]
pub struct Log {
    /// What to log: error, warn, info, debug or trace, or a filter such as `pinion::registry=debug`
    #[arg(long, global = true, env = "PINION_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,

    /// How to log
    #[arg(long, global = true, env = "PINION_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
    Yaml,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Exit status 3.
    NoPermittedTag,
    /// That of another program.
    Status(u8),
}

/// An error that is the caller's: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    ///
    /// What the command says; [`Usage`] for arguments that make no sense together.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        match self.command {
            Command::Serve(arguments) => arguments.run().await,
            Command::Generate(arguments) => arguments.run().await,
            Command::Resolve(arguments) => arguments.run().await,
            Command::Select(arguments) => arguments.run(),
            Command::Check(arguments) => arguments.run().await,
            Command::Connect(arguments) => arguments.run().await,
            Command::Ssh(arguments) => arguments.run(),
        }
    }
}

/// The longest wait for the store at the end of a process.
const STORED: Duration = Duration::from_millis(1500);

/// A resolver that asks registries, after a neighbour if there is one. `check`: look for damage in the store at the start.
fn resolver(config: &Config, hits: Hits, neighbour: Option<Neighbour>, check: bool) -> Resolver {
    let clock = Clock::default();
    let store =
        Store::open(store::Settings { dir: config.store.clone(), most_bytes: config.store_bytes, check, clock: clock.clone() });
    let ttls = CacheTtls { tags: config.tags_ttl, digests: config.digests_ttl };
    // Records of repositories take most: the budget's eighth parts are one for choices, one for the pins that are shown, six for them.
    let part = config.cache_bytes / 8;
    let settings = registry::Settings { ttls, most_bytes: config.cache_bytes - 2 * part, clock, hits };
    let registry = Registry::new(config.client.clone(), store, settings);
    let settings = Settings {
        tags_ttl: config.tags_ttl,
        budget: config.lookup_timeout,
        platforms: config.platforms.clone(),
        neighbour,
        most_bytes: part,
    };
    Resolver::new(registry, settings)
}

fn configured(raw: config::Raw) -> anyhow::Result<Config> {
    Ok(raw.check()?)
}

/// Prints a value in a format for programs.
fn print(format: Format, value: &impl Serialize) -> anyhow::Result<()> {
    match format {
        Format::Json => write(&(serde_json::to_string_pretty(value)? + "\n")),
        Format::Text | Format::Yaml => write(&serde_yaml::to_string(value)?),
    }
}

/// Writes to standard output. A reader that has gone away wants no more, which is no failure.
fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output cannot be written"),
        _ => Ok(()),
    }
}
