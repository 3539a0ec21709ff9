//! What `pinion serve` does not do again, or not at all: files that no render reads, and texts that were rendered from the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pinion::process::sandbox::Level;

use crate::serve::{Fixture, generate};
use crate::support::argocd::Serving;
use crate::support::driver::{Driver, skipped, until};

/// A tool in place of Helm and Kustomize, which notes each call and then does as the script says.
struct Tool {
    dir: tempfile::TempDir,
}

impl Tool {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tool = Self { dir };
        let calls = tool.calls_file();
        let text = format!("#!/bin/sh\n[ \"$1\" = serve ] && exit 1\necho \"$*\" >> {}\n{script}\n", calls.display());
        fs::write(tool.path(), text).expect("written");
        fs::set_permissions(tool.path(), fs::Permissions::from_mode(0o755)).expect("executable");
        tool
    }

    fn path(&self) -> String {
        self.dir.path().join("tool").display().to_string()
    }

    fn calls_file(&self) -> PathBuf {
        self.dir.path().join("calls")
    }

    fn note(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn calls(&self) -> usize {
        self.note("calls").lines().count()
    }
}

const POD: &str = "printf 'apiVersion: v1\\nkind: Pod\\nmetadata: {name: x}\\n'";

fn write(checkout: &Path, path: &str, text: &str) {
    let path = checkout.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(path, text)).expect("written");
}

/// A fixture whose application is a chart that takes `image.tag` by a placeholder.
async fn chart() -> Fixture {
    let fixture = Fixture::new().await;
    let root = fixture.checkout.path();
    fs::remove_file(root.join("app/pod.yaml")).expect("removed");
    write(root, "app/Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n");
    write(root, "app/values.yaml", "image: {repository: ghcr.io/acme/web, tag: $(pin ~1)}\n");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web, image: '{{ .Values.image.repository }}:{{ .Values.image.tag }}'}]}\n";
    write(root, "app/templates/pod.yaml", pod);
    write(root, "other/big", &"x".repeat(100_000));
    write(root, "shared/common.yaml", "common: true\n");
    fixture
}

// Scripts in place of tools note what they are called with beside themselves, so they run without a sandbox.

fn recalled(serving: &Serving) -> usize {
    serving.log().matches("text=\"known\"").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_render_reads_is_written_out() {
    let fixture = chart().await;
    let root = fixture.checkout.path();
    std::os::unix::fs::symlink("../shared/common.yaml", root.join("app/common.yaml")).expect("a link");
    let tool =
        Tool::new(&format!("(cd .. && find . | sort) > $(dirname $0)/seen; cat common.yaml > $(dirname $0)/linked; {POD}"));
    // Placeholders make a copy of the chart; without them the tool runs in the checkout itself.
    write(root, "app/values.yaml", "image: {repository: ghcr.io/acme/web, tag: 1.0.0}\n");
    let serving = fixture.serve(&["--helm", &tool.path(), "--sandbox", "off"]);
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    let seen = tool.note("seen");
    let expected = "./app ./app/Chart.yaml ./app/common.yaml ./app/templates ./app/templates/pod.yaml ./app/values.yaml ./shared ./shared/common.yaml";
    assert_eq!(seen.split_whitespace().skip(1).collect::<Vec<_>>().join(" "), expected);
    assert_eq!(tool.note("linked"), "common: true\n");
    assert!(serving.left_behind().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_looks_for_more_gets_it() {
    let fixture = chart().await;
    write(fixture.checkout.path(), "app/values.yaml", "image: {repository: ghcr.io/acme/web, tag: 1.0.0}\n");
    let tool = Tool::new(&format!("test -e ../other/big || exit 1; {POD}"));
    let serving = fixture.serve(&["--helm", &tool.path(), "--sandbox", "off"]);
    assert!(generate(&serving, fixture.messages(1024)).await.expect("manifests").contains("kind: Pod"));
    assert_eq!(tool.calls(), 2, "it failed once, and then everything was there");
    // What fails for another reason fails once more and for good.
    let failing = Tool::new("echo 'Error: no' >&2; exit 1");
    let serving = fixture.serve(&["--helm", &failing.path(), "--sandbox", "off"]);
    let status = generate(&serving, fixture.messages(1024)).await.expect_err("it fails");
    assert!(status.message().contains("Error: no"), "{status:?}");
    assert_eq!(failing.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unrelated_commit_costs_no_helm_and_a_related_one_does() {
    let mut fixture = chart().await;
    fixture.driver = fixture.driver.impatient();
    let root = fixture.checkout.path();
    let tool = Tool::new(&format!("exec {} \"$@\"", which("helm")));
    let serving = fixture.serve(&["--helm", &tool.path(), "--sandbox", "off"]);
    let render = async || generate(&serving, fixture.messages(1024)).await.expect("manifests");
    let first = render().await;
    assert!(first.contains("web:1.1.0"));
    settled(&serving, 1).await;
    write(root, "other/big", "another commit");
    assert_eq!(render().await, first);
    assert_eq!((tool.calls(), recalled(&serving)), (1, 1), "{}", serving.log());
    // Another pin.
    fixture.registry.tags("acme/web", ["1.0.0", "1.1.0", "1.2.0"]);
    assert!(render().await.contains("web:1.2.0"));
    assert_eq!(tool.calls(), 2);
    // A file of the chart that no template reads today: it may be read by one.
    write(root, "app/files/extra", "x");
    render().await;
    assert_eq!(tool.calls(), 3);
    // A file of another directory that a link leads to.
    std::os::unix::fs::symlink("../../shared/common.yaml", root.join("app/files/common.yaml")).expect("a link");
    render().await;
    write(root, "shared/common.yaml", "common: false\n");
    render().await;
    assert_eq!(tool.calls(), 5);
    settled(&serving, 5).await;
    render().await;
    assert_eq!((tool.calls(), recalled(&serving)), (5, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_request_is_another_text() {
    let fixture = chart().await;
    let tool = Tool::new(&format!("exec {} \"$@\"", which("helm")));
    let serving = fixture.serve(&["--helm", &tool.path(), "--sandbox", "off"]);
    let with = |name: &str, value: &str| {
        let mut messages = fixture.messages(1024);
        let Some(pinion::server::proto::app_stream_request::Request::Metadata(metadata)) = &mut messages[0].request else {
            panic!("metadata first")
        };
        let (name, value) = (name.to_owned(), value.to_owned());
        metadata.env.push(pinion::server::proto::EnvEntry { name, value });
        messages
    };
    for (times, (name, value)) in [
        ("ARGOCD_APP_NAMESPACE", "one"),
        ("ARGOCD_APP_NAMESPACE", "two"),
        ("ARGOCD_APP_NAME", "other"),
        ("ARGOCD_APP_PROJECT_NAME", "another"),
        ("ARGOCD_APP_SOURCE_REPO_URL", "https://git.example.com/another"),
        ("KUBE_VERSION", "1.30.0"),
        ("ARGOCD_APP_PARAMETERS", r#"[{"name":"helm-values","string":"a: 1"}]"#),
        ("ARGOCD_APP_PARAMETERS", r#"[{"name":"helm-values","string":"a: 2"}]"#),
        ("ARGOCD_APP_PARAMETERS", r#"[{"name":"helm-parameters","map":{"a":"1"}}]"#),
    ]
    .into_iter()
    .enumerate()
    {
        generate(&serving, with(name, value)).await.expect("manifests");
        assert_eq!((tool.calls(), recalled(&serving)), (times + 1, 0), "{name}={value}");
        settled(&serving, times + 1).await;
    }
    // A revision that nothing uses does not matter.
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    settled(&serving, 10).await;
    generate(&serving, with("ARGOCD_APP_REVISION", "0123456789")).await.expect("manifests");
    assert_eq!(recalled(&serving), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_changes_is_rendered_again_and_what_is_fetched_always() {
    let fixture = Fixture::new().await;
    let root = fixture.checkout.path();
    write(root, "app/kustomization.yaml", "resources: [../base]\n");
    write(root, "base/kustomization.yaml", "resources: [pod.yaml]\n");
    write(root, "base/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\n");
    let tool = Tool::new(&format!("exec {} \"$@\"", which("kustomize")));
    let serving = fixture.serve(&["--kustomize", &tool.path(), "--sandbox", "off"]);
    let render = async || generate(&serving, fixture.messages(1024)).await.expect("manifests");
    assert!(render().await.contains("name: one"));
    settled(&serving, 1).await;
    assert!(render().await.contains("name: one"));
    assert_eq!((tool.calls(), recalled(&serving)), (1, 1));
    write(root, "base/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: two}\n");
    assert!(render().await.contains("name: two"));
    assert_eq!(tool.calls(), 2);
    // Addresses, in every place where one may stand: the tool would fetch them.
    let remote = Tool::new(POD);
    for text in [
        "resources: [https://example.com/pod.yaml]\n",
        "resources: ['github.com/acme/web//base?ref=v1']\n",
        "resources: [github.com/acme/web]\n",
        "resources: [pod.yaml]\npatches: [{path: 'https://example.com/patch.yaml'}]\n",
        "resources: ['git@example.com:acme/web']\n",
        "resources: [pod.yaml]\nvalidators: [github.com/acme/web]\n",
        "resources: [pod.yaml]\npatches: [{path: \"https:\\/\\/example.com/patch.yaml\"}]\n",
        // Go takes a field by any case, and the file of a plugin may name anything.
        "Resources: [github.com/acme/web]\n",
        "resources: [pod.yaml]\ngenerators: [pod.yaml]\n",
        // A directory of that name may not keep Kustomize from fetching.
        "resources: [example.org/base]\n",
    ] {
        write(root, "app/kustomization.yaml", text);
        write(root, "app/example.org/base/kustomization.yaml", "resources: []\n");
        let serving = fixture.serve(&["--kustomize", &remote.path(), "--sandbox", "off"]);
        let before = remote.calls();
        for _ in 0..2 {
            generate(&serving, fixture.messages(1024)).await.expect("manifests");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        // A generator may change the placeholders of the pod: two builds find out what becomes of them.
        let builds = if text.contains("generators") { 6 } else { 2 };
        assert_eq!(remote.calls() - before, builds, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_render_cache_can_be_switched_off() {
    let fixture = chart().await;
    let tool = Tool::new(POD);
    let serving = fixture.serve(&["--helm", &tool.path(), "--sandbox", "off", "--render-cache-bytes", "0"]);
    for times in 1..=2 {
        generate(&serving, fixture.messages(1024)).await.expect("manifests");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(tool.calls(), times);
    }
}

/// What a parameter adds by address is fetched, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_remote_component_is_fetched_each_time() {
    let fixture = Fixture::new().await;
    let root = fixture.checkout.path();
    write(root, "app/kustomization.yaml", "resources: [pod.yaml]\n");
    let tool = Tool::new(POD);
    let serving = fixture.serve(&["--kustomize", &tool.path(), "--sandbox", "off"]);
    let mut messages = fixture.messages(1024);
    let Some(pinion::server::proto::app_stream_request::Request::Metadata(metadata)) = &mut messages[0].request else {
        panic!("metadata first")
    };
    let value = r#"[{"name":"kustomize-components","array":["https://github.com/acme/components//x?ref=main"]}]"#;
    metadata.env.push(pinion::server::proto::EnvEntry { name: "ARGOCD_APP_PARAMETERS".into(), value: value.into() });
    for times in 1..=2 {
        generate(&serving, messages.clone()).await.expect("manifests");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(tool.calls(), 2 * times, "an edit and a build each");
    }
}

/// A base behind a link to a directory is built where it stands, also when the kustomization is edited.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_base_leads_to_the_same_in_a_copy() {
    let fixture = Fixture::new().await;
    let root = fixture.checkout.path();
    write(root, "app/kustomization.yaml", "resources: [link]\n");
    std::os::unix::fs::symlink("../base", root.join("app/link")).expect("a link");
    write(
        root,
        "base/kustomization.yaml",
        "resources: [../common]\nimages: [{name: web, newName: ghcr.io/acme/web, newTag: $(pin ~1)}]\n",
    );
    let pod = |name: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: a, image: web}}]}}\n")
    };
    for (dir, name) in [("common", "right"), ("app/common", "wrong")] {
        write(root, &format!("{dir}/kustomization.yaml"), "resources: [pod.yaml]\n");
        write(root, &format!("{dir}/pod.yaml"), &pod(name));
    }
    let serving = fixture.serve(&[]);
    let manifests = generate(&serving, fixture.messages(1024)).await.expect("manifests");
    assert!(manifests.contains("name: right") && manifests.contains("ghcr.io/acme/web:1.1.0"), "{manifests}");
    let driver = fixture.driver.env("ARGOCD_APP_NAME", "web");
    let app = root.join("app").display().to_string();
    let classic = tokio::task::block_in_place(|| driver.run(["generate", &app]));
    // Without a repository around it, the directory itself is the checkout.
    assert!(classic.status != 0 && classic.stderr.contains("outside"), "{classic:?}");
    fs::create_dir(root.join(".git")).expect("made");
    let classic = tokio::task::block_in_place(|| driver.run(["generate", &app]));
    assert_eq!(classic.ok(), manifests);
}

/// A directory whose name looks like a host is a base like others, with what it builds upon.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_in_a_dotted_directory_is_followed() {
    let fixture = Fixture::new().await;
    let root = fixture.checkout.path();
    let images = "images: [{name: web, newName: ghcr.io/acme/web, newTag: $(pin ~1)}]\n";
    write(root, "app/kustomization.yaml", &format!("resources: [v1.2/base]\n{images}"));
    write(root, "app/v1.2/base/kustomization.yaml", "resources: [../../../shared]\n");
    write(root, "shared/kustomization.yaml", "resources: [pod.yaml]\n");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: web}]}\n";
    write(root, "shared/pod.yaml", pod);
    let serving = fixture.serve(&[]);
    let manifests = generate(&serving, fixture.messages(1024)).await.expect("manifests");
    assert!(manifests.contains("ghcr.io/acme/web:1.1.0"), "{manifests}");
}

/// An operator may switch Kustomize's load restrictions off for paths within the repository: none leads out of it.
#[tokio::test(flavor = "multi_thread")]
async fn without_load_restrictions_the_checkout_is_still_the_border() {
    if Level::probe().landlock == 0 {
        skipped("this kernel has no Landlock");
        return;
    }
    let fixture = Fixture::new().await;
    let root = fixture.checkout.path();
    write(root, "shared.txt", "shared");
    fs::write(fixture.driver.home().join("secret"), "s3cret").expect("written");
    let secret = fixture.driver.home().join("secret").display().to_string();
    let driver = fixture.driver.env("PINION_KUSTOMIZE_BUILD_OPTIONS", "--load-restrictor LoadRestrictionsNone");
    let driver = driver.env("ARGOCD_APP_NAME", "web").env("ARGOCD_APP_SOURCE_PATH", "app");
    let generate = |driver: &Driver, kustomization: &str| {
        write(root, "app/kustomization.yaml", kustomization);
        tokio::task::block_in_place(|| driver.run(["generate", &root.join("app").display().to_string()]))
    };
    // Texts that look like paths and are none, and a path within.
    let text =
        "configMapGenerator: [{name: c, literals: [DATA=/data], files: [../shared.txt]}]\ncommonAnnotations: {path: /healthz}\n";
    let manifests = generate(&driver, text).ok();
    assert!(manifests.contains("DATA: /data") && manifests.contains("shared.txt: shared"), "{manifests}");
    let up = "../".repeat(20);
    let plugin = format!("{{apiVersion: builtin, kind: ConfigMapGenerator, metadata: {{name: c}}, files: ['{secret}']}}\n");
    write(root, "app/plugin.yaml", &plugin);
    for text in [
        format!("configMapGenerator: [{{name: c, files: ['x={secret}']}}]\n"),
        format!("ConfigMapGenerator: [{{name: c, Files: ['{secret}']}}]\n"),
        format!("configMapGenerator: [{{name: c, files: ['x={up}{secret}']}}]\n"),
        format!("secretGenerator: [{{name: c, envs: ['{secret}']}}]\n"),
        format!("secretGenerator: [{{name: c, envs: [\"x\\n/../{up}{secret}\"]}}]\n"),
        format!("secretGenerator: [{{name: c, envs: ['git@/../{up}{secret}']}}]\n"),
        format!("resources: [pod.yaml]\npatches: [{{path: '{secret}'}}]\n"),
        format!("resources: [pod.yaml]\nopenapi: {{path: '{secret}'}}\n"),
        format!("generators:\n- |\n  {plugin}"),
        "generators: [plugin.yaml]\n".to_owned(),
        "configMapGenerator: [{name: c, files: [/proc/self/environ]}]\n".to_owned(),
    ] {
        let refused = generate(&driver, &text).err();
        assert!(
            refused.contains("permission denied") && refused.contains("outside the application's checkout"),
            "{text}: {refused}"
        );
        assert!(!refused.contains("s3cret"), "{text}: {refused}");
    }
    // An address is not taken for a file.
    let fetched = generate(&driver, "resources: ['https://127.0.0.1:1/items?path=/deploy/a.yaml']\n").err();
    assert!(fetched.contains("127.0.0.1:1") && fetched.contains("what `egress` permits"), "{fetched}");
    let parameters = serde_json::json!([{"name": "kustomize-patches", "string": format!("[{{path: '{secret}'}}]")}]);
    let driver = driver.env("ARGOCD_APP_PARAMETERS", parameters.to_string());
    let refused = generate(&driver, "resources: [pod.yaml]\n").err();
    assert!(refused.contains("permission denied"), "{refused}");
}

/// To Git a directory of this machine is as good as an address.
#[tokio::test(flavor = "multi_thread")]
async fn a_remote_base_is_no_directory_of_this_machine() {
    if std::process::Command::new("git").arg("--version").output().is_err() {
        skipped("git is missing");
        return;
    }
    let fixture = Fixture::new().await;
    write(fixture.checkout.path(), "app/kustomization.yaml", "resources: ['file:///nowhere/repository?ref=HEAD']\n");
    let refused = generate(&fixture.serve(&[]), fixture.messages(1024)).await.expect_err("refused");
    assert!(refused.message().contains("transport 'file' not allowed"), "{refused:?}");
}

/// Waits until so many texts were kept: that happens behind the answer.
async fn settled(serving: &Serving, texts: usize) {
    let line = format!("pinion_render_cache_texts {texts}\n");
    until(&format!("not {texts} texts are kept"), async || serving.get("/metrics").await.contains(&line)).await;
}

fn which(tool: &str) -> String {
    crate::support::driver::root().join(".tools/bin").join(tool).display().to_string()
}
