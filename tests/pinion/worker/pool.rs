//! The pool: who is started, kept, killed, replaced and let go, and what a render gets when a worker cannot do it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pinion::process::pool::{Counts, Limits, Pool};
use pinion::process::sandbox::{Level, Mode, Sandboxes};
use pinion::process::{Child, Output, ProcessError};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::charts::Chart;
use super::{child, open_sandboxes, worker_program};
use crate::fixtures::write;
use crate::support::argocd::{self, Serving};
use crate::support::driver::{Driver, skipped, until};
use crate::support::registry::FakeRegistry;

/// A chart and a `helm` of its own, so that its processes are told from those of other tests.
struct Fixture {
    place: TempDir,
    helm: PathBuf,
    counts: Counts,
}

impl Fixture {
    fn new() -> Option<Self> {
        let program = worker_program()?;
        let place = tempfile::tempdir().expect("a directory");
        let helm = place.path().join("helm");
        symlink(program, &helm).expect("linked");
        let fixture = Self { place, helm, counts: Counts::default() };
        fixture.write("small", "a: {{ .Release.Name }}\n");
        Some(fixture)
    }

    fn write(&self, name: &str, template: &str) {
        let chart = "apiVersion: v2\nname: web\nversion: 0.1.0\n";
        write(&self.place.path().join(name), &[("Chart.yaml", chart), ("templates/a.yaml", template)]);
    }

    async fn pool(&self, limits: Limits) -> Arc<Pool> {
        Pool::start(&self.helm, limits, self.counts.clone(), open_sandboxes()).await.expect("a worker")
    }

    fn child(&self, name: &str) -> Child {
        let chart = Chart {
            name: name.to_owned(),
            directory: self.place.path().join(name),
            arguments: ["template", ".", "--name-template", "web"].map(str::to_owned).into(),
            environment: Vec::new(),
        };
        child(&self.helm, &chart, self.place.path())
    }

    /// Workers of this fixture.
    fn living(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").expect("a directory").flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let wanted = format!("{}\0serve\0", self.helm.display());
        numbers.filter(|id| fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| line == wanted.as_bytes())).collect()
    }

    /// Waits until so many workers live.
    async fn lives(&self, count: usize) {
        until(&format!("not {count} workers live"), async || self.living().len() == count).await;
    }
}

fn kill(id: i32) {
    // It may be gone already.
    let _ = kill_process(Pid::from_raw(id).expect("a number"), Signal::KILL);
}

/// Both ways of ending, without what the program is called.
fn shown(result: &Result<Output, ProcessError>) -> String {
    match result {
        Ok(output) => format!("{}{}", String::from_utf8_lossy(&output.stdout), output.stderr),
        Err(error) => error.to_string(),
    }
}

const ENDLESS: &str = "{{ range until 60000 }}{{ range until 60000 }}{{ end }}{{ end }}";

#[tokio::test(flavor = "multi_thread")]
async fn there_are_as_many_workers_as_renders_at_once_and_they_are_kept() {
    let Some(fixture) = Fixture::new() else { return };
    let pool = fixture.pool(Limits::default()).await;
    for _ in 0..5 {
        pool.run(&fixture.child("small")).await.expect("manifests");
    }
    assert_eq!(fixture.living().len(), 1);
    let children: Vec<Child> = (0..12).map(|_| fixture.child("small")).collect();
    futures::future::join_all(children.iter().map(|child| pool.run(child)))
        .await
        .into_iter()
        .for_each(|result| drop(result.unwrap()));
    assert!((2..=12).contains(&fixture.living().len()), "{}", fixture.living().len());
    assert_eq!((fixture.counts.renders.get(), fixture.counts.again.get()), (17, 0));
    drop(pool);
    fixture.lives(0).await;
    assert_eq!(fixture.counts.workers.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_fails_as_by_a_process() {
    let Some(fixture) = Fixture::new() else { return };
    let pool = fixture.pool(Limits::default()).await;
    fixture.write("failing", "a: {{ fail \"no \\u001b[31m\" }}\n");
    fixture.write("large", "a: {{ repeat 100000 \"x\" }}\n");
    let large = Child { max_output: 5000, ..fixture.child("large") };
    let absent = Child { directory: fixture.place.path().join("absent"), ..fixture.child("small") };
    for child in [fixture.child("failing"), large, absent, fixture.child("small")] {
        let (pooled, alone) = (pool.run(&child).await, child.run().await);
        assert_eq!(shown(&pooled), shown(&alone));
        assert_eq!(pooled.is_ok(), alone.is_ok());
    }
    assert_eq!(fixture.counts.again.get(), 1, "a worker does not know why its directory is absent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_at_the_deadline_and_when_its_caller_goes_away() {
    let Some(fixture) = Fixture::new() else { return };
    let pool = fixture.pool(Limits::default()).await;
    fixture.write("endless", ENDLESS);
    let child = Child { deadline: Duration::from_millis(300), ..fixture.child("endless") };
    let error = pool.run(&child).await.expect_err("too slow");
    assert_eq!(error.to_string(), "`helm template .` did not finish within 300ms");
    fixture.lives(0).await;
    let endless = fixture.child("endless");
    let call = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.run(&endless).await }
    });
    fixture.lives(1).await;
    call.abort();
    fixture.lives(0).await;
    pool.run(&fixture.child("small")).await.expect("the next has a new worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_render_fails_when_workers_are_killed_in_the_middle_of_a_load() {
    let Some(fixture) = Fixture::new() else { return };
    let pool = fixture.pool(Limits::default()).await;
    fixture.write("busy", "a: {{ range until 3000 }}{{ . | toString | sha256sum | trunc 1 }}{{ end }}\n");
    let expected = fixture.child("busy").run().await.expect("manifests").stdout;
    // The load goes on until enough workers were killed in the middle of it, however fast it is.
    let killed = std::cell::Cell::new(0);
    let is_enough = || killed.get() >= 3 && fixture.counts.again.get() >= 1;
    let load = futures::future::join_all((0..4).map(async |_| {
        while !is_enough() {
            let output = pool.run(&fixture.child("busy")).await.expect("no render fails");
            assert!(output.stdout == expected);
        }
    }));
    let killer = async {
        loop {
            tokio::time::sleep(Duration::from_millis(60)).await;
            if let Some(&id) = fixture.living().first() {
                kill(id);
                killed.set(killed.get() + 1);
            }
        }
    };
    tokio::select! {
        _ = load => {}
        () = killer => {}
    }
    assert!(is_enough(), "{} were killed, {} renders met it", killed.get(), fixture.counts.again.get());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_let_go_when_idle_after_many_renders_and_when_it_grew() {
    let Some(fixture) = Fixture::new() else { return };
    let pool = fixture.pool(Limits { idle: Duration::from_millis(400), ..Limits::default() }).await;
    pool.run(&fixture.child("small")).await.expect("manifests");
    fixture.lives(0).await;
    for limits in [Limits { renders: 2, ..Limits::default() }, Limits { resident: 1 << 20, renders: 3, ..Limits::default() }] {
        let pool = fixture.pool(limits).await;
        let first = fixture.living();
        pool.run(&fixture.child("small")).await.expect("manifests");
        assert_eq!(fixture.counts.workers.get(), i64::from(limits.renders == 2), "{limits:?}");
        pool.run(&fixture.child("small")).await.expect("manifests");
        assert_eq!(fixture.counts.workers.get(), 0, "{limits:?}");
        pool.run(&fixture.child("small")).await.expect("manifests");
        assert!(fixture.living().iter().all(|id| !first.contains(id)), "it is another");
        drop(pool);
        fixture.lives(0).await;
    }
    assert_eq!(fixture.counts.again.get(), 0);
}

/// A schema may name another by its address. Neither a worker nor a process has a network, and the worker lives on.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_the_network_is_refused_to_a_worker_as_to_a_process() {
    let Some(fixture) = Fixture::new() else { return };
    if !Level::probe().seccomp {
        skipped("this kernel has no seccomp");
        return;
    }
    let pool = fixture.pool(Limits::default()).await;
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    server.set_nonblocking(true).expect("set");
    let schema = format!("{{\"$ref\": \"http://{}/schema.json\"}}", server.local_addr().expect("an address"));
    write(&fixture.place.path().join("small"), &[("values.schema.json", &schema)]);
    let child = fixture.child("small");
    let (pooled, alone) = (pool.run(&child).await, child.run().await);
    assert_eq!(shown(&pooled), shown(&alone));
    let error = pooled.expect_err("no network");
    assert!(error.stderr().contains("operation not permitted"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("no network of its own")), "{:?}", error.hint());
    assert!(server.accept().is_err(), "somebody connected");
    assert_eq!((fixture.counts.renders.get(), fixture.counts.again.get()), (1, 0));
}

/// What a worker sees is what is moved to it: another request's directory is not there, also when it is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reads_its_own_directory_alone() {
    let Some(fixture) = Fixture::new() else { return };
    if Level::probe().landlock == 0 {
        skipped("this kernel has no Landlock");
        return;
    }
    let closed = Sandboxes::new(Mode::Require, Level::probe(), Vec::new());
    let program = fs::canonicalize(&fixture.helm).expect("a program");
    let pool = Pool::start(&program, Limits::default(), fixture.counts.clone(), closed.clone()).await.expect("a worker");
    let small = fixture.place.path().join("small");
    fixture.write("other", "a: other\n");
    fs::write(fixture.place.path().join("other/secret"), "s3cret: 1\n").expect("written");
    let secret = fixture.place.path().join("other/secret").display().to_string();
    let sandbox = || closed.offline(&program).expect("kept").reading(&small);
    let child = |more: &[&str]| {
        let mut child =
            Child { places: vec![small.clone()], sandbox: sandbox(), program: program.clone(), ..fixture.child("small") };
        child.arguments.extend(more.iter().map(Into::into));
        child
    };
    let own = small.join("Chart.yaml").display().to_string();
    for (more, is_read) in [(vec![], true), (vec!["--values", &own], true), (vec!["--values", &secret], false)] {
        let (pooled, alone) = (pool.run(&child(&more)).await, child(&more).run().await);
        assert_eq!((pooled.is_ok(), alone.is_ok()), (is_read, is_read), "{more:?}: {} {}", shown(&pooled), shown(&alone));
        if !is_read {
            assert!(shown(&pooled).contains("permission denied") && !shown(&pooled).contains("s3cret"), "{}", shown(&pooled));
        }
        assert!(small.join("Chart.yaml").exists(), "it was moved back");
    }
    // Without being moved it is not there either.
    let absent = Child { places: Vec::new(), ..child(&[]) };
    let refused = shown(&pool.run(&absent).await);
    assert!(refused.contains("permission denied"), "{refused}");
    assert_eq!((fixture.counts.renders.get(), fixture.counts.again.get()), (4, 0));
    // Also when the render is given up in the middle.
    fixture.write("small", ENDLESS);
    let endless = Child { deadline: Duration::from_millis(300), ..child(&[]) };
    pool.run(&endless).await.expect_err("too slow");
    assert!(small.join("Chart.yaml").exists(), "it was moved back");
}

/// A worker works in `/`, but its program is looked for from here.
#[tokio::test]
async fn a_worker_is_found_by_a_relative_path() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all("target").expect("made");
    let place = tempfile::tempdir_in("target").expect("a directory");
    let helm = Path::new("target").join(place.path().file_name().expect("a name")).join("helm");
    symlink(&fixture.helm, &helm).expect("linked");
    Pool::start(&helm, Limits::default(), fixture.counts.clone(), open_sandboxes()).await.expect("a worker");
}

#[tokio::test]
async fn a_plain_helm_and_a_program_that_says_nothing_are_no_workers() {
    let place = tempfile::tempdir().expect("a directory");
    for (script, reason) in [
        ("echo 'Error: unknown command' >&2; exit 1", "it ended without a hello"),
        ("exec sleep 60", "timed out"),
        ("echo hello, I am no worker; sleep 60", "longer than permitted"),
        (r#"printf '\0\0\0\43{"helm_worker":3,"confined":false}  '; sleep 60"#, "it speaks protocol 3, not 2"),
    ] {
        let program = script_at(place.path(), script);
        let start = Duration::from_millis(if reason == "timed out" { 500 } else { 120_000 });
        let limits = Limits { start, ..Limits::default() };
        let error = Pool::start(&program, limits, Counts::default(), open_sandboxes()).await.expect_err(script);
        assert!(error.to_string().contains(reason), "{script}: {error}");
    }
    Pool::start(Path::new("/does/not/exist"), Limits::default(), Counts::default(), open_sandboxes())
        .await
        .expect_err("nothing is there");
}

fn script_at(place: &Path, script: &str) -> PathBuf {
    let program = place.join("helm");
    let _ = fs::remove_file(&program);
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_with_the_server_also_when_it_is_killed() {
    let Some(fixture) = Fixture::new() else { return };
    let registry = FakeRegistry::start().await;
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry);
    for is_killed in [false, true] {
        let helm = fixture.helm.display().to_string();
        let mut serving = Serving::start(env!("CARGO_BIN_EXE_pinion"), &driver, &["--helm", &helm]);
        assert!(serving.log().contains("charts are rendered by warm workers"), "{}", serving.log());
        fixture.lives(1).await;
        if is_killed {
            kill(serving.child.id().cast_signed());
        } else {
            serving.terminate();
        }
        fixture.lives(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_tells_what_renders_charts() {
    let Some(fixture) = Fixture::new() else { return };
    let registry = FakeRegistry::start().await;
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry);
    let helm = fixture.helm.display().to_string();
    let environment = [("ARGOCD_APP_NAME".to_owned(), "web".to_owned())];
    let messages = argocd::messages(&argocd::archive(&fixture.place.path().join("small")), ".", &environment, 1024);
    for (workers, runner, renders) in [("true", "worker", 1), ("false", "process", 0)] {
        let serving = Serving::start(env!("CARGO_BIN_EXE_pinion"), &driver, &["--helm", &helm, "--helm-workers", workers]);
        let answer = serving.client().await.generate_manifest(tokio_stream::iter(messages.clone())).await.expect("manifests");
        assert_eq!(answer.into_inner().manifests.concat(), "---\n# Source: web/templates/a.yaml\na: web\n");
        let metrics = serving.get("/metrics").await;
        for line in [format!("pinion_helm{{runner=\"{runner}\"}} 1"), format!("pinion_helm_worker_renders_total {renders}")] {
            assert!(metrics.contains(&line), "{metrics}");
        }
    }
}
