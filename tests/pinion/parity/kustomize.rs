//! Kustomizations of many kinds, against `kustomize build` and Argo CD's edits.

use serde_json::{Value, json};

use super::{Files, array, assert_same, has_tools, map, native, pinion, string};
use crate::fixtures::write;

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web   # the comment goes, as Kustomize wants it
        image: ghcr.io/acme/web:0.0.1
        env: [{name: HOST, value: placeholder}]
        envFrom: [{configMapRef: {name: settings}}]
";

fn kustomization(more: &str) -> String {
    format!("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n{more}")
}

/// Asserts that Pinion gives what Kustomize gives after these edits.
async fn same(files: Files<'_>, path: &str, parameters: Value, edits: &[&[&str]]) {
    same_as(files, path, parameters, files, edits).await;
}

async fn same_as(files: Files<'_>, path: &str, parameters: Value, concrete: Files<'_>, edits: &[&[&str]]) {
    if !has_tools() {
        return;
    }
    let found = pinion(files, path, parameters).await;
    let place = tempfile::tempdir().expect("a directory");
    write(place.path(), concrete);
    let app = std::fs::canonicalize(place.path().join(path)).expect("it is there");
    for edit in edits {
        native("kustomize", &app, place.path(), &[&["edit"], *edit].concat());
    }
    assert_same(&found, &native("kustomize", place.path(), place.path(), &["build", &app.display().to_string()]));
}

fn overlay<'a>(base: &'a str, overlay: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("base/kustomization.yaml", base),
        ("base/deployment.yaml", DEPLOYMENT),
        ("base/settings.properties", "a=1\nb=$(PIN)\n"),
        ("overlays/prd/kustomization.yml", overlay),
        ("overlays/prd/patch.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 2}\n"),
    ]
}

const BASE: &str = "\
resources: [deployment.yaml]
configMapGenerator:
- name: settings
  files: [settings.properties]
  literals: [x=1]
generatorOptions: {labels: {generated: 'yes'}}
";

#[tokio::test]
async fn generators_replacements_prefixes_and_patches() {
    let base = kustomization(BASE);
    let top = kustomization(
        "resources: [../../base]\nnamePrefix: a-\nnameSuffix: -b\nnamespace: ns\nlabels: [{pairs: {team: x}, includeSelectors: true}]\n\
         patches: [{path: patch.yaml}]\nreplicas: [{name: web, count: 3}]\nsecretGenerator: [{name: s, literals: [k=v]}]\n\
         replacements: [{source: {kind: Deployment, fieldPath: metadata.name}, targets: [{select: {kind: Deployment}, \
         fieldPaths: ['spec.template.spec.containers.[name=web].env.[name=HOST].value']}]}]\n",
    );
    same(&overlay(&base, &top), "overlays/prd", json!([]), &[]).await;
}

#[tokio::test]
async fn every_parameter() {
    let base = kustomization(BASE);
    let top = kustomization("resources: [../../base]\n");
    let component = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nlabels: [{pairs: {from: component}}]\n";
    let mut files = overlay(&base, &top);
    files.push(("components/one/kustomization.yaml", component));
    let parameters = json!([
        string("kustomize-name-prefix", "-p-"),
        string("kustomize-name-suffix", "-s"),
        array("kustomize-images", &["ghcr.io/acme/web=ghcr.io/acme/$ARGOCD_APP_NAME:2"]),
        map("kustomize-replicas", &[("web", "5")]),
        map("kustomize-common-labels", &[("instance", "$ARGOCD_APP_NAME"), ("app", "other")]),
        string("kustomize-force-common-labels", "true"),
        map("kustomize-common-annotations", &[("note", "$ARGOCD_APP_NAME")]),
        string("kustomize-namespace", "elsewhere"),
        array("kustomize-components", &["../../components/one"]),
    ]);
    let edits: [&[&str]; 8] = [
        &["set", "nameprefix", "--", "-p-"],
        &["set", "namesuffix", "--", "-s"],
        &["set", "image", "ghcr.io/acme/web=ghcr.io/acme/web:2"],
        &["set", "replicas", "web=5"],
        &["add", "label", "--force", "app:other", "instance:web"],
        &["add", "annotation", "note:$ARGOCD_APP_NAME"],
        &["set", "namespace", "--", "elsewhere"],
        &["add", "component", "../../components/one"],
    ];
    same(&files, "overlays/prd", parameters, &edits).await;
}

#[tokio::test]
async fn a_placeholder_gives_what_its_tag_written_by_hand_gives() {
    let base = kustomization(BASE);
    let top = |tag: &str| {
        kustomization(&format!("resources: [../../base]\nimages:\n- {{name: ghcr.io/acme/web, newTag: {tag}}} # x\n"))
    };
    let (placeholder, concrete) = (top("$(pin ~1)"), top("\"1.10.0\""));
    same_as(&overlay(&base, &placeholder), "overlays/prd", json!([]), &overlay(&base, &concrete), &[]).await;
}
