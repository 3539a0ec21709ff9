//! The chart, as `helm template` renders it: one test for each switch, and what it must agree about with the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use serde_json::{Value, json};

use crate::fixtures::{needs, write};
use crate::support::driver::{Driver, root, tool};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

/// What `helm template` printed, or its error.
fn helm(values: &str, print: &str) -> Result<String, String> {
    let home = tempfile::tempdir().expect("a home");
    write(home.path(), &[("values.yaml", values)]);
    let output = Command::new(tool("helm").expect("the tool is there"))
        .args(["template", "pinion"])
        .arg(root().join("charts/pinion"))
        .args(["--namespace", "argocd", "--values"])
        .arg(home.path().join("values.yaml"))
        .args(["--set", &format!("print={print}")])
        .env_clear()
        .env("HOME", home.path())
        .output()
        .expect("helm starts");
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("text"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The documents of a YAML text.
fn documents(text: &str) -> Vec<Value> {
    let text = format!("\n{text}");
    let read = |part: &str| serde_yaml::from_str::<Value>(part).unwrap_or_else(|error| panic!("{error}: {part}"));
    text.split("\n---\n").filter(|part| !part.trim().is_empty()).map(read).collect()
}

/// The objects that the chart installs.
fn objects(values: &str) -> Vec<Value> {
    documents(&helm(values, "").expect("the chart renders"))
}

/// The object of a kind and name.
fn object(values: &str, kind: &str, name: &str) -> Value {
    let all = objects(values);
    let found = all.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.cloned().unwrap_or_else(|| panic!("no {kind} `{name}` in {:?}", names(&all)))
}

/// Kinds and names.
fn names(objects: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    objects.iter().map(|object| format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))).collect()
}

/// One of the forms of the sidecar.
fn printed(values: &str, print: &str) -> Value {
    let mut all = documents(&helm(values, print).expect("the chart renders"));
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// The pod's specification in the patch.
fn pod(values: &str) -> Value {
    printed(values, "patch")["spec"]["template"]["spec"].clone()
}

/// The sidecar.
fn container(values: &str) -> Value {
    pod(values)["containers"][0].clone()
}

/// The item of a list that has this name.
fn named<'v>(list: &'v Value, name: &str) -> Option<&'v Value> {
    list.as_array().into_iter().flatten().find(|item| item["name"] == name)
}

/// The value of a variable of the sidecar.
fn variable(container: &Value, name: &str) -> Value {
    named(&container["env"], name).map_or(Value::Null, |variable| variable["value"].clone())
}

/// Where the sidecar sees a volume.
fn mount(container: &Value, name: &str) -> Value {
    named(&container["volumeMounts"], name).map_or(Value::Null, |mount| mount["mountPath"].clone())
}

/// The text of `pinion serve --help`.
fn help() -> String {
    let output = Command::new(PROGRAM).args(["serve", "--help"]).env_clear().output().expect("the program starts");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_defaults_install_two_config_maps_and_a_service() {
    if !needs("helm") {
        return;
    }
    let all = objects("");
    let found: BTreeSet<String> = names(&all).into_iter().collect();
    let wanted = ["ConfigMap pinion-config", "ConfigMap pinion-plugin", "Service pinion-metrics"];
    assert_eq!(found, BTreeSet::from(wanted.map(str::to_owned)));
    for object in &all {
        assert_eq!(object["metadata"]["namespace"], "argocd");
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/instance"], "pinion");
    }
    let plugin = object("", "ConfigMap", "pinion-plugin");
    let text = std::fs::read_to_string(root().join("plugin.yaml")).expect("the file is there");
    assert_eq!(plugin["data"]["plugin.yaml"].as_str().map(str::trim), Some(text.trim()));
}

#[test]
fn names_namespace_and_labels_can_be_chosen() {
    if !needs("helm") {
        return;
    }
    let values = "{fullnameOverride: tags, namespaceOverride: cd, commonLabels: {team: platform}}";
    let all = objects(values);
    for object in &all {
        assert!(object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("tags-")), "{object}");
        assert_eq!(object["metadata"]["namespace"], "cd");
        assert_eq!(object["metadata"]["labels"]["team"], "platform");
    }
    let pod = pod(values);
    assert_eq!(named(&pod["volumes"], "pinion-plugin").expect("a volume")["configMap"]["name"], "tags-plugin");
    assert_eq!(printed(values, "patch")["metadata"]["namespace"], "cd");
}

/// The three forms come from one template.
#[test]
fn the_three_forms_have_the_same_sidecar() {
    if !needs("helm") {
        return;
    }
    let everything = "
imagePullSecrets: [{name: ghcr}]
dockerConfigSecret: docker
scripts: {configMap: scripts}
sshSecret: git
apiTokenSecret: {name: token}
store: {type: persistentVolumeClaim}
serviceAccountToken: {enabled: true}
extraVolumes: [{name: ca, configMap: {name: ca}}]
extraVolumeMounts: [{name: ca, mountPath: /etc/ca}]
";
    for values in ["", everything, "{mode: generate}"] {
        let patch = printed(values, "patch");
        let pod = &patch["spec"]["template"]["spec"];
        let argo = printed(values, "argo-cd-values");
        assert_eq!(argo["repoServer"]["extraContainers"], pod["containers"]);
        assert_eq!(argo["repoServer"]["volumes"], pod["volumes"]);
        assert_eq!(argo["repoServer"]["imagePullSecrets"], pod["imagePullSecrets"]);
        assert_eq!(argo["global"]["securityContext"], pod["securityContext"]);
        let component = printed(values, "kustomize");
        assert_eq!(component["kind"], "Component");
        let text = component["patches"][0]["patch"].as_str().expect("a text");
        assert_eq!(documents(text), std::slice::from_ref(&patch));
        // Each mount has its volume: here, or in the repo-server's pod.
        for mount in pod["containers"][0]["volumeMounts"].as_array().expect("a list") {
            let name = mount["name"].as_str().expect("a name");
            let theirs = ["plugins", "var-files", "tls-certs"].contains(&name);
            assert!(theirs || named(&pod["volumes"], name).is_some(), "{name}");
        }
    }
}

/// A pod as Argo CD's manifests have it.
const REPO_SERVER: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: argocd-repo-server}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: argocd-repo-server}}
  template:
    metadata: {labels: {app.kubernetes.io/name: argocd-repo-server}}
    spec:
      containers: [{name: argocd-repo-server, image: 'quay.io/argoproj/argocd:v3.5.1'}]
      volumes: [{name: plugins, emptyDir: {}}, {name: var-files, emptyDir: {}}]
";

#[test]
fn kustomize_builds_with_the_component() {
    if !needs("helm") || !needs("kustomize") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let component = helm("{imagePullSecrets: [{name: ghcr}]}", "kustomize").expect("the chart renders");
    let files = [
        ("repo-server.yaml", REPO_SERVER),
        ("kustomization.yaml", "namespace: argocd\nresources: [repo-server.yaml]\ncomponents: [pinion]\n"),
        ("pinion/kustomization.yaml", &component),
    ];
    write(dir.path(), &files);
    let output = Command::new(tool("kustomize").expect("the tool is there")).arg("build").arg(dir.path()).output();
    let output = output.expect("kustomize starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let built = documents(&String::from_utf8(output.stdout).expect("text"));
    assert_eq!(names(&built), ["Deployment argocd-repo-server"]);
    let pod = &built[0]["spec"]["template"]["spec"];
    assert!(named(&pod["containers"], "argocd-repo-server").is_some(), "{pod}");
    let sidecar = named(&pod["containers"], "pinion").expect("the sidecar");
    assert_eq!(sidecar, &container(""));
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "ghcr"}]));
    for volume in ["plugins", "var-files", "pinion-plugin", "pinion-config", "pinion-store", "pinion-work"] {
        assert!(named(&pod["volumes"], volume).is_some(), "{volume}");
    }
}

#[test]
fn a_form_is_printed_alone() {
    if !needs("helm") {
        return;
    }
    let values = "{store: {type: persistentVolumeClaim}, networkPolicy: {enabled: true}, metrics: {serviceMonitor: {enabled: true}, prometheusRule: {enabled: true}}}";
    for print in ["argo-cd-values", "kustomize", "patch"] {
        printed(values, print);
    }
    assert!(helm("", "helm").expect_err("no such form").contains("/print"));
}

#[test]
fn each_mode_has_its_command() {
    if !needs("helm") {
        return;
    }
    let serve = container("");
    assert_eq!(serve["command"], json!(["pinion", "serve"]));
    assert_eq!(mount(&serve, "var-files"), Value::Null);
    let generate = container("mode: generate");
    assert_eq!(generate["command"], json!(["/var/run/argocd/argocd-cmp-server"]));
    assert_eq!(mount(&generate, "var-files"), "/var/run/argocd");
    for absent in ["ports", "readinessProbe", "livenessProbe"] {
        assert!(!serve[absent].is_null() && generate[absent].is_null(), "{absent}");
    }
    assert!(!names(&objects("mode: generate")).contains(&"Service pinion-metrics".to_owned()));
    for switch in [
        "metrics: {serviceMonitor: {enabled: true}}",
        "metrics: {prometheusRule: {enabled: true}}",
        "networkPolicy: {enabled: true}",
    ] {
        let error = helm(&format!("mode: generate\n{switch}"), "").expect_err("there is no admin port");
        assert!(error.contains("has no admin port"), "{error}");
    }
}

#[test]
fn image_and_pull_secrets_can_be_chosen() {
    if !needs("helm") {
        return;
    }
    let chart = std::fs::read_to_string(root().join("charts/pinion/Chart.yaml")).expect("the file is there");
    let chart: Value = serde_yaml::from_str(&chart).expect("YAML");
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(container("")["image"], format!("pinion:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(container("")["imagePullPolicy"], Value::Null);
    let chosen = container("image: {repository: registry.example.com/pinion, tag: 1.2.3, pullPolicy: Always}");
    assert_eq!(chosen["image"], "registry.example.com/pinion:1.2.3");
    assert_eq!(chosen["imagePullPolicy"], "Always");
    let digest = format!("sha256:{}", "a".repeat(64));
    assert_eq!(container(&format!("image: {{tag: x, digest: '{digest}'}}"))["image"], format!("pinion@{digest}"));
    assert!(helm("image: {digest: abc}", "").is_err());
    assert_eq!(pod("imagePullSecrets: [{name: ghcr}]")["imagePullSecrets"], json!([{"name": "ghcr"}]));
    assert_eq!(pod("")["imagePullSecrets"], Value::Null);
}

#[test]
fn names_of_the_repo_server_can_be_chosen() {
    if !needs("helm") {
        return;
    }
    let values = "
repoServer:
  deployment: cd-argocd-repo-server
  container: repo-server
  podLabels: {app.kubernetes.io/name: repo}
  volumes: {plugins: sockets, varFiles: files, tlsCerts: ''}
containerName: tags
mode: generate
";
    let patch = printed(values, "patch");
    assert_eq!(patch["metadata"]["name"], "cd-argocd-repo-server");
    assert_eq!(patch["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"], "repo-server");
    let sidecar = container(values);
    assert_eq!(sidecar["name"], "tags");
    assert_eq!(mount(&sidecar, "sockets"), "/home/argocd/cmp-server/plugins");
    assert_eq!(mount(&sidecar, "files"), "/var/run/argocd");
    assert!(!sidecar.to_string().contains("/app/config/tls"), "{sidecar}");
    assert_eq!(mount(&container(""), "tls-certs"), "/app/config/tls");
    assert_eq!(printed(values, "kustomize")["patches"][0]["target"]["name"], "cd-argocd-repo-server");
    let served = values.replace("mode: generate", "");
    let selector = object(&served, "Service", "pinion-metrics")["spec"]["selector"].clone();
    assert_eq!(selector["app.kubernetes.io/name"], "repo");
}

/// What the chart's ConfigMap holds is read by the program.
fn check(config: &Value, home: &Path) -> String {
    let text = |key: &str| config["data"][key].as_str().expect("a text").to_owned();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: 'a/b:1'}]}\n";
    write(home, &[("pinion.yaml", &text("pinion.yaml")), ("registries.conf", &text("registries.conf")), ("app/pod.yaml", pod)]);
    let path = |name: &str| home.join(name).display().to_string();
    let driver = Driver::with_entries(PROGRAM, "")
        .env("PINION_CONFIG", path("pinion.yaml"))
        .env("PINION_REGISTRIES_CONF", path("registries.conf"))
        .within(home.join("app"));
    let ran = driver.run(["check", "."]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    ran.stderr
}

#[test]
fn settings_and_registries_are_read_by_the_program() {
    if !needs("helm") {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    check(&object("", "ConfigMap", "pinion-config"), home.path());
    let values = "
config:
  tags-ttl: 2m
  renders-at-once: 8
  keep-archive-bytes: 2147483648
  max-archive-bytes: 8589934592
  helm-workers: false
  log-format: json
  platforms: [linux/amd64, linux/arm64]
  kustomize-build-options: --enable-helm
  egress: {hosts: [git.example.com, '*.example.org'], cidrs: [10.1.0.0/16], ports: [443, 8000-8999]}
registries:
  - name: GHCR
    prefix: ghcr.io
    api_url: https://ghcr.io
    credentials: env:GHCR
    credsexpire: 10h
    limit: 50
    insecure: false
    ca_file: /etc/ca.pem
    defaultns: library
    default: true
    realms: ['https://auth.internal/token']
    tagsortmode: latest-first
    ping: 'no'
";
    let config = object(values, "ConfigMap", "pinion-config");
    let settings: Value = serde_yaml::from_str(config["data"]["pinion.yaml"].as_str().expect("a text")).expect("YAML");
    assert_eq!(settings["tags-ttl"], "2m");
    assert_eq!(settings["max-archive-bytes"], 8_589_934_592_u64);
    assert_eq!(settings["egress"]["ports"], json!([443, "8000-8999"]));
    let log = check(&config, home.path());
    assert!(log.contains("registry `GHCR`: the credential `env:GHCR` cannot be used"), "{log}");
}

/// A changed setting must replace the pods; a changed registries.conf must not, because the server follows it.
#[test]
fn a_changed_setting_changes_the_pod() {
    if !needs("helm") {
        return;
    }
    let checksum = |values: &str| {
        let patch = printed(values, "patch");
        let checksum = patch["spec"]["template"]["metadata"]["annotations"]["pinion.dev/config-checksum"].clone();
        assert_eq!(printed(values, "argo-cd-values")["repoServer"]["podAnnotations"]["pinion.dev/config-checksum"], checksum);
        checksum
    };
    let plain = checksum("");
    assert!(plain.as_str().is_some_and(|text| text.len() == 64), "{plain}");
    assert_ne!(checksum("config: {tags-ttl: 2m}"), plain);
    assert_eq!(checksum("registries: [{name: a, prefix: a.example, api_url: 'https://a.example'}]"), plain);
}

#[test]
fn registries_can_come_from_an_existing_config_map() {
    if !needs("helm") {
        return;
    }
    let sources =
        |values: &str| named(&pod(values)["volumes"], "pinion-config").expect("a volume")["projected"]["sources"].clone();
    assert_eq!(sources("")[1]["configMap"]["name"], "pinion-config");
    let values = "existingRegistriesConfigMap: argocd-image-updater-config";
    assert_eq!(sources(values)[1]["configMap"]["name"], "argocd-image-updater-config");
    assert_eq!(object(values, "ConfigMap", "pinion-config")["data"]["registries.conf"], Value::Null);
    let both = format!("{values}\nregistries: [{{name: a, prefix: a.example, api_url: 'https://a.example'}}]");
    assert!(helm(&both, "").expect_err("two files").contains("both given"));
}

#[test]
fn credentials_come_from_the_environment() {
    if !needs("helm") {
        return;
    }
    let values = "
extraEnv: [{name: GHCR, valueFrom: {secretKeyRef: {name: ghcr, key: credentials}}}]
envFrom: [{secretRef: {name: pinion-credentials}}]
";
    let sidecar = container(values);
    let error = helm("extraEnv: [{name: PINION_STORE, value: /x}]", "").expect_err("it would be there twice");
    assert!(error.contains("the chart sets `PINION_STORE` itself"), "{error}");
    let variable = named(&sidecar["env"], "GHCR").expect("the variable");
    assert_eq!(variable["valueFrom"], json!({"secretKeyRef": {"name": "ghcr", "key": "credentials"}}));
    assert_eq!(sidecar["envFrom"], json!([{"secretRef": {"name": "pinion-credentials"}}]));
}

#[test]
fn credentials_come_from_dockers_configuration() {
    if !needs("helm") {
        return;
    }
    let values = "dockerConfigSecret: pull";
    let (pod, sidecar) = (pod(values), container(values));
    let directory = variable(&sidecar, "DOCKER_CONFIG");
    assert_eq!(mount(&sidecar, "pinion-docker"), directory);
    let secret = &named(&pod["volumes"], "pinion-docker").expect("a volume")["secret"];
    assert_eq!(secret, &json!({"secretName": "pull", "items": [{"key": ".dockerconfigjson", "path": "config.json"}]}));
    assert_eq!(variable(&container(""), "DOCKER_CONFIG"), Value::Null);
}

#[test]
fn credentials_come_from_scripts() {
    if !needs("helm") {
        return;
    }
    for (values, kind, key) in
        [("scripts: {configMap: login}", "configMap", "name"), ("scripts: {secret: login}", "secret", "secretName")]
    {
        assert_eq!(mount(&container(values), "pinion-scripts"), "/app/scripts");
        let volume = named(&pod(values)["volumes"], "pinion-scripts").expect("a volume").clone();
        assert_eq!(volume[kind][key], "login");
        assert_eq!(volume[kind]["defaultMode"], 0o555, "executable for user 999");
    }
    assert!(helm("scripts: {configMap: a, secret: b}", "").expect_err("two directories").contains("both given"));
}

#[test]
fn ssh_and_the_api_token_come_from_secrets() {
    if !needs("helm") {
        return;
    }
    let values = "{sshSecret: git, apiTokenSecret: {name: api, key: bearer}}";
    let (pod, sidecar) = (pod(values), container(values));
    assert_eq!(mount(&sidecar, "pinion-ssh"), "/etc/pinion-ssh");
    assert_eq!(variable(&sidecar, "PINION_SSH_CONFIG"), "/etc/pinion-ssh/config");
    assert_eq!(named(&pod["volumes"], "pinion-ssh").expect("a volume")["secret"]["secretName"], "git");
    let token = named(&sidecar["env"], "PINION_API_TOKEN").expect("the variable");
    assert_eq!(token["valueFrom"]["secretKeyRef"], json!({"name": "api", "key": "bearer"}));
    assert!(named(&container("")["env"], "PINION_API_TOKEN").is_none());
}

#[test]
fn further_volumes_are_added() {
    if !needs("helm") {
        return;
    }
    let values = "{extraVolumes: [{name: ca, configMap: {name: ca}}], extraVolumeMounts: [{name: ca, mountPath: /etc/ca}]}";
    assert_eq!(named(&pod(values)["volumes"], "ca").expect("a volume")["configMap"]["name"], "ca");
    assert_eq!(mount(&container(values), "ca"), "/etc/ca");
}

#[test]
fn the_admin_port_can_be_changed() {
    if !needs("helm") {
        return;
    }
    let plain = container("");
    assert_eq!(variable(&plain, "PINION_ADMIN_ADDRESS"), Value::Null, "the program's own default");
    assert_eq!(plain["ports"][0]["containerPort"], 8080);
    let values = "{admin: {address: '[::]', port: 9090}, networkPolicy: {enabled: true}}";
    let sidecar = container(values);
    assert_eq!(variable(&sidecar, "PINION_ADMIN_ADDRESS"), "[::]:9090");
    assert_eq!(sidecar["ports"][0]["containerPort"], 9090);
    assert_eq!(object(values, "Service", "pinion-metrics")["spec"]["ports"][0]["port"], 9090);
    assert_eq!(object(values, "NetworkPolicy", "pinion-admin")["spec"]["ingress"][0]["ports"][0]["port"], 9090);
}

#[test]
fn the_store_is_a_directory_memory_or_a_claim() {
    if !needs("helm") {
        return;
    }
    let volume = |values: &str| named(&pod(values)["volumes"], "pinion-store").expect("a volume").clone();
    assert_eq!(variable(&container(""), "PINION_STORE"), mount(&container(""), "pinion-store"));
    assert_eq!(volume("")["emptyDir"], json!({"sizeLimit": "4Gi"}));
    assert_eq!(volume("store: {type: memory, size: 1Gi}")["emptyDir"], json!({"medium": "Memory", "sizeLimit": "1Gi"}));
    let values = "store: {type: persistentVolumeClaim, storageClassName: fast, size: 5Gi}";
    assert_eq!(volume(values)["persistentVolumeClaim"]["claimName"], "pinion-store");
    assert_eq!(pod(values)["securityContext"]["fsGroup"], 999);
    let claim = object(values, "PersistentVolumeClaim", "pinion-store");
    assert_eq!(claim["spec"]["storageClassName"], "fast");
    assert_eq!(claim["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "5Gi");
    assert_eq!(claim["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let values = "store: {type: persistentVolumeClaim, existingClaim: mine}";
    assert_eq!(volume(values)["persistentVolumeClaim"]["claimName"], "mine");
    assert!(!names(&objects(values)).contains(&"PersistentVolumeClaim pinion-store".to_owned()));
}

#[test]
fn the_work_directory_is_on_disk_or_in_memory() {
    if !needs("helm") {
        return;
    }
    let volume = |values: &str| named(&pod(values)["volumes"], "pinion-work").expect("a volume").clone();
    assert_eq!(mount(&container(""), "pinion-work"), "/tmp");
    assert_eq!(volume("")["emptyDir"], json!({}));
    assert_eq!(volume("workDir: {sizeLimit: 10Gi}")["emptyDir"], json!({"sizeLimit": "10Gi"}));
    let values = "workDir: {medium: Memory, sizeLimit: 3Gi}";
    assert_eq!(volume(values)["emptyDir"], json!({"medium": "Memory", "sizeLimit": "3Gi"}));
    assert!(helm("workDir: {medium: Memory}", "").expect_err("no size").contains("needs `workDir.sizeLimit`"));
    let error = helm("workDir: {medium: Memory, sizeLimit: 1Gi}", "").expect_err("too small");
    assert!(error.contains("less than the archives that are kept"), "{error}");
    helm("{workDir: {medium: Memory, sizeLimit: 1Gi}, config: {keep-archive-bytes: 536870912}}", "").expect("it fits");
}

#[test]
fn resources_are_the_sum_of_their_parts() {
    if !needs("helm") {
        return;
    }
    let resources = |values: &str| container(values)["resources"].clone();
    // 100m + 4 × 50m; 192 + 4 × 80; 768 + 4 × 512.
    let plain = json!({"requests": {"cpu": "300m", "memory": "512Mi"}, "limits": {"memory": "2816Mi"}});
    assert_eq!(resources(""), plain);
    let eight = json!({"requests": {"cpu": "500m", "memory": "832Mi"}, "limits": {"memory": "4864Mi"}});
    assert_eq!(resources("config: {renders-at-once: 8}"), eight);
    let memory = json!({"requests": {"cpu": "300m", "memory": "4608Mi"}, "limits": {"memory": "6912Mi"}});
    assert_eq!(resources("{workDir: {medium: Memory, sizeLimit: 3Gi}, store: {type: memory, size: 1Gi}}"), memory);
    let parts = "
config: {renders-at-once: 2}
resources:
  server: {requests: {cpu: 0.5, memory: 1G}, limits: {cpu: 1, memory: 1Gi}}
  worker: {requests: {cpu: 1.5, memory: 100Mi}, limits: {cpu: 500m, memory: 0.5Gi}}
";
    // 1,000,000,000 bytes are 954 MiB, rounded up after the sum.
    let sum = json!({"requests": {"cpu": "3500m", "memory": "1154Mi"}, "limits": {"cpu": "2000m", "memory": "2048Mi"}});
    assert_eq!(resources(parts), sum);
    assert_eq!(resources("resources: {override: {limits: {memory: 1Gi}}}"), json!({"limits": {"memory": "1Gi"}}));
    let error = helm("resources: {server: {limits: {cpu: 1}}}", "patch").expect_err("half a limit");
    assert!(error.contains("give both or none"), "{error}");
    let error = helm("config: {renders-at-once: null}", "patch").expect_err("no number of workers");
    assert!(error.contains("set `config.renders-at-once`"), "{error}");
    helm("{config: {renders-at-once: null}, resources: {override: {limits: {memory: 1Gi}}}}", "patch")
        .expect("nothing to add up");
    let error = helm("resources: {server: {limits: {memory: 1Gig}}}", "patch").expect_err("no quantity");
    assert!(error.contains("`1Gig` is no quantity"), "{error}");
}

#[test]
fn probes_can_be_changed_and_left_out() {
    if !needs("helm") {
        return;
    }
    let plain = container("");
    assert_eq!(plain["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": "pinion-admin"}));
    assert_eq!(plain["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": "pinion-admin"}));
    let changed = container("{readinessProbe: {enabled: false}, livenessProbe: {spec: {periodSeconds: 30}}}");
    assert_eq!(changed["readinessProbe"], Value::Null);
    assert_eq!(changed["livenessProbe"]["periodSeconds"], 30);
}

/// The restricted Pod Security Standard, and the repo-server's user.
#[test]
fn the_sidecar_has_no_rights() {
    if !needs("helm") {
        return;
    }
    let wanted = json!({
        "runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999, "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(container("")["securityContext"], wanted);
    assert_eq!(container("mode: generate")["securityContext"], wanted);
    assert_eq!(pod("")["securityContext"], Value::Null, "the pod is not ours");
}

#[test]
fn a_token_is_mounted_into_the_sidecar_alone() {
    if !needs("helm") {
        return;
    }
    assert!(named(&pod("")["volumes"], "pinion-token").is_none());
    let values = "serviceAccountToken: {enabled: true, audience: pinion, expirationSeconds: 600}";
    let pod = pod(values);
    let sources = &named(&pod["volumes"], "pinion-token").expect("a volume")["projected"]["sources"];
    assert_eq!(sources[0]["serviceAccountToken"], json!({"path": "token", "expirationSeconds": 600, "audience": "pinion"}));
    assert_eq!(mount(&container(values), "pinion-token"), "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(pod["automountServiceAccountToken"], Value::Null, "the repo-server's container gets none");
}

#[test]
fn a_service_leads_to_the_metrics() {
    if !needs("helm") {
        return;
    }
    let service = object("metrics: {service: {annotations: {a: b}}}", "Service", "pinion-metrics");
    assert_eq!(service["spec"]["selector"], json!({"app.kubernetes.io/name": "argocd-repo-server"}));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], container("")["ports"][0]["name"]);
    assert_eq!(service["metadata"]["annotations"]["a"], "b");
    assert!(!names(&objects("metrics: {service: {enabled: false}}")).contains(&"Service pinion-metrics".to_owned()));
}

#[test]
fn a_service_monitor_finds_the_service() {
    if !needs("helm") {
        return;
    }
    let values = "metrics: {serviceMonitor: {enabled: true, labels: {release: prometheus}, interval: 30s, metricRelabelings: [{action: keep}]}}";
    let monitor = object(values, "ServiceMonitor", "pinion-metrics");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let endpoint = json!({"port": "metrics", "path": "/metrics", "interval": "30s", "metricRelabelings": [{"action": "keep"}]});
    assert_eq!(monitor["spec"]["endpoints"], json!([endpoint]));
    let service = object(values, "Service", "pinion-metrics");
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().expect("labels") {
        assert_eq!(&service["metadata"]["labels"][label], value);
    }
    assert_eq!(service["spec"]["ports"][0]["name"], endpoint["port"]);
    let error = helm("metrics: {service: {enabled: false}, serviceMonitor: {enabled: true}}", "").expect_err("no service");
    assert!(error.contains("needs `metrics.service`"), "{error}");
}

#[test]
fn alerts_ask_for_metrics_that_exist() {
    if !needs("helm") {
        return;
    }
    let alerts = |values: &str| -> Vec<Value> {
        let rule = object(&format!("metrics: {{prometheusRule: {values}}}"), "PrometheusRule", "pinion-alerts");
        rule["spec"]["groups"][0]["rules"].as_array().expect("rules").clone()
    };
    let all = alerts("{enabled: true, alertLabels: {team: platform}}");
    let source = std::fs::read_to_string(root().join("src/server/metrics.rs")).expect("the file is there");
    let docs = std::fs::read_to_string(root().join("docs/serve.md")).expect("the file is there");
    let metric = Regex::new(r"\bpinion_[a-z_]+").expect("a constant");
    for alert in &all {
        assert_eq!(alert["labels"]["team"], "platform");
        assert!(["info", "warning", "critical"].map(Value::from).contains(&alert["labels"]["severity"]), "{alert}");
        let expression = alert["expr"].as_str().expect("a text");
        assert!(metric.is_match(expression), "{expression}");
        for name in metric.find_iter(expression) {
            let name = name.as_str();
            assert!(docs.contains(&format!("`{name}`")), "docs/serve.md has no `{name}`");
            // The registry adds the prefix, and OpenMetrics the suffix of counters.
            let base = name.trim_start_matches("pinion_").trim_end_matches("_total");
            assert!(source.contains(&format!("\"{base}\"")), "no metric is registered as `{base}`");
        }
    }
    let fewer = alerts("{enabled: true, disabled: [PinionRendersWait]}");
    assert_eq!(fewer.len() + 1, all.len());
    assert!(!fewer.iter().any(|alert| alert["alert"] == "PinionRendersWait"));
}

#[test]
fn a_network_policy_opens_the_admin_port() {
    if !needs("helm") {
        return;
    }
    let policy = object("networkPolicy: {enabled: true}", "NetworkPolicy", "pinion-admin");
    assert_eq!(policy["spec"]["podSelector"]["matchLabels"], json!({"app.kubernetes.io/name": "argocd-repo-server"}));
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    let rule = json!({"ports": [{"port": 8080, "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]});
    assert_eq!(policy["spec"]["ingress"], json!([rule]));
    let everybody = object("networkPolicy: {enabled: true, from: []}", "NetworkPolicy", "pinion-admin");
    assert_eq!(everybody["spec"]["ingress"][0]["from"], Value::Null);
}

#[test]
fn typing_errors_fail() {
    if !needs("helm") {
        return;
    }
    for (values, key) in [
        ("{prefx: x}", "prefx"),
        ("registries: [{name: a, prefx: a.example, api_url: 'https://a.example'}]", "prefx"),
        ("registries: [{name: a, prefix: a.example}]", "api_url"),
        ("config: {tags-tll: 2m}", "tags-tll"),
        ("config: {egress: {host: [a.example]}}", "host"),
        ("config: {api-token: s3cret}", "api-token"),
        ("config: {sandbox: none}", "/config/sandbox"),
        ("{mode: server}", "/mode"),
        ("store: {type: pvc}", "/store/type"),
        ("store: {size: 1}", "/store/size"),
        ("metrics: {serviceMonitr: {enabled: true}}", "serviceMonitr"),
        ("resources: {workers: {}}", "workers"),
        ("repoServer: {deploymnt: x}", "deploymnt"),
        ("image: {repositry: x}", "repositry"),
    ] {
        let error = helm(values, "").expect_err(values);
        assert!(error.contains(key), "{values}: {error}");
    }
}

/// The page shows values in YAML blocks, among other YAML. A block is values if the chart has each of its keys.
#[test]
fn the_values_of_the_install_page_are_accepted() {
    if !needs("helm") {
        return;
    }
    let page = std::fs::read_to_string(root().join("docs/install.md")).expect("the file is there");
    let schema = read_json("charts/pinion/values.schema.json");
    let known = schema["properties"].as_object().expect("keys");
    let block = Regex::new(r"(?s)```yaml\n(.*?)```").expect("a constant");
    let mut accepted = 0;
    for found in block.captures_iter(&page) {
        let text = &found[1];
        let Ok(Value::Object(values)) = serde_yaml::from_str(text) else { continue };
        if values.keys().all(|key| known.contains_key(key)) {
            for print in ["", "patch"] {
                helm(text, print).unwrap_or_else(|error| panic!("{error}: {text}"));
            }
            accepted += 1;
        }
    }
    assert!(accepted > 8, "{accepted}");
}

fn read_json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(root().join(path)).expect("the file is there")).expect("JSON")
}

/// A new flag must get into the schema, or into the list of what the chart sets itself.
#[test]
fn the_schema_knows_every_flag() {
    let own = [
        "admin-address",
        "api-token",
        "config",
        "config-dir-path",
        "help",
        "registries-conf",
        "socket-dir",
        "ssh-config",
        "store",
        "work-dir",
    ];
    let help = help();
    let flag = Regex::new(r"(?m)^ +(?:-[a-zA-Z], )?--([a-z-]+)").expect("a constant");
    let flags: BTreeSet<&str> = flag.captures_iter(&help).map(|found| found.get(1).expect("a group").as_str()).collect();
    let schema = read_json("charts/pinion/values.schema.json");
    let keys = schema["properties"]["config"]["properties"].as_object().expect("keys");
    let mut known: BTreeSet<&str> = keys.keys().map(String::as_str).chain(own).collect();
    assert!(known.remove("egress"), "the block of three flags");
    assert_eq!(flags, known);
}

/// What the chart assumes about the program's defaults.
#[test]
fn defaults_are_the_programs() {
    let help = help();
    let values = std::fs::read_to_string(root().join("charts/pinion/values.yaml")).expect("the file is there");
    let values: Value = serde_yaml::from_str(&values).expect("YAML");
    let own: Vec<&String> = values["config"].as_object().expect("a map").keys().collect();
    assert_eq!(own, ["renders-at-once"], "everything else is left to the program");
    let address = values["admin"]["address"].as_str().expect("a text");
    for default in [
        format!("{address}:{}", values["admin"]["port"]),
        "/home/argocd/cmp-server/config".to_owned(),
        "/home/argocd/cmp-server/plugins".to_owned(),
        // templates/_helpers.tpl, for `workDir.sizeLimit`.
        "2147483648".to_owned(),
    ] {
        assert!(help.contains(&format!("[default: {default}]")), "{default}: {help}");
    }
    let helpers = std::fs::read_to_string(root().join("charts/pinion/templates/_helpers.tpl")).expect("the file is there");
    assert!(helpers.contains("\"keep-archive-bytes\" | default 2147483648"));
}

/// The README has each value with its default.
#[test]
fn the_readme_has_the_values() {
    if !needs("python3") {
        return;
    }
    let script: PathBuf = root().join("scripts/chart-readme");
    let output = Command::new(tool("python3").expect("the tool is there")).arg(script).arg("--check").output();
    let output = output.expect("python3 starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
