//! Real registries as peers: Distribution v3 and Debian's docker-registry 2.8, open, with passwords, with tokens and over TLS. Images are
//! pushed by skopeo, which also says what is there.
//!
//! `scripts/tools registry docker-registry skopeo helm` fetches what is needed. What is missing skips its tests, and fails them in CI.

mod server;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::support::driver::Driver;
use crate::support::layout::Layout;
use crate::support::real_registry::{ACCOUNT, Guard, Kind, Peer, certificate, tools};
use server::{Front, TokenService};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

const REPOSITORY: &str = "team/app";

/// The line for a password in the environment.
const FROM_ENVIRONMENT: &str = "  credentials: env:PEER\n";

/// Every test that both peers must pass.
macro_rules! against_both_peers {
    ($($test:ident)*) => {
        mod distribution_v3 {
            $(#[test] fn $test() { super::$test(super::Kind::DistributionV3); })*
        }
        mod docker_registry_2_8 {
            $(#[test] fn $test() { super::$test(super::Kind::Debian); })*
        }
    };
}

against_both_peers! {
    ten_thousand_tags_are_the_ones_that_skopeo_lists
    a_full_page_of_tags_is_all_of_them
    every_strategy_chooses
    a_chart_is_rendered_and_follows_a_push
    what_is_deleted_is_not_chosen
    what_is_not_there_is_named
    a_password_opens_the_door
    docker_s_config_opens_the_door
    a_token_opens_the_door
    an_undeclared_token_service_gets_nothing
    a_private_authority_is_trusted_when_it_is_declared
    the_last_known_good_pin_outlives_the_registry
}

/// A driver that asks this peer and takes nothing for fresh.
fn driver(peer: &Peer, more: &str) -> Driver {
    Driver::with_entries(PROGRAM, &peer.entry(more)).impatient()
}

/// Resolves an image of the peer with these words.
fn resolve(driver: &Driver, peer: &Peer, words: &[&str]) -> crate::support::driver::Ran {
    let image = peer.image(REPOSITORY);
    driver.run(["resolve", &image].into_iter().chain(words.iter().copied()))
}

/// Pushes an image for each version, each built a day after the one before.
fn push_versions(peer: &Peer, tags: &[&str]) {
    let layout = Layout::new();
    for (day, tag) in tags.iter().enumerate() {
        layout.image(tag, &format!("2026-01-{:02}T00:00:00Z", day + 1));
        peer.push(&layout, tag, REPOSITORY, tag);
    }
}

/// The tags of the last complete listing in the driver's store.
fn listed(driver: &Driver) -> BTreeSet<String> {
    let store = rusqlite::Connection::open(driver.home().join("store/pinion.db")).expect("a store");
    let count: i64 = store.query_row("SELECT count(*) FROM repositories", [], |row| row.get(0)).expect("a number");
    assert_eq!(count, 1, "one repository was asked about");
    let text: String = store.query_row("SELECT listing FROM repositories", [], |row| row.get(0)).expect("a listing");
    let listing: Value = serde_json::from_str(&text).expect("JSON");
    let tags = listing["tags"].as_array().expect("tags");
    tags.iter().map(|listed| listed["tag"].as_str().expect("text").to_owned()).collect()
}

/// `v0.0.0` to `v99.99.0`.
fn ten_thousand() -> impl Iterator<Item = String> {
    (0..100).flat_map(|minor| (0..100).map(move |major| format!("v{major}.{minor}.0")))
}

fn ten_thousand_tags_are_the_ones_that_skopeo_lists(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Open) else { return };
    push_versions(&peer, &["v1.0.0"]);
    peer.tag(REPOSITORY, &peer.digest(REPOSITORY, "v1.0.0"), ten_thousand());
    let driver = driver(&peer, "");
    assert_eq!(resolve(&driver, &peer, &["~98"]).ok(), "v98.99.0\n");
    let skopeo = peer.tags(REPOSITORY);
    assert_eq!((skopeo.len(), listed(&driver) == skopeo), (10_000, true));
}

/// A thousand may be a page or all there is. Only asking tells.
fn a_full_page_of_tags_is_all_of_them(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Open) else { return };
    push_versions(&peer, &["v0.0.0"]);
    peer.tag(REPOSITORY, &peer.digest(REPOSITORY, "v0.0.0"), ten_thousand().take(1000));
    let driver = driver(&peer, "");
    assert_eq!(resolve(&driver, &peer, &["~9"]).ok(), "v9.9.0\n");
    assert_eq!((listed(&driver).len(), listed(&driver) == peer.tags(REPOSITORY)), (1000, true));
}

#[test]
fn the_pages_of_distribution_v3_are_followed_to_the_end() {
    let Some(peer) = Peer::start(Kind::DistributionV3, Guard::Open) else { return };
    push_versions(&peer, &["v1.0.0"]);
    peer.tag(REPOSITORY, &peer.digest(REPOSITORY, "v1.0.0"), ten_thousand());
    let front = Front::start(&peer, 100);
    let host = front.host();
    let entry = format!("registries:\n- name: front\n  prefix: '{host}'\n  api_url: http://{host}\n  limit: 0\n");
    let driver = Driver::with_entries(PROGRAM, &entry);
    assert_eq!(driver.run(["resolve", &format!("{host}/{REPOSITORY}:~98")]).ok(), "v98.99.0\n");
    assert_eq!(listed(&driver), peer.tags(REPOSITORY));
    let lists: Vec<String> = front.asked().into_iter().filter(|asked| asked.contains("/tags/list")).collect();
    assert_eq!(lists.len(), 11, "a page of 100, then pages of 1000: {lists:?}");
}

fn every_strategy_chooses(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Open) else { return };
    push_versions(&peer, &["1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1", "main-aa", "main-zz", "main-bb"]);
    let layout = Layout::new();
    let latest = layout.image("latest", "2026-02-01T00:00:00Z");
    let newer_for_arm = [("linux/amd64", "2026-03-01T00:00:00Z"), ("linux/arm64", "2026-03-03T00:00:00Z")];
    let both = layout.index("both", &newer_for_arm);
    layout.index("one", &[("linux/amd64", "2026-03-02T00:00:00Z")]);
    for (name, tag) in [("latest", "latest"), ("both", "multi-both"), ("one", "multi-one")] {
        peer.push(&layout, name, REPOSITORY, tag);
    }
    assert_eq!(peer.digest(REPOSITORY, "latest"), latest, "skopeo pushes what the layout holds");
    let driver = driver(&peer, "");
    let of_1_10 = peer.digest(REPOSITORY, "1.10.0");
    for (words, expected) in [
        (&["~1"][..], "1.10.0"),
        (&["~1.2"], "1.2.0"),
        (&["~2-0"], "2.0.0-rc.1"),
        (&["alphabetical", "--allow-tags", "^main-"], "main-zz"),
        (&["newest-build", "--allow-tags", "^main-", "--platform", "linux/amd64"], "main-bb"),
        (&["newest-build", "--allow-tags", "^multi-", "--platform", "linux/amd64"], "multi-one"),
        (&["newest-build", "--allow-tags", "^multi-", "--platform", "linux/arm64"], "multi-both"),
        (&["newest-build", "--platform", "linux/arm64", "--with-digest"], &format!("multi-both@{both}")),
        (&["digest", "latest"], &format!("latest@{latest}")),
        (&["digest", "multi-both"], &format!("multi-both@{both}")),
        (&["~1", "--with-digest"], &format!("1.10.0@{of_1_10}")),
    ] {
        assert_eq!(resolve(&driver, &peer, words).ok().trim_end(), expected, "{words:?}");
    }
    let nothing = resolve(&driver, &peer, &["~3"]);
    assert_eq!((nothing.status, nothing.stdout.as_str()), (3, ""), "{}", nothing.stderr);
}

fn a_chart_is_rendered_and_follows_a_push(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Open) else { return };
    let Some([_]) = tools(["helm"]) else { return };
    push_versions(&peer, &["1.0.0", "1.0.1", "1.1.0"]);
    let chart = chart(&peer.image(REPOSITORY));
    let driver = driver(&peer, "").env("ARGOCD_APP_NAME", "web");
    let render = || driver.run(["generate", &chart.path().display().to_string()]).ok();
    let image = |tag: &str| format!("image: \"{}:{tag}\"", peer.image(REPOSITORY));
    let before = render();
    assert!(before.contains(&image("1.0.1")), "{before}");
    let layout = Layout::new();
    layout.image("1.0.2", "2026-02-01T00:00:00Z");
    peer.push(&layout, "1.0.2", REPOSITORY, "1.0.2");
    assert_eq!(render(), before.replace(&image("1.0.1"), &image("1.0.2")));
}

fn chart(repository: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    };
    write("Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n");
    write("values.yaml", &format!("image:\n  repository: {repository}\n  tag: $(pin ~1.0) # follows patches\n"));
    write(
        "templates/pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n    - name: web\n      \
         image: \"{{ .Values.image.repository }}:{{ .Values.image.tag }}\"\n",
    );
    directory
}

fn what_is_deleted_is_not_chosen(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Open) else { return };
    push_versions(&peer, &["1.0.0", "1.1.0", "1.2.0"]);
    let driver = driver(&peer, "");
    assert_eq!(resolve(&driver, &peer, &["~1"]).ok(), "1.2.0\n");
    peer.delete(REPOSITORY, "1.2.0");
    assert_eq!(resolve(&driver, &peer, &["~1"]).ok(), "1.1.0\n");
    // A tag whose manifest was collected as garbage is still listed.
    peer.tag(REPOSITORY, &format!("sha256:{}", "0".repeat(64)), ["1.3.0".to_owned()]);
    assert!(peer.tags(REPOSITORY).contains("1.3.0"));
    let newest = ["newest-build", "--platform", "linux/amd64"];
    let ran = resolve(&driver, &peer, &newest);
    assert!(ran.stderr.contains("a tag is listed but is gone"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "1.1.0\n");
    assert!(resolve(&driver, &peer, &["~1", "--with-digest"]).ok().starts_with("1.1.0@sha256:"));
}

fn what_is_not_there_is_named(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Open) else { return };
    let driver = driver(&peer, "");
    let image = peer.image(REPOSITORY);
    let error = resolve(&driver, &peer, &["~1"]).err();
    assert!(error.contains(&format!("could not resolve `{image} semver ~1`: registry has no `{image}`")), "{error}");
    push_versions(&peer, &["1.0.0"]);
    let error = resolve(&driver, &peer, &["digest", "latest"]).err();
    assert!(error.contains("no permitted tag: 1 tag, 1 other than `latest`"), "{error}");
}

/// Checks that nothing of the password got out.
#[track_caller]
fn assert_secret(text: &str) {
    for secret in ["s3cret", "wrong", &BASE64_STANDARD.encode(ACCOUNT)] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn a_password_opens_the_door(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Htpasswd) else { return };
    push_versions(&peer, &["1.0.0", "1.1.0"]);
    let image = peer.image(REPOSITORY);
    let error = resolve(&driver(&peer, ""), &peer, &["~1"]).err();
    assert!(error.contains(&format!("registry denied access to `{image}` with credential `anonymous`")), "{error}");
    wrong_passwords_keep_the_pin(&peer, driver(&peer, FROM_ENVIRONMENT), "env:PEER");
}

/// Asks with a wrong password, the right one, and a wrong one again.
fn wrong_passwords_keep_the_pin(peer: &Peer, driver: Driver, credential: &str) {
    let image = peer.image(REPOSITORY);
    let denied = format!("registry denied access to `{image}` with credential `{credential}`");
    let driver = driver.env("PEER", "alice:wrong");
    let ran = resolve(&driver, peer, &["~1"]);
    assert_secret(&ran.stderr);
    let error = ran.err();
    assert!(error.contains(&denied) && error.contains(&format!("hint: check that `{credential}` is valid")), "{error}");
    let driver = driver.env("PEER", ACCOUNT);
    let newest = ["newest-build", "--platform", "linux/amd64"];
    assert_eq!(resolve(&driver, peer, &["~1"]).ok(), "1.1.0\n");
    assert_eq!(resolve(&driver, peer, &newest).ok(), "1.1.0\n");
    let driver = driver.env("PEER", "alice:wrong");
    for words in [&["~1"][..], &newest] {
        let ran = resolve(&driver, peer, words);
        assert!(ran.stderr.contains("last known good pin") && ran.stderr.contains(&denied), "{}", ran.stderr);
        assert_secret(&ran.stderr);
        assert_eq!(ran.ok(), "1.1.0\n");
    }
}

fn docker_s_config_opens_the_door(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Htpasswd) else { return };
    push_versions(&peer, &["1.0.0"]);
    let driver = driver(&peer, "");
    log_in(driver.home(), &peer, "alice:wrong");
    let error = resolve(&driver, &peer, &["~1"]).err();
    assert!(error.contains(&format!("with credential `docker-config:{}`", peer.host())), "{error}");
    log_in(driver.home(), &peer, ACCOUNT);
    assert_eq!(resolve(&driver, &peer, &["~1"]).ok(), "1.0.0\n");
}

/// Writes what `docker login` writes.
fn log_in(home: &Path, peer: &Peer, account: &str) {
    let file = home.join(".docker/config.json");
    fs::create_dir_all(file.parent().expect("a directory")).expect("made");
    let auth = BASE64_STANDARD.encode(account);
    fs::write(file, serde_json::json!({ "auths": { peer.host(): { "auth": auth } } }).to_string()).expect("written");
}

fn a_token_opens_the_door(kind: Kind) {
    let tokens = TokenService::start();
    let Some(peer) = Peer::start(kind, Guard::Token { realm: tokens.realm() }) else { return };
    push_versions(&peer, &["1.0.0", "1.1.0"]);
    let declared = format!("{FROM_ENVIRONMENT}  realms: ['{}']\n", tokens.realm());
    wrong_passwords_keep_the_pin(&peer, driver(&peer, &declared), "env:PEER");
    tokens.issued();
    let driver = driver(&peer, &declared).env("PEER", ACCOUNT);
    assert_eq!(resolve(&driver, &peer, &["newest-build", "--platform", "linux/amd64"]).ok(), "1.1.0\n");
    assert_eq!(tokens.issued(), 1, "one token is enough for a listing, two manifests and two configurations");
}

fn an_undeclared_token_service_gets_nothing(kind: Kind) {
    let tokens = TokenService::start();
    let realm = tokens.realm();
    let Some(peer) = Peer::start(kind, Guard::Token { realm: realm.clone() }) else { return };
    let driver = driver(&peer, FROM_ENVIRONMENT).env("PEER", ACCOUNT);
    let error = resolve(&driver, &peer, &["~1"]).err();
    assert!(error.contains(&format!("names a token service on another host: `{realm}`")), "{error}");
    assert!(
        error.contains(&format!("hint: if it is meant, add `realms: [\"{realm}\"]` to the entry of `{}`", peer.host())),
        "{error}"
    );
    assert_eq!(tokens.issued(), 0);
}

fn a_private_authority_is_trusted_when_it_is_declared(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Tls) else { return };
    push_versions(&peer, &["1.0.0", "1.1.0"]);
    let error = resolve(&driver(&peer, ""), &peer, &["~1"]).err();
    assert!(error.contains(&format!("no trusted connection to registry `{}`", peer.host())), "{error}");
    assert!(error.contains("hint: name its authority with `ca_file` or `ca_data` in `registries.conf`"), "{error}");
    let trusting = driver(&peer, &format!("  ca_file: {}\n", certificate("ca.pem").display()));
    let requests = || peer.log().matches("GET /v2/team/app/tags/list HTTP/2.0").count();
    let before = requests();
    assert_eq!(resolve(&trusting, &peer, &["~1"]).ok(), "1.1.0\n");
    assert_eq!(requests(), before + 1, "HTTP/2 is negotiated\n{}", peer.log());
}

fn the_last_known_good_pin_outlives_the_registry(kind: Kind) {
    let Some(peer) = Peer::start(kind, Guard::Open) else { return };
    push_versions(&peer, &["1.0.0", "1.1.0"]);
    let driver = driver(&peer, "");
    let (image, words) = (peer.image(REPOSITORY), ["newest-build", "--platform", "linux/amd64"]);
    assert_eq!(resolve(&driver, &peer, &words).ok(), "1.1.0\n");
    assert_eq!(resolve(&driver, &peer, &["~1"]).ok(), "1.1.0\n");
    drop(peer);
    let asks = |words: &[&str]| driver.run(["resolve", &image].into_iter().chain(words.iter().copied()));
    for words in [&words[..], &["~1"]] {
        let ran = asks(words);
        assert!(ran.stderr.contains("serving the last known good pin"), "{}", ran.stderr);
        assert_eq!(ran.ok(), "1.1.0\n");
    }
    let ran = asks(&["~1.0"]);
    assert!(ran.stderr.contains("serving a choice from the last complete listing"), "{}", ran.stderr);
    assert_eq!(ran.ok(), "1.0.0\n");
}
