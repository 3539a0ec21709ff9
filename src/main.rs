//! Arguments, logging, run, print the error, exit status.

use std::process::ExitCode;

use clap::Parser;
use pinion::cli::{Cli, Log, LogFormat, Outcome, Usage};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // What whoever started us left open is nothing for the tools that we start.
    close_fds::set_fds_cloexec(3, &[]);
    // Only a build for tests has points at which it fails on purpose.
    let _failing = fail::FailScenario::setup();
    let cli = Cli::parse();
    if let Err(error) = start_logging(&cli.log) {
        eprintln!("error: `--log-level`: {error}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            // A file that would exceed the process's limit is then an error of the write, and not the end of the process.
            let _handled = signal(SignalKind::from_raw(libc::SIGXFSZ));
            cli.run().await
        })
    });
    match ended {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NoPermittedTag) => ExitCode::from(3),
        Ok(Outcome::Status(status)) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn start_logging(log: &Log) -> anyhow::Result<()> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let words = log.log_level.split(',').map(|word| word.rsplit_once('=').map_or(word, |(_, level)| level));
    for word in words {
        anyhow::ensure!(is_level(word.trim()), "`{word}` is not one of {}", LEVELS.join(", "));
    }
    let filter = EnvFilter::try_new(&log.log_level)?;
    let start = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log.log_format {
        LogFormat::Text => start.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => start.json().init(),
    }
    Ok(())
}
