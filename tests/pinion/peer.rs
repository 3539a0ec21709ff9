//! `pinion generate` beside a running `pinion serve`: it asks there first, and gets along without.

use std::fs;

use crate::serve::{Fixture, generate};
use crate::support::argocd::Serving;
use crate::support::driver::{Driver, Ran, entries, until};

/// A driver with a store of its own, which knows where the server listens.
fn apart(fixture: &Fixture, serving: &Serving) -> Driver {
    let socket = fixture.driver.home().join("store/pins.sock");
    assert!(socket.exists(), "{}", serving.log());
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &fixture.registry);
    let conf = fixture.driver.home().join("registries.conf").display().to_string();
    driver
        .env("PINION_PINS_SOCKET", socket.display().to_string())
        .env("PINION_REGISTRIES_CONF", conf)
        .env("PINION_LOG_LEVEL", "debug")
        .env("ARGOCD_APP_NAME", "web")
}

fn run(fixture: &Fixture, driver: &Driver) -> Ran {
    driver.run(["generate", &fixture.checkout.path().join("app").display().to_string()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_server_answers_and_the_registry_is_not_asked() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    fixture.registry.forget_requests();
    let driver = apart(&fixture, &serving);
    let ran = tokio::task::block_in_place(|| run(&fixture, &driver));
    assert!(ran.stdout.contains("web:1.1.0"), "{ran:?}");
    assert!(fixture.registry.requests().is_empty(), "{:?}", fixture.registry.requests());
    // What was learned there is kept here, for the time when nobody answers.
    drop(serving);
    fixture.registry.stop();
    let stale = tokio::task::block_in_place(|| run(&fixture, &driver.impatient()));
    assert!(stale.stdout.contains("web:1.1.0") && stale.stderr.contains("last known good pin"), "{stale:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_or_silent_or_another_ones_changes_nothing() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&[]);
    let driver = apart(&fixture, &serving);
    // Another configuration has other answers: this one's registry has tags that the server's has not.
    let other = crate::support::registry::FakeRegistry::start().await;
    other.tags("acme/web", ["1.0.0", "1.7.0"]);
    fs::write(driver.home().join("other.conf"), entries(&other, "")).expect("written");
    let conf = driver.home().join("other.conf").display().to_string();
    let driver = driver.env("PINION_REGISTRIES_CONF", conf);
    let ran = tokio::task::block_in_place(|| run(&fixture, &driver));
    assert!(ran.stdout.contains("web:1.7.0"), "{ran:?}");
    // One that accepts and says nothing, one that talks nonsense.
    let odd = "{\"pin\":\"$(pin x)\",\"created\":null,\"listed\":null,\"considered\":null}\n";
    for (answer, told) in
        [(None, "the other pinion does not answer"), (Some("nonsense\n"), "no other pinion was asked"), (Some(odd), "")]
    {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let held = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a caller");
            if let Some(answer) = answer {
                std::io::Write::write_all(&mut stream, answer.as_bytes()).expect("sent");
            }
            // Open until the other side has given up.
            let _ = is_done.recv();
        });
        let store = dir.path().join("store").display().to_string();
        let lone = apart(&fixture, &serving)
            .env("PINION_PINS_SOCKET", path.display().to_string())
            .env("PINION_STORE", store)
            .env("PINION_LOOKUP_TIMEOUT", "100s");
        let ran = tokio::task::block_in_place(|| run(&fixture, &lone));
        assert!(ran.stdout.contains("web:1.1.0") && ran.stderr.contains(told), "{answer:?}: {ran:?}");
        drop(done);
        held.join().expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_this_user_and_is_removed() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new().await;
    let mut serving = fixture.serve(&[]);
    let socket = fixture.driver.home().join("store/pins.sock");
    assert_eq!(fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);
    // A second server on the same store goes without.
    let second = fixture.serve(&[]);
    assert!(second.log().contains("processes will not be answered"), "{}", second.log());
    assert!(generate(&second, fixture.messages(1024)).await.is_ok());
    assert!(tokio::task::block_in_place(|| serving.terminate()).success());
    assert!(!socket.exists());
}

/// What was mounted anew is used without a restart, and what is broken is not.
#[tokio::test(flavor = "multi_thread")]
async fn registries_conf_is_followed() {
    let fixture = Fixture::new().await;
    let serving = fixture.serve(&["--tags-ttl", "0s"]);
    generate(&serving, fixture.messages(1024)).await.expect("manifests");
    let conf = fixture.driver.home().join("registries.conf");
    fs::write(&conf, "registries: [{name: x}]\n").expect("written");
    wait_for(&serving, "the one before stays in use").await;
    assert!(generate(&serving, fixture.messages(1024)).await.expect("manifests").contains("web:1.1.0"));
    let other = crate::support::registry::FakeRegistry::start().await;
    other.tags("acme/web", ["1.7.0"]);
    fs::write(&conf, entries(&other, "")).expect("written");
    wait_for(&serving, "is used from now on").await;
    assert!(generate(&serving, fixture.messages(1024)).await.expect("manifests").contains("web:1.7.0"));
}

async fn wait_for(serving: &Serving, text: &str) {
    until(text, async || serving.log().contains(text)).await;
}
