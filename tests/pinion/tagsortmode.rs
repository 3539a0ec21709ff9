//! Registries that list in order of time (`tagsortmode`): `newest-build` takes their word and reads nothing, the rest is as ever.

use crate::support::driver::{Driver, entries};
use crate::support::registry::{Dialect, FakeRegistry, Fault, Image, Route, TagOrder, When};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

const NEWEST: [&str; 3] = ["resolve", "ghcr.io/acme/web", "newest-build"];

const MODES: [(&str, TagOrder); 2] = [("latest-last", TagOrder::OldestFirst), ("latest-first", TagOrder::NewestFirst)];

/// A registry whose pages hold two tags, in this order, and a driver that knows of it and asks again each time. What is pushed later has
/// another name than what is greater, and an image that says it is older.
async fn fixture((mode, order): (&str, TagOrder)) -> (FakeRegistry, Driver) {
    let registry = FakeRegistry::start().await;
    registry.dialect(Dialect::ghcr().order(order).page(2));
    for (at, tag) in ["1.1.0", "main-c", "1.2.0", "main-a", "1.0.0", "main-b", "0.9.0"].into_iter().enumerate() {
        registry.push_built("acme/web", tag, &format!("2026-01-{}T00:00:00Z", 20 - at));
    }
    let driver = Driver::with_entries(PROGRAM, &sorted(&registry, mode)).impatient().env("PINION_LOOKUP_TIMEOUT", "3s");
    (registry, driver)
}

fn sorted(registry: &FakeRegistry, mode: &str) -> String {
    entries(registry, &format!("  tagsortmode: {mode}\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_by_the_registrys_order_is_picked_and_nothing_is_read() {
    for mode in MODES {
        let (registry, driver) = fixture(mode).await;
        assert_eq!(driver.run(NEWEST).ok(), "0.9.0\n", "{mode:?}");
        let main = driver.run([&NEWEST[..], &["--allow-tags", "^main-", "--explain"]].concat());
        assert!(
            main.stderr.contains("3 permitted, newest by the order of the registry's listing\n     => main-b\n"),
            "{}",
            main.stderr
        );
        assert_eq!(main.ok(), "main-b\n", "{mode:?}");
        let requests = registry.requests();
        assert!(requests.iter().all(|request| request.route == Route::Tags), "{mode:?}: {requests:?}");
        assert_eq!(requests.len(), 8, "twice four pages: {requests:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_the_dates_of_the_images_decide() {
    for (_, order) in MODES {
        let (registry, driver) = fixture(("none", order)).await;
        assert_eq!(driver.run(NEWEST).ok(), "1.1.0\n", "{order:?}");
        assert!(registry.count(Route::Manifest) >= 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_strategies_are_as_ever() {
    for mode in MODES {
        let (registry, driver) = fixture(mode).await;
        for (words, picked) in [
            (["semver", "*"].as_slice(), "1.2.0"),
            (&["semver", "~1.0"], "1.0.0"),
            (&["alphabetical"], "main-c"),
            (&["alphabetical", "desc"], "0.9.0"),
            (&["numerical", "--allow-tags", r"^(\d+\.\d+)\.0$", "--extract", "$1"], "1.2.0"),
        ] {
            let ran = driver.run([&["resolve", "ghcr.io/acme/web", "--explain"], words].concat());
            assert!(!ran.stderr.contains("newest by the order"), "{words:?}: {}", ran.stderr);
            assert_eq!(ran.ok(), format!("{picked}\n"), "{mode:?} {words:?}");
        }
        assert_eq!(registry.count(Route::Manifest), 0);
        let digest = registry.push("acme/web", "main-a");
        assert_eq!(
            driver.run(["resolve", "ghcr.io/acme/web", "digest", "main-a"]).ok(),
            format!("main-a@{digest}\n"),
            "{mode:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_order_does_not_tell_is_read_from_the_newest_down() {
    for mode in MODES {
        let (registry, driver) = fixture(mode).await;
        let digest = registry.push("acme/web", "main-b");
        let ask = |flags: &[&str]| driver.run([&NEWEST[..], flags].concat()).ok();
        registry.forget_requests();
        assert_eq!(ask(&["--with-digest"]), format!("main-b@{digest}\n"), "{mode:?}");
        assert_eq!((registry.count(Route::Manifest), registry.count(Route::Blob)), (1, 0), "the digest of the winner");

        registry.push_image("acme/web", "other", Image::new().platform("linux/s390x").created("2026-02-01T00:00:00Z"));
        registry.forget_requests();
        assert_eq!(ask(&["--platform", "linux/amd64"]), "main-b\n", "{mode:?}");
        assert_eq!(registry.count(Route::Manifest), 4, "{mode:?}: the newest few");
        assert_eq!(ask(&[]), "other\n", "no platform is looked at unless it is asked for");

        registry.push_built("acme/web", "tomorrow", "2999-01-01T00:00:00Z");
        assert_eq!(ask(&["--min-age", "1h"]), "other\n", "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_question_is_answered_by_the_order_of_the_last_complete_listing() {
    for mode in MODES {
        let (registry, driver) = fixture(mode).await;
        assert_eq!(driver.run(NEWEST).ok(), "0.9.0\n");
        registry.push("acme/web", "main-0");
        registry.fault_on(Route::Tags, When::After(2), Fault::status(503));
        let ran = driver.run([&NEWEST[..], &["--allow-tags", "^main-"]].concat());
        assert!(ran.stderr.contains("serving a choice from the last complete listing"), "{}", ran.stderr);
        assert_eq!(ran.ok(), "main-b\n", "{mode:?}: part of a listing is no listing");
        let ran = driver.run(NEWEST);
        assert!(ran.stderr.contains("serving the last known good pin"), "{}", ran.stderr);
        assert_eq!(ran.ok(), "0.9.0\n");
        let error = driver.run([&NEWEST[..], &["--platform", "linux/amd64"]].concat()).err();
        assert!(error.contains("is unavailable"), "nothing is chosen without the metadata: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_chosen_by_another_order_is_not_taken_over() {
    let (registry, driver) = fixture(MODES[0]).await;
    let driver = driver.env("PINION_TAGS_TTL", "1h");
    for (mode, picked) in [("latest-last", "0.9.0"), ("latest-first", "1.1.0"), ("none", "1.1.0"), ("latest-last", "0.9.0")] {
        std::fs::write(driver.home().join("registries.conf"), sorted(&registry, mode)).expect("written");
        assert_eq!(driver.run(NEWEST).ok(), format!("{picked}\n"), "{mode}");
    }
    registry.stop();
    std::fs::write(driver.home().join("registries.conf"), sorted(&registry, "latest-first")).expect("written");
    assert_eq!(driver.run([&NEWEST[..], &["--allow-tags", "^main-"]].concat()).ok(), "main-c\n");
}
