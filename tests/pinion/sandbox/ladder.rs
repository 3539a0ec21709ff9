//! The tests of the sandbox once more for each level of a kernel, as Argo CD runs a sidecar: user 999 without capabilities, no new
//! privileges, a read-only root, and the default seccomp profile of containers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pinion::process::sandbox::Level;

use super::{ABI, WITHOUT_SECCOMP, hostile};
use crate::fixtures::needs;
use crate::support::driver::{root, skipped, tool};

/// Is this process in the container already?
const INSIDE: &str = "PINION_TEST_INSIDE";

/// Runs the tests of the sandbox in a container at a level.
fn run(abi: Option<u8>, has_seccomp: bool) {
    if std::env::var_os(INSIDE).is_some() || !needs("podman") || !needs("kustomize") || !needs("helm-worker") {
        return;
    }
    if !rustix::process::getuid().is_root() {
        skipped("the tests of the sandbox in a container need root");
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let image = place.path().join("root");
    for dir in ["dev", "etc/ssl", "proc", "sys", "tmp", "usr", "run"] {
        fs::create_dir_all(image.join(dir)).expect("made");
    }
    for dir in ["bin", "lib", "lib64", "sbin"] {
        symlink(format!("usr/{dir}"), image.join(dir)).expect("linked");
    }
    fs::set_permissions(image.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("set");
    fs::write(image.join("etc/passwd"), "argocd:x:999:999::/tmp:/bin/sh\n").expect("written");
    let built = hostile::program(place.path());
    let tests = std::env::current_exe().expect("this program");
    let pinion = PathBuf::from(env!("CARGO_BIN_EXE_pinion"));
    let own = |name: &str| place.path().join(name).display().to_string();
    let mut podman = Command::new(tool("podman").expect("it is there"));
    // Nothing of the machine's own containers is touched.
    podman.args(["--root", &own("storage"), "--runroot", &own("run"), "--storage-driver", "vfs"]);
    podman.args(["--cgroup-manager", "cgroupfs", "--runtime", "runc", "run", "--rm", "--network", "none", "--pull", "never"]);
    podman.args(["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096", "--user", "999:999", "--read-only"]);
    podman.args(["--cap-drop", "all", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:exec,mode=1777"]);
    let parent = |path: &Path| path.parent().expect("it is in a directory").to_owned();
    let mut mounts = vec!["/usr".into(), root(), parent(&tests), parent(&pinion)];
    mounts.extend(["/etc/ssl/certs", "/etc/alternatives"].map(PathBuf::from));
    mounts.dedup();
    for mount in mounts {
        podman.args(["--volume", &format!("{0}:{0}:ro", mount.display())]);
    }
    podman.args(["--volume", &format!("{}:/hostile:ro", built.display())]);
    let variable = |name: &str, value: &str| ["--env".to_owned(), format!("{name}={value}")];
    podman.args(variable(INSIDE, "1")).args(variable("CI", "1")).args(variable("PATH", "/usr/local/bin:/usr/bin:/bin"));
    podman.args(variable(hostile::PROGRAM, "/hostile")).args(variable("HOME", "/tmp"));
    if let Some(abi) = abi {
        podman.args(variable(ABI, &abi.to_string()));
    }
    if !has_seccomp {
        podman.args(variable(WITHOUT_SECCOMP, "true"));
    }
    podman.args(["--workdir", &root().display().to_string(), "--rootfs", &image.display().to_string()]);
    let ran = podman.arg(&tests).args(["sandbox::", "--nocapture"]).output().expect("podman starts");
    let told = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
    assert!(ran.status.success(), "{told}");
    // The tests ran, and not only those that leave at once.
    let passed = told.split_once("test result: ok. ").and_then(|(_, text)| text.split(' ').next()?.parse::<usize>().ok());
    assert!(passed.is_some_and(|passed| passed > 10), "{told}");
    assert!(!told.contains("\nSKIPPED"), "{told}");
}

#[test]
fn at_the_newest_level() {
    let level = Level::probe();
    assert!(std::env::var_os("CI").is_none() || (level.landlock >= 6 && level.seccomp), "CI has a new kernel: {level}");
    run(None, true);
}

#[test]
fn at_abi_4_without_scopes() {
    run(Some(4), true);
}

#[test]
fn at_abi_3_without_ports() {
    run(Some(3), true);
}

#[test]
fn at_abi_1_without_truncation() {
    run(Some(1), true);
}

#[test]
fn without_landlock() {
    run(Some(0), true);
}

#[test]
fn without_seccomp() {
    run(None, false);
}
