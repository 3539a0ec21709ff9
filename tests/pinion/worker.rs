//! Warm Helm workers give what a process gives, byte for byte, whatever was rendered before and whatever becomes of them.

mod charts;
mod pool;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pinion::process::Child;
use pinion::process::sandbox::{Level, Mode, Sandboxes};
use pinion::process::worker::Worker;

use crate::fixtures::needs;
use crate::support::driver::{root, tool};
use crate::support::random::Random;
use charts::{Chart, generated, of_the_repository, suspects};

/// Standard error that Pinion keeps.
const MAX_STDERR: usize = 64 * 1024;

/// Exit status, standard output and standard error.
type Told = (i32, Vec<u8>, Vec<u8>);

/// Sandboxes in which everything may be read: charts of tests stand anywhere.
fn open_sandboxes() -> Sandboxes {
    Sandboxes::new(Mode::BestEffort, Level::probe(), vec!["/".into()])
}

/// A `helm template` of a chart, by this program.
fn child(program: &Path, chart: &Chart, home: &Path) -> Child {
    let own = |name: &str| (OsString::from(name), home.join(name).into_os_string());
    let variables = ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_PLUGINS"].map(own);
    Child {
        program: program.to_owned(),
        arguments: chart.arguments.iter().map(Into::into).collect(),
        directory: chart.directory.clone(),
        environment: variables
            .into_iter()
            .chain(chart.environment.iter().map(|&(name, value)| (name.into(), value.into())))
            .collect(),
        deadline: Duration::from_secs(60),
        max_output: 100 << 20,
        input: Vec::new(),
        places: Vec::new(),
        sandbox: open_sandboxes().offline(program).expect("taken as it is"),
    }
}

/// What a process gives.
async fn by_process(child: &Child) -> Told {
    let output = tokio::process::Command::new(&child.program)
        .args(&child.arguments)
        .current_dir(&child.directory)
        .env_clear()
        .envs(child.environment.iter().cloned())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("Helm starts");
    let kept = output.stderr.len().min(MAX_STDERR);
    (output.status.code().expect("a status"), output.stdout, output.stderr[..kept].to_vec())
}

/// What a worker gives.
async fn by_worker(worker: &mut Worker, child: &Child) -> Told {
    let answer = worker.run(child).await.expect("an answer");
    (answer.status, answer.stdout, answer.stderr)
}

fn shown((status, stdout, stderr): &Told) -> String {
    let cut = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
    format!("status {status}\n{}{}", cut(stdout), cut(stderr))
}

fn worker_program() -> Option<PathBuf> {
    needs("helm-worker").then(|| tool("helm-worker")).flatten()
}

/// Renders every chart by a process of each program and by a worker. Tells how many of them fail, both ways.
async fn compare(charts: &[Chart], programs: &[PathBuf], program: &Path) -> usize {
    let waiting = Mutex::new(charts.iter().collect::<Vec<_>>());
    let faults = Mutex::new(BTreeMap::new());
    let failing = AtomicUsize::new(0);
    let home = tempfile::tempdir().expect("a home");
    let lane = async || {
        let mut worker =
            Worker::start(program, &open_sandboxes().offline(program).expect("taken as it is")).await.expect("a worker");
        loop {
            let next = waiting.lock().expect("no panic").pop();
            let Some(chart) = next else { break };
            let found = by_worker(&mut worker, &child(program, chart, home.path())).await;
            failing.fetch_add(usize::from(found.0 != 0), Ordering::Relaxed);
            for program in programs {
                let expected = by_process(&child(program, chart, home.path())).await;
                if found != expected {
                    let text = format!("--- worker\n{}\n--- {}\n{}", shown(&found), program.display(), shown(&expected));
                    faults.lock().expect("no panic").insert(chart.name.clone(), text);
                }
            }
        }
    };
    tokio::join!(lane(), lane());
    let faults: BTreeMap<String, String> = faults.into_inner().expect("no panic");
    let told: String = faults.iter().map(|(name, text)| format!("=== {name}\n{text}\n")).collect();
    assert!(faults.is_empty(), "{} of {} charts differ:\n{told}", faults.len(), charts.len());
    failing.into_inner()
}

/// The worker's program as a process, and Helm's own at the same version.
fn programs(program: &Path) -> Vec<PathBuf> {
    let version = |program: &Path| {
        let output = std::process::Command::new(program).args(["version"]).output().expect("Helm starts");
        String::from_utf8(output.stdout).expect("text")
    };
    let helm = tool("helm").filter(|helm| version(helm) == version(program));
    if helm.is_none() {
        eprintln!("NOT COMPARED with `helm`: it has another version than helm-worker");
    }
    [program.to_owned()].into_iter().chain(helm).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn charts_of_the_cases_and_examples_are_rendered_alike() {
    let Some(program) = worker_program() else { return };
    let charts = of_the_repository();
    assert!(charts.len() >= 40, "only {} charts", charts.len());
    compare(&charts, &programs(&program), &program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_generated_charts_are_rendered_alike() {
    let Some(program) = worker_program() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let charts = generated(place.path(), 200);
    let failing = compare(&charts, std::slice::from_ref(&program), &program).await;
    assert!((20..100).contains(&failing), "{failing} of {} fail", charts.len());
}

/// `PINION_SOAK` says how many renders; `make soak` sets it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks_from_one_render_to_the_next() {
    let Some(program) = worker_program() else { return };
    let renders: usize = std::env::var("PINION_SOAK").map_or(2000, |text| text.parse().expect("a number"));
    let place = tempfile::tempdir().expect("a directory");
    let home = tempfile::tempdir().expect("a home");
    let mut known = Vec::new();
    for chart in suspects(place.path()) {
        let child = child(&program, &chart, home.path());
        let expected = by_process(&child).await;
        known.push((chart.name, child, expected));
    }
    let is_told = |text: &str| known.iter().any(|(_, _, (_, _, stderr))| String::from_utf8_lossy(stderr).contains(text));
    for text in ["unresolved URN", "this chart is deprecated", "regexp: Compile", "unknown flag", "level=DEBUG"] {
        assert!(is_told(text), "no suspect's process says `{text}`");
    }
    let mut worker =
        Worker::start(&program, &open_sandboxes().offline(&program).expect("taken as it is")).await.expect("a worker");
    let (mut early, mut last) = (0, 0);
    let mut random = Random::new(5);
    for round in 0..renders {
        let (name, child, expected) = &known[random.below(known.len())];
        let answer = worker.run(child).await.expect("an answer");
        let found = (answer.status, answer.stdout, answer.stderr);
        assert!(found == *expected, "render {round}, {name}:\n{}\n--- a process\n{}", shown(&found), shown(expected));
        last = answer.resident;
        if round < renders / 4 {
            early = early.max(last);
        }
    }
    println!("resident after {} renders at most {} MB, after {renders} {} MB", renders / 4, early >> 20, last >> 20);
    assert!(last < early + (64 << 20), "{} MB became {} MB", early >> 20, last >> 20);
}

/// What is shipped, what is tested and what charts can see of it are one version.
#[test]
fn the_worker_knows_the_version_that_its_module_pins() {
    let Some(program) = worker_program() else { return };
    let module = std::fs::read_to_string(root().join("helm-worker/go.mod")).expect("a file");
    let pinned = module.lines().find_map(|line| line.trim().strip_prefix("helm.sh/helm/v4 ")).expect("a version");
    let output = std::process::Command::new(program).args(["version", "--short"]).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), pinned);
    let tools = std::fs::read_to_string(root().join("scripts/tools")).expect("a file");
    assert!(tools.contains(&format!("helm.sh/helm/v4/cmd/helm@{pinned}")), "the tests' `helm` has the same version");
}
