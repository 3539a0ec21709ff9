//! The kubelet's work for one container: starts the sidecar of the repo-server's Deployment as the API server has it, with its volumes,
//! variables, user and restrictions, by podman and runc.
//!
//! Its image is built by the Dockerfile, from a Debian that `scripts/tools base-image` made, with the programs of this build: those of
//! the other stages would take as long again.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::part::{Part, listens};
use crate::support::driver::{root, tool};

/// The owner of mounted secrets, which a kubelet would make readable for the group `fsGroup`.
const USER: u32 = 999;

/// The image, by the name that the values of the chart have.
pub const IMAGE: &str = "localhost/pinion:0.1.0";

#[derive(Debug)]
pub struct Sidecar {
    directory: PathBuf,
    /// Where `emptyDir` and other volumes are. They outlive the container.
    volumes: PathBuf,
    part: Option<Part>,
    started: usize,
}

impl Sidecar {
    /// Builds the image.
    pub fn new(directory: &Path) -> Self {
        let volumes = directory.join("volumes");
        fs::create_dir_all(&volumes).expect("made");
        let sidecar = Self { directory: directory.to_owned(), volumes, part: None, started: 0 };
        sidecar.build();
        sidecar
    }

    fn build(&self) {
        let base = root().join(".tools/base-image/rootfs.tar");
        assert!(base.is_file(), "the base image is missing: run `make e2e`");
        let container = self.buildah(&["from", "scratch"]);
        self.buildah(&["add", &container, &base.display().to_string(), "/"]);
        self.buildah(&["commit", "--quiet", &container, "localhost/base:1"]);
        self.buildah(&["rm", &container]);
        let here = root().display().to_string();
        let isolated = ["build", "--isolation", "chroot", "--network", "host", "--quiet"];
        let runtime =
            ["--target", "runtime", "--build-arg", "BASE_IMAGE=localhost/base:1", "--tag", "localhost/runtime:1", &here];
        self.buildah(&[&isolated[..], &runtime].concat());
        let programs = self.directory.join("programs");
        fs::create_dir_all(&programs).expect("made");
        fs::copy(env!("CARGO_BIN_EXE_pinion"), programs.join("pinion")).expect("copied");
        fs::copy(found("helm-worker"), programs.join("helm")).expect("copied");
        fs::copy(found("kustomize"), programs.join("kustomize")).expect("copied");
        let layer = "FROM localhost/runtime:1\nCOPY pinion helm kustomize /usr/local/bin/\n";
        fs::write(programs.join("Dockerfile"), layer).expect("written");
        self.buildah(&[&isolated[..], &["--tag", IMAGE, &programs.display().to_string()]].concat());
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        let output = self.storage("buildah").args(arguments).output().expect("buildah starts");
        assert!(output.status.success(), "buildah {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// The directory of the plugin sockets.
    pub fn plugins(&self) -> PathBuf {
        self.volume("plugins")
    }

    fn volume(&self, name: &str) -> PathBuf {
        let path = self.volumes.join(name);
        fs::create_dir_all(&path).expect("made");
        // As an emptyDir is: everybody may write.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("set");
        path
    }

    /// Starts the container and waits until the plugin socket is there.
    pub fn start(&mut self, cluster: &Cluster) {
        let deployment = cluster.get("argocd", "deployment/argocd-repo-server");
        let pod = &deployment["spec"]["template"]["spec"];
        let container =
            list(&pod["containers"]).iter().find(|container| container["name"] == "pinion").expect("the sidecar is there");
        let security = &container["securityContext"];
        self.started += 1;
        // Whatever happens to the tests, the container ends after an hour.
        let mut arguments: Vec<String> =
            ["--runtime", "runc", "run", "--rm", "--timeout", "3600", "--network", "host", "--pull", "never"]
                .into_iter()
                .chain(["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096", "--name", &self.name()])
                .map(str::to_owned)
                .collect();
        arguments.extend(["--user".into(), format!("{}:{}", security["runAsUser"], security["runAsGroup"])]);
        if security["readOnlyRootFilesystem"] == true {
            arguments.extend(["--read-only".into(), "--read-only-tmpfs=false".into()]);
        }
        if security["allowPrivilegeEscalation"] == false {
            arguments.extend(["--security-opt".into(), "no-new-privileges".into()]);
        }
        for dropped in list(&security["capabilities"]["drop"]) {
            arguments.extend(["--cap-drop".into(), text(dropped).to_lowercase()]);
        }
        let mounted = list(&container["volumeMounts"]).iter().map(|mount| {
            let volume =
                list(&pod["volumes"]).iter().find(|volume| volume["name"] == mount["name"]).expect("the volume is there");
            let mode = if mount["readOnly"] == true { ":ro" } else { "" };
            format!("{}:{}{mode}", self.filled(cluster, volume).display(), text(&mount["mountPath"]))
        });
        for volume in mounted {
            arguments.extend(["--volume".into(), volume]);
        }
        for variable in list(&container["env"]) {
            let name = text(&variable["name"]);
            let secret = &variable["valueFrom"]["secretKeyRef"];
            let value = match variable["value"].as_str() {
                Some(value) => value.to_owned(),
                None => secret_key(&cluster.get("argocd", &format!("secret/{}", text(&secret["name"]))), text(&secret["key"])),
            };
            arguments.extend(["--env".into(), format!("{name}={value}")]);
        }
        // podman takes the first word of Kubernetes' `command` as the entry point.
        let mut words = list(&container["command"]).iter().chain(list(&container["args"])).map(|word| text(word).to_owned());
        arguments.extend(words.next().into_iter().flat_map(|program| ["--entrypoint".into(), program]));
        arguments.push(text(&container["image"]).to_owned());
        arguments.extend(words);
        let podman = self.podman();
        let mut part = Part::start(&self.directory, &self.name(), "podman", |command: &mut Command| {
            command.args(podman.get_args()).args(arguments);
        });
        let socket = self.plugins().join("pinion@v1.sock");
        part.wait_for(|| socket.exists());
        self.part = Some(part);
    }

    /// Waits until the admin port answers, as the readiness probe does.
    pub fn wait_until_ready(&mut self, port: u16) {
        self.part.as_mut().expect("it was started").wait_for(|| listens(port));
    }

    /// Kills the container: not even the socket is removed.
    pub fn kill(&mut self) {
        assert!(self.try_kill(), "nothing was killed");
        assert!(self.plugins().join("pinion@v1.sock").exists(), "a killed process leaves its socket");
    }

    /// Ending podman would leave the container.
    fn try_kill(&mut self) -> bool {
        let name = self.name();
        let killed = self.podman().args(["kill", "--signal", "KILL", &name]).output();
        self.part = None;
        killed.is_ok_and(|output| output.status.success())
    }

    fn name(&self) -> String {
        format!("pinion-{}", self.started)
    }

    /// A program with a storage of its own: nothing of the machine's containers is touched.
    fn storage(&self, program: &str) -> Command {
        let own = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(tool(program).unwrap_or_else(|| panic!("{program} is missing: run `make e2e`")));
        command.args(["--root", &own("storage"), "--runroot", &own("run"), "--storage-driver", "overlay"]);
        command
    }

    fn podman(&self) -> Command {
        let mut command = self.storage("podman");
        command.args(["--cgroup-manager", "cgroupfs"]);
        command
    }

    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.part.iter()
    }

    /// The volume with the files of its ConfigMaps and Secrets.
    fn filled(&self, cluster: &Cluster, volume: &Value) -> PathBuf {
        let path = self.volume(text(&volume["name"]));
        let projected = list(&volume["projected"]["sources"]);
        for source in std::iter::once(volume).chain(projected) {
            if let Some(name) = source["configMap"]["name"].as_str() {
                let map = cluster.get("argocd", &format!("configmap/{name}"));
                assert!(!map.is_null() || source["configMap"]["optional"] == true, "ConfigMap {name} is missing");
                let items = list(&source["configMap"]["items"]);
                for (key, content) in map["data"].as_object().into_iter().flatten() {
                    let item = items.iter().find(|item| item["key"] == key.as_str());
                    if items.is_empty() || item.is_some() {
                        let file = item.map_or(key.as_str(), |item| text(&item["path"]));
                        fs::write(path.join(file), text(content)).expect("written");
                    }
                }
            }
            if let Some(name) = source["secret"]["secretName"].as_str().or(source["secret"]["name"].as_str()) {
                let secret = cluster.get("argocd", &format!("secret/{name}"));
                for key in secret["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
                    let file = path.join(key);
                    fs::write(&file, secret_key(&secret, key)).expect("written");
                    chown(&file, Some(USER), Some(USER)).expect("owned");
                }
            }
        }
        path
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if self.part.is_some() {
            self.try_kill();
        }
        // What is mounted could not be removed with the directory.
        let _ = self.podman().args(["rm", "--force", "--all"]).output();
        let _ = self.storage("buildah").args(["rm", "--all"]).output();
    }
}

fn found(name: &str) -> PathBuf {
    let path = tool(name).unwrap_or_else(|| panic!("{name} is missing: run `make e2e`"));
    path.canonicalize().expect("a file")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn secret_key(secret: &Value, key: &str) -> String {
    use base64::Engine;
    let bytes = base64::prelude::BASE64_STANDARD.decode(text(&secret["data"][key])).expect("base64");
    String::from_utf8(bytes).expect("text")
}
