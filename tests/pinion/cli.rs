//! The command line as a user meets it: what is printed where, exit statuses, and errors that say what to do.

use std::fs;

use crate::support::driver::Driver;
use crate::support::registry::FakeRegistry;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

fn offline() -> Driver {
    Driver::with_entries(PROGRAM, "registries: []\n")
}

fn select(input: &str, words: &[&str]) -> (i32, String, String) {
    let ran = offline().input(input).run(std::iter::once("select").chain(words.iter().copied()));
    (ran.status, ran.stdout, ran.stderr)
}

#[test]
fn select_reads_what_skopeo_prints() {
    for input in [
        "{\n    \"Repository\": \"ghcr.io/acme/web\",\n    \"Tags\": [\n        \"1.0.0\",\n        \"1.1.0\",\n        \"2.0.0\"\n    ]\n}\n",
        "{\"name\": \"acme/web\", \"tags\": [\"1.1.0\", \"2.0.0\"]}",
        "[\n  \"1.1.0\",\n  \"1.0.0\"\n]\n",
        "{\"tag\": \"1.1.0\"}\n{\"tag\": \"1.0.0\"}\n",
    ] {
        assert_eq!(select(input, &["~1"]), (0, "1.1.0\n".into(), String::new()), "{input}");
    }
    let (status, _, error) = select("1.0.0\n{\"name\": \"1.1.0\"}\n", &["~1"]);
    assert_eq!(status, 1);
    assert!(error.starts_with("error: standard input:2: unknown field `name`"), "{error}");
    assert!(error.contains("hint: a line is a tag or an object such as `{\"tag\": \"1.2.0\"}`"), "{error}");
    // Cut off, or not texts: nothing is chosen, and no fallback.
    for input in ["[\n  \"1.1.0\",\n", "[\"1.1.0\", 5]", &"[".repeat(200_000)] {
        let (status, stdout, error) = select(input, &["~1", "--fallback", "1.0.0"]);
        assert_eq!((status, stdout.as_str()), (1, ""), "{error}");
        assert!(error.contains("standard input: it is not a JSON list of tags"), "{error}");
    }
}

#[test]
fn select_prints_the_winner_alone() {
    let tags = "1.0.0\n1.1.0\n1.2.0-rc.1\nlatest\n\n";
    assert_eq!(select(tags, &["~1"]), (0, "1.1.0\n".into(), String::new()));
    assert_eq!(select(tags, &["--", "~1-0"]), (0, "1.2.0-rc.1\n".into(), String::new()));
    assert_eq!(select(tags, &["alphabetical"]).1, "latest\n");
    assert_eq!(select(tags, &["--allow-tags", "^1", "alphabetical", "desc"]).1, "1.0.0\n");
    assert_eq!(select("a-2\na-10\n", &["numerical", "--allow-tags", "^a-(?P<n>[0-9]+)$", "--extract", "$n"]).1, "a-10\n");
}

#[test]
fn select_reads_objects() {
    let builds = r#"{"tag":"b","created":"2026-01-01T00:00:00Z","platform":"linux/amd64"}
{"tag":"a","created":"2026-02-01T00:00:00Z","platform":"linux/arm64"}
{"tag":"a","created":"2026-01-02T00:00:00Z","platform":"linux/amd64","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
"#;
    assert_eq!(select(builds, &["newest-build"]).1, "a\n");
    assert_eq!(
        select(builds, &["newest-build", "--with-digest"]).1,
        "a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
    );
    let (status, stdout, stderr) = select("a\nb\n", &["newest-build"]);
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(
        stderr.starts_with("error: standard input: nothing is known about 2 tags") && stderr.contains("\"created\""),
        "{stderr}"
    );
    let (status, _, stderr) = select("a\n{\"tag\": 1}\n", &["newest-build"]);
    assert_eq!(status, 1);
    assert!(stderr.starts_with("error: standard input:2: "), "{stderr}");
}

#[test]
fn select_says_when_nothing_is_permitted_and_when_the_policy_is_wrong() {
    let (status, stdout, stderr) = select("1.0.0\n2.0.0-rc.1\n", &["~2"]);
    assert_eq!((status, stdout.as_str()), (3, ""));
    assert!(stderr.starts_with("error: no permitted tag: 2 tags, ") && stderr.contains("hint: "), "{stderr}");
    for words in [&["newest"][..], &["~~1"], &["--allow-tags", "("], &["digest"], &["ghcr.io/a/b:~1"], &["--nope"]] {
        let (status, stdout, stderr) = select("1.0.0\n", words);
        assert_eq!((status, stdout.as_str()), (2, ""), "{words:?} {stderr}");
        assert!(stderr.starts_with("error: "), "{words:?} {stderr}");
    }
}

#[test]
fn select_falls_back() {
    let (status, stdout, stderr) = select("1.0.0\n", &["~2", "--fallback", "0.9.0", "--explain"]);
    assert_eq!((status, stdout.as_str()), (0, "0.9.0\n"));
    assert!(stderr.contains("=> 0.9.0, the fallback") && stderr.contains("using the fallback"), "{stderr}");
    assert_eq!(select("2.0.0\n", &["~2", "--fallback", "0.9.0"]).1, "2.0.0\n");
    let (_, stdout, _) = select("", &["~2", "--fallback", "0.9.0", "-o", "json"]);
    assert!(stdout.contains("\"tag\": \"0.9.0\""), "{stdout}");
}

#[test]
fn select_explains_and_reports() {
    let (_, stdout, stderr) = select("1.0.0\n1.1.0\nlatest\n", &["~1.0", "--explain", "-o", "json"]);
    assert!(stderr.contains("3 tags") && stderr.contains("1 permitted"), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((report["tag"].as_str(), report["considered"]["tags"].as_u64()), (Some("1.0.0"), Some(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn resolve_takes_the_words_of_a_placeholder() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0", "1.1.0", "2.0.0-rc.1"]);
    registry.tags("library/nginx", ["1.27.0", "1.28.0"]);
    let driver = Driver::new(PROGRAM, &registry);
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok(), "1.1.0\n");
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web", "~2-0"]).ok(), "2.0.0-rc.1\n");
    assert_eq!(driver.run(["resolve", "nginx:~1.27"]).ok(), "1.27.0\n", "Docker Hub, without a slash");
    assert_eq!(driver.run(["resolve", "--image", "nginx", "~1.27"]).ok(), "1.27.0\n");
    let digest = driver.run(["resolve", "ghcr.io/acme/web", "digest", "1.0.0"]).ok();
    assert!(digest.starts_with("1.0.0@sha256:"), "{digest}");
    let explained = driver.run(["resolve", "ghcr.io/acme/web:~1", "--explain"]);
    assert!(explained.stderr.contains("3 tags") && explained.stderr.contains("tags read "), "{}", explained.stderr);
    let yaml = driver.run(["resolve", "ghcr.io/acme/web:~1", "-o", "yaml"]).ok();
    assert!(yaml.contains("tag: 1.1.0") && yaml.contains("freshness: fresh"), "{yaml}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_answer_is_served_without_asking() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0"]);
    let driver = Driver::new(PROGRAM, &registry);
    driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok();
    registry.forget_requests();
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok(), "1.0.0\n");
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1.0"]).ok(), "1.0.0\n", "the listing is fresh as well");
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn exit_status_2_is_the_callers_mistake() {
    for words in
        [&["resolve"][..], &["resolve", "@web"], &["resolve", "ghcr.io/a/b", "newest"], &["nope"], &["generate", "--nope"]]
    {
        assert_eq!(offline().run(words).status, 2, "{words:?}");
    }
    let ran = offline().run(["resolve", "ghcr.io/a/b", "newest"]);
    assert!(ran.stderr.contains("unknown strategy") && ran.stderr.contains("newest-build"), "{}", ran.stderr);
}

#[test]
fn help_teaches() {
    for (command, wanted) in [
        ("generate", "--application"),
        ("resolve", "pinion resolve ghcr.io/acme/web:~1.2"),
        ("select", "pinion select '~1.2'"),
        ("check", "needs no network"),
    ] {
        let help = offline().run([command, "--help"]).ok();
        assert!(help.contains(wanted), "{command}: {help}");
    }
}

#[test]
fn check_reports_what_a_render_would_refuse() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path: &str, text: &[u8]| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(path, text)).expect("written");
    };
    let driver = offline().within(dir.path());
    write("a/values.yaml", b"image:\n  tag: $(pin @nope)\n");
    write("a/Chart.yaml", b"apiVersion: v2\nname: a\nversion: 1.0.0\n");
    let ran = driver.run(["check"]);
    assert_eq!(ran.status, 0, "the parameter `images` may have it: {}", ran.stderr);
    assert!(ran.stderr.contains("a/values.yaml:2:8: no rules file below DIR has the alias `nope`"), "{}", ran.stderr);
    write("a/.pinion.yaml", b"apiVersion: pinion.dev/v1\nkind: Rules\nimages:\n- {alias: nope, imageName: 'ghcr.io/a/b:~2'}\n");
    assert!(!driver.run(["check"]).stderr.contains("alias"));

    write("b/values.yaml", b"a: \xff\xfe x\n");
    write("b/Chart.yaml", b"name: [\n");
    write("c/values.yaml", b"a: [\n");
    write("c/.pinoin.yaml", b"kind: Rules\n");
    write("c/data.yaml", b"\xff\xfe");
    let error = driver.run(["check"]).err();
    for wanted in [
        "b/values.yaml: it is not UTF-8 text\n  hint: Helm and Kustomize read UTF-8",
        "`b/Chart.yaml` is not what Helm expects: ",
        "c/values.yaml:1:4: unclosed bracket",
        "c/.pinoin.yaml: a file of this name is not read\n  hint: name it `.pinion.yaml`",
    ] {
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    assert!(!error.contains("data.yaml"), "{error}");
}

#[test]
fn files_that_cannot_be_read_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let driver = offline().within(dir.path());
    fs::write(dir.path().join("file"), "").expect("written");
    for (words, wanted) in [
        (&["generate", ".", "-a", "nope.yaml"][..], "error: nope.yaml: it cannot be read: No such file"),
        (&["generate", ".", "-a", "."], "error: .: it cannot be read: Is a directory"),
        (&["check", ".", "-a", "nope.yaml"], "error: nope.yaml: it cannot be read: No such file"),
        (&["generate", "file"], "error: `file` is not a directory"),
        (&["check", "file"], "error: `file` is not a directory"),
        (&["check", "nope"], "error: `nope` does not exist"),
    ] {
        let error = driver.run(words.iter().copied()).err();
        assert!(error.starts_with(wanted), "{words:?}: {error}");
    }
}

#[test]
fn check_lists_every_mistake_with_its_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(path, text)).expect("written");
    };
    write("values.yaml", "image:\n  tag: $(pin newest ~1)\nother: $(pin ~1 )\n");
    write("deep/app.yaml", "a: $(pin ~~1)\nb: x $(pin ~1\n");
    write("deep/templates/d.yaml", "{{ if .Values.x }}\nimage: a/b:$(pin >)\n{{ end }}\n");
    write(".pinion.yaml", "apiVersion: pinion.dev/v1\nkind: Rules\nimages:\n- {alias: web, imageName: 'ghcr.io/a/b:~~2'}\n");
    let driver = offline().within(dir.path());
    let error = driver.run(["check"]).err();
    for place in
        ["values.yaml:2:8: ", "deep/app.yaml:1:4: ", "deep/app.yaml:2:6: ", "deep/templates/d.yaml:2:12: ", ".pinion.yaml:4:11: "]
    {
        assert!(error.contains(place), "{place} in {error}");
    }
    assert!(!error.contains("values.yaml:3"), "{error}");
    let below = offline().run(["check", &dir.path().display().to_string()]).err();
    assert!(below.contains(&format!("{}/values.yaml:2:8: ", dir.path().display())), "{below}");
}

#[test]
fn check_finds_placeholders_without_an_image() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).expect("written");
    write("Chart.yaml", "apiVersion: v2\nname: x\nversion: 0.1.0\n");
    write("values.yaml", "web: {repository: a/b}\n");
    write("dev.yaml", "web:\n  tag: $(pin ~1)\napi:\n  tag: $(pin ~1)\n");
    let manifest = |parameters: &str| {
        format!(
            "apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {{name: x}}\nspec: {{source: {{plugin: {{name: pinion@v1, parameters: {parameters}}}}}}}\n"
        )
    };
    write("app.yaml", &manifest("[{name: helm-value-files, array: [dev.yaml]}]"));
    let driver = offline().within(dir.path());
    driver.run(["check"]).ok();
    let error = driver.run(["check", "--application", "app.yaml"]).err();
    assert!(error.starts_with("error: dev.yaml:4:8: `$(pin ~1)`: no image found: "), "{error}");
    assert!(!error.contains("dev.yaml:2"), "{error}");
}

#[test]
fn the_operators_mistakes_are_named() {
    let driver = offline().env("PINION_TAGS_TTL", "soon");
    assert!(driver.run(["check"]).err().starts_with("error: `tags-ttl`: `soon` is no duration"));
    let driver = Driver::with_entries(PROGRAM, "registries:\n- name: x\n  api_url: https://x.example\n  nope: 1\n");
    let error = driver.run(["check"]).err();
    assert!(error.contains("registries.conf") && error.contains("nope"), "{error}");
    let driver = offline().env("PINION_REGISTRIES_CONF", "/nothing/here");
    assert!(driver.run(["check"]).err().contains("/nothing/here"));
    assert_eq!(offline().env("PINION_LOG_LEVEL", "loud").run(["check"]).status, 2);
    let driver = offline().env("PINION_LOG_LEVEL", "a=b=c");
    assert_eq!(driver.run(["check"]).status, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_can_be_written_and_rendered_from_alone() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0", "1.1.0"]);
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).expect("written");
    write(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: x, image: 'ghcr.io/acme/web:$(pin ~1)'}]}\n",
    );
    let driver = Driver::new(PROGRAM, &registry).within(dir.path()).env("ARGOCD_APP_NAME", "web");
    let lock = dir.path().join(".pinion-lock-web.yaml");
    let rendered = driver.run(["generate", "--write-pins", &lock.display().to_string()]).ok();
    assert!(rendered.contains("ghcr.io/acme/web:1.1.0"), "{rendered}");
    registry.tags("acme/web", ["1.2.0"]);
    registry.stop();
    let locked = driver.env("ARGOCD_APP_PARAMETERS", r#"[{"name":"mode","string":"locked"}]"#).env("PINION_STORE", "/nothing");
    assert_eq!(locked.run(["generate"]).ok(), rendered);
    fs::remove_file(lock).expect("removed");
    let error = locked.run(["generate"]).err();
    assert!(error.contains("pod.yaml") || error.contains("rendered manifests:4:"), "{error}");
    assert!(error.contains("the application is locked, and its record has no pin for `ghcr.io/acme/web semver ~1`"), "{error}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is() {
    use std::process::{Command, Stdio};
    let run = |stdout: Stdio| {
        let mut child = Command::new(PROGRAM)
            .args(["select", "--", "~1"])
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"1.0.0\n").expect("written");
        child.wait_with_output().expect("it ends")
    };
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert!(run(writer.into()).status.success());
    let full = run(fs::OpenOptions::new().write(true).open("/dev/full").expect("a full disk").into());
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stderr).starts_with("error: standard output cannot be written"));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_why_nothing_is_permitted() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0", "latest"]);
    let ran = Driver::new(PROGRAM, &registry).run(["resolve", "ghcr.io/acme/web:~7", "--explain"]);
    assert_eq!(ran.status, 3);
    assert!(ran.stderr.contains("-1 outside `~7`: 1.0.0") && ran.stderr.contains("0 permitted"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn generate_exits_3_where_nothing_is_wrong_but_that_no_tag_is_permitted() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0"]);
    let run = |text: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("pod.yaml"), format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: x}}\nspec: {{{text}}}\n"))
            .expect("written");
        Driver::new(PROGRAM, &registry).within(dir.path()).run(["generate", "."])
    };
    let none = run("image: 'ghcr.io/acme/web:$(pin ~2)'");
    assert_eq!((none.status, none.stdout.as_str()), (3, ""), "{}", none.stderr);
    let both = run("image: 'ghcr.io/acme/web:$(pin ~2)', other: 'ghcr.io/acme/web:$(pin ~~1)'");
    assert_eq!(both.status, 1, "a file is wrong, too: {}", both.stderr);
    let gone = run("image: 'ghcr.io/acme/gone:$(pin ~2)'");
    assert_eq!(gone.status, 1, "the registry has no such repository: {}", gone.stderr);
}

#[test]
fn check_leaves_what_templates_write_to_the_render() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("templates")).expect("made");
    fs::write(dir.path().join("templates/a.yaml"), "image: \"a/b:$(pin {{ .Values.c }})\"\nother: \"a/b:$(pin ~~1)\"\n")
        .expect("written");
    let error = offline().within(dir.path()).run(["check"]).err();
    assert!(error.starts_with("error: templates/a.yaml:2:") && error.lines().count() <= 2, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_reaches_no_manifest_is_told() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0", "2.0.0"]);
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).expect("written");
    write("kustomization.yaml", "resources: [pod.yaml]\nimages: [{name: other, newTag: '$(pin ghcr.io/acme/web ~2)'}]\n");
    write(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: x, image: ghcr.io/acme/web:1.0.0}]}\n",
    );
    let ran = Driver::new(PROGRAM, &registry).within(dir.path()).run(["generate", "--explain"]);
    assert!(ran.stderr.contains("WARN kustomization.yaml:2:33: `$(pin ghcr.io/acme/web ~2)`: the pin"), "{}", ran.stderr);
    assert!(ran.stderr.contains("unused, fresh") && ran.stderr.contains(" unused=1 "), "{}", ran.stderr);
    assert!(ran.ok().contains("image: ghcr.io/acme/web:1.0.0"));
}
