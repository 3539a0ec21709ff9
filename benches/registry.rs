//! How long resolving takes from scratch: `pinion resolve` over 10,000 tags of real registries beside `skopeo list-tags`, and the newest
//! of 1,000 builds, with the requests that it costs.

#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use std::process::Command;
use std::time::Duration;

use support::driver::Driver;
use support::layout::Layout;
use support::real_registry::{Guard, Kind, Peer};
use support::registry::{FakeRegistry, Route};
use timing::{ms, ratio, table, take_turns, time_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

const REPOSITORY: &str = "team/app";

const ROUNDS: usize = 21;

fn main() {
    listing();
    newest_build();
}

fn listing() {
    let mut rows = vec![["registry", "pinion resolve", "skopeo list-tags", "ratio (aim: 1)"].map(str::to_owned)];
    for (kind, name) in [(Kind::DistributionV3, "Distribution v3"), (Kind::Debian, "docker-registry 2.8")] {
        let Some(peer) = Peer::start(kind, Guard::Open) else { continue };
        let layout = Layout::new();
        let digest = layout.image("app", "2026-01-01T00:00:00Z");
        peer.push(&layout, "app", REPOSITORY, "v0.0.0");
        peer.tag(REPOSITORY, &digest, (0..10_000).map(|serial| format!("v{}.{}.0", serial / 100, serial % 100)));
        let image = peer.image(REPOSITORY);
        let mut ours = || {
            // A new home each time: nothing is remembered.
            let driver = Driver::with_entries(PROGRAM, &peer.entry(""));
            time_process(command(&driver).args(["resolve", &image, "~98"]))
        };
        let mut theirs = || time_process(&mut peer.list_tags(REPOSITORY));
        let [ours, theirs] = take_turns(ROUNDS, [&mut ours, &mut theirs]);
        rows.push([name.to_owned(), ms(ours), ms(theirs), ratio(ours, theirs)]);
    }
    table("10,000 tags, nothing remembered", &rows);
}

fn newest_build() {
    const BUILDS: usize = 1000;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let registry = runtime.block_on(FakeRegistry::start());
    for serial in 0..BUILDS {
        // The order of names is not the order of builds.
        registry.push(REPOSITORY, &format!("main-{:07x}", serial * 2_654_435_761 % (1 << 28)));
    }
    let image = format!("{}/{REPOSITORY}", registry.host());
    let driver = || Driver::new(PROGRAM, &registry).env("PINION_TAGS_TTL", "0s");
    let ask = |driver: &Driver| {
        registry.forget_requests();
        let words = ["resolve", &image, "newest-build", "--platform", "linux/amd64"];
        let elapsed = time_process(command(driver).args(words));
        (elapsed, registry.count(Route::Any))
    };
    let mut cold: Vec<(Duration, usize)> = (0..5).map(|_| ask(&driver())).collect();
    let driver = driver();
    ask(&driver);
    let mut after_a_push: Vec<(Duration, usize)> = (0..9)
        .map(|serial| {
            registry.push(REPOSITORY, &format!("main-new{serial}"));
            ask(&driver)
        })
        .collect();
    let mut nothing_new: Vec<(Duration, usize)> = (0..9).map(|_| ask(&driver)).collect();
    let mut rows = vec![["newest of 1,000 builds", "time", "requests"].map(str::to_owned)];
    for (name, runs) in [
        ("nothing remembered", &mut cold),
        ("after one more push (aim: 4 requests)", &mut after_a_push),
        ("after no push", &mut nothing_new),
    ] {
        let requests = runs.iter().map(|(_, requests)| *requests).max().expect("runs");
        runs.sort_unstable();
        rows.push([name.to_owned(), ms(runs[runs.len() / 2].0), requests.to_string()]);
    }
    table("Newest build", &rows);
}

/// The program with a driver's environment.
fn command(driver: &Driver) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().envs(driver.environment()).current_dir(driver.home());
    command
}
