//! Pinion in a real Argo CD: the chart is installed into a cluster (an API server without nodes), its sidecar is started as a kubelet
//! would, and Argo CD's own repo-server and controllers do the rest. The images are in a Distribution registry with passwords.
//!
//! `make e2e` runs all scenarios, in this order, on one installation; `make e2e E2E=NAME` those with that name. A scenario that fails
//! shows the end of every log. Every program but the registry ends with the
//! tests, also if they are killed; then their temporary directory stays. `E2E_KEEP=1` keeps it for looking into.

mod argocd;
mod cluster;
mod files;
mod installation;
mod part;
mod scenarios;
mod sidecar;
#[path = "../support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use installation::Installation;
use scenarios::SCENARIOS;

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let wanted: Vec<_> = SCENARIOS.iter().filter(|(name, _)| is_wanted(name)).collect();
    if !rustix::process::getuid().is_root() {
        println!("SKIPPED: the end-to-end tests start a container with podman and runc, and need root");
        return if std::env::var_os("CI").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let started = Instant::now();
    let mut installation = Installation::start();
    println!("Argo CD and the sidecar run after {:.1} s; {} scenarios", started.elapsed().as_secs_f64(), wanted.len());
    let mut failed = Vec::new();
    for (name, scenario) in wanted {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| scenario(&mut installation)));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("scenario {name} ... {word} ({:.1} s)", started.elapsed().as_secs_f64());
        if outcome.is_err() {
            println!("{}", installation.logs());
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
