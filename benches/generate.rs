//! What Pinion adds to a render: `pinion generate` with its pin in the store, beside `helm template` with the same arguments.

mod chart;
#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use std::path::Path;
use std::process::Command;

use chart::enlarged;
use support::driver::{Driver, root, tool};
use support::examples;
use support::registry::FakeRegistry;
use timing::{ms, ratio, table, take_turns, time_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

const ROUNDS: usize = 25;

fn main() {
    let Some(helm) = tool("helm") else {
        assert!(std::env::var_os("CI").is_none(), "helm is missing");
        eprintln!("SKIPPED generate: helm is missing; run scripts/tools helm");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let registry = runtime.block_on(FakeRegistry::start());
    examples::fill(&registry);
    let driver = Driver::new(PROGRAM, &registry).env("PINION_TAGS_TTL", "1h");
    let (small, application) = (root().join("examples/chat-api"), "examples/chat-api/application-dev.yaml");
    let large = enlarged(&small, driver.home());
    let mut rows = vec![["chart", "pinion", "helm", "added (aim: 10 ms)", "ratio", "helm, GOGC=400", "added"].map(str::to_owned)];
    for (name, chart) in [("chat-api", &small), ("chat-api and 2 MB of ConfigMaps", &large)] {
        let generate = || {
            let mut command = Command::new(PROGRAM);
            command.env_clear().envs(driver.environment()).current_dir(root());
            command.arg("generate").arg(chart).args(["--application", application]);
            command
        };
        let template = |collector: Option<&str>| plain(&helm, chart, driver.home(), collector);
        let [pinion, plain] = [generate(), template(None)].map(|mut command| {
            let output = command.output().expect("a program");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        });
        assert!(pinion == plain, "{name}: both print the same");
        let [ours, theirs, tuned] = take_turns(
            ROUNDS,
            [&mut || time_process(&mut generate()), &mut || time_process(&mut template(None)), &mut || {
                time_process(&mut template(Some("400")))
            }],
        );
        let added = |theirs: std::time::Duration| format!("{:+.1} ms", (ours.as_secs_f64() - theirs.as_secs_f64()) * 1e3);
        rows.push([name.to_owned(), ms(ours), ms(theirs), added(theirs), ratio(ours, theirs), ms(tuned), added(tuned)]);
    }
    table("A render with its pin in the store", &rows);
}

/// What Pinion runs, with the tag written out, in a home of its own. Pinion lets Helm's garbage collector run less often.
fn plain(helm: &Path, chart: &Path, home: &Path, collector: Option<&str>) -> Command {
    let values = home.join("values.yaml");
    if !values.exists() {
        std::fs::write(&values, "image:\n  tag: 1.0.2\n\nreplicas: 1\n").expect("written");
    }
    let mut command = Command::new(helm);
    command.args(["template", ".", "--name-template", "chat-api-dev", "--namespace", "chat-dev", "--values"]);
    command.arg(values).arg("--include-crds").current_dir(chart);
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(collector.map(|percent| ("GOGC", percent)));
    command
}
