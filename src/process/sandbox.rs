//! What a child may do, kept by the kernel: Landlock for files and ports, seccomp for system calls.
//!
//! Every child that tenants drive runs in a [`Sandbox`] of one of three profiles. There is no other way to start a [`super::Child`], and
//! a sandbox is made only here:
//!
//! | profile | for | files | network |
//! |---|---|---|---|
//! | [`Profile::Offline`] | Helm always; Kustomize and commands of plugin.yaml | the tool, libraries, certificates, zoneinfo, what the caller names | none: no socket at all |
//! | [`Profile::Git`] | remote bases and resources of Kustomize | as before, and Git with its helpers | TCP to a filtering proxy of ours ([`crate::egress::proxy`]) |
//! | [`Profile::Helper`] | credential helpers, which are the operator's | all, but the environment of others | all |
//!
//! The restrictions are laid on a thread of its own, which then starts the child: both are inherited and cannot be left. What a kernel does
//! not keep is told by [`Level`]; what an operator accepts by [`Mode`]. A refused system call fails with an errno, it does not kill.

mod syscalls;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
    path_beneath_rules,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::group::{Group, Leader};
use super::which;
use crate::egress::proxy::Proxy;
use crate::egress::ssh::Ssh;

/// The newest version of Landlock that is asked for: the newest that was tried.
const NEWEST: u8 = 7;

/// Libraries, and the loader, which is executed.
const LIBRARIES: [&str; 6] = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];

/// What a program reads of a system, and no secret: certificates, time zones, the loader's cache.
const PUBLIC: [&str; 13] = [
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/share/zoneinfo",
];

/// Programs of the system: for tools that are scripts, and for Git, parts of which are.
const PROGRAMS: [&str; 7] = ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/libexec"];

/// What scripts, Git and ssh read besides.
const ACCOUNTS: [&str; 10] = [
    "/etc/alternatives",
    "/etc/group",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/ssh/ssh_config",
    "/etc/ssh/ssh_config.d",
    "/etc/ssh/ssh_known_hosts",
    "/etc/ssl/openssl.cnf",
    "/usr/share/git-core",
];

/// Memory at which Go's collector works harder, for tools that cannot read how much they may have.
const GO_MEMORY: &str = "512MiB";

/// Memory that a process may use, in bytes, unless the operator says otherwise.
const MEMORY: u64 = 2 << 30;

/// Longest file that a process may write, in bytes.
const LONGEST_FILE: u64 = 1 << 30;

/// What a child may write in all, in bytes.
const MAX_WRITTEN: u64 = 2 << 30;

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Offline,
    Git,
    Helper,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offline => "offline",
            Self::Git => "git",
            Self::Helper => "helper",
        })
    }
}

/// What an operator accepts where the kernel keeps less than a profile asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Profile git needs all of it; offline takes what there is.
    #[default]
    #[value(skip)]
    Default,
    /// Refuse the tool
    Require,
    /// Run the tool with what the kernel enforces, and log at start what is missing
    BestEffort,
    /// Run every tool without a sandbox
    Off,
}

/// What a kernel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The version of Landlock; 0 is none.
    pub landlock: u8,
    pub seccomp: bool,
}

/// One thing that a sandbox keeps, if the kernel can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantee {
    /// A short name, for metrics.
    pub name: &'static str,
    pub text: &'static str,
    pub is_kept: bool,
}

/// Name, text, the version of Landlock that is needed, and whether seccomp is.
const GUARANTEES: [(&str, &str, u8, bool); 6] = [
    ("files", "tools open only the files of their render, themselves and public files of the system", 1, false),
    ("truncate", "tools cannot truncate files that they may only read", 3, false),
    ("ports", "tools that fetch by Git or http connect only to the filtering proxy", 4, false),
    ("signals", "tools cannot send signals to other processes, nor connect to abstract Unix sockets", 6, false),
    ("network", "tools that fetch nothing cannot make a socket; the others cannot use UDP, Unix sockets or MPTCP", 0, true),
    ("calls", "tools cannot use io_uring, ptrace, the kernel's keys, or make namespaces", 0, true),
];

impl Level {
    /// Finds out what this kernel keeps, by trying it on a thread that then ends.
    pub fn probe() -> Self {
        let tried = std::thread::spawn(|| {
            let status = Ruleset::default()
                .handle_access(AccessFs::from_all(ABI::V1))
                .and_then(Ruleset::create)
                .and_then(landlock::RulesetCreated::restrict_self);
            let landlock = match status.map(|status| status.landlock) {
                Ok(LandlockStatus::Available { effective_abi, .. }) => effective_abi as u8,
                _ => 0,
            };
            Self { landlock: landlock.min(NEWEST), seccomp: syscalls::is_supported() }
        });
        tried.join().unwrap_or(Self { landlock: 0, seccomp: false })
    }

    /// What is kept, and what is not.
    pub fn guarantees(self) -> impl Iterator<Item = Guarantee> {
        GUARANTEES.into_iter().map(move |(name, text, landlock, seccomp)| {
            let is_kept = self.landlock >= landlock && (self.seccomp || !seccomp);
            Guarantee { name, text, is_kept }
        })
    }

    /// Is a profile kept whole?
    fn keeps(self, profile: Profile) -> bool {
        match profile {
            Profile::Offline => self.landlock >= 1 && self.seccomp,
            Profile::Git => self.landlock >= 4 && self.seccomp,
            Profile::Helper => true,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let landlock = if self.landlock == 0 { "no Landlock".to_owned() } else { format!("Landlock ABI {}", self.landlock) };
        write!(f, "{landlock}, {}", if self.seccomp { "seccomp" } else { "no seccomp" })
    }
}

/// A child's profile is not kept, and the operator does not accept less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this kernel cannot enforce the sandbox profile `{profile}` ({level})")]
pub struct NotKept {
    profile: Profile,
    level: Level,
}

impl NotKept {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self.profile {
            Profile::Git => {
                "remote bases and resources need Linux 6.7 with Landlock and seccomp: vendor them into the repository, or let \
                             the operator accept less with `--sandbox=best-effort`"
                    .to_owned()
            }
            _ => "use a kernel with Landlock (Linux 5.13) and seccomp, or accept less with `--sandbox=best-effort`".to_owned(),
        }
    }
}

/// Makes sandboxes, as the operator and the kernel permit. Clones are the same.
#[derive(Clone, Debug)]
pub struct Sandboxes(Arc<Settings>);

impl Default for Sandboxes {
    /// As much as this kernel keeps.
    fn default() -> Self {
        Self::new(Mode::BestEffort, Level::probe(), Vec::new())
    }
}

#[derive(Debug)]
struct Settings {
    mode: Mode,
    level: Level,
    /// Further paths that children may read and execute.
    readable: Vec<PathBuf>,
    /// The operator's configuration of ssh. With all beside it, ssh alone may read it.
    ssh_config: Option<PathBuf>,
    /// Memory of one process, in bytes.
    memory: u64,
}

impl Sandboxes {
    /// `readable` are paths of the operator's that children may read and execute, and so may whoever can commit a chart.
    pub fn new(mode: Mode, level: Level, readable: Vec<PathBuf>) -> Self {
        Self(Arc::new(Settings { mode, level, readable, ssh_config: None, memory: MEMORY }))
    }

    /// Also with a configuration of ssh, and with another bound for the memory of a process, in bytes.
    #[must_use]
    pub fn with(self, ssh_config: Option<PathBuf>, memory: Option<u64>) -> Self {
        let Settings { mode, level, readable, .. } = &*self.0;
        let memory = memory.unwrap_or(MEMORY);
        Self(Arc::new(Settings { mode: *mode, level: *level, readable: readable.clone(), ssh_config, memory }))
    }

    /// What the kernel keeps, as far as it is used.
    pub fn level(&self) -> Level {
        self.0.level
    }

    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// For a tool without any network.
    ///
    /// # Errors
    ///
    /// [`NotKept`].
    pub fn offline(&self, program: &Path) -> Result<Sandbox, NotKept> {
        self.make(Profile::Offline, program)
    }

    /// For a tool that fetches by Git and http, through a proxy.
    ///
    /// # Errors
    ///
    /// [`NotKept`].
    pub fn git(&self, program: &Path, proxy: Arc<Proxy>) -> Result<Sandbox, NotKept> {
        let mut sandbox = self.make(Profile::Git, program)?;
        sandbox.executable.extend(PROGRAMS.iter().map(PathBuf::from));
        sandbox.readable.extend(ACCOUNTS.iter().map(PathBuf::from));
        // What Git starts in place of ssh.
        sandbox.executable.extend(std::env::current_exe());
        sandbox.port = Some(proxy.port());
        sandbox.proxy = Some(proxy);
        Ok(sandbox)
    }

    /// For ssh, which reaches the proxy on this port, and reads the operator's keys.
    ///
    /// # Errors
    ///
    /// [`NotKept`].
    pub(super) fn ssh(&self, program: &Path, port: u16) -> Result<Sandbox, NotKept> {
        let mut sandbox = self.make(Profile::Git, program)?.with_programs();
        sandbox.executable.extend(std::env::current_exe());
        sandbox.readable.extend(self.ssh_config().and_then(Path::parent).map(Path::to_owned));
        sandbox.port = Some(port);
        Ok(sandbox)
    }

    /// The operator's configuration of ssh.
    pub(super) fn ssh_config(&self) -> Option<&Path> {
        self.0.ssh_config.as_deref()
    }

    /// What runs ssh for Git.
    pub fn for_git(&self) -> Arc<dyn Ssh> {
        Arc::new(self.clone())
    }

    /// For a program of the operator's that yields a credential.
    pub fn helper(&self) -> Sandbox {
        Sandbox::empty(Profile::Helper, &self.0)
    }

    fn make(&self, profile: Profile, program: &Path) -> Result<Sandbox, NotKept> {
        let Settings { mode, level, readable, .. } = &*self.0;
        let is_needed = match mode {
            Mode::Default => profile == Profile::Git,
            Mode::Require => true,
            Mode::BestEffort | Mode::Off => false,
        };
        if is_needed && !level.keeps(profile) {
            return Err(NotKept { profile, level: *level });
        }
        let mut sandbox = Sandbox::empty(profile, &self.0);
        sandbox.executable.extend(LIBRARIES.iter().map(PathBuf::from));
        sandbox.executable.extend(readable.iter().cloned());
        sandbox.readable.extend(PUBLIC.iter().map(PathBuf::from));
        sandbox.readable.extend(["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from));
        Ok(sandbox.running(program))
    }
}

/// The bounds of one child. It can be given more files, and nothing else.
#[derive(Clone, Debug)]
pub struct Sandbox {
    profile: Profile,
    /// None: there is none, by the operator's word.
    level: Option<Level>,
    readable: Vec<PathBuf>,
    /// Read, listed and executed.
    executable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    proxy: Option<Arc<Proxy>>,
    /// The port of loopback that may be connected to.
    port: Option<u16>,
    /// Memory of one process, in bytes; None: all there is.
    memory: Option<u64>,
    /// What it may write in all, in bytes.
    pub(super) written: u64,
}

impl Sandbox {
    fn empty(profile: Profile, settings: &Settings) -> Self {
        let level = (settings.mode != Mode::Off).then_some(settings.level);
        let memory = (profile != Profile::Helper).then_some(settings.memory);
        let paths = Vec::new;
        Self {
            profile,
            level,
            readable: paths(),
            executable: paths(),
            writable: paths(),
            proxy: None,
            port: None,
            memory,
            written: MAX_WRITTEN,
        }
    }

    /// Also lets it run a program; with a script, the programs of the system that scripts call.
    #[must_use]
    pub fn running(mut self, program: &Path) -> Self {
        let Some(file) = which(program) else { return self };
        if is_script(&file) {
            self.executable.extend(PROGRAMS.iter().map(PathBuf::from));
            self.readable.extend(ACCOUNTS.iter().map(PathBuf::from));
        }
        // A link may lead to where nothing else is open.
        self.executable.extend(std::fs::canonicalize(&file));
        self.executable.push(file);
        self
    }

    /// Also lets it call the programs of the system, as a shell does.
    #[must_use]
    pub fn with_programs(mut self) -> Self {
        self.executable.extend(PROGRAMS.iter().map(PathBuf::from));
        self.readable.extend(ACCOUNTS.iter().map(PathBuf::from));
        self
    }

    /// Also lets it read a file, or a directory with all below it.
    #[must_use]
    pub fn reading(mut self, path: impl Into<PathBuf>) -> Self {
        self.readable.push(path.into());
        self
    }

    /// Also lets it execute what is below a directory.
    #[must_use]
    pub fn executing(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable.push(path.into());
        self
    }

    /// Also lets it write a directory and all below it.
    #[must_use]
    pub fn writing(mut self, path: impl Into<PathBuf>) -> Self {
        self.writable.push(path.into());
        self
    }

    /// What a child finds in its environment because of its sandbox: the way out, and what it cannot read of `/proc`.
    pub(super) fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut variables: Vec<(OsString, OsString)> = Vec::new();
        if self.profile == Profile::Helper {
            return variables;
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        variables.extend([("GOMAXPROCS".into(), processors.to_string().into()), ("GOMEMLIMIT".into(), GO_MEMORY.into())]);
        if let Some(proxy) = &self.proxy {
            let url = proxy.url();
            // Git's library takes the name in lower case alone.
            for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "PINION_PROXY"] {
                variables.push((name.into(), url.clone().into()));
            }
            if let Ok(own) = std::env::current_exe() {
                let command = format!("{} ssh", shell_words::quote(&own.to_string_lossy()));
                variables.extend([("GIT_SSH_COMMAND".into(), command.into()), ("GIT_SSH_VARIANT".into(), "ssh".into())]);
            }
            variables.extend([
                // One that is there and may not be read would be fatal.
                ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
                ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
                ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ]);
        }
        variables
    }

    /// What a child that failed can be told of its bounds, if those may be the reason.
    pub(super) fn hint(&self, stderr: &str) -> Option<String> {
        let memory = self.memory.filter(|_| stderr.contains("out of memory") || stderr.contains("cannot allocate memory"));
        if let Some(memory) = memory {
            return Some(format!("a tool may use {} MiB of memory: an operator can raise `--tool-memory`", memory >> 20));
        }
        if self.proxy.as_ref().is_some_and(|proxy| proxy.is_used_up()) {
            return Some(format!("a render may fetch {} MiB", crate::egress::proxy::MAX_BYTES >> 20));
        }
        let refused = self.proxy.as_ref().map(|proxy| proxy.refused()).unwrap_or_default();
        if let Some((host, reason)) = refused.first() {
            let hint = reason.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            return Some(format!("`{host}` may not be connected to: {reason}{hint}"));
        }
        let is_kept = self.level.is_some_and(|level| level.landlock > 0 || level.seccomp);
        let text = stderr.to_ascii_lowercase();
        let is_refusal = ["permission denied", "operation not permitted"].iter().any(|words| text.contains(words));
        if !is_kept || !is_refusal {
            return None;
        }
        match self.profile {
            Profile::Offline => Some("a tool reads no files outside the application's checkout, and has no network of its own".into()),
            Profile::Git => Some(
                "a tool reads no files outside the application's checkout, and connects to what `egress` permits: never to this machine; keys \
                 for ssh are those of `--ssh-config`"
                    .into(),
            ),
            Profile::Helper => None,
        }
    }

    /// Starts a command inside, in a process group that ends with the second of the pair.
    ///
    /// # Errors
    ///
    /// When the restrictions cannot be laid on, or the command cannot be started.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<(Child, Group)> {
        // Of use only where a filter keeps the child in the group.
        let is_kept = self.profile != Profile::Helper && self.level.is_some_and(|level| level.seccomp);
        let leader = is_kept.then(Leader::start).flatten();
        let group = leader.as_ref().and_then(Leader::group);
        command.process_group(Pid::as_raw(group));
        let child = match self.level {
            None => command.spawn(),
            Some(level) => self.spawn_inside(level, group, command),
        }?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let (Some(memory), Some(pid)) = (self.memory, pid) {
            // What it starts has them too. A process that has ended already needs none.
            for (resource, limit) in [(Resource::Data, memory), (Resource::Fsize, LONGEST_FILE), (Resource::Core, 0)] {
                let _ = prlimit(Some(pid), resource, Rlimit { current: Some(limit), maximum: Some(limit) });
            }
        }
        Ok((child, Group(group.or(pid))))
    }

    fn spawn_inside(&self, level: Level, group: Option<Pid>, command: &mut Command) -> io::Result<Child> {
        let runtime = Handle::current();
        let writes = !self.writable.is_empty();
        let filters = if level.seccomp { syscalls::filters(self.profile, writes, group)? } else { Vec::new() };
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let _runtime = runtime.enter();
                self.restrict(level).map_err(io::Error::other)?;
                syscalls::apply(&filters)?;
                command.spawn()
            });
            inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread broke off")))
        })
    }

    /// Waits until the child has written more than it may; for ever if it may write nowhere. Returns that bound, in bytes.
    pub(super) async fn too_much_written(&self) -> u64 {
        if self.writable.is_empty() || self.profile == Profile::Helper {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let writable = self.writable.clone();
            let written = tokio::task::spawn_blocking(move || writable.iter().map(|dir| on_disk(dir)).sum::<u64>()).await;
            if written.is_ok_and(|written| written > self.written) {
                return self.written;
            }
        }
    }

    /// Lays the rules on this thread. Paths that do not exist are left out.
    fn restrict(&self, level: Level) -> Result<(), RulesetError> {
        if level.landlock == 0 {
            return Ok(());
        }
        let abi = ABI::from(i32::from(level.landlock));
        let mut rules = Ruleset::default();
        if self.profile != Profile::Helper {
            rules = rules.handle_access(AccessFs::from_all(abi))?;
        }
        if level.landlock >= 4 && self.profile != Profile::Helper {
            rules = rules.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
        }
        if level.landlock >= 6 {
            rules = rules.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
        } else if self.profile == Profile::Helper {
            return Ok(());
        }
        let mut rules = rules.create()?;
        if self.profile != Profile::Helper {
            let read = AccessFs::ReadFile | AccessFs::ReadDir;
            let null = AccessFs::ReadFile | AccessFs::WriteFile;
            rules = rules
                .add_rules(path_beneath_rules(&self.executable, read | AccessFs::Execute))?
                .add_rules(path_beneath_rules(&self.readable, read))?
                .add_rules(path_beneath_rules([Path::new("/dev/null")], null))?
                .add_rules(path_beneath_rules(&self.writable, AccessFs::from_all(abi)))?;
            if let Some(port) = self.port.filter(|_| level.landlock >= 4) {
                rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
            }
        }
        rules.restrict_self().map(drop)
    }
}

/// Bytes that the files below a directory take on disk.
fn on_disk(dir: &Path) -> u64 {
    let (mut waiting, mut bytes) = (vec![dir.to_owned()], 0);
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}

fn is_script(program: &Path) -> bool {
    let mut start = [0; 2];
    std::fs::File::open(program).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| &start == b"#!")
}
