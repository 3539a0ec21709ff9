//! A program that runs beside the tests, with its log in a file.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::driver::tool;

/// The longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A program that ends when it is dropped, or when the tests end in any other way.
#[derive(Debug)]
pub struct Part {
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Part {
    /// Starts a program of `.tools/bin` or of PATH. `change` adds its arguments and variables.
    pub fn start(directory: &Path, name: &str, program: &str, change: impl FnOnce(&mut Command)) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).expect("a log");
        // The kernel ends it with us, also if we are killed. podman passes a TERM on, and then removes the container.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", if program == "podman" { "TERM" } else { "KILL" }])
            .arg(tool(program).unwrap_or_else(|| panic!("{program} is missing: run `make e2e`")));
        change(&mut command);
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a log")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of the log.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let from = log.lines().count().saturating_sub(lines);
        log.lines().skip(from).map(|line| format!("{}: {line}\n", self.name)).collect()
    }

    /// Waits until the program is ready.
    pub fn wait_for(&mut self, mut is_ready: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_ready() {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("{} has ended: {status}\n{}", self.name, self.tail(30));
            }
            assert!(started.elapsed() < PATIENCE, "{} is not ready\n{}", self.name, self.tail(30));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something has happened.
#[track_caller]
pub fn until(what: &str, mut has_happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !has_happened() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A free port of loopback.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Does somebody listen on this port of loopback?
pub fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}
