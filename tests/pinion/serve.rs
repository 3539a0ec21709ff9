//! The native mode, driven as Argo CD's repo-server drives it: every trap of the contract through a real socket.

use std::fs;
use std::time::Duration;

use futures::StreamExt;
use pinion::cli::serve::tasks::Task;
use pinion::server::proto::AppStreamRequest;
use rustix::process::Signal;
use tonic::{Code, Request};

use crate::support::argocd::{Serving, archive, messages};
use crate::support::driver::{Driver, PATIENCE, root, skipped, until};
use crate::support::registry::{FakeRegistry, Fault, Route, When};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

pub struct Fixture {
    pub registry: FakeRegistry,
    pub driver: Driver,
    pub checkout: tempfile::TempDir,
}

impl Fixture {
    /// A checkout with one pod in `app`.
    pub async fn new() -> Self {
        let registry = FakeRegistry::start().await;
        registry.tags("acme/web", ["1.0.0", "1.1.0"]);
        let driver = Driver::new(PROGRAM, &registry);
        let checkout = tempfile::tempdir().expect("a directory");
        fs::create_dir(checkout.path().join("app")).expect("made");
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web, image: 'ghcr.io/acme/web:$(pin ~1)'}]}\n";
        fs::write(checkout.path().join("app/pod.yaml"), pod).expect("written");
        Self { registry, driver, checkout }
    }

    /// A server that keeps no archives, so that what is left behind can be told.
    pub fn serve(&self, more: &[&str]) -> Serving {
        Serving::start(PROGRAM, &self.driver, &[more, &["--keep-archives", "0"]].concat())
    }

    pub fn messages(&self, chunk: usize) -> Vec<AppStreamRequest> {
        let environment = [("ARGOCD_APP_NAME", "web"), ("ARGOCD_APP_SOURCE_PATH", "app")];
        let environment: Vec<_> = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        messages(&archive(self.checkout.path()), "app", &environment, chunk)
    }
}

pub async fn generate(serving: &Serving, messages: Vec<AppStreamRequest>) -> Result<String, tonic::Status> {
    let answer = serving.client().await.generate_manifest(tokio_stream::iter(messages)).await?;
    Ok(answer.into_inner().manifests.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_come_back_for_chunks_of_any_size() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    for chunk in [1, 1024, 1 << 20] {
        let manifests = generate(&serving, fixture.messages(chunk)).await.expect("manifests");
        assert!(manifests.contains("ghcr.io/acme/web:1.1.0"), "{manifests}");
    }
    assert_eq!(serving.left_behind(), Vec::<std::path::PathBuf>::new());
    assert!(serving.log().contains("rendered"), "{}", serving.log());
}

/// The escaped forms that Argo CD has sent over time; the oldest, with raw slashes, is among the traps.
#[tokio::test(flavor = "multi_thread")]
async fn the_escaped_authority_is_understood() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    for authority in
        ["home%2Fargocd%2Fcmp-server%2Fplugins%2Fpinion@v1.sock", "%2Fhome%2Fargocd%2Fcmp-server%2Fplugins%2Fpinion@v1.sock"]
    {
        let answer = serving.client_as(authority).await.check_plugin_configuration(()).await.expect(authority).into_inner();
        assert!(!answer.is_discovery_configured && !answer.provide_git_creds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faulty_streams_are_read_to_their_end_and_refused() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let whole = fixture.messages(64);
    let mut wrong_sum = whole.clone();
    wrong_sum.pop();
    let mut no_file = whole.clone();
    no_file.insert(2, AppStreamRequest { request: None });
    let mut outside = whole.clone();
    let Some(pinion::server::proto::app_stream_request::Request::Metadata(metadata)) = &mut outside[0].request else {
        panic!("metadata first")
    };
    metadata.app_rel_path = "../..".into();
    for (messages, text) in [
        (whole[1..].to_vec(), "error getting stream metadata: metadata is nil"),
        (Vec::new(), "error getting stream metadata: metadata is nil"),
        (wrong_sum, "file checksum validation error"),
        (no_file, "stream request file is nil"),
        (outside, "illegal appPath: out of workDir bound"),
    ] {
        let status = generate(&serving, messages).await.expect_err(text);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(text), "{status:?}");
    }
    assert!(serving.left_behind().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_render_has_a_short_error_that_makes_nobody_try_again() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let pod = fs::read_to_string(fixture.checkout.path().join("app/pod.yaml")).expect("a file");
    fs::write(fixture.checkout.path().join("app/pod.yaml"), pod.replace("~1", "~9")).expect("written");
    let status = generate(&serving, fixture.messages(1024)).await.expect_err("no tag");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("error generating manifests: app/pod.yaml:4:"), "{}", status.message());
    assert!(status.message().contains("no permitted tag") && status.message().len() < 6100, "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_deadline_is_kept_with_a_margin() {
    let fixture = Fixture::new().await;
    fs::write(fixture.checkout.path().join("app/Chart.yaml"), "apiVersion: v2\nname: x\nversion: 0.1.0\n").expect("written");
    let tools = tempfile::tempdir().expect("a directory");
    let helm = tools.path().join("helm");
    let pid = tools.path().join("pid");
    fs::write(&helm, format!("#!/bin/sh\n[ $1 = serve ] && exit 1\necho $$ > {}\nexec sleep 61\n", pid.display()))
        .expect("written");
    fs::set_permissions(&helm, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let helm = helm.display().to_string();
    // The script writes beside itself.
    let serving = fixture.serve(&["--helm", &helm, "--sandbox", "off"]);
    let mut request = Request::new(tokio_stream::iter(fixture.messages(1024)));
    // In so many digits the libraries at both ends take no notice of it: the answer is ours, however late it is.
    request.metadata_mut().insert("grpc-timeout", "2000000000n".parse().expect("a header"));
    let status = serving.client().await.generate_manifest(request).await.expect_err("too slow");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("did not finish in the time"), "our own error, not the library's: {status:?}");
    let lives = || {
        let pid = fs::read_to_string(&pid).expect("helm was started").trim().to_owned();
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    let line = serving.log().lines().find(|line| line.contains("the render came too late")).map(str::to_owned).expect("a line");
    let phases = regex::Regex::new(r#"phases="receive=\S+ wait=\S+ prepare=\S+ lookup=\S+ tool=\S+""#).expect("a constant");
    assert!(line.contains("application=\"web\"") && phases.is_match(&line), "where its time went: {line}");
    until("the child lives on", async || !lives()).await;
    fs::remove_file(&pid).expect("removed");
    // A caller that goes away leaves no more behind than one whose time is up.
    let client = serving.client().await;
    let request = fixture.messages(1024);
    let call = tokio::spawn(async move { client.clone().generate_manifest(tokio_stream::iter(request)).await });
    until("helm is not started", async || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n'))).await;
    call.abort();
    until("something is left behind", async || serving.left_behind().is_empty() && !lives()).await;
    let line = serving.log().lines().find(|line| line.contains("the caller went away")).map(str::to_owned).expect("a line");
    assert!(line.contains("application=\"web\"") && line.contains(" tool="), "{line}");
    let numbers = serving.get("/metrics").await;
    for outcome in ["deadline", "cancelled"] {
        assert!(numbers.contains(&format!("pinion_renders_total{{outcome=\"{outcome}\"}} 1")), "{numbers}");
    }
    assert!(numbers.contains("pinion_phase_seconds_count{phase=\"tool\"} 2"), "{numbers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_leaves_nothing() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let mut client = serving.client().await;
    let part = fixture.messages(16)[..8].to_vec();
    let endless = tokio_stream::iter(part).chain(futures::stream::pending());
    let call = tokio::spawn(async move { client.generate_manifest(endless).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    call.abort();
    assert_eq!(serving.left_behind(), Vec::<std::path::PathBuf>::new());
    assert!(generate(&serving, fixture.messages(1024)).await.is_ok(), "others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_at_once_are_all_served_and_ask_the_registry_once() {
    let fixture = Fixture::new().await;
    let serving = std::sync::Arc::new(fixture.serve(&["--renders-at-once", "3"]));
    fixture.registry.forget_requests();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (serving, messages) = (std::sync::Arc::clone(&serving), fixture.messages(1024));
            tokio::spawn(async move { generate(&serving, messages).await })
        })
        .collect();
    for call in calls {
        assert!(call.await.expect("no panic").expect("manifests").contains("web:1.1.0"));
    }
    assert_eq!(fixture.registry.requests().len(), 1, "{:?}", fixture.registry.requests());
    assert!(serving.left_behind().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_archive_is_verified_and_not_read_again() {
    let fixture = Fixture::new().await;
    let serving = Serving::start(PROGRAM, &fixture.driver, &["--keep-archives", "2"]);
    let first = fixture.messages(1024);
    let known = |serving: &Serving| serving.log().matches("archive=\"known\"").count();
    for times in 0..2 {
        generate(&serving, first.clone()).await.expect("manifests");
        assert_eq!(known(&serving), times, "{}", serving.log());
    }
    // A checksum alone is no proof of possession.
    let status = generate(&serving, first[..1].to_vec()).await.expect_err("nothing was sent");
    assert!(status.message().contains("file checksum validation error"), "{status:?}");
    assert!(serving.log().contains("the render failed application=\"web\""), "{}", serving.log());
    for n in 0..2 {
        fs::write(fixture.checkout.path().join("other"), n.to_string()).expect("written");
        generate(&serving, fixture.messages(1024)).await.expect("manifests");
    }
    assert_eq!(known(&serving), 1);
    generate(&serving, first).await.expect("manifests");
    assert_eq!(known(&serving), 1, "the number of those that are kept is bounded");
    assert!(serving.left_behind().is_empty(), "what is kept has no name: {:?}", serving.left_behind());
}

/// Whoever waits for an archive that another sends is not held up by it for long: nor by its own unread bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_stalls_is_overtaken() {
    let fixture = Fixture::new().await;
    let mut state = 1_u64;
    let random = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    fs::write(fixture.checkout.path().join("large"), random.take(3 << 20).collect::<Vec<u8>>()).expect("written");
    let serving = Serving::start(PROGRAM, &fixture.driver, &[]);
    let messages = fixture.messages(1024);
    let half = tokio_stream::iter(messages[..messages.len() / 2].to_vec()).chain(futures::stream::pending());
    let mut stalling = serving.client().await;
    let stalled = tokio::spawn(async move { stalling.generate_manifest(half).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    // All on one connection, and more of them than it takes at a time.
    let client = serving.client().await;
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let (mut client, messages) = (client.clone(), messages.clone());
            tokio::spawn(async move { client.generate_manifest(tokio_stream::iter(messages)).await })
        })
        .collect();
    for call in calls {
        let answer = tokio::time::timeout(PATIENCE, call).await.expect("in time").expect("no panic");
        assert!(answer.expect("manifests").into_inner().manifests.concat().contains("web:1.1.0"));
    }
    stalled.abort();
    assert!(serving.log().contains("archive=\"known\""), "they share what one of them sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_announced_with_the_pins_of_the_application() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    let mut client = serving.client().await;
    let answer = client.get_parameters_announcement(tokio_stream::iter(fixture.messages(1024))).await.expect("announcements");
    let all = answer.into_inner().parameter_announcements;
    let names: Vec<&str> = all.iter().map(|parameter| parameter.name.as_str()).collect();
    assert_eq!(names, pinion::parameters::table::TABLE.iter().map(|parameter| parameter.name).collect::<Vec<_>>());
    assert_eq!(all[2].map.get("ghcr.io/acme/web").map(String::as_str), Some("1.1.0"), "{:?}", all[2]);
    let matched = client.match_repository(tokio_stream::iter(fixture.messages(1024))).await.expect("an answer").into_inner();
    assert!(!matched.is_supported && !matched.is_discovery_enabled);
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_works_where_plugin_yaml_asks_for_it() {
    let fixture = Fixture::new().await;
    let config = tempfile::tempdir().expect("a directory");
    let config_dir = config.path().display().to_string();
    let script = fixture.checkout.path().join("app/found.sh");
    fs::write(&script, "#!/bin/sh\necho yes\n").expect("written");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    for (discover, supported) in [
        ("{fileName: 'pod.*'}", true),
        ("{fileName: '*/pod.yaml'}", false),
        ("{find: {glob: '**/*.yaml'}}", true),
        ("{find: {glob: '**/Chart.yaml'}}", false),
        ("{find: {command: [sh, -c, 'ls *.yaml']}}", true),
        ("{find: {command: [sh, -c, 'test \"$ARGOCD_APP_NAME\" = web && echo yes']}}", true),
        ("{find: {command: [sh, -c, 'exit 1']}}", false),
        ("{find: {command: ['true']}}", false),
        ("{find: {command: [./found.sh]}}", true),
    ] {
        let plugin = format!(
            "kind: ConfigManagementPlugin\nmetadata: {{name: pinion@v1}}\nspec: {{generate: {{command: [x]}}, preserveFileMode: true, \
             discover: {discover}}}\n"
        );
        fs::write(config.path().join("plugin.yaml"), plugin).expect("written");
        let serving = fixture.serve(&["--config-dir-path", &config_dir]);
        let mut client = serving.client().await;
        assert!(client.check_plugin_configuration(()).await.expect("an answer").into_inner().is_discovery_configured);
        let answer = client.match_repository(tokio_stream::iter(fixture.messages(1024))).await.expect("an answer").into_inner();
        assert_eq!((answer.is_supported, answer.is_discovery_enabled), (supported, true), "{discover}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new().await;
    let mut serving = fixture.serve(&[]);
    assert_eq!(fs::metadata(serving.socket()).expect("a socket").permissions().mode() & 0o777, 0o600);
    let dir = serving.dir.path().display().to_string();
    let start = |admin: &str| {
        let dirs = ["serve", "--config-dir-path", ".", "--socket-dir", &dir, "--work-dir", &dir, "--admin-address", admin];
        fixture.driver.run(dirs)
    };
    let second = start("127.0.0.1:0");
    assert!(second.err().contains("another server answers"), "a second server ends");
    serving.child.kill().expect("SIGKILL");
    serving.child.wait().expect("it ends");
    assert!(serving.socket().exists(), "SIGKILL leaves the socket");
    let again = start("256.0.0.1:1");
    assert_eq!(again.status, 2);
    let entries: Vec<_> =
        fs::read_dir(serving.dir.path()).expect("listed").map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(!entries.iter().any(|name| name.to_string_lossy().starts_with(".pinion")), "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_removes_the_socket_and_lets_renders_finish() {
    let fixture = Fixture::new().await;
    fs::write(fixture.checkout.path().join("app/Chart.yaml"), "apiVersion: v2\nname: x\nversion: 0.1.0\n").expect("written");
    let tools = tempfile::tempdir().expect("a directory");
    let (helm, release) = (tools.path().join("helm"), tools.path().join("release"));
    let script = format!(
        "#!/bin/sh\n[ $1 = serve ] && exit 1\ntouch {0}/started\nwhile ! [ -e {0}/release ]; do sleep 0.05; done\n\
         printf 'apiVersion: v1\\nkind: Pod\\nspec: {{containers: [{{image: ghcr.io/acme/web:1.1.0}}]}}\\n'\n",
        tools.path().display()
    );
    fs::write(&helm, script).expect("written");
    fs::set_permissions(&helm, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let mut serving = fixture.serve(&["--helm", &helm.display().to_string(), "--sandbox", "off"]);
    let call = async |serving: &Serving| {
        let (mut client, messages) = (serving.client().await, fixture.messages(64));
        let (sent, is_sent) = tokio::sync::oneshot::channel();
        // Whoever looks for a message behind the last one has sent all.
        let end = futures::stream::once(async move { sent.send(()) }).filter_map(async |_| None);
        let call = tokio::spawn(async move { client.generate_manifest(tokio_stream::iter(messages).chain(end)).await });
        (call, is_sent)
    };
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(serving.child.id().cast_signed()).expect("a number");
        rustix::process::kill_process(pid, signal).expect("a signal");
    };
    let (running, _) = call(&serving).await;
    until("helm is not started", async || tools.path().join("started").exists()).await;
    // Its connection waits to be accepted, and the signal too: it has found the socket before.
    signal(Signal::STOP);
    let (waiting, is_sent) = call(&serving).await;
    is_sent.await.expect("it is sent without an answer");
    signal(Signal::TERM);
    signal(Signal::CONT);
    until("the server does not drain", async || serving.log().contains("draining")).await;
    until("the socket still invites callers", async || !serving.socket().exists()).await;
    assert!(serving.get("/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(serving.get("/healthz").await.starts_with("HTTP/1.1 200"), "it is alive");
    assert!(!running.is_finished() && !waiting.is_finished());
    fs::write(release, "").expect("written");
    for call in [running, waiting] {
        let answer = call.await.expect("no panic").expect("the render finished").into_inner();
        assert!(answer.manifests.concat().contains("web:1.1.0"));
    }
    let status = tokio::task::block_in_place(|| serving.child.wait().expect("it ends"));
    assert!(status.success(), "{status}: {}", serving.log());
    assert!(!serving.log().contains("cut off"), "{}", serving.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_takes_settings_of_serve_and_a_flag_wins() {
    let fixture = Fixture::new().await;
    let file = fixture.driver.home().join("pinion.yaml");
    let token = "api-token: secret\n";
    fs::write(&file, format!("renders-at-once: 3\nkeep-archives: 7\nmax-archive-bytes: 100\nlog-level: debug\n{token}"))
        .expect("written");
    let config = file.display().to_string();
    let serving = fixture.serve(&["--config", &config, "--max-archive-bytes", "1000000"]);
    assert!(serving.log().contains("renders_at_once=3"), "{}", serving.log());
    assert!(generate(&serving, fixture.messages(1024)).await.expect("manifests").contains("web:1.1.0"));
    let driver = Driver::new(PROGRAM, &fixture.registry).env("PINION_CONFIG", &config);
    let run = |words: &[&str]| tokio::task::block_in_place(|| driver.run(words));
    let ran = run(&["check", &fixture.checkout.path().display().to_string()]);
    assert_eq!(ran.status, 0, "settings of serve are let pass: {ran:?}");
    for (text, wanted) in [
        ("renders-at-once: none\n", "`renders-at-once`: `none`: invalid digit found in string"),
        ("tags-ttl: soon\n", "`tags-ttl`: `soon` is no duration"),
    ] {
        fs::write(&file, format!("{token}{text}")).expect("written");
        let ran = run(&["check"]);
        assert_eq!(ran.status, 1, "{ran:?}");
        assert!(ran.stderr.starts_with(&format!("error: configuration `{config}`: {wanted}")), "{ran:?}");
        assert!(!ran.stderr.contains("secret"), "{ran:?}");
    }
}

/// Each task that runs behind the server: nothing that has ended is missed in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_background_task_that_ends_ends_the_server() {
    let fixture = Fixture::new().await;
    for task in Task::ALL {
        for (action, told) in [("return", "it returned"), ("panic", "panicked")] {
            let dir = tempfile::tempdir().expect("a directory");
            let log = dir.path().join("log");
            let mut child = std::process::Command::new(PROGRAM)
                .args(["serve", "--admin-address", "127.0.0.1:0", "--config-dir-path", "."])
                .env_clear()
                .envs(fixture.driver.environment())
                .envs([("ARGOCD_PLUGINSOCKFILEPATH", dir.path()), ("ARGOCD_CMP_WORKDIR", dir.path())])
                .env("FAILPOINTS", format!("task::{task}={action}"))
                .current_dir(root())
                .stderr(fs::File::create(&log).expect("a log"))
                .spawn()
                .expect("it starts");
            let mut status = None;
            until(&format!("`{task}` is gone and the server lives"), async || {
                status = child.try_wait().expect("a child");
                status.is_some()
            })
            .await;
            let log = fs::read_to_string(log).expect("a log");
            assert_eq!(status.and_then(|status| status.code()), Some(1), "{task}: {log}");
            let wanted = format!("error: the task `{task}` ended before the server was told to stop: ");
            let last = log.lines().find(|line| line.starts_with(&wanted)).unwrap_or_else(|| panic!("{task}: {log}"));
            assert!(last.contains(told), "{task}: {log}");
            assert!(!dir.path().join("pinion@v1.sock").exists(), "{task}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_tells_health_and_numbers() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    let get = async |path: &str| serving.get(path).await;
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/metrics").await.contains("pinion_renders_total{outcome=\"done\"} 1"));
    let pins = get("/api/v1/pins").await;
    assert!(
        pins.contains("\"application\":\"web\"") && pins.contains("\"tag\":\"1.1.0\"") && pins.contains("\"permitted\":2"),
        "{pins}"
    );
    assert!(get("/nothing").await.starts_with("HTTP/1.1 404"));
}

/// A registry that hangs keeps those waiting who ask it, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_registry_gives_its_turn_to_others() {
    let fixture = Fixture::new().await;
    fixture.registry.fault_on(Route::Tags, When::Always, Fault::Hang);
    let serving = fixture.serve(&["--renders-at-once", "1", "--lookup-timeout", "10m"]);
    let slow = tokio::spawn({
        let (mut client, request) = (serving.client().await, fixture.messages(1024));
        async move { client.generate_manifest(tokio_stream::iter(request)).await }
    });
    until("the registry is not asked", async || fixture.registry.count(Route::Tags) > 0).await;
    let place = tempfile::tempdir().expect("a directory");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: other}\n";
    crate::fixtures::write(place.path(), &[("pod.yaml", pod)]);
    let request = messages(&archive(place.path()), ".", &[("ARGOCD_APP_NAME".to_owned(), "other".to_owned())], 1024);
    assert!(generate(&serving, request).await.expect("manifests").contains("name: other"));
    assert!(!slow.is_finished(), "it still waits");
    slow.abort();
}

/// Each of these kept a processor for hours, took all memory, or ended the process.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_made_to_exhaust_the_server_are_refused() {
    if !crate::fixtures::needs("helm-worker") {
        return;
    }
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let deep = |open: &str, close: &str, count: usize| open.repeat(count) + &close.repeat(count);
    let rules = format!("x: {}", deep("[", "]", 2_000_000));
    let lock = ("ARGOCD_APP_PARAMETERS".to_owned(), r#"[{"name": "mode", "string": "locked"}]"#.to_owned());
    let pattern = deep("{a,", "}", 12_000);
    let pattern = ("ARGOCD_APP_PARAMETERS".to_owned(), format!(r#"[{{"name": "directory-include", "string": "{pattern}"}}]"#));
    let mut aliases = "a0: &a0 {x: 1, y: 2}\n".to_owned();
    for number in 1..30 {
        aliases += &format!("a{number}: &a{number} {{x: *a{0}, y: *a{0}}}\n", number - 1);
    }
    aliases += "image: {repository: ghcr.io/acme/web, tag: $(pin ~1)}\n";
    let chart = "apiVersion: v2\nname: web\nversion: 0.1.0\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n";
    let heavy = "a: {{ repeat 3000000000 \"a\" | len }}\n";
    for (files, more, wanted) in [
        (&[(".pinion.yaml", rules.as_str()), ("pod.yaml", pod)][..], None, ".pinion.yaml"),
        (&[(".pinion-lock-web.yaml", rules.as_str()), ("pod.yaml", pod)], Some(lock), ".pinion-lock-web.yaml"),
        (&[("pod.yaml", pod)], Some(pattern), "parameter `directory-include` is not a pattern"),
        (&[("Chart.yaml", chart), ("values.yaml", &aliases)], None, "the merged values hold more than"),
        (&[("Chart.yaml", chart), ("templates/a.yaml", heavy)], None, "an operator can raise `--tool-memory`"),
    ] {
        let place = tempfile::tempdir().expect("a directory");
        crate::fixtures::write(place.path(), files);
        let mut variables = vec![("ARGOCD_APP_NAME".to_owned(), "web".to_owned())];
        variables.extend(more);
        let request = messages(&archive(place.path()), ".", &variables, 1 << 20);
        let refused = generate(&serving, request).await.expect_err(wanted);
        assert!(refused.message().contains(wanted), "{wanted}: {}", refused.message());
    }
    generate(&serving, fixture.messages(1024)).await.expect("the others are served");
}

/// Runs as process 1 of a namespace, where an orphan of Helm's is ours to reap.
#[tokio::test(flavor = "multi_thread")]
async fn as_process_one_orphans_are_reaped_and_signals_passed_on() {
    use std::process::Command;
    let can = |flags: &str| {
        Command::new("unshare").args([flags, "--mount-proc", "true"]).output().is_ok_and(|out| out.status.success())
    };
    let Some(flags) = ["-pf", "-rpf"].into_iter().find(|flags| can(flags)) else {
        skipped("`unshare` cannot make a process namespace here");
        return;
    };
    let fixture = Fixture::new().await;
    fs::write(fixture.checkout.path().join("app/Chart.yaml"), "apiVersion: v2\nname: x\nversion: 0.1.0\n").expect("written");
    let tools = tempfile::tempdir().expect("a directory");
    let helm = tools.path().join("helm");
    // A grandchild in a session of its own, which outlives its parent by a moment.
    fs::write(&helm, "#!/bin/sh\nsetsid sh -c 'sleep 0.3' >/dev/null 2>&1 &\nprintf 'apiVersion: v1\\nkind: Pod\\n'\n")
        .expect("written");
    fs::set_permissions(&helm, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let wrapper = tools.path().join("pinion");
    fs::write(&wrapper, format!("#!/bin/sh\nexec unshare {flags} --mount-proc {PROGRAM} \"$@\"\n")).expect("written");
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let (wrapper, helm) = (wrapper.display().to_string(), helm.display().to_string());
    let mut serving = Serving::start(&wrapper, &fixture.driver, &["--helm", &helm]);
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    let below = |pid: u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let one: u32 = below(serving.child.id()).split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("process 1");
    until("a zombie is left below process 1", async || below(one).split_whitespace().count() == 1).await;
    let pid = rustix::process::Pid::from_raw(one.cast_signed()).expect("a number");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    assert!(serving.child.wait().expect("it ends").success(), "{}", serving.log());
    assert!(!serving.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_on_the_socket() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let channel = serving.channel().await;
    let health =
        HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await.expect("an answer");
    assert_eq!(health.into_inner().status, 1, "SERVING");
    let ask = ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
    let answers = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::iter([ask])).await.expect("a stream");
    let answer = answers.into_inner().message().await.expect("an answer").expect("one").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"plugin.ConfigManagementPluginService") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
}
