//! What users do, in the order in which it can be done to one installation.

use std::fs;

use serde_json::{Value, json};

use crate::files::Files;
use crate::installation::{Installation, commit, template};
use crate::support::examples::APPLICATIONS;

/// What a scenario is called, and what it does.
pub type Scenario = (&'static str, fn(&mut Installation));

/// The last two take away what the others need.
pub const SCENARIOS: &[Scenario] = &[
    ("objects_of_every_switch_are_accepted", objects_of_every_switch_are_accepted),
    ("all_examples_are_synced_with_their_tags", all_examples_are_synced_with_their_tags),
    ("an_application_set_has_a_constraint_for_each_environment", an_application_set_has_a_constraint_for_each_environment),
    ("a_chart_of_a_repository_is_rendered", a_chart_of_a_repository_is_rendered),
    ("several_sources_are_one_application", several_sources_are_one_application),
    ("an_application_may_be_in_another_namespace", an_application_may_be_in_another_namespace),
    ("a_refused_tag_is_shown_on_the_application", a_refused_tag_is_shown_on_the_application),
    ("a_hard_refresh_brings_a_new_tag", a_hard_refresh_brings_a_new_tag),
    ("an_outage_of_the_registry_changes_nothing", an_outage_of_the_registry_changes_nothing),
    ("a_killed_sidecar_comes_back_with_its_pins", a_killed_sidecar_comes_back_with_its_pins),
];

/// The images of the examples' Deployments and Rollouts, without digests, by namespace.
const IMAGES: [(&str, &[&str]); 12] = [
    ("chat-dev", &["ghcr.io/justgithubaccount/chat-api:1.0.2"]),
    ("chat-prd", &["ghcr.io/justgithubaccount/chat-api:1.0.2"]),
    ("example-dev", &["shykhovmyron/example-api:0.1.0-rc.1"]),
    ("example-prd", &["shykhovmyron/example-api:0.0.9"]),
    ("frontend-backend-dev", &["lyzhang1999/backend:main-3af7b60", "lyzhang1999/frontend:main-9c41aa7"]),
    ("frontend-backend-prd", &["lyzhang1999/backend:main-e5c0d19", "lyzhang1999/frontend:main-9c41aa7"]),
    ("web-dev", &["ghcr.io/acme/web:latest"]),
    ("web-prd", &["ghcr.io/acme/web:2.0.1"]),
    ("plain-dev", &["ghcr.io/acme/web:2.1.0-rc.1", "ghcr.io/acme/worker:main-2b9d4c7"]),
    ("plain-prd", &["ghcr.io/acme/web:2.0.1", "ghcr.io/acme/worker:main-2b9d4c7"]),
    ("umbrella-dev", &["ghcr.io/acme/web:2.1.0-rc.1", "ghcr.io/acme/worker:1.4.0"]),
    ("umbrella-prd", &["ghcr.io/acme/cache:7.2.4", "ghcr.io/acme/web:2.0.1", "ghcr.io/acme/worker:1.4.0"]),
];

const SERVER: &str = "https://kubernetes.default.svc";

/// An Application that syncs itself into a namespace of its own name.
fn application(namespace: &str, name: &str, sources: &Value) -> Value {
    let mut spec = json!({
        "project": "default",
        "destination": {"server": SERVER, "namespace": name},
        "syncPolicy": {"automated": {"prune": true, "selfHeal": true}, "syncOptions": ["CreateNamespace=true"]},
    });
    spec[if sources.is_array() { "sources" } else { "source" }] = sources.clone();
    json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

/// A source that Pinion renders with this value file.
fn rendered(repository: &str, path: &str, values: &str) -> Value {
    json!({
        "repoURL": repository, "targetRevision": "main", "path": path,
        "plugin": {"name": "pinion@v1", "parameters": [{"name": "helm-value-files", "array": [values]}]},
    })
}

/// The API server's own validation, also of the forms of the sidecar.
fn objects_of_every_switch_are_accepted(installation: &mut Installation) {
    let all = json!({
        "store": {"type": "persistentVolumeClaim"},
        "networkPolicy": {"enabled": true},
        "scripts": {"configMap": "scripts"},
        "dockerConfigSecret": "docker",
        "sshSecret": "ssh",
        "apiTokenSecret": {"name": "token"},
        "imagePullSecrets": [{"name": "pull"}],
        "extraEnv": [{"name": "A", "value": "b"}],
        "envFrom": [{"secretRef": {"name": "more"}}],
    });
    for mut values in [json!({}), all, json!({"mode": "generate"}), json!({"store": {"type": "memory"}})] {
        // Ports are merged by their numbers, so another one would be a second one of the same name.
        values["admin"] = json!({"port": installation.admin_port});
        let values = values.to_string();
        for print in ["", "patch"] {
            let objects = template(installation.directory.path(), &values, print);
            let arguments =
                ["apply", "--server-side", "--field-manager=pinion", "--force-conflicts", "--dry-run=server", "-f", "-"];
            let said = installation.cluster.kubectl(&[&arguments[..], &["-n", "argocd"]].concat(), &objects);
            assert!(said.contains("serverside-applied"), "{said}");
        }
    }
}

fn all_examples_are_synced_with_their_tags(installation: &mut Installation) {
    for (example, _, _) in APPLICATIONS {
        for environment in ["dev", "prd"] {
            installation.apply_example(&format!("{example}/application-{environment}.yaml"));
        }
    }
    for (example, _, _) in APPLICATIONS {
        for environment in ["dev", "prd"] {
            let manifest = installation.apply_example(&format!("{example}/application-{environment}.yaml"));
            installation.wait_until_synced("argocd", manifest["metadata"]["name"].as_str().expect("text"));
        }
    }
    for (namespace, expected) in IMAGES {
        let images = installation.images(namespace);
        let has_digest = images.iter().all(|image| image.contains("@sha256:"));
        assert_eq!(has_digest, namespace.starts_with("web-"), "{namespace}: {images:?}");
        let tags: Vec<&str> = images.iter().map(|image| image.split('@').next().expect("a part")).collect();
        assert_eq!(tags, expected, "{namespace}");
    }
}

fn an_application_set_has_a_constraint_for_each_environment(installation: &mut Installation) {
    let mut source = rendered(&installation.repository_url(), "example-api", "values-{{env}}.yaml");
    source["plugin"]["parameters"][0]["array"] = json!(["values-{{env}}.yaml"]);
    let mut template = application("argocd", "set-{{env}}", &source);
    let template = json!({"metadata": {"name": "set-{{env}}"}, "spec": template["spec"].take()});
    let set = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "metadata": {"name": "set", "namespace": "argocd"},
        "spec": {"generators": [{"list": {"elements": [{"env": "dev"}, {"env": "prd"}]}}], "template": template},
    });
    installation.cluster.apply(&set.to_string());
    for (name, image) in [("set-dev", "shykhovmyron/example-api:0.1.0-rc.1"), ("set-prd", "shykhovmyron/example-api:0.0.9")] {
        installation.wait_until_synced("argocd", name);
        assert_eq!(installation.images(name), [image]);
    }
}

/// A chart repository over HTTP: Argo CD fetches the chart and hands it to the plugin.
fn a_chart_of_a_repository_is_rendered(installation: &mut Installation) {
    let files = Files::of_chart(&installation.repository.join("chat-api"), "0.1.0");
    let source = json!({
        "repoURL": files.url(), "chart": "chat-api", "targetRevision": "0.1.0",
        "plugin": {"name": "pinion@v1", "parameters": [
            {"name": "helm-parameters", "map": {"image.repository": "ghcr.io/justgithubaccount/chat-api", "image.tag": "$(pin ~1)"}},
        ]},
    });
    installation.cluster.apply(&application("argocd", "from-a-chart", &source).to_string());
    installation.wait_until_synced("argocd", "from-a-chart");
    assert_eq!(installation.images("from-a-chart"), ["ghcr.io/justgithubaccount/chat-api:1.1.0"]);
}

/// One source of Pinion's, one of Argo CD's own.
fn several_sources_are_one_application(installation: &mut Installation) {
    let native = installation.repository.join("native");
    fs::create_dir_all(&native).expect("made");
    fs::write(native.join("map.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: native}\ndata: {a: b}\n")
        .expect("written");
    commit(&installation.repository, "a source that Argo CD renders");
    let url = installation.repository_url();
    let sources = json!([
        rendered(&url, "example-api", "values-prd.yaml"),
        {"repoURL": url, "targetRevision": "main", "path": "native"},
    ]);
    installation.cluster.apply(&application("argocd", "several", &sources).to_string());
    installation.wait_until_synced("argocd", "several");
    assert_eq!(installation.images("several"), ["shykhovmyron/example-api:0.0.9"]);
    assert_eq!(installation.cluster.get("several", "configmap/native")["data"]["a"], "b");
}

fn an_application_may_be_in_another_namespace(installation: &mut Installation) {
    let source = rendered(&installation.repository_url(), "example-api", "values-dev.yaml");
    installation.cluster.apply(&application("team-a", "elsewhere", &source).to_string());
    installation.wait_until_synced("team-a", "elsewhere");
    assert_eq!(installation.images("elsewhere"), ["shykhovmyron/example-api:0.1.0-rc.1"]);
}

fn a_refused_tag_is_shown_on_the_application(installation: &mut Installation) {
    let mut source = rendered(&installation.repository_url(), "example-api", "values-prd.yaml");
    source["plugin"]["parameters"] = json!([{"name": "helm-parameters", "map": {"image.tag": "$(pin ~9)"}}]);
    installation.cluster.apply(&application("argocd", "refused", &source).to_string());
    let message = installation.cluster.wait("argocd", "application/refused", |found| {
        let conditions = found["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|condition| condition["type"] == "ComparisonError")?;
        condition["message"].as_str().map(str::to_owned)
    });
    for part in ["no permitted tag", "`$(pin ~9)`", "outside `~9`", "0.0.9"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

fn a_hard_refresh_brings_a_new_tag(installation: &mut Installation) {
    let manifest = installation.apply_example("chat-api/application-dev.yaml");
    let name = manifest["metadata"]["name"].as_str().expect("text");
    installation.wait_until_synced("argocd", name);
    installation.push(&json!({"ghcr.io/justgithubaccount/chat-api": [{"tag": "1.0.3", "created": "2026-03-10T10:00:00Z"}]}));
    installation.hard_refresh("argocd", name);
    installation.wait_for_images("chat-dev", &["ghcr.io/justgithubaccount/chat-api:1.0.3"]);
    installation.wait_until_synced("argocd", name);
}

fn an_outage_of_the_registry_changes_nothing(installation: &mut Installation) {
    let manifest = installation.apply_example("chat-api/application-dev.yaml");
    let name = manifest["metadata"]["name"].as_str().expect("text");
    installation.wait_until_synced("argocd", name);
    let before = installation.images("chat-dev");
    assert_eq!(before.len(), 1);
    installation.registry = None;
    installation.hard_refresh("argocd", name);
    installation.wait_until_synced("argocd", name);
    assert_eq!(installation.images("chat-dev"), before);
    assert!(installation.sidecar_log().contains("serving the last known good pin"), "{}", installation.sidecar_log());
}

fn a_killed_sidecar_comes_back_with_its_pins(installation: &mut Installation) {
    let manifest = installation.apply_example("chat-api/application-dev.yaml");
    let name = manifest["metadata"]["name"].as_str().expect("text");
    installation.wait_until_synced("argocd", name);
    let before = installation.images("chat-dev");
    installation.registry = None;
    installation.sidecar.kill();
    installation.sidecar.start(&installation.cluster);
    installation.sidecar.wait_until_ready(installation.admin_port);
    installation.hard_refresh("argocd", name);
    installation.wait_until_synced("argocd", name);
    assert_eq!((installation.images("chat-dev"), before.len()), (before, 1));
}
