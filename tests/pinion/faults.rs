//! What a registry can do wrong: with a last known good pin that is served, without one there is a clear error, and never is there a
//! choice from part of the tags.

use std::time::Duration;

use crate::support::driver::Driver;
use crate::support::registry::{Auth, Bearer, Cursor, Dialect, FakeRegistry, Fault, Image, Route, When};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

/// A registry with `acme/web` 1.0.0 to 1.4.0, and a driver that asks again each time.
async fn fixture() -> (FakeRegistry, Driver) {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"]);
    let driver = Driver::new(PROGRAM, &registry).impatient().env("PINION_LOOKUP_TIMEOUT", "100s");
    (registry, driver)
}

/// The longest wait for a registry that does this: not long for one that never answers.
fn lookup_timeout(fault: &str) -> &'static str {
    if ["timeout", "slow body"].contains(&fault) { "3s" } else { "100s" }
}

/// Breaks a registry.
type Breaks = fn(&FakeRegistry);

/// Every fault, with what the error says.
const FAULTS: [(&str, Breaks, &str); 16] = [
    ("refused", |r| r.stop(), "is unavailable: "),
    ("timeout", |r| r.fault_on(Route::Tags, When::Always, Fault::Hang), "is unavailable: "),
    (
        "slow body",
        |r| r.fault_on(Route::Tags, When::Always, Fault::SlowBody { chunk: 1, every: Duration::from_millis(900) }),
        "is unavailable: ",
    ),
    (
        "401",
        |r| r.auth(Auth::basic("alice", "s3cret")),
        "registry denied access to `ghcr.io/acme/web` with credential `anonymous`",
    ),
    ("403", |r| r.fault_on(Route::Tags, When::Always, Fault::status(403)), "registry denied access to `ghcr.io/acme/web`"),
    ("404", |r| r.fault_on(Route::Tags, When::Always, Fault::status(404)), "registry has no `ghcr.io/acme/web`"),
    (
        "429",
        |r| r.fault_on(Route::Tags, When::Always, Fault::too_many_requests("60")),
        "limits requests\n  hint: the registry asks to wait 60 seconds",
    ),
    ("500", |r| r.fault_on(Route::Tags, When::Always, Fault::status(500)), "is unavailable: "),
    ("truncated JSON", |r| r.fault_on(Route::Tags, When::Always, Fault::Truncated), "registry `"),
    ("garbage", |r| r.fault_on(Route::Tags, When::Always, Fault::garbage()), "sent a web page instead of JSON: "),
    ("huge JSON", |r| r.fault_on(Route::Tags, When::Always, Fault::EndlessBody), "sent too much: "),
    (
        "endless pages",
        |r| r.fault_on(Route::Tags, When::Always, Fault::EndlessPages(Cursor::New)),
        "sent too much: more than 500000 tags",
    ),
    ("the same page again", |r| r.fault_on(Route::Tags, When::Always, Fault::EndlessPages(Cursor::Same)), "registry `"),
    (
        "a failing second page",
        |r| {
            r.dialect(Dialect::ghcr().page(2));
            r.fault_on(Route::Tags, When::After(1), Fault::status(502));
        },
        "is unavailable: ",
    ),
    (
        "a foreign realm",
        |r| r.auth(Bearer::new("alice", "s3cret").realm("https://auth.attacker.example/token")),
        "names a token service on another host: `https://auth.attacker.example/token`",
    ),
    (
        "a redirect",
        |r| r.fault_on(Route::Tags, When::Always, Fault::redirect("http://169.254.169.254/latest/meta-data/")),
        "redirects to `http://169.254.169.254/latest/meta-data/`",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn without_a_last_known_good_pin_there_is_a_clear_error() {
    for (name, breaks, message) in FAULTS {
        let (registry, driver) = fixture().await;
        breaks(&registry);
        let ran = driver.env("PINION_LOOKUP_TIMEOUT", lookup_timeout(name)).run(["resolve", "ghcr.io/acme/web:~1"]);
        assert_eq!(ran.status, 1, "{name}: {} {}", ran.stdout, ran.stderr);
        let error = ran.err();
        assert!(
            error.starts_with("error: could not resolve `ghcr.io/acme/web semver ~1`") && error.contains(message),
            "{name}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_known_good_pin_is_served_and_marked_stale() {
    for (name, breaks, _) in FAULTS {
        let (registry, driver) = fixture().await;
        assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok(), "1.4.0\n", "{name}");
        registry.tags("acme/web", ["1.5.0"]);
        breaks(&registry);
        let driver = driver.env("PINION_LOOKUP_TIMEOUT", lookup_timeout(name));
        let ran = driver.run(["resolve", "ghcr.io/acme/web:~1", "-o", "json"]);
        let report: serde_json::Value = serde_json::from_str(&ran.clone().ok()).expect("JSON");
        assert_eq!((report["tag"].as_str(), report["freshness"].as_str()), (Some("1.4.0"), Some("stale")), "{name}: {report}");
        assert!(
            report["reason"].as_str().is_some_and(|reason| !reason.is_empty()) && report["since"].is_string(),
            "{name}: {report}"
        );
        assert!(ran.stderr.contains("serving the last known good pin"), "{name}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_question_is_answered_from_the_last_complete_listing() {
    let (registry, driver) = fixture().await;
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok(), "1.4.0\n");
    registry.stop();
    let ran = driver.run(["resolve", "ghcr.io/acme/web:~1.2"]);
    assert!(ran.stderr.contains("serving a choice from the last complete listing"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "1.2.0\n");
    let error = driver.run(["resolve", "ghcr.io/acme/web", "newest-build"]).err();
    assert!(error.contains("is unavailable"), "nothing is chosen without the dates: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_build_never_chooses_from_part_of_the_candidates() {
    let registry = FakeRegistry::start().await;
    for day in 10..20 {
        registry.push_built("acme/web", &format!("build-{day}"), &format!("2026-01-{day}T00:00:00Z"));
    }
    let driver = Driver::new(PROGRAM, &registry).impatient().env("PINION_LOOKUP_TIMEOUT", "100s");
    registry.fault_at("manifests/build-19", When::Always, Fault::status(503));
    let question = ["resolve", "ghcr.io/acme/web", "newest-build"];
    let error = driver.run(question).err();
    assert!(error.contains("is unavailable"), "{error}");
    registry.clear_faults();
    assert_eq!(driver.run(question).ok(), "build-19\n");
    registry.push_built("acme/web", "build-20", "2026-01-20T00:00:00Z");
    registry.fault_at("manifests/build-20", When::Always, Fault::status(503));
    let ran = driver.run(question);
    assert!(ran.stderr.contains("serving the last known good pin"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "build-19\n");
}

/// A configuration that is missing tells nothing of its image: an older build is no answer then.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_its_configuration_is_not_passed_over() {
    let registry = FakeRegistry::start().await;
    registry.push_built("acme/web", "old", "2026-01-10T00:00:00Z");
    let driver = Driver::new(PROGRAM, &registry).impatient().env("PINION_LOOKUP_TIMEOUT", "100s");
    let question = ["resolve", "ghcr.io/acme/web", "newest-build"];
    assert_eq!(driver.run(question).ok(), "old\n");
    registry.push_built("acme/web", "new", "2026-01-20T00:00:00Z");
    registry.fault_on(Route::Blob, When::Always, Fault::status(404));
    let ran = driver.run(question);
    assert!(ran.stderr.contains("serving the last known good pin"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "old\n", "what was known, and told to be stale");
    let fresh = Driver::new(PROGRAM, &registry);
    assert!(fresh.run(question).err().contains("registry has no `"));
    registry.clear_faults();
    assert_eq!(driver.run(question).ok(), "new\n");
}

/// Google's listings say when each image was built: in an outage as before.
#[tokio::test(flavor = "multi_thread")]
async fn times_of_a_listing_count_in_an_outage_too() {
    let registry = FakeRegistry::start().await;
    registry.dialect(Dialect::google());
    registry.push_built("acme/web", "older", "2026-01-10T00:00:00Z");
    registry.push_built("acme/web", "newest", "2026-01-20T00:00:00Z");
    registry.push_built("acme/web", "oldest", "2026-01-01T00:00:00Z");
    let driver = Driver::new(PROGRAM, &registry).impatient();
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web", "newest-build"]).ok(), "newest\n");
    registry.stop();
    // Another question, for which there is no last pin, from the listing that is known.
    let ran = driver.run(["resolve", "ghcr.io/acme/web", "newest-build", "--allow-tags", "^old"]);
    assert_eq!(ran.ok(), "older\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_without_a_date_is_rejected_and_counted() {
    let registry = FakeRegistry::start().await;
    registry.push_built("acme/web", "a", "2026-01-10T00:00:00Z");
    registry.push_image("acme/web", "b", Image::new().without_created());
    registry.push_image("acme/web", "c", Image::new().created("yesterday"));
    registry.push_raw("acme/web", "chart", "application/vnd.oci.image.manifest.v1+json", chart_manifest());
    registry.raw_tag("acme/web", "gone");
    let driver = Driver::new(PROGRAM, &registry);
    let ran = driver.run(["resolve", "ghcr.io/acme/web", "newest-build", "--explain"]);
    assert!(ran.stderr.contains("without a creation date"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "a\n");
}

/// An artifact that is no image: its configuration is of another type and holds no date.
fn chart_manifest() -> String {
    let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.cncf.helm.config.v1+json","config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"{empty}","size":2}},"layers":[]}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_tag_names_are_dropped() {
    let (registry, driver) = fixture().await;
    for name in ["1.9.9\n", "1.9.9 ", "../../x", "1.9.9$(pin ~1)", "\u{202e}1.9.9", "-1.9.9", "1.9.9\",\"x", &"9".repeat(200)] {
        registry.raw_tag("acme/web", name);
    }
    let ran = driver.run(["resolve", "ghcr.io/acme/web:*", "--explain"]);
    assert!(!ran.stderr.contains('\u{202e}'), "{}", ran.stderr);
    assert_eq!(ran.ok(), "1.4.0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_never_replaces_a_last_known_good_pin() {
    let (registry, driver) = fixture().await;
    let question = ["resolve", "ghcr.io/acme/web:~1", "--fallback", "0.0.1"];
    registry.stop();
    assert_eq!(driver.run(question).ok(), "0.0.1\n", "nothing was ever known");
    registry.resume();
    assert_eq!(driver.run(question).ok(), "1.4.0\n");
    registry.stop();
    assert_eq!(driver.run(question).ok(), "1.4.0\n", "the last known good pin wins");
    registry.resume();
    let ran = driver.run(["resolve", "ghcr.io/acme/web:~9", "--fallback", "0.0.1"]);
    assert!(ran.stderr.contains("using the fallback"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "0.0.1\n", "nothing is permitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_permitted_tag_is_an_answer_and_not_an_outage() {
    let (registry, driver) = fixture().await;
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:>=1.4"]).ok(), "1.4.0\n");
    registry.delete("acme/web", "1.4.0");
    let ran = driver.run(["resolve", "ghcr.io/acme/web:>=1.4"]);
    assert_eq!(ran.status, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("no permitted tag: 4 tags, 4 outside `>=1.4`"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_not_told_to_anybody() {
    let (registry, driver) = fixture().await;
    registry.auth(Auth::basic("alice", "s3cret"));
    let entries = crate::support::driver::entries(&registry, "  credentials: env:REGISTRY_LOGIN\n");
    std::fs::write(driver.home().join("registries.conf"), entries).expect("written");
    let driver = driver.env("REGISTRY_LOGIN", "alice:wr0ng-passw0rd").env("PINION_LOG_LEVEL", "trace");
    let ran = driver.run(["resolve", "ghcr.io/acme/web:~1"]);
    assert!(ran.stderr.contains("with credential `env:REGISTRY_LOGIN`"), "{}", ran.stderr);
    let basic = "YWxpY2U6d3IwbmctcGFzc3cwcmQ=";
    assert!(!ran.stderr.contains("wr0ng-passw0rd") && !ran.stderr.contains(basic), "{}", ran.stderr);
    let driver = driver.env("REGISTRY_LOGIN", "alice:s3cret");
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok(), "1.4.0\n");
    let stored = walk(&driver.home().join("store"));
    assert!(!stored.is_empty() && stored.iter().all(|text| !text.contains("s3cret")));
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![std::fs::read_to_string(&path).unwrap_or_default()] })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_nobody_declared_are_not_asked() {
    let (registry, driver) = fixture().await;
    registry.forget_requests();
    for image in [
        format!("127.0.0.1:{}/a/b", registry.port()).replace("127.0.0.1", "127.1"),
        "169.254.169.254/a/b".into(),
        "localhost/a/b".into(),
    ] {
        let error = driver.run(["resolve", &format!("{image}:~1")]).err();
        assert!(error.contains("may not be asked"), "{image}: {error}");
    }
    let driver = driver.env("PINION_ALLOW_REGISTRIES", "*.example.com");
    let error = driver.run(["resolve", "quay.io/a/b:~1"]).err();
    assert!(error.contains("registry host `quay.io` may not be asked"), "{error}");
    assert_eq!(registry.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_leaves_a_usable_store() {
    use std::process::{Command, Stdio};
    let (registry, driver) = fixture().await;
    registry.tags("acme/web", (0..2000).map(|n| format!("1.4.{n}")).collect::<Vec<_>>().iter());
    for step in 0..40 {
        let mut child = Command::new(PROGRAM)
            .args(["resolve", "ghcr.io/acme/web:~1"])
            .env_clear()
            .envs(driver.environment())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(Duration::from_millis(step * 2));
        child.kill().expect("SIGKILL");
        child.wait().expect("it ends");
    }
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok(), "1.4.1999\n");
    registry.stop();
    let ran = driver.run(["resolve", "ghcr.io/acme/web:~1"]);
    assert!(!ran.stderr.contains("damaged"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "1.4.1999\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_a_store() {
    let (registry, driver) = fixture().await;
    for n in 0..40 {
        registry.push_built("acme/web", &format!("build-{n}"), &format!("2026-01-01T00:00:{n:02}Z"));
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(
                        driver.run(["resolve", "ghcr.io/acme/web", "newest-build", "--allow-tags", "^build-"]).ok(),
                        "build-39\n"
                    );
                    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web:~1"]).ok(), "1.4.0\n");
                }
            });
        }
    });
    registry.stop();
    assert_eq!(driver.run(["resolve", "ghcr.io/acme/web", "newest-build", "--allow-tags", "^build-"]).ok(), "build-39\n");
}
