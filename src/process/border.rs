//! What a child may open, where its own word is not enough: a border that Linux keeps (Landlock, since 5.13).
//!
//! The border is drawn around a thread of its own, which the child is started from: a domain is inherited and cannot be left. Where the
//! kernel has no Landlock, the child is as free as we are, which is logged.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

use landlock::{
    ABI, Access, AccessFs, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// What programs need of a system: themselves, libraries, certificates and names of hosts. No `/proc`, where others' environments are,
/// no `/run`, and of `/etc` nothing that could be somebody's secret.
const SYSTEM: [&str; 22] = [
    "/bin",
    "/dev/random",
    "/dev/urandom",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/lib",
    "/lib64",
    "/sbin",
    "/usr",
];

/// What may be read and executed besides the system, and what may be written too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Border {
    pub readable: Vec<PathBuf>,
    pub writable: Vec<PathBuf>,
}

impl Border {
    /// Starts a command inside.
    ///
    /// # Errors
    ///
    /// When the border cannot be drawn or the command not be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let runtime = Handle::current();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let _runtime = runtime.enter();
                let status = self.draw().map_err(io::Error::other)?;
                if status.ruleset == RulesetStatus::NotEnforced {
                    warn();
                }
                command.spawn()
            });
            inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread broke off")))
        })
    }

    /// Does this kernel keep borders?
    pub fn is_kept() -> bool {
        let nothing = Self { readable: Vec::new(), writable: Vec::new() };
        let drawn = std::thread::spawn(move || nothing.draw());
        drawn.join().is_ok_and(|drawn| drawn.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced))
    }

    /// Draws it around this thread. Paths that do not exist are left out.
    fn draw(&self) -> Result<RestrictionStatus, RulesetError> {
        let abi = ABI::V3;
        let programs: Vec<PathBuf> =
            std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let certificates = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
        let readable = SYSTEM.iter().map(PathBuf::from).chain(programs).chain(certificates).chain(self.readable.iter().cloned());
        let writable = self.writable.iter().map(PathBuf::as_path).chain([Path::new("/dev/null")]);
        Ruleset::default()
            .handle_access(AccessFs::from_all(abi))?
            .create()?
            .add_rules(path_beneath_rules(readable, AccessFs::from_read(abi)))?
            .add_rules(path_beneath_rules(writable, AccessFs::from_all(abi)))?
            .restrict_self()
    }
}

fn warn() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::warn!(
            "this kernel has no Landlock: without load restrictions a kustomization reads whatever this process can read"
        );
    });
}
