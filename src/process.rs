//! Runs one child process: Helm, Kustomize. Or, for Helm's templates, lets a process do it that is there already: [`pool`].
//!
//! An argument vector goes in (never a shell), with a directory and a *complete* environment; standard output and error come out. The
//! child has its own process group, which is killed as a whole at the deadline, when the caller goes away and when the output is too
//! long: killing the leader alone leaves grandchildren that hold the pipes.

mod group;
pub mod pool;
pub mod sandbox;
mod ssh;
pub mod worker;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use regex::Regex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::image::printable;
use pool::Pool;
use sandbox::Sandbox;

/// Standard error that is kept for a message, in bytes.
const MAX_STDERR: usize = 64 * 1024;

/// Bytes of standard error that stand in an error, if it has more than one line.
const STDERR_BYTES: usize = 4000;

/// Lines of standard error that stand in an error.
const STDERR_LINES: usize = 20;

/// What to run.
#[derive(Clone, Debug)]
pub struct Child {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub directory: PathBuf,
    /// All of the child's environment; nothing is inherited.
    pub environment: Vec<(OsString, OsString)>,
    /// What it finds on standard input.
    pub input: Vec<u8>,
    pub deadline: Duration,
    /// Longest standard output, in bytes.
    pub max_output: usize,
    /// Directories of this render alone. A worker has them moved to where it can read them.
    pub places: Vec<PathBuf>,
    /// What it may do: there is no child without one.
    pub sandbox: Sandbox,
}

/// What a successful child wrote.
#[derive(Clone, Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// How a child ended, well or not.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// Its start, up to a bound.
    pub stderr: Vec<u8>,
}

/// Why a child gave no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("`{program}` could not be started")]
    Start {
        program: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("`{command}` failed: {status}{}", indented(stderr))]
    Failed {
        command: String,
        status: String,
        stderr: String,
        /// What its sandbox may have to do with it.
        hint: Option<String>,
    },
    #[error("`{command}` did not finish within {}", humantime::format_duration(*after))]
    Deadline { command: String, after: Duration },
    #[error("`{command}` wrote more than {limit} bytes")]
    TooLong { command: String, limit: usize },
    #[error("`{command}` wrote more than {} MiB to disk", limit >> 20)]
    Disk { command: String, limit: u64 },
    #[error("the output of `{command}` could not be read")]
    Read {
        command: String,
        #[source]
        source: Arc<io::Error>,
    },
}

impl ProcessError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Start { program, source } if source.kind() == io::ErrorKind::NotFound => {
                let flag = match (program.contains("helm"), program.contains("kustomize")) {
                    (true, false) => "`--helm`",
                    (false, true) => "`--kustomize`",
                    _ => "`--helm` or `--kustomize`",
                };
                Some(format!("install it, or say where it is with {flag}"))
            }
            Self::Failed { hint, .. } => hint.clone(),
            Self::Deadline { .. } => Some("raise `--render-timeout`, and Argo CD's own timeouts with it".into()),
            _ => None,
        }
    }

    /// What the child wrote on standard error.
    pub fn stderr(&self) -> &str {
        match self {
            Self::Failed { stderr, .. } => stderr,
            _ => "",
        }
    }
}

/// What runs a child. Both ways give the same, byte for byte.
#[derive(Clone, Debug, Default)]
pub enum Runner {
    #[default]
    Process,
    /// A process that is there already.
    Pool(Arc<Pool>),
}

impl Runner {
    /// Runs the child to its end. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]; a failed child's standard error is in it.
    pub async fn run(&self, child: &Child) -> Result<Output, ProcessError> {
        match self {
            Self::Process => child.run().await,
            Self::Pool(pool) => pool.run(child).await,
        }
    }
}

/// The file of a program, looked for as a shell does, from here: for a child, a relative path would lead from its own directory.
pub fn which(program: &Path) -> Option<PathBuf> {
    let is_name = program.components().count() == 1 && !program.is_absolute();
    let places: Vec<PathBuf> = if is_name {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).collect()
    } else {
        vec![program.to_owned()]
    };
    let is_program = |place: &PathBuf| {
        std::fs::metadata(place).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    std::path::absolute(places.into_iter().find(is_program)?).ok()
}

impl Child {
    /// Runs the child to its end. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]; a failed child's standard error is in it.
    pub async fn run(&self) -> Result<Output, ProcessError> {
        let Finished { status, stdout, stderr } = self.finish().await?;
        self.ended(if status.success() { None } else { Some(status_text(status)) }, stdout, &stderr)
    }

    /// Runs the child to its end, whatever that is. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// [`ProcessError`] when it cannot be started or has no end within the bounds.
    pub async fn finish(&self) -> Result<Finished, ProcessError> {
        // With a path it is spawned; for a name, this whole process would be forked first.
        let program = match which(&self.program) {
            Some(program) => program,
            None if self.program.is_absolute() => self.program.clone(),
            None => return Err(self.not_started(io::ErrorKind::NotFound.into())),
        };
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            .current_dir(&self.directory)
            .env_clear()
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .envs(self.sandbox.environment())
            .stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let (mut child, group) = self.sandbox.spawn(&mut command).map_err(|error| self.not_started(error))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let stdin = child.stdin.take();
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input is free to do so.
                let _ = stdin.write_all(&self.input).await;
            }
            Ok(())
        };
        let work = async {
            let reads = (read(stdout, self.max_output, false), read(stderr, MAX_STDERR, true));
            let (stdout, stderr, ()) = tokio::try_join!(reads.0, reads.1, write)?;
            Ok::<_, io::Error>(Finished { status: child.wait().await?, stdout, stderr })
        };
        let finished = tokio::select! {
            finished = tokio::time::timeout(self.deadline, work) => finished,
            limit = self.sandbox.too_much_written() => return Err(ProcessError::Disk { command: self.command(), limit }),
        };
        let finished = match finished {
            Err(_) => return Err(ProcessError::Deadline { command: self.command(), after: self.deadline }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(ProcessError::TooLong { command: self.command(), limit: self.max_output });
            }
            Ok(Err(source)) => return Err(ProcessError::Read { command: self.command(), source: Arc::new(source) }),
            Ok(Ok(finished)) => finished,
        };
        // What it started and left ends, too: the group is its own until the last of it is gone.
        drop(group);
        Ok(finished)
    }

    fn not_started(&self, source: io::Error) -> ProcessError {
        ProcessError::Start { program: self.program.display().to_string(), source: Arc::new(source) }
    }

    /// What a child gives that ended: well, or with this status.
    fn ended(&self, status: Option<String>, stdout: Vec<u8>, stderr: &[u8]) -> Result<Output, ProcessError> {
        let stderr = String::from_utf8_lossy(stderr).into_owned();
        match status {
            None => Ok(Output { stdout, stderr }),
            Some(status) => {
                let hint = self.sandbox.hint(&stderr);
                Err(ProcessError::Failed { command: self.command(), status, stderr: clean(&stderr), hint })
            }
        }
    }

    /// Program and subcommand, for messages. The other arguments may hold values.
    fn command(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str());
        let words =
            self.arguments.iter().take_while(|word| !word.to_string_lossy().starts_with('-') && !Path::new(word).is_absolute());
        let words = words.take(3).map(|word| printable(&word.to_string_lossy()));
        std::iter::once(program.to_string_lossy().into_owned()).chain(words).collect::<Vec<_>>().join(" ")
    }
}

/// Reads to the end. Past the limit: an error, or with `drain` the rest is thrown away so that the child can go on.
async fn read(mut from: impl AsyncRead + Unpin, limit: usize, drain: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(bytes);
        }
        let room = limit - bytes.len();
        if count > room && !drain {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        bytes.extend_from_slice(&buffer[..count.min(room)]);
    }
}

fn status_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// The last lines, free of control characters. The end is where tools say what is wrong.
fn clean(stderr: &str) -> String {
    // Directories of one request: with their names the same failure would have another text each time.
    static PRIVATE: LazyLock<Regex> = LazyLock::new(|| {
        let place = r#"[^\s'"`:=(]*/(?:request|pinion)-[A-Za-z0-9]{6}/(?:(?:checkout|files|home)/)?"#;
        Regex::new(place).expect("the pattern is a constant")
    });
    let stderr = PRIVATE.replace_all(stderr, "");
    // Some tools print their whole usage behind the error.
    let usage = |line: &&str| !line.starts_with("Usage:");
    // Where a Go program was when it gave up helps nobody here.
    let trace = |line: &&str| !line.starts_with("goroutine ") && !line.starts_with("runtime stack:");
    let told = stderr.lines().take_while(usage).take_while(trace);
    let is_idle = |line: &&str| line.trim().is_empty() || line.starts_with("level=INFO") || line.starts_with("level=DEBUG");
    let lines: Vec<&str> = told.filter(|line| !is_idle(line)).collect();
    let mut from = lines.len().saturating_sub(STDERR_LINES);
    while from + 1 < lines.len() && lines[from..].iter().map(|line| line.len().min(1000)).sum::<usize>() > STDERR_BYTES {
        from += 1;
    }
    let long = |line: &str| {
        line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).take(1000).collect::<String>()
    };
    lines[from..].iter().map(|line| long(line)).collect::<Vec<_>>().join("\n")
}

fn indented(stderr: &str) -> String {
    stderr.lines().fold(String::new(), |text, line| text + "\n  " + line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::{Level, Mode, Sandboxes};

    fn shell(script: &str) -> Child {
        Child {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            directory: std::env::temp_dir(),
            environment: vec![("GIVEN".into(), "1".into())],
            input: Vec::new(),
            deadline: Duration::from_secs(20),
            max_output: 1024,
            places: Vec::new(),
            sandbox: sandboxes().offline(Path::new("/bin/sh")).expect("taken as it is").with_programs(),
        }
    }

    fn sandboxes() -> Sandboxes {
        Sandboxes::new(Mode::BestEffort, Level::probe(), Vec::new())
    }

    #[tokio::test]
    async fn a_child_has_only_the_environment_that_it_is_given() {
        let output = shell("echo $GIVEN-$CARGO_MANIFEST_DIR; echo note >&2").run().await.expect("success");
        assert_eq!((output.stdout.as_slice(), output.stderr.as_str()), (&b"1-\n"[..], "note\n"));
    }

    #[tokio::test]
    async fn a_child_reads_its_input_or_not() {
        let cat = Child { input: b"input".to_vec(), ..shell("cat") };
        assert_eq!(cat.run().await.expect("success").stdout, b"input");
        let deaf = Child { input: vec![b'x'; 1 << 20], ..shell("exec <&-; echo done") };
        assert_eq!(deaf.run().await.expect("success").stdout, b"done\n");
    }

    #[tokio::test]
    async fn a_failing_child_says_why() {
        let error = shell("echo 'Error: no\x1b[31m'>&2; exit 3").run().await.expect_err("exit 3");
        assert_eq!(error.to_string(), "`sh` failed: exit status 3\n  Error: no\u{fffd}[31m");
        let script = "echo permission denied >&2; exit 1";
        let off = Sandboxes::new(Mode::Off, Level::probe(), Vec::new()).offline(Path::new("/bin/sh")).expect("none");
        let other = Child { sandbox: off, ..shell(script) }.run().await.expect_err("exit 1");
        assert_eq!(other.hint(), None, "it is not kept from anything");
        let kept = shell(script).run().await.expect_err("exit 1");
        assert_eq!(kept.hint().is_some(), Level::probe().landlock > 0 || Level::probe().seccomp);
        let missing = Child { program: "/does/not/exist".into(), ..shell("") };
        assert!(missing.run().await.expect_err("no program").hint().is_some());
    }

    #[test]
    fn the_same_failure_has_the_same_text() {
        for (told, expected) in [
            ("Error: '/tmp/w/_cmp_server/request-9mDe9V/app/x' is missing", "Error: 'app/x' is missing"),
            ("no such file: /tmp/pinion-a1B2c3/checkout/o/k.yaml: no", "no such file: o/k.yaml: no"),
            ("stat /tmp/pinion-a1B2c3/files/values.yaml", "stat values.yaml"),
            ("fatal error: out of memory\n\nruntime stack:\nx\ngoroutine 1 [running]:\ny", "fatal error: out of memory"),
            ("https://example.com/request-1/x", "https://example.com/request-1/x"),
        ] {
            assert_eq!(clean(told), expected);
        }
    }

    #[tokio::test]
    async fn a_program_is_found_as_a_shell_finds_it_but_from_here() {
        assert!(which(Path::new("sh")).is_some_and(|path| path.is_absolute() && path.ends_with("sh")));
        assert_eq!(which(Path::new("there-is-no-such-program")), None);
        // Paths lead from here, and only to what can be run.
        assert!(which(Path::new("scripts/tools")).is_some_and(|path| path.is_absolute()));
        assert_eq!(which(Path::new("./Cargo.toml")), None);
        // Not one that a tenant put below the same path in the child's directory.
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("tool"), "#!/bin/sh\necho tenant\n").expect("written");
        std::fs::set_permissions(dir.path().join("tool"), PermissionsExt::from_mode(0o755)).expect("set");
        let relative = Child { program: "./tool".into(), directory: dir.path().to_owned(), ..shell("") };
        assert!(relative.run().await.expect_err("not from here").hint().is_some());
        let named = Child { program: "sh".into(), directory: "/".into(), ..shell("pwd") };
        assert_eq!(named.run().await.expect("success").stdout, b"/\n");
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_at_the_deadline() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let child = shell(&format!("sleep 600 & echo $! > {}; wait", file.path().display()));
        let sandbox = child.sandbox.clone().writing(file.path());
        let child = Child { deadline: Duration::from_secs(3), sandbox, ..child };
        assert!(matches!(child.run().await, Err(ProcessError::Deadline { .. })));
        let pid: i32 = std::fs::read_to_string(file.path()).expect("a pid").trim().parse().expect("a number");
        for _ in 0..6000 {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the grandchild lives on");
    }

    #[tokio::test]
    async fn a_sandbox_holds_the_child_and_what_it_starts() {
        let level = Level::probe();
        if level.landlock == 0 || !level.seccomp {
            assert!(std::env::var_os("CI").is_none(), "this kernel has no sandbox: {level}");
            eprintln!("SKIPPED a_sandbox_holds_the_child_and_what_it_starts: this kernel has {level}");
            return;
        }
        let [inside, home, outside] = [0; 3].map(|_| tempfile::tempdir().expect("a directory"));
        std::fs::write(inside.path().join("file"), "inside").expect("written");
        std::fs::write(outside.path().join("file"), "s3cret").expect("written");
        let sandbox = sandboxes().offline(Path::new("/bin/sh")).expect("kept").with_programs();
        let sandbox = sandbox.reading(inside.path()).writing(home.path());
        let [i, h, o] = [&inside, &home, &outside].map(|dir| dir.path().display().to_string());
        let run = async |script: String| {
            let child = Child { directory: inside.path().to_owned(), sandbox: sandbox.clone(), ..shell(&script) };
            child.run().await.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        assert_eq!(run(format!("cat file; echo x > {h}/x; cat {h}/x /dev/null")).await.expect("permitted"), "insidex\n");
        for script in [
            format!("cat {o}/file"),
            format!("ln -s {o}/file {h}/link; cat {h}/link"),
            format!("sh -c 'cat {o}/file'"),
            format!("ls {o}"),
            format!("echo x > {i}/x"),
            format!("echo x > {o}/x"),
            "cat /proc/$PPID/environ".to_owned(),
        ] {
            let refused = run(script.clone()).await.map_err(|error| error.to_string()).expect_err(&script);
            assert!(refused.contains("Permission denied") || refused.contains("cannot create"), "{script}: {refused}");
        }
        // Only the child is inside.
        assert_eq!(std::fs::read_to_string(outside.path().join("file")).expect("ours to read"), "s3cret");
    }

    #[tokio::test]
    async fn what_a_child_started_and_left_ends_with_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let child = shell(&format!("setsid true; sleep 600 >/dev/null 2>&1 & echo $! > {}; echo $?", file.path().display()));
        let sandbox = child.sandbox.clone().writing(file.path());
        let output = Child { sandbox, ..child }.run().await.expect("success");
        assert!(!Level::probe().seccomp || output.stderr.contains("Operation not permitted"), "{}", output.stderr);
        let pid = std::fs::read_to_string(file.path()).expect("a pid");
        for _ in 0..6000 {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it lives on");
    }

    #[tokio::test]
    async fn what_a_child_writes_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = format!("for i in 1 2 3; do head -c 3000000 /dev/zero > {}/$i; done; sleep 600", dir.path().display());
        let mut sandbox = shell("").sandbox.writing(dir.path());
        sandbox.written = 8_000_000;
        let error = Child { sandbox, ..shell(&script) }.run().await.expect_err("too much");
        assert_eq!(error.to_string(), "`sh` wrote more than 7 MiB to disk");
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let small = sandboxes().with(None, Some(64 << 20)).offline(Path::new("/bin/sh")).expect("taken as it is").with_programs();
        let script = "head -c 200000000 /dev/zero | tail -c 190000000 | wc -c";
        // The bound comes when the process is there already.
        let script_within = format!("until [ \"$(ulimit -d)\" != unlimited ]; do :; done; {script}");
        let child = Child { sandbox: small, ..shell(&script_within) };
        let small = child.run().await.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        assert_ne!(small.as_deref().ok(), Some("190000000"), "it had the memory all the same");
        let large = shell(script).run().await.expect("it has the memory");
        assert_eq!(String::from_utf8_lossy(&large.stdout).trim(), "190000000");
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let error = shell("head -c 5000 /dev/zero; sleep 600").run().await.expect_err("too long");
        assert_eq!(error.to_string(), "`sh` wrote more than 1024 bytes");
        let quiet = shell("head -c 500000 /dev/zero >&2; echo done").run().await.expect("stderr is cut, not fatal");
        assert_eq!(quiet.stderr.len(), MAX_STDERR);
    }
}
