//! What is fetched for a render: chart dependencies and value files by Pinion, bases and resources by Kustomize and Git in their sandbox.
//! Dependencies are those that `helm dependency build` takes, from a chart repository and an OCI registry of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pinion::egress::Policy;
use pinion::egress::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fixtures::{copy, needs, write};
use crate::support::driver::{Driver, tool};
use crate::support::real_registry::{Guard, Kind, Peer};
use crate::support::registry::{Auth, FakeRegistry};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

/// A server of files.
struct Files {
    dir: tempfile::TempDir,
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    is_down: Arc<AtomicBool>,
}

impl Files {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (asked, is_down) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (root, log, down) = (dir.path().to_owned(), Arc::clone(&asked), Arc::clone(&is_down));
        let router = axum::Router::new().fallback(async move |request: Request| {
            let path = request.uri().path().trim_start_matches('/').to_owned();
            log.lock().expect("no panic").push(path.clone());
            if down.load(Ordering::SeqCst) {
                return Err(StatusCode::SERVICE_UNAVAILABLE);
            }
            if path.contains(".git/") {
                return Ok(git_backend(&root, request).await);
            }
            fs::read(root.join(path)).map(IntoResponse::into_response).map_err(|_| StatusCode::NOT_FOUND)
        });
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { dir, port, asked, is_down }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How often a path with this end was asked for.
    fn asked(&self, end: &str) -> usize {
        self.asked.lock().expect("no panic").iter().filter(|path| path.ends_with(end)).count()
    }

    /// A driver that may connect here.
    fn driver(&self, registry: &FakeRegistry) -> Driver {
        let hosts = format!("localhost:{}", self.port);
        Driver::new(PROGRAM, registry).env("PINION_EGRESS_HOSTS", hosts).env("PINION_EGRESS_CIDRS", "127.0.0.1")
    }
}

/// Answers as `git http-backend` does.
async fn git_backend(root: &Path, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default();
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git is there");
    let mut input = child.stdin.take().expect("stdin is piped");
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    input.write_all(&body).await.expect("sent");
    drop(input);
    let output = child.wait_with_output().await.expect("it ends").stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").expect("headers");
    let head = String::from_utf8(output[..end].to_vec()).expect("text");
    let mut response = Response::builder();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        response = if name == "Status" { response.status(&value[..3]) } else { response.header(name, value) };
    }
    response.body(output[end + 4..].to_vec().into()).expect("a response")
}

fn helm(directory: &Path, home: &Path, arguments: &[&str]) -> String {
    let output = Command::new(tool("helm").expect("the caller asked"))
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .current_dir(directory)
        .output()
        .expect("Helm starts");
    assert!(output.status.success(), "helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

const TEMPLATE: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Chart.Name }}-{{ .Release.Name }}}\ndata: {version: '{{ .Chart.Version }}', values: '{{ .Values | toJson }}'}\n";

/// Versions of the chart `lib` in the repositories.
const VERSIONS: [&str; 8] = ["0.9.0", "1.0.0", "1.1.0", "1.1.1", "1.2.0-rc.1", "1.10.0", "2.0.0", "2.0.1+build.5"];

/// Packs every version of `lib`, and returns the archives.
fn packed(place: &Path, home: &Path) -> Vec<PathBuf> {
    let archives = VERSIONS.map(|version| {
        let chart = place.join(version).join("lib");
        let text = format!("apiVersion: v2\nname: lib\nversion: {version}\n");
        write(
            &chart,
            &[("Chart.yaml", &text), ("templates/a.yaml", TEMPLATE), ("values.yaml", "image: {repository: ghcr.io/acme/web}\n")],
        );
        helm(place, home, &["package", &chart.display().to_string(), "--destination", &place.display().to_string()]);
        place.join(format!("lib-{version}.tgz"))
    });
    archives.into()
}

/// Renders a chart as Argo CD does: Helm builds the dependencies, and renders.
fn native(chart: &Path, home: &Path, repository: &str) -> (String, Vec<String>) {
    helm(chart, home, &["repo", "add", "test", repository]);
    helm(chart, home, &["repo", "add", "deep", &format!("{repository}/deep/repository")]);
    helm(chart, home, &["dependency", "build", "--plain-http"]);
    let manifests = helm(chart, home, &["template", ".", "--name-template", "web", "--include-crds"]);
    let mut names: Vec<String> = fs::read_dir(chart.join("charts"))
        .expect("charts")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    (manifests, names)
}

#[tokio::test(flavor = "multi_thread")]
async fn dependencies_are_those_that_helm_builds() {
    if !needs("helm") || !needs("registry") {
        return;
    }
    let (files, fake) = (Files::start().await, FakeRegistry::start().await);
    let place = tempfile::tempdir().expect("a directory");
    let home = place.path().join("home");
    fs::create_dir(&home).expect("made");
    let archives = packed(files.path(), &home);
    helm(files.path(), &home, &["repo", "index", "."]);
    let Some(peer) = Peer::start(Kind::DistributionV3, Guard::Open) else { return };
    for archive in &archives {
        helm(
            files.path(),
            &home,
            &["push", &archive.display().to_string(), &format!("oci://{}/charts", peer.host()), "--plain-http"],
        );
    }
    // Another repository whose addresses are absolute, with a path.
    let other = files.path().join("deep/repository");
    fs::create_dir_all(&other).expect("made");
    fs::copy(files.path().join("lib-1.0.0.tgz"), other.join("lib-1.0.0.tgz")).expect("copied");
    helm(&other, &home, &["repo", "index", ".", "--url", &format!("{}/deep/repository", files.url())]);
    let http = files.url();
    let oci = format!("oci://{}/charts", peer.host());
    let one = |version: &str, repository: &str, more: &str| {
        format!("- {{name: lib, version: '{version}', repository: '{repository}'{more}}}\n")
    };
    let mut cases: Vec<(String, String)> = Vec::new();
    for version in [
        "1.0.0",
        "v1.0.0",
        "1.0",
        "^1",
        "~1.1",
        ">=1.0.0 <2",
        ">=1.0.0-0 <1.3.0",
        "1.x",
        "*",
        ">0-0",
        "1.1.0 - 1.9",
        "1.0.0 || 2.0.0",
        "2.0.1+build.5",
    ] {
        cases.push((format!("http {version}"), one(version, &http, "")));
    }
    for version in ["1.0.0", "^1", "~1.1", "*", ">=1.0.0 <2", "2.0.1+build.5", "1.1.0 - 1.9"] {
        cases.push((format!("oci {version}"), one(version, &oci, "")));
    }
    cases.push(("a slash at the end".into(), one("1.0.0", &format!("{http}/"), "")));
    cases.push(("a path, and absolute addresses".into(), one("^1", &format!("{http}/deep/repository"), "")));
    cases.push(("two of one name".into(), one("1.0.0", &http, ", alias: one") + &one("2.0.0", &http, ", alias: two")));
    cases.push((
        "with a local one".into(),
        one("^1", &http, "") + "- {name: own, version: '>=0.1.0', repository: 'file://../own'}\n",
    ));
    cases.push(("switched off".into(), one("^1", &http, ", condition: lib.enabled")));
    cases.push(("a local one without a place".into(), one("^1", &http, "") + "- {name: kept, version: 0.1.0}\n"));
    let own = [("own/Chart.yaml", "apiVersion: v2\nname: own\nversion: 0.1.0\n"), ("own/templates/a.yaml", TEMPLATE)];
    // A chart that was declared before.
    write(
        &place.path().join("gone"),
        &[("Chart.yaml", "apiVersion: v2\nname: gone\nversion: 0.1.0\n"), ("templates/a.yaml", TEMPLATE)],
    );
    helm(place.path(), &home, &["package", "gone"]);
    let gone = place.path().join("gone-0.1.0.tgz");
    let mut faults = Vec::new();
    for (name, declared) in &cases {
        for is_locked in [false, true] {
            let dir = place.path().join("case");
            let _ = fs::remove_dir_all(&dir);
            let chart = format!("apiVersion: v2\nname: web\nversion: 0.1.0\ndependencies:\n{declared}");
            write(
                &dir,
                &[("app/Chart.yaml", &chart), ("app/templates/a.yaml", TEMPLATE), ("app/values.yaml", "lib: {enabled: true}\n")],
            );
            write(&dir, &own);
            if declared.contains("kept") {
                write(
                    &dir,
                    &[
                        ("app/charts/kept/Chart.yaml", "apiVersion: v2\nname: kept\nversion: 0.1.0\n"),
                        ("app/charts/kept/templates/a.yaml", TEMPLATE),
                    ],
                );
            }
            fs::create_dir_all(dir.join("app/charts")).expect("made");
            let app = dir.join("app");
            if is_locked {
                helm(&app, &home, &["repo", "add", "test", &http]);
                helm(&app, &home, &["repo", "add", "deep", &format!("{http}/deep/repository")]);
                helm(&app, &home, &["dependency", "update", "--plain-http"]);
                // What is newest changes, what is locked stays.
                let charts = fs::read_dir(app.join("charts")).expect("charts").flatten();
                charts.filter(|entry| entry.path().is_file()).for_each(|entry| fs::remove_file(entry.path()).expect("removed"));
            }
            if name.contains('^') {
                fs::copy(&gone, app.join("charts/gone-0.1.0.tgz")).expect("copied");
            }
            let copied = place.path().join("native");
            let _ = fs::remove_dir_all(&copied);
            copy(&dir, &copied);
            let driver = files.driver(&fake).env("ARGOCD_APP_NAME", "web").env("ARGOCD_APP_SOURCE_PATH", "app").within(&app);
            let driver = driver.env("PINION_REGISTRIES_CONF", conf(place.path(), &peer));
            let ran = tokio::task::block_in_place(|| driver.run(["generate"]));
            let (manifests, names) = native(&copied.join("app"), &home, &http);
            if ran.stdout != manifests {
                faults.push(format!(
                    "=== {name}, locked: {is_locked}\n{}{}\n--- helm {names:?}\n{manifests}",
                    ran.stdout, ran.stderr
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{} differ\n{}", faults.len(), faults.join("\n"));
}

/// registries.conf for a registry without TLS.
fn conf(place: &Path, peer: &Peer) -> String {
    let path = place.join("registries.conf");
    fs::write(&path, peer.entry("")).expect("written");
    path.display().to_string()
}

/// A chart with a dependency from a repository, and a checkout around it.
fn chart_of(files: &Files, place: &Path) {
    let chart = format!(
        "apiVersion: v2\nname: web\nversion: 0.1.0\ndependencies: [{{name: lib, version: ^1, repository: '{}'}}]\n",
        files.url()
    );
    write(place, &[("Chart.yaml", &chart), ("values.yaml", "lib: {image: {tag: $(pin ~1)}}\n")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_is_kept_and_outlives_its_repository() {
    if !needs("helm") {
        return;
    }
    let (files, registry) = (Files::start().await, FakeRegistry::start().await);
    registry.tags("acme/web", ["1.0.2"]);
    let place = tempfile::tempdir().expect("a directory");
    let home = place.path().join("home");
    packed(files.path(), &home);
    helm(files.path(), &home, &["repo", "index", "."]);
    let app = place.path().join("app");
    chart_of(&files, &app);
    let driver = files.driver(&registry).within(&app);
    // The image stands in the defaults of what is fetched.
    for _ in 0..2 {
        let manifests = tokio::task::block_in_place(|| driver.run(["generate"])).ok();
        assert!(manifests.contains("1.10.0") && manifests.contains("\"tag\":\"1.0.2\""), "{manifests}");
    }
    assert_eq!((files.asked("index.yaml"), files.asked("lib-1.10.0.tgz")), (2, 1), "an archive is fetched once, by its digest");
    // One that was damaged on disk is fetched again.
    for entry in fs::read_dir(driver.home().join("store/charts")).expect("kept").flatten() {
        fs::write(entry.path(), "damaged").expect("written");
    }
    tokio::task::block_in_place(|| driver.run(["generate"])).ok();
    assert_eq!(files.asked("lib-1.10.0.tgz"), 2);

    // A server remembers the index, also when the repository is down.
    let serving = crate::support::argocd::Serving::start(PROGRAM, &driver, &["--render-cache-bytes", "0"]);
    let messages = || {
        let archive = crate::support::argocd::archive(&app);
        crate::support::argocd::messages(&archive, ".", &[("ARGOCD_APP_NAME".to_owned(), "web".to_owned())], 1024)
    };
    for is_down in [false, true] {
        files.is_down.store(is_down, Ordering::SeqCst);
        let answer = serving.client().await.generate_manifest(tokio_stream::iter(messages())).await.expect("manifests");
        assert!(answer.into_inner().manifests.concat().contains("1.10.0"));
    }
    // Without what was kept, the error names the repository and no more.
    let refused = tokio::task::block_in_place(|| driver.run(["generate"])).err();
    let expected = format!("dependency `lib` of Chart.yaml: `{}/index.yaml` answered 503", files.url());
    assert!(refused.contains(&expected), "{refused}");
}

/// An archive that one application could fetch is not had by another that only knows its digest.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_for_those_who_could_fetch_it() {
    if !needs("helm") {
        return;
    }
    let (files, registry) = (Files::start().await, FakeRegistry::start().await);
    let place = tempfile::tempdir().expect("a directory");
    let home = place.path().join("home");
    let private = files.path().join("private");
    packed(&private, &home);
    helm(&private, &home, &["repo", "index", "."]);
    let index = fs::read_to_string(private.join("index.yaml")).expect("an index");
    write(files.path(), &[("thief/index.yaml", &index.replace("- lib-", "- nothing-"))]);
    let app = |name: &str| {
        let directory = place.path().join(name);
        let repository = format!("{}/{name}", files.url());
        let chart = format!(
            "apiVersion: v2\nname: web\nversion: 0.1.0\ndependencies: [{{name: lib, version: ^1, repository: '{repository}'}}]\n"
        );
        write(&directory, &[("Chart.yaml", &chart)]);
        directory
    };
    let driver = files.driver(&registry).within(app("private"));
    tokio::task::block_in_place(|| driver.run(["generate"])).ok();
    let driver = driver.within(app("thief"));
    let refused = tokio::task::block_in_place(|| driver.run(["generate"])).err();
    assert!(refused.contains("thief/nothing-1.10.0.tgz` answered 404"), "{refused}");
}

/// The operator's credentials are for images: with them any application could read any private chart.
#[tokio::test(flavor = "multi_thread")]
async fn charts_in_registries_are_asked_for_without_the_operators_credential() {
    let registry = FakeRegistry::start().await;
    registry.auth(Auth::basic("operator", "s3cret"));
    registry.tags("charts/lib", ["1.0.0"]);
    let place = tempfile::tempdir().expect("a directory");
    let conf = format!(
        "registries: [{{name: own, prefix: {0}, api_url: 'http://{0}', insecure: true, credentials: 'env:OPERATOR'}}]\n",
        registry.host()
    );
    for version in ["^1", "1.0.0"] {
        let chart = format!(
            "apiVersion: v2\nname: web\nversion: 0.1.0\ndependencies: [{{name: lib, version: {version}, repository: 'oci://{}/charts'}}]\n",
            registry.host()
        );
        write(place.path(), &[("app/Chart.yaml", &chart), ("registries.conf", &conf)]);
        let conf = place.path().join("registries.conf").display().to_string();
        let driver = Driver::new(PROGRAM, &registry).within(place.path().join("app"));
        let driver = driver.env("PINION_REGISTRIES_CONF", conf).env("OPERATOR", "operator:s3cret");
        let refused = tokio::task::block_in_place(|| driver.run(["generate"])).err();
        assert!(refused.contains("a chart that must be fetched has to be public"), "{refused}");
    }
    let requests = registry.requests();
    assert!(!requests.is_empty() && requests.iter().all(|request| request.authorization.is_none()), "{requests:?}");
}

/// What a server sends without an end.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_tool_fetches_is_bounded() {
    if !needs("kustomize") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n").await;
                while stream.write_all(&[b'#'; 1 << 16]).await.is_ok() {}
            });
        }
    });
    let registry = FakeRegistry::start().await;
    let place = tempfile::tempdir().expect("a directory");
    write(place.path(), &[("kustomization.yaml", &format!("resources: ['http://{NAME}:{port}/endless.yaml']\n"))]);
    let driver = Driver::new(PROGRAM, &registry).within(place.path()).env("PINION_EGRESS_HOSTS", format!("localhost:{port}"));
    let refused = tokio::task::block_in_place(|| driver.run(["generate"])).err();
    let is_bounded =
        ["a render may fetch 512 MiB", "an operator can raise `--tool-memory`"].iter().any(|hint| refused.contains(hint));
    assert!(is_bounded && !refused.contains("goroutine"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_fetches_nothing_and_runs_no_tool() {
    let (files, registry) = (Files::start().await, FakeRegistry::start().await);
    let place = tempfile::tempdir().expect("a directory");
    chart_of(&files, place.path());
    let application = "apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {name: web}\nspec:\n  source:\n    plugin:\n      name: pinion@v1\n      parameters:\n      - {name: helm-value-files, array: ['URL/values.yaml']}\n";
    write(place.path(), &[("../app.yaml", &application.replace("URL", &files.url()))]);
    let driver = files.driver(&registry).within(place.path()).env("PINION_VALUE_FILE_SCHEMES", "http");
    let driver = driver.env("PINION_HELM", "/nowhere/helm").env("PINION_KUSTOMIZE", "/nowhere/kustomize");
    let ran = tokio::task::block_in_place(|| driver.run(["check", ".", "--application", "../app.yaml"]));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(files.asked(""), 0);
    // What can be told without is told all the same.
    write(place.path(), &[("values.yaml", "lib: {image: {tag: $(pin ~~1)}}\n")]);
    let ran = tokio::task::block_in_place(|| driver.run(["check", ".", "--application", "../app.yaml"]));
    assert!(ran.status == 1 && ran.stderr.contains("~~1"), "{}", ran.stderr);
    fs::remove_file(place.path().join("../app.yaml")).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_value_file_is_read_for_placeholders_too() {
    if !needs("helm") {
        return;
    }
    let (files, registry) = (Files::start().await, FakeRegistry::start().await);
    registry.tags("acme/web", ["1.0.2", "1.1.0"]);
    write(files.path(), &[("values.yaml", "image: {repository: ghcr.io/acme/web, tag: $(pin ~1.0)}\n"), ("binary.yaml", "")]);
    fs::write(files.path().join("binary.yaml"), [0xff, 0xfe]).expect("written");
    let place = tempfile::tempdir().expect("a directory");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: '{{ .Values.image.repository }}:{{ .Values.image.tag }}'}]}\n";
    write(place.path(), &[("Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n"), ("templates/a.yaml", pod)]);
    let parameters =
        |file: &str| serde_json::json!([{"name": "helm-value-files", "array": [format!("{}/{file}", files.url())]}]).to_string();
    let driver = files.driver(&registry).within(place.path()).env("ARGOCD_APP_NAME", "web");
    let run = |driver: &Driver| tokio::task::block_in_place(|| driver.run(["generate"]));
    let refused = run(&driver.env("ARGOCD_APP_PARAMETERS", parameters("values.yaml"))).err();
    assert!(refused.contains("is fetched from elsewhere, which is not permitted"), "{refused}");
    let permitted = |file: &str| {
        let driver =
            files.driver(&registry).within(place.path()).env("ARGOCD_APP_NAME", "web").env("PINION_VALUE_FILE_SCHEMES", "http");
        run(&driver.env("ARGOCD_APP_PARAMETERS", parameters(file)))
    };
    assert!(permitted("values.yaml").ok().contains("image: 'ghcr.io/acme/web:1.0.2'"));
    for (file, expected) in
        [("absent.yaml", "answered 404"), ("binary.yaml", "is not UTF-8 text"), ("values.yaml?token=s3cret", "")]
    {
        let ran = permitted(file);
        assert!(ran.stderr.contains(expected) && !ran.stderr.contains("s3cret"), "{file}: {}", ran.stderr);
    }
}

/// Another spelling of `localhost` that tools take for a name of the network, which they ask a proxy for.
const NAME: &str = "LOCALHOST";

#[tokio::test(flavor = "multi_thread")]
async fn bases_and_resources_are_fetched_through_the_proxy() {
    if !needs("kustomize") {
        return;
    }
    let (files, registry) = (Files::start().await, FakeRegistry::start().await);
    registry.tags("acme/web", ["1.0.2"]);
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: 'ghcr.io/acme/web:$(pin ~1)'}]}\n";
    write(
        files.path(),
        &[
            ("pod.yaml", pod),
            ("work/base/kustomization.yaml", "resources: [pod.yaml]\n"),
            ("work/base/pod.yaml", &pod.replace("name: a}", "name: b}")),
        ],
    );
    let git = |arguments: &[&str]| {
        let done = Command::new("git")
            .args(arguments)
            .current_dir(files.path().join("work"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output();
        let done = done.expect("git is there");
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    git(&["init", "--quiet", "--initial-branch", "main"]);
    git(&["add", "."]);
    git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "base"]);
    git(&["clone", "--quiet", "--bare", ".", "../base.git"]);
    let place = tempfile::tempdir().expect("a directory");
    let write = |resource: &str| write(place.path(), &[("kustomization.yaml", &format!("resources: ['{resource}']\n"))]);
    let run = |driver: &Driver| tokio::task::block_in_place(|| driver.run(["generate"]));
    let at = format!("http://{NAME}:{}", files.port);
    let driver = files.driver(&registry).within(place.path());
    for resource in
        [format!("{at}/pod.yaml"), format!("{at}/base.git//base?ref=main"), format!("git::{at}/base.git//base?ref=main")]
    {
        write(&resource);
        let manifests = run(&driver).ok();
        assert!(manifests.contains("image: ghcr.io/acme/web:1.0.2"), "{resource}: {manifests}");
    }
    // What the policy does not permit is refused by the proxy, and the error says which host and why.
    let other = Driver::new(PROGRAM, &registry).within(place.path()).env("PINION_EGRESS_CIDRS", "10.0.0.0/8");
    let before = files.asked("");
    for resource in [format!("{at}/pod.yaml"), format!("{at}/base.git//base?ref=main")] {
        write(&resource);
        let refused = run(&other).err();
        assert!(refused.to_ascii_lowercase().contains("`localhost") && refused.contains("may not be connected to"), "{refused}");
        assert!(refused.contains("`egress.hosts`"), "{refused}");
    }
    // A port that is not declared is another server.
    write(&format!("http://{NAME}:1/pod.yaml"));
    assert!(run(&driver).err().contains("may not be connected to"));
    assert_eq!(files.asked(""), before);
}

/// An ssh server of this user with one key, which runs until this is dropped.
struct SshServer {
    dir: tempfile::TempDir,
    port: u16,
    child: std::process::Child,
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl SshServer {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        for name in ["host", "key"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(name)]).status();
            assert!(made.expect("ssh-keygen is there").success());
        }
        fs::copy(at("key.pub"), at("authorized")).expect("copied");
        // Where sshd of root keeps its children.
        let _ = fs::create_dir_all("/run/sshd");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n",
            at("host"),
            at("authorized")
        );
        let host = fs::read_to_string(at("host.pub")).expect("a key");
        let client = format!("Host *\n  IdentityFile {}\n  UserKnownHostsFile {}\n", at("key"), at("known_hosts"));
        write(
            dir.path(),
            &[("sshd_config", &config), ("known_hosts", &format!("[localhost]:{port} {host}")), ("config", &client)],
        );
        let child = Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f", &at("sshd_config")]).stderr(Stdio::null()).spawn();
        let server = Self { port, child: child.expect("sshd starts"), dir };
        for _ in 0..3000 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("sshd does not listen");
    }
}

/// Git by ssh: with the operator's key, which no tool reads, and for nothing but fetching.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_is_fetched_by_ssh_with_a_key_that_tools_cannot_read() {
    if !needs("kustomize") || !needs("sshd") {
        return;
    }
    let (server, registry, work) = (SshServer::start(), FakeRegistry::start().await, tempfile::tempdir().expect("a directory"));
    let key = server.dir.path().join("key").display().to_string();
    write(
        work.path(),
        &[
            ("base/kustomization.yaml", "resources: [pod.yaml]\nconfigMapGenerator: [{name: c, files: [link]}]\n"),
            ("base/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: fetched}\n"),
            ("plain/kustomization.yaml", "resources: [pod.yaml]\n"),
            ("plain/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: fetched}\n"),
        ],
    );
    std::os::unix::fs::symlink(&key, work.path().join("base/link")).expect("linked");
    let git = |arguments: &[&str]| {
        let done = Command::new("git").args(arguments).current_dir(work.path()).env("GIT_CONFIG_GLOBAL", "/dev/null").status();
        assert!(done.expect("git is there").success(), "git {arguments:?}");
    };
    git(&["init", "--quiet", "--initial-branch", "main"]);
    git(&["add", "."]);
    git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "base"]);
    git(&["clone", "--quiet", "--bare", ".", "bare.git"]);
    let place = tempfile::tempdir().expect("a directory");
    let user = String::from_utf8(Command::new("id").arg("-un").output().expect("id is there").stdout).expect("text");
    let at = format!("ssh://{}@localhost:{}{}/bare.git", user.trim(), server.port, work.path().display());
    let with = |options: &str, hosts: &str| {
        Driver::new(PROGRAM, &registry)
            .within(place.path())
            .env("PINION_EGRESS_HOSTS", hosts)
            .env("PINION_SSH_CONFIG", server.dir.path().join("config").display().to_string())
            .env("PINION_KUSTOMIZE_BUILD_OPTIONS", options)
    };
    let host = format!("localhost:{}", server.port);
    let driver = with("", &host);
    let run = |driver: &Driver, resource: &str| {
        write(place.path(), &[("kustomization.yaml", &format!("resources: [\"{resource}\"]\n"))]);
        tokio::task::block_in_place(|| driver.run(["generate"]))
    };
    let fetched = run(&driver, &format!("{at}//plain?ref=main")).ok();
    assert!(fetched.contains("name: fetched"), "{fetched}");
    let witness = work.path().join("witness");
    let option = format!("--upload-pack=touch {}", witness.display());
    let refused = run(&driver, &format!("{at}//plain?ref={option}")).err();
    assert!(refused.contains("ssh is for Git's fetching alone"), "{refused}");
    // Go's parser of addresses drops the query with this one.
    run(&driver, &format!("{at}//plain?ref={option};git-upload-pack"));
    assert!(!witness.exists(), "a command of the tenant's was run by ssh");
    // Whatever the operator permits Kustomize to read.
    let key_text = fs::read_to_string(&key).expect("a key");
    let secret = key_text.lines().nth(1).expect("a line").to_owned();
    for options in ["", "--load-restrictor LoadRestrictionsNone", "--enable-helm --enable-exec --enable-alpha-plugins"] {
        let ran = run(&with(options, &host), &format!("{at}//base?ref=main"));
        assert!(ran.status != 0 && !ran.stderr.contains(&secret) && !ran.stdout.contains(&secret), "{}", ran.stderr);
    }
    write(place.path(), &[("kustomization.yaml", &format!("configMapGenerator: [{{name: c, files: ['{key}']}}]\n"))]);
    let unrestricted = with("--load-restrictor LoadRestrictionsNone", &host);
    let ran = tokio::task::block_in_place(|| unrestricted.run(["generate"]));
    assert!(ran.status != 0 && !ran.stdout.contains(&secret), "{}", ran.stdout);
    let elsewhere = run(&with("", "example.com"), &format!("{at}//plain?ref=main")).err();
    assert!(elsewhere.contains("may not be connected to"), "{elsewhere}");
}

/// What ssh of Git is given as `ProxyCommand`.
#[tokio::test(flavor = "multi_thread")]
async fn connect_joins_its_streams_with_a_host_through_the_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Without the end of a line, as ssh's first messages may be.
            stream.write_all(b"banner").await.expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("received");
            stream.write_all(format!("got {text}").as_bytes()).await.expect("sent");
        }
    });
    let registry = FakeRegistry::start().await;
    let policy = Policy { cidrs: vec!["127.0.0.1".parse().expect("a range")], ..Policy::default() };
    let proxy = Proxy::start(Arc::new(policy), None).await.expect("a proxy");
    let driver = Driver::new(PROGRAM, &registry).env("PINION_PROXY", proxy.url()).input("hello");
    let run =
        |driver: &Driver, host: &str, port: u16| tokio::task::block_in_place(|| driver.run(["connect", host, &port.to_string()]));
    assert_eq!(run(&driver, "127.0.0.1", port).ok(), "bannergot hello");
    let mut child = tokio::process::Command::new(PROGRAM)
        .args(["connect", "127.0.0.1", &port.to_string()])
        .env("PINION_PROXY", proxy.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut banner = [0; 6];
    child.stdout.as_mut().expect("piped").read_exact(&mut banner).await.expect("it comes before anything is said");
    drop(child.stdin.take());
    assert!(child.wait().await.expect("it ends").success());
    let refused = run(&driver, "10.1.2.3", 22).err();
    assert!(refused.contains("`10.1.2.3:22` cannot be reached") && refused.contains("403"), "{refused}");
    assert!(run(&driver.without("PINION_PROXY"), "127.0.0.1", port).err().contains("PINION_PROXY is not set"));
}
