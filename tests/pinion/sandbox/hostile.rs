//! A hostile tool in the place of Helm and Kustomize: what it could do is exactly what its profile lists.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use pinion::process::sandbox::Level;

use super::{is_whole, level};
use crate::fixtures::write;
use crate::support::driver::{Driver, root, until};
use crate::support::registry::FakeRegistry;

/// The program, where it was built before: a container has no compiler's directory to write to.
pub const PROGRAM: &str = "PINION_TEST_HOSTILE";

/// Builds the hostile tool, or finds it.
pub fn program(place: &Path) -> PathBuf {
    if let Some(built) = std::env::var_os(PROGRAM) {
        return built.into();
    }
    let (source, program) = (root().join("tests/pinion/sandbox/hostile.c"), place.join("hostile"));
    let built = Command::new("cc").arg("-o").arg(&program).arg(&source).status().expect("a C compiler");
    assert!(built.success(), "{} is not compiled", source.display());
    program
}

/// What a tool of the profile can do although its bounds are kept, at this level. Everything else must be refused.
fn permitted(level: Level, is_git: bool) -> Vec<&'static str> {
    let Level { landlock, seccomp } = level;
    // See docs/sandbox.md: what no level keeps.
    let mut permitted = vec!["read-own", "stat-outside"];
    let mut add = |names: &[&'static str], is_kept: bool| {
        if !is_kept {
            permitted.extend(names);
        }
    };
    let files = ["read-outside", "write-outside", "list-outside", "read-another-request", "shared-memory"];
    add(&files, landlock >= 1);
    add(&["write-own"], landlock >= 1);
    add(&["read-passwd", "run-a-shell"], landlock >= 1 && !is_git);
    add(&["truncate-own"], landlock >= 3);
    add(&["tcp", "bind"], landlock >= 4 || (seccomp && !is_git));
    add(&["mptcp", "fast-open", "listen", "udp", "netlink", "unix"], seccomp);
    add(&["abstract"], landlock >= 6 || seccomp);
    add(&["signal"], landlock >= 6);
    add(&["limits-of-another", "priority-of-another", "system-v-memory", "socket-of-32-bits", "socket-by-x32"], seccomp);
    // A tool that writes somewhere may also change who owns its files, wherever they are.
    add(&["chmod-outside", "times-outside"], seccomp && !is_git);
    add(&["socket-pair"], seccomp && !is_git);
    add(&["new-group", "new-group-by-number", "new-session"], seccomp);
    permitted
}

/// What depends on the kernel and the container around, where the sandbox does not keep it.
const ELSEWHERE: [&str; 16] = [
    "attribute-outside",
    "environment-of-another",
    "io-uring",
    "keys",
    "memory-of-another",
    "namespace",
    "namespace-by-clone3",
    "new-call",
    "read-memory-by-call",
    "signal-by-pidfd",
    "socket-by-x32",
    "socket-of-32-bits",
    "take-a-descriptor",
    "trace",
    "userfault",
    "vsock",
];

/// Does the sandbox refuse one of these at this level?
fn is_refused(name: &str, level: Level, is_git: bool) -> bool {
    match name {
        // To change an attribute is to write; a tool that writes somewhere may.
        "attribute-outside" => level.seccomp && !is_git,
        "environment-of-another" | "memory-of-another" => level.landlock >= 1,
        "read-memory-by-call" | "take-a-descriptor" | "trace" => level.landlock >= 1 || level.seccomp,
        "signal-by-pidfd" => level.seccomp || level.landlock >= 6,
        _ => level.seccomp,
    }
}

/// What the tool looks for, alive until this is dropped.
struct Witnesses {
    place: tempfile::TempDir,
    sibling: Child,
    _sockets: (TcpListener, UdpSocket, UnixListener, UnixListener),
}

impl Drop for Witnesses {
    fn drop(&mut self) {
        let _ = self.sibling.kill();
        let _ = self.sibling.wait();
    }
}

impl Witnesses {
    /// Starts them, and names them in a file of the application's directory.
    fn start(app: &Path) -> Self {
        let place = tempfile::Builder::new().prefix("outside-").tempdir().expect("a directory");
        let outside = place.path().display().to_string();
        fs::write(place.path().join("secret"), "s3cret").expect("written");
        fs::create_dir(place.path().join("request-AAAAAA")).expect("made");
        fs::write(place.path().join("request-AAAAAA/file"), "s3cret").expect("written");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let unix = UnixListener::bind(place.path().join("socket")).expect("a socket");
        let name = place.path().file_name().expect("a name").to_string_lossy().into_owned();
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
        let abstract_socket = UnixListener::bind_addr(&abstract_name).expect("a socket");
        let sibling = Command::new("sleep").arg("600").env("PASSWORD", "s3cret").spawn().expect("it starts");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let port = |address: std::io::Result<std::net::SocketAddr>| address.expect("an address").port();
        let lines = format!(
            "outside {outside}\nrequest {outside}/request-AAAAAA/file\nunix {outside}/socket\nabstract {name}\ntcp {}\nudp {}\n\
             free {free}\nsibling {}\naddress {:x}\n",
            port(tcp.local_addr()),
            port(udp.local_addr()),
            sibling.id(),
            // Somewhere in the sibling's stack or code: it only matters whether the call is permitted.
            stack(sibling.id()),
        );
        write(app, &[("witness", &lines), ("own", "own file\n")]);
        Self { place, sibling, _sockets: (tcp, udp, unix, abstract_socket) }
    }
}

/// An address in the stack of a process.
fn stack(id: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{id}/maps")).expect("our own child");
    let line = maps.lines().find(|line| line.ends_with("[stack]")).expect("a stack");
    let end = line.split([' ', '-']).nth(1).expect("a range");
    u64::from_str_radix(end, 16).expect("a number") - 64
}

/// What the tool reports: by attempt.
fn attempts(manifests: &str) -> BTreeMap<String, String> {
    let lines = manifests.lines().skip_while(|line| *line != "data:").skip(1);
    let pairs = lines.filter_map(|line| line.trim().split_once(": "));
    pairs.map(|(name, result)| (name.to_owned(), result.trim_matches('"').trim().to_owned())).collect()
}

/// Runs the tool in the place of Helm or Kustomize and checks what it could do.
async fn check(files: &[(&str, &str)], is_helm: bool, is_git: bool) {
    is_whole();
    let (place, registry) = (tempfile::tempdir().expect("a directory"), FakeRegistry::start().await);
    let app = place.path().join("app");
    write(&app, files);
    let witnesses = Witnesses::start(&app);
    let tool = program(witnesses.place.path());
    until("the sibling does not run yet", async || {
        fs::read(format!("/proc/{}/cmdline", witnesses.sibling.id())).is_ok_and(|line| line.starts_with(b"sleep"))
    })
    .await;
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry)
        .env("PINION_SANDBOX", "best-effort")
        .env("PINION_API_TOKEN", "s3cret")
        .env("HTTPS_PROXY", "http://user:s3cret@proxy.example.com")
        .env(if is_helm { "PINION_HELM" } else { "PINION_KUSTOMIZE" }, tool.display().to_string());
    let level = level();
    let ran = tokio::task::block_in_place(|| driver.within(&app).run(["generate"]));
    let attempts = attempts(&ran.ok());
    assert!(attempts.len() > 40, "{attempts:#?}");
    let permitted = permitted(level, is_git);
    let told = |name: &&str| attempts.get(*name).map(String::as_str);
    for (name, result) in &attempts {
        let name = name.as_str();
        let is_worked = result == "worked";
        match name {
            "inherited" => assert_eq!(result, "0", "descriptors of ours"),
            "left-behind" => {
                let id: i32 = result.parse().expect("a number");
                let lives = || fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
                if level.seccomp {
                    until("what it started outlives it", async || !lives()).await;
                } else if let Some(pid) = rustix::process::Pid::from_raw(id).filter(|_| lives()) {
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a signal");
                }
            }
            "secrets" => assert_eq!(result, "", "variables with a secret"),
            "environment" => {
                let known = |word: &&str| {
                    let own = ["GIT_", "GO", "HELM_", "HOME", "PATH", "SSL_CERT_", "TMPDIR", "XDG_"];
                    let kustomize = ["ARGOCD_APP_", "KUBE_"];
                    let git = ["ALL_PROXY", "HTTP", "http", "PINION_PROXY"];
                    let is_own = own.iter().chain(kustomize.iter().filter(|_| !is_helm)).any(|start| word.starts_with(start));
                    is_own || (is_git && git.iter().any(|start| word.starts_with(start)))
                };
                let unknown: Vec<&str> = result.split(' ').filter(|word| !known(word)).collect();
                assert_eq!(unknown, Vec::<&str>::new(), "variables that it needs not");
            }
            name if ELSEWHERE.contains(&name) => {
                assert!(!(is_worked && is_refused(name, level, is_git)), "`{name}` worked at {level}");
            }
            name => assert_eq!(is_worked, permitted.contains(&name), "`{name}`: {result}, at {level}"),
        }
    }
    let missing: Vec<&&str> = permitted.iter().filter(|name| told(name).is_none()).collect();
    assert!(missing.is_empty() || !cfg!(target_arch = "x86_64"), "not tried: {missing:?}");
    assert_eq!(fs::read_to_string(witnesses.place.path().join("secret")).expect("there"), "s3cret");
}

const CHART: &[(&str, &str)] = &[("Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n")];

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_helm_can_do_what_the_profile_offline_lists() {
    check(CHART, true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_kustomize_can_do_what_the_profile_offline_lists() {
    check(&[("kustomization.yaml", "resources: [a.yaml]\n"), ("a.yaml", "a: 1\n")], false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_kustomize_that_may_fetch_can_do_what_the_profile_git_lists() {
    check(&[("kustomization.yaml", "resources: ['https://example.com/base?ref=v1']\n")], false, true).await;
}

/// Without `best-effort`, a kernel that does not keep a connection to the proxy lets no tool fetch at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_fetches_needs_its_whole_sandbox() {
    let (place, registry) = (tempfile::tempdir().expect("a directory"), FakeRegistry::start().await);
    write(place.path(), &[("kustomization.yaml", "resources: ['https://example.com/base?ref=v1']\n")]);
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry).within(place.path());
    for (name, value) in [(super::ABI, "3"), (super::WITHOUT_SECCOMP, "true")] {
        let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry).within(place.path()).env(name, value);
        let refused = tokio::task::block_in_place(|| driver.run(["generate"])).err();
        assert!(refused.contains("cannot enforce the sandbox profile `git`"), "{refused}");
        assert!(refused.contains("`--sandbox=best-effort`") && refused.contains("vendor"), "{refused}");
    }
    // With `require`, the same goes for every tool.
    write(place.path(), &[("kustomization.yaml", "resources: []\n")]);
    let driver = driver.env("PINION_SANDBOX", "require").env(super::ABI, "0");
    let refused = tokio::task::block_in_place(|| driver.run(["generate"])).err();
    assert!(refused.contains("sandbox profile `offline`"), "{refused}");
}
