//! Runs `pinion` as a user or Argo CD would: an empty environment, a home of its own, no network but the given registry.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::registry::FakeRegistry;

/// The longest wait for something that must happen: no machine is that slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something has happened.
#[track_caller]
pub fn until(what: &str, mut has_happened: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        while !has_happened().await {
            assert!(started.elapsed() < PATIENCE, "{caller}: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A tool that `scripts/tools` fetched, or that is on PATH.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(root().join(".tools/bin")).chain(std::env::split_paths(&path).collect::<Vec<_>>());
    places.map(|place| place.join(name)).find(|file| file.is_file())
}

/// Says past libtest's capture that a test is skipped, or a part of it. Where `CI` is set the test fails, and where cases are blessed.
#[track_caller]
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {why}\n", thread.name().unwrap_or("?"));
    let must_run = ["CI", "PINION_BLESS"].iter().any(|name| std::env::var_os(name).is_some());
    assert!(!must_run, "{line}");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}

/// What a run of the program gave.
#[derive(Clone, Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The standard output of a run that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self.stdout
    }

    /// The standard error of a run that failed, without the lines of the log.
    #[track_caller]
    pub fn err(self) -> String {
        assert_ne!(self.status, 0, "{}", self.stdout);
        assert_eq!(self.stdout, "", "a failing run prints nothing on standard output");
        let at = self.stderr.find("error: ").unwrap_or(0);
        self.stderr[at..].trim_end().to_owned()
    }
}

/// A place to run the program in.
#[derive(Debug)]
pub struct Driver {
    program: PathBuf,
    home: tempfile::TempDir,
    environment: BTreeMap<String, String>,
    /// Options before those of the run.
    directory: PathBuf,
    input: String,
}

impl Driver {
    /// A driver that asks this registry for the images of every registry in the examples.
    pub fn new(program: impl Into<PathBuf>, registry: &FakeRegistry) -> Self {
        Self::with_entries(program, &entries(registry, ""))
    }

    /// A driver with these entries in its registries.conf.
    pub fn with_entries(program: impl Into<PathBuf>, entries: &str) -> Self {
        let home = tempfile::Builder::new().prefix("pinion-test-").tempdir().expect("a home");
        std::fs::write(home.path().join("registries.conf"), entries).expect("written");
        let path = std::env::var("PATH").unwrap_or_default();
        let own = |name: &str| home.path().join(name).display().to_string();
        let environment = BTreeMap::from([
            ("PATH".to_owned(), format!("{}:{path}", root().join(".tools/bin").display())),
            ("HOME".to_owned(), home.path().display().to_string()),
            ("PINION_STORE".to_owned(), own("store")),
            ("PINION_REGISTRIES_CONF".to_owned(), own("registries.conf")),
            ("PINION_LOOKUP_TIMEOUT".to_owned(), "20s".to_owned()),
        ]);
        // What a test of the sandbox leaves out.
        let level = ["PINION_SANDBOX_ABI", "PINION_SANDBOX_WITHOUT_SECCOMP"];
        let level = level.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
        let environment = environment.into_iter().chain(level).collect();
        Self { program: program.into(), home, environment, directory: root(), input: String::new() }
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    #[must_use]
    pub fn within(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    #[must_use]
    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = text.into();
        self
    }

    /// No answer counts as fresh any more.
    #[must_use]
    pub fn impatient(self) -> Self {
        self.env("PINION_TAGS_TTL", "0s").env("PINION_DIGESTS_TTL", "0s")
    }

    pub fn run<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Ran {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env_clear()
            .envs(&self.environment)
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("`{}` does not start: {error}", self.program.display()));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = self.input.clone();
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("the program ends");
        writer.join().expect("the input is written");
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// registries.conf for the hosts of the examples, with more lines in each entry.
pub fn entries(registry: &FakeRegistry, more: &str) -> String {
    let (url, host) = (registry.url(), registry.host());
    let entry = |prefix: &str, special: &str| {
        format!("- name: {prefix}\n  prefix: '{prefix}'\n  api_url: {url}\n  limit: 100000\n{special}{more}")
    };
    format!(
        "registries:\n{}{}{}",
        entry("docker.io", "  default: true\n  defaultns: library\n"),
        entry("ghcr.io", ""),
        entry(&host, "")
    )
}
