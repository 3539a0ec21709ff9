//! Renders through the plugin socket: `pinion serve` beside a server that works as Argo CD's own does ([`baseline`]), each a process.
//!
//! Both get the same streams, call by call in turns, from a client that does what repo-server does: a new connection for each call,
//! two questions, then the archive in chunks of 1 KiB. Every call is another commit with another revision. Arguments choose among
//! `small`, `monorepo`, `callers` and `memory`: `cargo bench --bench serve -- small callers`.

#[path = "serve/baseline.rs"]
mod baseline;
#[path = "serve/repository.rs"]
mod repository;
#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use baseline::Baseline;
use pinion::server::proto::{AppStreamRequest, ManifestResponse};
use repository::{APP, Repository};
use serde::Deserialize;
use serde_json::Value;
use support::argocd::{Serving, client, messages};
use support::driver::{Driver, tool};
use support::registry::FakeRegistry;
use tempfile::TempDir;
use timing::{ms, ratio, table, take_turns, time};
use tokio::runtime::Runtime;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

/// Argo CD's default: `ARGOCD_CMP_CHUNK_SIZE` of repo-server.
const CHUNK: usize = 1024;

/// A tag that is written out, and one that Pinion finds. Both are the same image.
const WRITTEN: &str = "1.4.2";
const PLACEHOLDER: &str = "$(pin ~1.4)";

fn main() {
    baseline::serve_if_told();
    let Some(helm) = tool("helm") else {
        assert!(std::env::var_os("CI").is_none(), "helm is missing");
        eprintln!("SKIPPED serve: helm is missing; run scripts/tools helm");
        return;
    };
    // Cargo adds `--bench`.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let bench = Bench::new(helm);
    for (name, scenario) in [("small", small as fn(&Bench)), ("monorepo", monorepo), ("callers", callers), ("memory", memory)] {
        if chosen.is_empty() || chosen.iter().any(|word| word == name) {
            scenario(&bench);
        }
    }
}

/// What the scenarios share.
struct Bench {
    helm: PathBuf,
    worker: Option<String>,
    runtime: Runtime,
    driver: Driver,
    _registry: FakeRegistry,
    /// Numbers commits, so that no two are alike.
    commits: Cell<usize>,
}

impl Bench {
    fn new(helm: PathBuf) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let registry = runtime.block_on(FakeRegistry::start());
        registry.tags("acme/web", ["1.3.9", "1.4.0", "1.4.1", WRITTEN, "1.5.0", "latest"]);
        // Nobody waits for the registry but the first.
        let driver = Driver::new(PROGRAM, &registry).env("PINION_TAGS_TTL", "1h");
        let worker = tool("helm-worker").map(|worker| worker.display().to_string());
        Self { helm, worker, runtime, driver, _registry: registry, commits: Cell::new(0) }
    }

    fn repository(&self, tag: &str) -> Repository {
        Repository::small(&self.helm, tag)
    }

    /// Options that make Pinion use warm workers, where there is the program.
    fn worker(&self) -> Option<Vec<&str>> {
        let worker = self.worker.as_deref()?;
        Some(vec!["--helm", worker])
    }

    fn commit(&self) -> usize {
        self.commits.set(self.commits.get() + 1);
        self.commits.get()
    }

    /// Requests for one application at commits that follow each other, one more than there are rounds.
    fn commits(&self, rounds: usize, mut repository: Repository, change: fn(&mut Repository, usize)) -> Vec<Sent> {
        (0..=rounds)
            .map(|_| {
                let serial = self.commit();
                change(&mut repository, serial);
                request(&repository.archive(), "web", serial)
            })
            .collect()
    }

    /// Medians of both servers over the same requests, of which the first warms up.
    fn compare(&self, servers: &Servers, requests: &[Sent]) -> [Duration; 2] {
        let next = |socket: PathBuf| {
            let mut requests = requests.iter();
            move || {
                let request = requests.next().expect("a request for each round");
                time(|| self.runtime.block_on(call(&socket, request)))
            }
        };
        let [ours, theirs] = servers.sockets();
        take_turns(requests.len() - 1, [&mut next(ours), &mut next(theirs)])
    }
}

/// Both servers, each with a work directory, which is removed after it.
struct Servers {
    pinion: Serving,
    baseline: Baseline,
    _dirs: [TempDir; 2],
}

impl Servers {
    /// Starts them with work directories below this one. They must answer the same.
    fn start(bench: &Bench, below: &Path, more: &[&str], sample: &Sent) -> Self {
        let dirs = ["pinion-work-", "baseline-work-"].map(|prefix| work_dir(prefix, below));
        let pinion = pinion(bench, dirs[0].path(), more);
        let servers = Self { pinion, baseline: Baseline::start(&bench.driver, dirs[1].path()), _dirs: dirs };
        let [ours, theirs] = servers.sockets().map(|socket| {
            let answer = bench.runtime.block_on(call(&socket, sample));
            answer.manifests.iter().flat_map(|text| documents(&text.replace(PLACEHOLDER, WRITTEN))).collect::<Vec<_>>()
        });
        assert!(ours.len() == 6 && ours == theirs, "both render the same:\n{ours:?}\n{theirs:?}");
        servers
    }

    /// Pinion's, and the other's.
    fn sockets(&self) -> [PathBuf; 2] {
        [self.pinion.socket(), self.baseline.socket()]
    }
}

fn pinion(bench: &Bench, work_dir: &Path, more: &[&str]) -> Serving {
    Serving::start(PROGRAM, &bench.driver, &[&["--work-dir", work_dir.to_str().expect("text")], more].concat())
}

fn work_dir(prefix: &str, below: &Path) -> TempDir {
    tempfile::Builder::new().prefix(prefix).tempdir_in(below).expect("a directory")
}

/// Small charts, one call at a time, on the system's temporary directory.
fn small(bench: &Bench) {
    const ROUNDS: usize = 40;
    let mut rows = heading("a small chart");
    let chart_changed = |tag| bench.commits(ROUNDS, bench.repository(tag), Repository::change_chart);
    let unrelated = |tag| bench.commits(ROUNDS, bench.repository(tag), Repository::change_unrelated);
    let worker = bench.worker();
    for (name, requests, more, aim) in [
        ("the chart changes at each commit", chart_changed(WRITTEN), Some(&[][..]), "0.85"),
        ("the same with a placeholder", chart_changed(PLACEHOLDER), Some(&[]), "0.85"),
        ("the same with warm workers", chart_changed(PLACEHOLDER), worker.as_deref(), "0.15"),
        ("another file changes at each commit", unrelated(WRITTEN), Some(&[]), "0.10"),
        ("the same with a placeholder", unrelated(PLACEHOLDER), Some(&[]), "0.10"),
    ] {
        let Some(more) = more else {
            eprintln!("SKIPPED serve: small: {name}: helm-worker is missing; run scripts/tools helm-worker");
            continue;
        };
        eprintln!("serve: small: {name}");
        let servers = Servers::start(bench, &std::env::temp_dir(), more, &requests[0]);
        rows.push(row(name, bench.compare(&servers, &requests), aim));
    }
    table("One call at a time", &rows);
}

/// One small chart in a repository of 20,000 files and 100 MB.
fn monorepo(bench: &Bench) {
    const ROUNDS: usize = 9;
    eprintln!("serve: monorepo: making {} archives", ROUNDS + 1);
    let requests = bench.commits(ROUNDS, Repository::monorepo(&bench.helm, PLACEHOLDER), Repository::change_unrelated);
    let bytes: usize = requests[0].iter().map(prost::Message::encoded_len).sum();
    let mut rows = heading(&format!("{} MB compressed", bytes / 1_000_000));
    // What is built here is on a disk, which the temporary directory need not be.
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // The other server needs many seconds on a disk.
    for (place, dir, rounds, aim) in [("in memory", Path::new("/dev/shm"), ROUNDS, "0.40"), ("on disk", disk, 4, "0.15")] {
        if !dir.is_dir() {
            eprintln!("SKIPPED serve: monorepo {place}: `{}` is not there", dir.display());
            continue;
        }
        // A server that has run for a while drops an old archive for each new one.
        let servers = Servers::start(bench, dir, &["--keep-archives", "2"], &requests[ROUNDS]);
        eprintln!("serve: monorepo: {place}, a new archive each time");
        rows.push(row(&format!("{place}, a new archive each time"), bench.compare(&servers, &requests[..=rounds]), aim));
        let again = vec![Arc::clone(&requests[0]); rounds + 1];
        eprintln!("serve: monorepo: {place}, the same archive again");
        rows.push(row(&format!("{place}, the same archive again"), bench.compare(&servers, &again), "0.10"));
    }
    table("A monorepo of 20,000 files and 100 MB", &rows);
}

/// A push that changes the charts of 32 applications.
fn callers(bench: &Bench) {
    const CALLERS: usize = 32;
    const ROUNDS: usize = 8;
    let rounds: Vec<Vec<Sent>> = (0..=ROUNDS)
        .map(|_| {
            let mut repository = bench.repository(PLACEHOLDER);
            let change = |_| {
                let serial = bench.commit();
                repository.change_chart(serial);
                request(&repository.archive(), &format!("web-{serial}"), serial)
            };
            (0..CALLERS).map(change).collect()
        })
        .collect();
    let mut rows = heading(&format!("{CALLERS} charts, a caller each"));
    let worker = bench.worker();
    for (name, more, aim, killed) in [
        ("a process for each", Some(&[][..]), "0.85", None),
        ("warm workers", worker.as_deref(), "0.20", None),
        ("and one is killed every 100 ms", worker.as_deref(), "", Some(Duration::from_millis(100))),
    ] {
        let Some(more) = more else {
            eprintln!("SKIPPED serve: callers: {name}: helm-worker is missing; run scripts/tools helm-worker");
            continue;
        };
        eprintln!("serve: callers: {CALLERS} at once, {name}");
        let servers = Servers::start(bench, &std::env::temp_dir(), more, &rounds[0][0]);
        let next = |socket: PathBuf| {
            let mut rounds = rounds.iter();
            move || {
                let requests = rounds.next().expect("requests for each round");
                time(|| bench.runtime.block_on(all(&socket, requests, CALLERS)))
            }
        };
        let [ours, theirs] = servers.sockets();
        // No call may fail of it.
        let killer = killed.map(|every| Killer::start(servers.pinion.child.id(), every));
        let times = take_turns(ROUNDS, [&mut next(ours), &mut next(theirs)]);
        drop(killer);
        rows.push(row(&format!("{name}: until all are answered"), times, aim));
        let each = |time: Duration| format!("{:.1}", CALLERS as f64 / time.as_secs_f64());
        rows.push([format!("{name}: renders in a second"), each(times[0]), each(times[1]), String::new(), String::new()]);
    }
    table("Callers at once", &rows);
}

/// Kills one child of a process every now and then, until it is dropped.
struct Killer {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Killer {
    fn start(parent: u32, every: Duration) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let children = move || {
            let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
            let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
            let all = lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<i32>>());
            // A process that renders in a dead worker's place is not one.
            let is_worker =
                |id: &i32| std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.ends_with(b"\0serve\0"));
            all.filter(is_worker).collect()
        };
        let thread = std::thread::spawn(move || {
            let mut killed = 0;
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(every);
                let found: Vec<i32> = children();
                if let Some(pid) = found.first().and_then(|id| rustix::process::Pid::from_raw(*id)) {
                    killed += usize::from(rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok());
                }
            }
            killed
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let killed = self.thread.take().map(|thread| thread.join().expect("no panic"));
        eprintln!("serve: callers: {} workers were killed", killed.unwrap_or_default());
    }
}

/// Resident memory of Pinion while it renders 10,000 applications of 100 charts.
fn memory(bench: &Bench) {
    const CHARTS: usize = 100;
    const CALLERS: usize = 8;
    let mut repository = bench.repository(PLACEHOLDER);
    let archives: Vec<Vec<u8>> = (0..CHARTS)
        .map(|_| {
            repository.change_chart(bench.commit());
            repository.archive()
        })
        .collect();
    let work_dir = work_dir("pinion-work-", &std::env::temp_dir());
    // Faster, and the same to Pinion's own memory.
    let pinion = pinion(bench, work_dir.path(), &bench.worker().unwrap_or_default());
    let socket = pinion.socket();
    let mut rows = vec![["renders", "resident", "most (aim: 30 MB)"].map(str::to_owned)];
    let mut done = 0;
    for until in [1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10_000] {
        let requests: Vec<Sent> =
            (done..until).map(|number| request(&archives[number % CHARTS], &format!("web-{number}"), number)).collect();
        bench.runtime.block_on(all(&socket, &requests, CALLERS));
        done = until;
        eprintln!("serve: memory: {done} renders");
        if [1000, 5000, 10_000].contains(&done) {
            let [now, most] = resident(pinion.child.id()).map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6));
            rows.push([done.to_string(), now, most]);
        }
    }
    table("Memory of Pinion", &rows);
}

/// Messages of a call, made once.
type Sent = Arc<[AppStreamRequest]>;

/// What repo-server sends for an application of [`APP`] at a commit.
fn request(archive: &[u8], name: &str, commit: usize) -> Sent {
    let groups =
        ["admissionregistration.k8s.io", "apps", "autoscaling", "batch", "networking.k8s.io", "policy", "storage.k8s.io"];
    let kinds = ["Deployment", "HorizontalPodAutoscaler", "Ingress", "Job", "PodDisruptionBudget", "StatefulSet", "StorageClass"];
    let versions = groups.iter().flat_map(|group| {
        std::iter::once(format!("{group}/v1")).chain(kinds.iter().map(move |kind| format!("{group}/v1/{kind}")))
    });
    let environment = [
        ("ARGOCD_APP_NAME", name.to_owned()),
        ("ARGOCD_APP_NAMESPACE", "web".to_owned()),
        ("ARGOCD_APP_PROJECT_NAME", "default".to_owned()),
        ("ARGOCD_APP_REVISION", format!("{commit:040x}")),
        ("ARGOCD_APP_SOURCE_PATH", APP.to_owned()),
        ("ARGOCD_APP_SOURCE_REPO_URL", "https://git.example.com/acme/deployments.git".to_owned()),
        ("ARGOCD_APP_SOURCE_TARGET_REVISION", "main".to_owned()),
        ("ARGOCD_APP_PARAMETERS", "null".to_owned()),
        ("KUBE_VERSION", "1.34.2".to_owned()),
        ("KUBE_API_VERSIONS", versions.collect::<Vec<_>>().join(",")),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    messages(archive, APP, &environment, CHUNK).into()
}

/// One call as repo-server makes it.
async fn call(socket: &Path, request: &Sent) -> ManifestResponse {
    let mut client = client(socket).await;
    for _ in 0..2 {
        client.check_plugin_configuration(()).await.expect("an answer");
    }
    let (sent, count) = (Arc::clone(request), request.len());
    // Cloned one by one, when they are sent.
    let stream = tokio_stream::iter((0..count).map(move |place| sent[place].clone()));
    let answer = client.generate_manifest(stream).await.expect("manifests").into_inner();
    assert!(!answer.manifests.is_empty());
    answer
}

/// All of them, by so many callers that each take the next.
async fn all(socket: &Path, requests: &[Sent], callers: usize) {
    let (requests, next) = (Arc::new(requests.to_vec()), Arc::new(AtomicUsize::new(0)));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (socket, requests, next) = (socket.to_owned(), Arc::clone(&requests), Arc::clone(&next));
        running.spawn(async move {
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                call(&socket, request).await;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("answered");
    }
}

/// The objects of a YAML stream.
fn documents(text: &str) -> Vec<Value> {
    let values = serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).expect("YAML"));
    values.filter(|value| !value.is_null()).collect()
}

/// `VmRSS` and `VmHWM` of a process, in bytes.
fn resident(pid: u32) -> [u64; 2] {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("it runs");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    })
}

fn heading(name: &str) -> Vec<[String; 5]> {
    vec![[name, "pinion", "Argo CD's way", "ratio", "aim"].map(str::to_owned)]
}

fn row(name: &str, [ours, theirs]: [Duration; 2], aim: &str) -> [String; 5] {
    [name.to_owned(), ms(ours), ms(theirs), ratio(ours, theirs), aim.to_owned()]
}
