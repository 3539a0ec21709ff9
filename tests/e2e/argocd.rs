//! Argo CD's own parts, in the cluster's namespace `argocd`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::Cluster;
use crate::part::{Part, free_port, listens, until};
use crate::support::driver::root;

/// What Argo CD needs before its parts start. Applications may be in the namespace `team-a`, too.
const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: argocd-cm, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
---
apiVersion: v1
kind: Secret
metadata: {name: argocd-secret, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
stringData: {server.secretkey: e2e}
---
apiVersion: argoproj.io/v1alpha1
kind: AppProject
metadata: {name: default, namespace: argocd}
spec:
  sourceRepos: ['*']
  sourceNamespaces: [team-a]
  destinations: [{namespace: '*', server: '*'}]
  clusterResourceWhitelist: [{group: '*', kind: '*'}]
---
# The Deployment that the sidecar is added to, with the names of Argo CD's own manifests.
apiVersion: apps/v1
kind: Deployment
metadata: {name: argocd-repo-server, namespace: argocd}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: argocd-repo-server}}
  template:
    metadata: {labels: {app.kubernetes.io/name: argocd-repo-server}}
    spec:
      containers:
        - name: argocd-repo-server
          image: argocd
          volumeMounts: [{name: plugins, mountPath: /home/argocd/cmp-server/plugins}]
      volumes:
        - {name: plugins, emptyDir: {}}
        - {name: var-files, emptyDir: {}}
        - name: tls-certs
          configMap: {name: argocd-tls-certs-cm, optional: true}
---
# What Argo Rollouts would install: only so that a Rollout can be created.
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.argoproj.io}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {kind: Rollout, plural: rollouts, singular: rollout}
  versions:
    - name: v1alpha1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// Redis, repo-server, application controller and ApplicationSet controller. `plugins` is the directory of the plugin sockets.
pub fn start(cluster: &Cluster, directory: &Path, plugins: &Path) -> Vec<Part> {
    for namespace in ["argocd", "team-a"] {
        cluster.kubectl(&["create", "namespace", namespace], "");
    }
    let definitions = root().join(".tools/argo-cd");
    cluster.kubectl(&["apply", "--server-side", "-f", &definitions.display().to_string()], "");
    // Their conditions are not there at once, which kubectl takes for an error.
    until("the definitions are established", || {
        cluster.run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").is_ok()
    });
    // The definition of the Rollout is in here, and one of its kind is created only later.
    cluster.apply(OBJECTS);
    for part in ["tls", "ssh", "gpg", "tmp"] {
        fs::create_dir_all(directory.join(part)).expect("made");
    }
    fs::write(directory.join("ssh/ssh_known_hosts"), "").expect("written");
    let path = std::env::var("PATH").unwrap_or_default();
    let variables = [
        ("KUBECONFIG", cluster.kubeconfig.clone()),
        ("ARGOCD_FAKE_IN_CLUSTER", "true".into()),
        ("ARGOCD_GPG_ENABLED", "false".into()),
        ("ARGOCD_GNUPGHOME", directory.join("gpg")),
        ("ARGOCD_TLS_DATA_PATH", directory.join("tls")),
        ("ARGOCD_SSH_DATA_PATH", directory.join("ssh")),
        ("ARGOCD_PLUGINSOCKFILEPATH", plugins.to_owned()),
        ("TMPDIR", directory.join("tmp")),
        ("HOME", directory.join("tmp")),
        ("PATH", format!("{}:{path}", root().join(".tools/bin").display()).into()),
    ] as [(&str, PathBuf); 10];
    let [redis, repo_server, repo_metrics, app_metrics, set_metrics, set_probe, set_webhook] =
        std::array::from_fn(|_| free_port());
    let local = |port: u16| format!("127.0.0.1:{port}");
    let part = |name: &str, arguments: &[String]| {
        Part::start(directory, name, name, |command: &mut Command| {
            command.env_clear().envs(variables.clone()).args(arguments);
        })
    };
    let ports = |port: u16, metrics: u16| {
        [
            "--port",
            &port.to_string(),
            "--metrics-port",
            &metrics.to_string(),
            "--address",
            "127.0.0.1",
            "--metrics-address",
            "127.0.0.1",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let mut cache = Part::start(directory, "redis", "redis", |command| {
        command.args(["--port", &redis.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(directory);
    });
    cache.wait_for(|| listens(redis));
    let mut renderer = part(
        "argocd-repo-server",
        &[words(&["--disable-tls", "--redis", &local(redis)]), ports(repo_server, repo_metrics)].concat(),
    );
    renderer.wait_for(|| listens(repo_server));
    let sources = local(repo_server);
    let controller = part(
        "argocd-application-controller",
        &words(&[
            "--namespace=argocd",
            "--application-namespaces=team-a",
            "--repo-server",
            &sources,
            "--repo-server-plaintext",
            "--redis",
            &local(redis),
            "--app-resync=60",
            "--metrics-port",
            &app_metrics.to_string(),
        ]),
    );
    let sets = part(
        "argocd-applicationset-controller",
        &words(&[
            "--namespace=argocd",
            "--argocd-repo-server",
            &sources,
            "--repo-server-plaintext",
            "--metrics-addr",
            &local(set_metrics),
            "--probe-addr",
            &local(set_probe),
            "--webhook-addr",
            &local(set_webhook),
        ]),
    );
    vec![cache, renderer, controller, sets]
}
