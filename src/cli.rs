//! The command line: one file a subcommand. Data goes to standard output, all else to standard error.

pub mod check;
mod connect;
pub mod generate;
mod manifest;
pub mod resolve;
pub mod select;
pub mod serve;
mod ssh;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::config::file::{File, Origin};
use crate::config::{self, Config};
use crate::generate::GenerateError;
use crate::metrics::Hits;
use crate::registry::{self, CacheTtls, Registry};
use crate::resolve::peer::PeerClient;
use crate::resolve::{Resolver, Settings};
use crate::store::{self, Store};

/// Resolves image tags while Argo CD renders.
///
/// Pinion is an Argo CD config management plugin. It replaces placeholders such as `$(pin ~1.2)` in Helm values, kustomizations and
/// manifests with the newest permitted tag of the image, renders, and prints the manifests.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub log: Log,

    #[arg(skip)]
    origin: Origin,
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
    #[arg(long, global = true, env = "PINION_LOG_LEVEL", default_value = "info", value_name = "LEVEL", value_parser = log_level)]
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

/// The exit status of a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Anything else.
    Failure = 1,
    /// Arguments that make no sense.
    Usage = 2,
    /// There is no failure but that no tag is permitted.
    NoPermittedTag = 3,
}

impl From<&anyhow::Error> for ExitStatus {
    fn from(error: &anyhow::Error) -> Self {
        match error.downcast_ref() {
            Some(GenerateError::NoPermittedTag(_)) => return Self::NoPermittedTag,
            Some(GenerateError::Invalid(_) | GenerateError::Unavailable(_) | GenerateError::Internal(_)) => return Self::Failure,
            None => {}
        }
        if error.is::<Usage>() { Self::Usage } else { Self::Failure }
    }
}

/// An error that is the caller's: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Cli {
    /// Reads the command line, the variables, and the file that `--config` names.
    ///
    /// # Errors
    ///
    /// A [`clap::Error`] for the command line and the variables, which also stands for `--help`; a [`config::ConfigError`] for the file.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Self> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let command = Self::command();
        let given = command.clone().try_get_matches_from(&arguments)?;
        let with_file = given.subcommand().and_then(|(name, matches)| {
            let path = matches.try_get_one::<PathBuf>("config").ok().flatten()?;
            Some((name, path))
        });
        let Some((name, path)) = with_file else { return Ok(Self::from_arg_matches(&given)?) };
        let serve = command.find_subcommand("serve").context("`serve` is gone")?;
        let flags: Vec<&Arg> = serve.get_arguments().chain(command.get_arguments()).collect();
        let file = File::read(path, &flags)?;
        let laid = file.lay(command).mut_subcommand(name, |command| file.lay(command)).try_get_matches_from(arguments)?;
        let origin = laid.subcommand().map(|(_, matches)| file.origin(matches)).unwrap_or_default();
        Ok(Self { origin, ..Self::from_arg_matches(&laid)? })
    }

    /// Runs the command.
    ///
    /// # Errors
    ///
    /// What the command says; [`Usage`] for arguments that make no sense together.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let ended = match self.command {
            Command::Serve(arguments) => arguments.run().await,
            Command::Generate(arguments) => arguments.run().await,
            Command::Resolve(arguments) => arguments.run().await,
            Command::Select(arguments) => arguments.run(),
            Command::Check(arguments) => arguments.run().await,
            Command::Connect(arguments) => arguments.run().await,
            Command::Ssh(arguments) => arguments.run(),
        };
        ended.map_err(|error| self.origin.explain(error))
    }
}

impl Log {
    /// The filter for what is logged.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.log_level)
    }
}

/// A level or a filter, checked.
fn log_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word.trim()));
    let mut words = text.split(',').map(|word| word.rsplit_once('=').map_or(word, |(_, level)| level));
    match words.find(|word| !is_level(word)) {
        Some(word) => Err(format!("`{word}` is not one of {}", LEVELS.join(", "))),
        None => EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string()),
    }
}

/// The longest wait for the store at the end of a process.
const STORED: Duration = Duration::from_millis(1500);

/// A resolver that asks registries, after a peer if there is one. `check`: look for damage in the store at the start.
fn resolver(config: &Config, hits: Hits, peer: Option<PeerClient>, check: bool) -> Resolver {
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
        peer,
        most_bytes: part,
    };
    Resolver::new(registry, settings)
}

/// Waits until what was learned is stored, and says so if it is not.
async fn stored(resolver: &Resolver) {
    if !resolver.flush(STORED).await {
        tracing::warn!("what was learned could not be stored within {STORED:?}: it is asked for again the next time");
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Failure, Failures};

    /// The command line of a subcommand, with a file.
    fn read(file: &str, words: &[&str]) -> Result<Cli, String> {
        let path = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        std::fs::write(&path, file).expect("written");
        let path = path.display().to_string();
        let words = ["pinion"].iter().chain(words).chain(&["--config", &path]).map(OsString::from).collect::<Vec<_>>();
        Cli::read(words).map_err(|error| format!("{error:#}").replace(&path, "FILE"))
    }

    fn flags() -> Vec<(String, Arg)> {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("a command");
        let visible = serve.get_arguments().chain(command.get_arguments()).filter(|flag| !flag.is_hide_set());
        visible.filter_map(|flag| Some((flag.get_long()?.to_owned(), flag.clone()))).collect()
    }

    #[test]
    fn every_flag_of_serve_may_stand_in_the_file() {
        let sample = |flag: &Arg| match flag.get_value_names().and_then(|names| names.first()).map(clap::builder::Str::as_str) {
            Some("N" | "MIB" | "BYTES") => "268435456",
            Some("BOOL") => "true",
            Some("ADDRESS") => "127.0.0.1:1",
            Some("MODE") => "off",
            Some("FORMAT") => "json",
            Some("LEVEL") => "pinion::registry=debug",
            Some("DURATION") => "7s",
            Some(_) => "x",
            None => panic!("{flag:?} has no value"),
        };
        let flags: Vec<(String, Arg)> = flags().into_iter().filter(|(name, _)| name != "config").collect();
        assert!(flags.len() > 35, "{}", flags.len());
        let file: String = flags.iter().map(|(name, flag)| format!("{name}: {}\n", sample(flag))).collect();
        let debug = format!("{:?}", read(&file, &["serve"]).expect("a command"));
        for (name, flag) in &flags {
            let field = format!("{}: ", name.replace('-', "_"));
            let shown = debug.split(&field).nth(1).unwrap_or_else(|| panic!("no `{name}` in {debug}")).to_lowercase();
            let shown = shown.trim_start_matches("some(").trim_start_matches(['"', '[']);
            assert!(shown.starts_with(sample(flag)), "`{name}`: {shown:.40}");
        }
    }

    #[test]
    fn settings_of_serve_are_let_pass_by_the_others() {
        let file = "renders-at-once: 3\nhelm-workers: false\nlog-format: json\nlog-level: debug\ntags-ttl: 2m\n";
        for words in [&["generate", "x"][..], &["check"], &["resolve", "a/b:~1"]] {
            let cli = read(file, words).expect("a command");
            assert!(matches!(cli.log.log_format, LogFormat::Json) && cli.log.log_level == "debug", "{words:?}");
            assert!(format!("{cli:?}").contains("tags_ttl: Some(\"2m\")"), "{words:?}");
        }
        let cli = read(file, &["serve", "--renders-at-once", "5", "--log-level", "warn"]).expect("a command");
        assert!(format!("{cli:?}").contains("renders_at_once: Some(5)") && cli.log.log_level == "warn", "a flag wins");
        assert_eq!(
            read("explain: true\n", &["generate"]).expect_err("not of serve").split(": ").nth(1),
            Some("unknown field `explain`")
        );
    }

    #[test]
    fn help_shows_what_a_command_uses() {
        let shown = |name: &str| {
            let help = Cli::command().find_subcommand_mut(name).expect("a command").render_long_help().to_string();
            let flags =
                help.lines().filter_map(|line| line.trim_start().split("--").nth(1).filter(|_| line.trim().starts_with('-')));
            let names: Vec<String> =
                flags.map(|flag| flag.split([' ', '=', '[', '.']).next().unwrap_or_default().to_owned()).collect();
            (names, help)
        };
        for (command, used, unused) in [
            (
                "check",
                &["application", "set", "registries-conf", "value-file-schemes"][..],
                &["store", "tags-ttl", "helm", "sandbox"][..],
            ),
            (
                "resolve",
                &["image", "fallback", "tags-ttl", "egress-hosts"],
                &["helm", "render-timeout", "pins-socket", "image-paths"],
            ),
            ("select", &["allow-tags", "fallback", "explain"], &["image", "pull-secret", "store"]),
            ("generate", &["application", "source", "helm", "tags-ttl"], &["renders-at-once", "sandbox-abi"]),
        ] {
            let (names, help) = shown(command);
            used.iter().for_each(|flag| assert!(names.iter().any(|name| name == flag), "{command} --{flag}: {help}"));
            unused.iter().for_each(|flag| assert!(!names.iter().any(|name| name == flag), "{command} --{flag}: {help}"));
        }
        assert!(!shown("select").1.contains("IMAGE[:CONSTRAINT]") && !shown("resolve").1.contains("@ALIAS"));
    }

    #[test]
    fn settings_that_help_hides_are_taken() {
        let words = ["pinion", "check", "--tags-ttl", "2m", "--store", "x"].map(OsString::from);
        assert!(format!("{:?}", Cli::read(words).expect("a command")).contains("tags_ttl: Some(\"2m\")"));
    }

    #[test]
    fn scripts_can_tell_errors_apart() {
        let failures = || Failures::from(Failure::text("", "x", None));
        for (error, status) in [
            (anyhow::Error::from(GenerateError::NoPermittedTag(failures())), 3),
            (GenerateError::Invalid(failures()).into(), 1),
            (GenerateError::Unavailable(failures()).into(), 1),
            (GenerateError::Internal(failures()).into(), 1),
            (anyhow::Error::from(GenerateError::NoPermittedTag(failures())).context("configuration `x`"), 3),
            (Usage("x".into()).into(), 2),
            (failures().into(), 1),
        ] {
            assert_eq!(ExitStatus::from(&error) as u8, status, "{error:?}");
        }
    }

    #[test]
    fn what_a_flag_refuses_is_refused_in_the_file() {
        for (file, wanted) in [
            ("renders-at-once: 0\n", "`renders-at-once`: `0`: it is at least 1"),
            ("renders-at-onec: 1\n", "unknown field `renders-at-onec`: did you mean `renders-at-once`"),
            ("admin-address: here\n", "`admin-address`: `here`: invalid socket address syntax"),
            ("helm-workers: maybe\n", "`helm-workers`: `maybe` is none of `true`, `false`"),
            ("log-level: loud\n", "`log-level`: `loud`: `loud` is not one of off, error"),
            ("log-format: xml\n", "`log-format`: `xml` is none of `text`, `json`"),
            ("api-token: 1e5\n", "`api-token`: put it in quotes"),
            ("api-token: [secret]\n", "`api-token`: it is one text"),
        ] {
            for command in ["serve", "check"] {
                let error = read(file, &[command]).expect_err(file);
                assert!(error.starts_with(&format!("configuration `FILE`: {wanted}")), "{file}: {error}");
                assert!(!error.contains("secret") && !error.contains("1e5"), "{error}");
            }
        }
    }
}
