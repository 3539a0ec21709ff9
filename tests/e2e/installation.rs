//! One installation for all scenarios: the cluster, Argo CD, a registry, a Git repository with the examples, and Pinion by its chart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::part::{Part, free_port};
use crate::sidecar::Sidecar;
use crate::support::driver::{root, tool};
use crate::support::examples;
use crate::support::layout::Layout;
use crate::support::real_registry::{ACCOUNT, Guard, Kind, Peer};
use crate::{argocd, part};

/// What has images.
const WORKLOADS: &str = "deployments,rollouts";

/// Fields are dropped in their order: who uses another part goes first.
pub struct Installation {
    pub sidecar: Sidecar,
    argocd: Vec<Part>,
    pub cluster: Cluster,
    /// None after it was stopped.
    pub registry: Option<Peer>,
    pub admin_port: u16,
    /// The working tree of the Git repository.
    pub repository: PathBuf,
    pub directory: TempDir,
}

impl Installation {
    pub fn start() -> Self {
        let mut directory = tempfile::Builder::new().prefix("pinion-e2e-").tempdir().expect("a directory");
        directory.disable_cleanup(std::env::var_os("E2E_KEEP").is_some());
        let registry = Peer::start(Kind::DistributionV3, Guard::Htpasswd).expect("the registry and skopeo are there");
        push(&registry, &examples::images());
        let repository = directory.path().join("deployments");
        copy(&root().join("examples"), &repository);
        git(&repository, &["init", "--quiet", "--initial-branch", "main"]);
        commit(&repository, "examples");
        let cluster = Cluster::start(directory.path());
        let sidecar = Sidecar::new(directory.path());
        let argocd = argocd::start(&cluster, directory.path(), &sidecar.plugins());
        let admin_port = free_port();
        let mut installation = Self { sidecar, argocd, cluster, registry: Some(registry), admin_port, repository, directory };
        installation.install();
        installation
    }

    /// Installs the chart as docs/install.md says, for a private registry.
    fn install(&mut self) {
        let url = self.registry.as_ref().expect("it runs").url();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry", "namespace": "argocd"},
            "stringData": {"credentials": ACCOUNT},
        });
        self.cluster.apply(&secret.to_string());
        let entry = |prefix: &str| json!({"name": prefix, "prefix": prefix, "api_url": url, "limit": 100_000, "credentials": "env:REGISTRY"});
        let mut hub = entry("docker.io");
        hub["default"] = true.into();
        hub["defaultns"] = "library".into();
        let values = json!({
            "image": {"repository": "localhost/pinion", "tag": "0.1.0"},
            "admin": {"address": "127.0.0.1", "port": self.admin_port},
            "config": {"tags-ttl": "0s", "digests-ttl": "0s", "renders-at-once": 2},
            "registries": [hub, entry("ghcr.io")],
            "extraEnv": [{"name": "REGISTRY", "valueFrom": {"secretKeyRef": {"name": "registry", "key": "credentials"}}}],
        });
        let template = |print| template(self.directory.path(), &values.to_string(), print);
        self.cluster.apply(&template(""));
        let patch = template("patch");
        self.cluster.kubectl(&["apply", "--server-side", "--field-manager", "pinion", "-f", "-"], &patch);
        self.sidecar.start(&self.cluster);
        self.sidecar.wait_until_ready(self.admin_port);
    }

    /// Applies an Application or ApplicationSet of the examples, with this installation's repository.
    pub fn apply_example(&self, file: &str) -> Value {
        let text = fs::read_to_string(root().join("examples").join(file)).expect("the file is there");
        let text = text.replace("https://git.example.com/acme/deployments.git", &self.repository_url());
        self.cluster.apply(&text);
        serde_yaml::from_str(&text).expect("YAML")
    }

    pub fn repository_url(&self) -> String {
        format!("file://{}", self.repository.display())
    }

    /// Waits until Argo CD has applied what it renders now.
    #[track_caller]
    pub fn wait_until_synced(&self, namespace: &str, application: &str) {
        self.cluster.wait(namespace, &format!("application/{application}"), |found| {
            let status = &found["status"];
            (status["sync"]["status"] == "Synced" && status["operationState"]["phase"] == "Succeeded").then_some(())
        });
    }

    /// Asks for a hard refresh, as `argocd app get --hard-refresh` does, and waits until it is done.
    #[track_caller]
    pub fn hard_refresh(&self, namespace: &str, application: &str) {
        let object = format!("application/{application}");
        let before = self.cluster.get(namespace, &object)["status"]["reconciledAt"].clone();
        self.cluster.kubectl(&["annotate", "-n", namespace, &object, "argocd.argoproj.io/refresh=hard", "--overwrite"], "");
        self.cluster.wait(namespace, &object, |found| {
            let is_done = found["metadata"]["annotations"]["argocd.argoproj.io/refresh"].is_null();
            (is_done && found["status"]["reconciledAt"] != before).then_some(())
        });
    }

    /// The images of a namespace's Deployments and Rollouts, sorted.
    pub fn images(&self, namespace: &str) -> Vec<String> {
        images(&self.cluster.get(namespace, WORKLOADS))
    }

    /// Waits until a namespace's Deployments and Rollouts have these images.
    #[track_caller]
    pub fn wait_for_images(&self, namespace: &str, expected: &[&str]) {
        self.cluster.wait(namespace, WORKLOADS, |found| (images(found) == expected).then_some(()));
    }

    /// Pushes further images, in the form of `examples/registry.json`.
    pub fn push(&self, images: &Value) {
        push(self.registry.as_ref().expect("it runs"), images);
    }

    /// The end of every log.
    pub fn logs(&self) -> String {
        let parts = self.cluster.parts.iter().chain(&self.argocd).chain(self.sidecar.parts());
        parts.map(|part: &part::Part| part.tail(15)).collect()
    }

    pub fn sidecar_log(&self) -> String {
        self.sidecar.parts().map(Part::log).collect()
    }
}

/// The chart's objects with these values, or one form of the sidecar. The directory is for the file of values.
pub fn template(directory: &Path, values: &str, print: &str) -> String {
    let file = directory.join("values.json");
    fs::write(&file, values).expect("written");
    let mut helm = Command::new(tool("helm").expect("helm is missing: run `make e2e`"));
    helm.args(["template", "pinion"]).arg(root().join("charts/pinion")).args(["--namespace", "argocd", "--values"]).arg(&file);
    let output = helm.args(["--set", &format!("print={print}")]).output().expect("helm starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Writes the repository's changes into one commit.
pub fn commit(repository: &Path, message: &str) {
    git(repository, &["add", "--all"]);
    git(repository, &["-c", "user.name=e2e", "-c", "user.email=e2e@example.com", "commit", "--quiet", "--message", message]);
}

fn git(repository: &Path, arguments: &[&str]) {
    let output = Command::new("git").arg("-C").arg(repository).args(arguments).output().expect("git starts");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    let output = Command::new("cp").arg("-R").arg(from).arg(to).output().expect("cp starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn images(list: &Value) -> Vec<String> {
    let objects = list["items"].as_array().into_iter().flatten();
    let containers = objects.filter_map(|object| object["spec"]["template"]["spec"]["containers"].as_array()).flatten();
    let mut images: Vec<String> = containers.filter_map(|container| container["image"].as_str().map(str::to_owned)).collect();
    images.sort();
    images
}

/// Pushes images: their names with their tags.
fn push(registry: &Peer, images: &Value) {
    for (image, tags) in images.as_object().expect("an object").iter().filter(|(image, _)| *image != "later") {
        let repository = image.split_once('/').expect("a registry").1;
        for tag in tags.as_array().expect("tags") {
            let text = |key: &str| tag[key].as_str().expect("text");
            let layout = Layout::new();
            match tag["platforms"].as_array() {
                None => layout.image("image", text("created")),
                Some(platforms) => {
                    let images: Vec<_> =
                        platforms.iter().map(|platform| (platform.as_str().expect("text"), text("created"))).collect();
                    layout.index("image", &images)
                }
            };
            registry.push(&layout, "image", repository, text("tag"));
        }
    }
}
