//! What warm Helm workers save: the same charts by a worker, by a process as Pinion starts it, and by plain `helm template`.

mod chart;
#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chart::enlarged;
use pinion::process::pool::{Counts, Limits, Pool};
use pinion::process::sandbox::{Level, Mode, Sandboxes};
use pinion::process::worker::Worker;
use pinion::process::{Child, Runner};
use support::driver::{root, tool};
use timing::{ms, ratio, table, take_turns, time, time_process};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

const ROUNDS: usize = 40;

/// Callers at once, and what each asks for.
const CALLERS: usize = 32;
const RENDERS_EACH: usize = 8;

/// RenderScheduler of one worker whose memory is watched.
const LONG: usize = 10_000;

fn main() {
    let (Some(helm), Some(program)) = (tool("helm"), tool("helm-worker")) else {
        assert!(std::env::var_os("CI").is_none(), "helm or helm-worker is missing");
        eprintln!("SKIPPED worker: helm or helm-worker is missing; run scripts/tools helm helm-worker");
        return;
    };
    let runtime = Runtime::new().expect("a runtime");
    let home = tempfile::tempdir().expect("a home");
    let small = root().join("examples/chat-api");
    let large = enlarged(&small, home.path());
    let start = || runtime.block_on(Pool::start(&program, Limits::default(), Counts::default(), sandboxes())).expect("a worker");
    alone(
        &runtime,
        &helm,
        &Runner::Pool(start()),
        &program,
        home.path(),
        [("chat-api", &small), ("and 2 MB of ConfigMaps", &large)],
    );
    at_once(&runtime, &start(), &child(&program, &small, home.path()));
    long(&runtime, &child(&program, &small, home.path()));
}

/// One render after the other.
fn alone(runtime: &Runtime, helm: &Path, pool: &Runner, program: &Path, home: &Path, charts: [(&str, &PathBuf); 2]) {
    let mut rows =
        vec![["chart", "worker", "helm template", "ratio (aim: 0.15)", "as Pinion starts it", "ratio"].map(str::to_owned)];
    for (name, chart) in charts {
        let child = child(program, chart, home);
        let by = |runner: &Runner| runtime.block_on(runner.run(&child)).expect("manifests").stdout;
        let plain = || {
            let mut command = Command::new(helm);
            command.args(&child.arguments).current_dir(chart).env_clear().env("HOME", home);
            command
        };
        assert!(
            by(pool) == by(&Runner::Process) && by(pool) == plain().output().expect("Helm").stdout,
            "{name}: all print the same"
        );
        let [ours, theirs, tuned] = take_turns(
            ROUNDS,
            [&mut || time(|| by(pool)), &mut || time_process(&mut plain()), &mut || time(|| by(&Runner::Process))],
        );
        rows.push([name.to_owned(), ms(ours), ms(theirs), ratio(ours, theirs), ms(tuned), ratio(ours, tuned)]);
    }
    table("A chart that is not memoised", &rows);
}

/// As many callers as Argo CD has status processors and some, of which twice the processors are let in at a time, as `pinion serve` does.
fn at_once(runtime: &Runtime, pool: &Arc<Pool>, child: &Child) {
    let turns = Arc::new(Semaphore::new(2 * std::thread::available_parallelism().map_or(2, usize::from)));
    let round = |runner: &Runner| {
        time(|| {
            runtime.block_on(async {
                let callers = (0..CALLERS).map(|_| {
                    let (runner, child, turns) = (runner.clone(), child.clone(), Arc::clone(&turns));
                    tokio::spawn(async move {
                        for _ in 0..RENDERS_EACH {
                            let _turn = turns.acquire().await.expect("never closed");
                            runner.run(&child).await.expect("manifests");
                        }
                    })
                });
                for caller in callers.collect::<Vec<_>>() {
                    caller.await.expect("no panic");
                }
            });
        })
    };
    let pool = Runner::Pool(Arc::clone(pool));
    let [ours, theirs] = take_turns(5, [&mut || round(&pool), &mut || round(&Runner::Process)]);
    let each = |time: Duration| format!("{:.0} a second", (CALLERS * RENDERS_EACH) as f64 / time.as_secs_f64());
    let head = ["", "workers", "processes", "times (aim: 5)"].map(str::to_owned);
    table("32 callers at once", &[head, ["chat-api".to_owned(), each(ours), each(theirs), ratio(theirs, ours)]]);
}

/// A worker's memory over many renders.
fn long(runtime: &Runtime, child: &Child) {
    let mut rows = vec![["renders", "resident"].map(str::to_owned)];
    let mut worker = runtime.block_on(Worker::start(&child.program, &child.sandbox)).expect("a worker");
    for render in 1..=LONG {
        let resident = runtime.block_on(worker.run(child)).expect("manifests").resident;
        if [10, 100, 1000, LONG / 2, LONG].contains(&render) {
            rows.push([render.to_string(), format!("{:.0} MB", resident as f64 / 1e6)]);
        }
    }
    table("One worker's memory", &rows);
}

/// As in the server, but that charts may stand anywhere.
fn sandboxes() -> Sandboxes {
    Sandboxes::new(Mode::BestEffort, Level::probe(), vec!["/".into()])
}

/// What Pinion runs, with the tag written out, in a home of its own.
fn child(program: &Path, chart: &Path, home: &Path) -> Child {
    let values = home.join("values.yaml");
    std::fs::write(&values, "image:\n  tag: 1.0.2\n\nreplicas: 1\n").expect("written");
    let words = ["template", ".", "--name-template", "chat-api-dev", "--namespace", "chat-dev", "--include-crds", "--values"];
    let own = |name: &str| (name.into(), home.join(name).into());
    Child {
        program: program.to_owned(),
        arguments: words.map(Into::into).into_iter().chain([values.into()]).collect(),
        directory: chart.to_owned(),
        environment: ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_PLUGINS"]
            .map(own)
            .into_iter()
            .chain([("GOGC".into(), "400".into())])
            .collect(),
        deadline: Duration::from_secs(60),
        max_output: 100 << 20,
        input: Vec::new(),
        places: Vec::new(),
        sandbox: sandboxes().offline(program).expect("taken as it is"),
    }
}
