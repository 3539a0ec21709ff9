//! An API server with etcd. There is no kubelet and no controller manager: Deployments stay without Pods.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::part::{PATIENCE, Part, free_port};
use crate::support::driver::tool;

#[derive(Debug)]
pub struct Cluster {
    pub kubeconfig: PathBuf,
    pub parts: Vec<Part>,
}

impl Cluster {
    /// Starts both and waits until the API server is ready.
    pub fn start(directory: &Path) -> Self {
        let place = |name: &str| directory.join(name).display().to_string();
        let (clients, peers, port) = (free_port(), free_port(), free_port());
        let etcd = Part::start(directory, "etcd", "etcd", |command| {
            command.args(["--data-dir", &place("etcd"), "--unsafe-no-fsync"]);
            for (flag, port) in [("listen-client-urls", clients), ("advertise-client-urls", clients), ("listen-peer-urls", peers)]
            {
                command.arg(format!("--{flag}=http://127.0.0.1:{port}"));
            }
        });
        let key = place("service-account.key");
        let made = Command::new("openssl").args(["genrsa", "-out", &key, "2048"]).stderr(Stdio::null()).status();
        assert!(made.is_ok_and(|status| status.success()), "openssl is missing");
        fs::write(directory.join("tokens.csv"), "admin,admin,admin,system:masters\n").expect("written");
        let mut server = Part::start(directory, "kube-apiserver", "kube-apiserver", |command| {
            command.args([
                format!("--etcd-servers=http://127.0.0.1:{clients}"),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".into(),
                format!("--cert-dir={}", place("certificates")),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={key}"),
                format!("--service-account-signing-key-file={key}"),
                format!("--token-auth-file={}", place("tokens.csv")),
                "--authorization-mode=RBAC".into(),
                "--service-cluster-ip-range=10.0.0.0/24".into(),
                "--disable-admission-plugins=ServiceAccount".into(),
            ]);
        });
        let kubeconfig = directory.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: e2e\n\
             contexts: [{{name: e2e, context: {{cluster: e2e, user: admin}}}}]\n\
             clusters: [{{name: e2e, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: admin, user: {{token: admin}}}}]\n"
        );
        fs::write(&kubeconfig, text).expect("written");
        let cluster = |parts| Self { kubeconfig: kubeconfig.clone(), parts };
        let probe = cluster(Vec::new());
        server.wait_for(|| probe.run(&["get", "--raw", "/readyz"], "").is_ok());
        cluster(vec![etcd, server])
    }

    /// Runs kubectl with this input. Returns its output, or what it said.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut child = Command::new(tool("kubectl").expect("kubectl is built"))
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = input.to_owned();
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("the input is written");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        self.run(arguments, input).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// Applies objects on the server's side.
    #[track_caller]
    pub fn apply(&self, objects: &str) {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], objects);
    }

    /// An object, or null if there is none.
    pub fn get(&self, namespace: &str, object: &str) -> Value {
        let found = self.run(&["get", "-n", namespace, object, "-o", "json"], "");
        found.map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"))
    }

    /// Waits until something can be told from an object, and returns it.
    #[track_caller]
    pub fn wait<T>(&self, namespace: &str, object: &str, mut told: impl FnMut(&Value) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            let found = self.get(namespace, object);
            if let Some(told) = told(&found) {
                return told;
            }
            let shown = found.get("status").unwrap_or(&found);
            assert!(started.elapsed() < PATIENCE, "{namespace}/{object} does not become what is expected: {shown:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
