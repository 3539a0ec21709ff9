//! What children are started with: a script in place of the tool writes down its arguments and environment.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::{array, map, string};
use crate::cases::environment;
use crate::fixtures::write;
use crate::support::driver::Driver;
use crate::support::registry::FakeRegistry;

/// Appends arguments (one a line, after `run`) and the names of its variables to files, and prints a manifest.
const SCRIPT: &str = "#!/bin/sh
here=$(dirname \"$0\")
{ echo run; for word in \"$@\"; do echo \"$word\"; done; } >> \"$here/arguments\"
env > \"$here/environment\"
pwd > \"$here/directory\"
printf 'apiVersion: v1\\nkind: Pod\\nmetadata: {name: x}\\n'
";

/// What the script wrote.
struct Started {
    arguments: Vec<String>,
    environment: Vec<String>,
}

async fn start(variable: &str, files: &[(&str, &str)], path: &str, parameters: Value) -> Started {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.10"]);
    let (place, scripts) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    write(place.path(), files);
    let script = scripts.path().join("tool");
    std::fs::write(&script, SCRIPT).expect("written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let driver = environment(Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry), path, Some(&parameters.to_string()));
    let secrets =
        [("AWS_SECRET_ACCESS_KEY", "s3cret"), ("GIT_ASKPASS", "s3cret"), ("HELM_PLUGINS", "/evil"), ("SSH_AUTH_SOCK", "/evil")];
    let driver = secrets.into_iter().fold(driver, |driver, (name, value)| driver.env(name, value));
    // The script writes beside itself.
    let driver = driver.env("PINION_SANDBOX", "off");
    let driver = driver.env(variable, script.display().to_string()).env("HTTPS_PROXY", "http://proxy.example.com");
    driver.within(place.path().join(path)).run(["generate"]).ok();
    let read = |name: &str| std::fs::read_to_string(scripts.path().join(name)).expect("the script ran");
    let checkout = std::fs::canonicalize(place.path()).expect("it is there").display().to_string();
    let lines = |name: &str| read(name).lines().map(|line| stable(line, &checkout)).collect();
    Started { arguments: lines("arguments"), environment: lines("environment") }
}

fn stable(line: &str, checkout: &str) -> String {
    let workspace = regex::Regex::new(r"/[^\s=]*/pinion-[A-Za-z0-9]{6}\b").expect("a constant");
    workspace.replace(&line.replace(checkout, "CHECKOUT"), "WORKSPACE").into_owned()
}

#[tokio::test]
async fn helm_gets_its_arguments_in_argo_cds_order() {
    let files = [
        ("apps/web/Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n"),
        ("apps/web/values.yaml", "image: {repository: ghcr.io/acme/web}\n"),
        ("apps/web/dev.yaml", "image: {tag: $(pin ~1)}\n"),
        ("apps/web/file.txt", "x"),
        ("shared/all.yaml", "a: 1\n"),
    ];
    let parameters = json!([
        array("helm-api-versions", &["b/v1", "a/v1"]),
        string("helm-skip-tests", "true"),
        string("helm-skip-schema-validation", "true"),
        string("helm-values", "b: 1\n"),
        array("helm-value-files", &["/shared/all.yaml", "dev.yaml"]),
        map("helm-file-parameters", &[("file", "file.txt")]),
        map("helm-force-string-parameters", &[("string", "1")]),
        map("helm-parameters", &[("z", "1"), ("a", "x,y")]),
        array("images", &["web=ghcr.io/acme/web:~1"]),
        map("image-settings", &[("web.helm.image-tag", "other.tag")]),
    ]);
    let started = start("PINION_HELM", &files, "apps/web", parameters).await;
    let expected = [
        "run",
        "template",
        ".",
        "--name-template",
        "web",
        "--namespace",
        "prod",
        "--kube-version",
        "1.34.2",
        "--set",
        r"a=x\,y",
        "--set",
        "z=1",
        "--set-string",
        "string=1",
        "--set-string",
        "other.tag=1.10",
        "--set-file",
        "file=CHECKOUT/apps/web/file.txt",
        "--values",
        "CHECKOUT/shared/all.yaml",
        "--values",
        "WORKSPACE/files/2.yaml",
        "--values",
        "WORKSPACE/files/values.yaml",
        "--api-versions",
        "b/v1",
        "--api-versions",
        "a/v1",
        "--include-crds",
        "--skip-schema-validation",
        "--skip-tests",
    ];
    assert_eq!(started.arguments, expected);
}

#[tokio::test]
async fn kustomize_gets_its_edits_in_argo_cds_order() {
    let files = [
        ("apps/web/kustomization.yaml", "images: [{name: ghcr.io/acme/web, newTag: $(pin ~1)}]\n"),
        ("components/a/kustomization.yaml", "kind: Component\n"),
    ];
    let parameters = json!([
        array("kustomize-components", &["../../components/a"]),
        string("kustomize-namespace", "ns"),
        map("kustomize-common-annotations", &[("k", "$ARGOCD_APP_NAME")]),
        string("kustomize-force-common-annotations", "true"),
        map("kustomize-common-labels", &[("b", "$ARGOCD_APP_NAME"), ("a", "1")]),
        string("kustomize-label-without-selector", "true"),
        string("kustomize-label-include-templates", "true"),
        string("kustomize-force-common-labels", "true"),
        map("kustomize-replicas", &[("web", "2")]),
        array("kustomize-images", &["a/b:1"]),
        string("kustomize-name-suffix", "-s"),
        string("kustomize-name-prefix", "p-"),
    ]);
    let started = start("PINION_KUSTOMIZE", &files, "apps/web", parameters).await;
    let expected = "\
run edit set nameprefix -- p- run edit set namesuffix -- -s run edit set image a/b:1 run edit set replicas web=2 \
run edit add label --force --without-selector --include-templates a:1 b:web run edit add annotation --force k:$ARGOCD_APP_NAME \
run edit set namespace -- ns run edit add component ../../components/a run build WORKSPACE/checkout/apps/web";
    assert_eq!(started.arguments.join(" "), expected);
}

/// The tools get what they need to run; a proxy's address may hold a password. Kustomize also gets what Argo CD gives it.
#[tokio::test]
async fn children_see_nothing_of_the_parents_environment() {
    let chart = [("Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n")];
    let helm = start("PINION_HELM", &chart, "", json!([string("helm-values", "secret: 1\n")])).await.environment;
    let kustomize = start("PINION_KUSTOMIZE", &[("kustomization.yaml", "resources: []\n")], "", json!([])).await.environment;
    for (environment, has_application) in [(&helm, false), (&kustomize, true)] {
        let text = environment.join("\n");
        for absent in ["s3cret", "/evil", "PARAM_", "ARGOCD_APP_PARAMETERS", "PINION_", "KUBE_", "proxy.example.com"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert!(text.contains("HOME=WORKSPACE/home") && text.contains("GOMAXPROCS="), "{text}");
        assert_eq!(text.contains("ARGOCD_APP_NAME=web"), has_application, "{text}");
    }
    assert!(helm.iter().any(|line| Path::new(line.trim_start_matches("HELM_PLUGINS=")).starts_with("WORKSPACE")), "{helm:?}");
}
