//! Arguments, logging, run, print the error, exit status.

use std::process::ExitCode;

use pinion::cli::{Cli, ExitStatus, Log, LogFormat, Outcome};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    // What whoever started us left open is nothing for the tools that we start.
    close_fds::set_fds_cloexec(3, &[]);
    // Where tests end what must not end. Builds for use have none.
    let _failpoints = fail::has_failpoints().then(fail::FailScenario::setup);
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return refuse(error),
    };
    start_logging(&cli.log);
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
        Err(error) => refuse(error),
    }
}

/// Prints an error. clap's own tell what was wanted and end the process: with status 0 for `--help`.
fn refuse(error: anyhow::Error) -> ExitCode {
    let error = match error.downcast::<clap::Error>() {
        Ok(error) => error.exit(),
        Err(error) => error,
    };
    eprintln!("error: {error:#}");
    ExitCode::from(ExitStatus::from(&error) as u8)
}

fn start_logging(log: &Log) {
    let start = tracing_subscriber::fmt().with_env_filter(log.filter()).with_writer(std::io::stderr).with_target(false);
    match log.log_format {
        LogFormat::Text => start.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => start.json().init(),
    }
}
