//! What the cache and the resolver ask of a registry, and what they don't.

use std::time::Duration;

use pinion::image::Platform;
use pinion::policy::{Notation, Policy, Settings as PolicySettings};
use pinion::registry::{self, Access, CacheTtls, Client, Content, Limits, ManifestRef, Mode, RegistriesConfig, Registry};
use pinion::resolve::{Caller, Question, Resolver, Settings};
use pinion::store::{self, Store};

use crate::support::driver::{PATIENCE, entries, until};
use crate::support::registry::{FakeRegistry, Image, Route};

struct Fixture {
    registry: FakeRegistry,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self { registry: FakeRegistry::start().await, dir: tempfile::tempdir().expect("a directory") }
    }

    fn store(&self) -> Store {
        let (dir, clock) = (self.dir.path().to_owned(), pinion::clock::Clock::default());
        Store::open(store::Settings { dir, most_bytes: 64 << 20, check: false, clock })
    }

    fn asking(&self, more: &str, ttls: CacheTtls) -> Registry {
        let config = RegistriesConfig::parse(&entries(&self.registry, more), std::path::Path::new("registries.conf"))
            .expect("a configuration");
        let limits = Limits { docker_config: None, ..Limits::default() };
        let settings = registry::Settings { ttls, ..registry::Settings::default() };
        Registry::new(Client::new(config, limits), self.store(), settings)
    }

    fn resolver(&self, ttls: CacheTtls) -> Resolver {
        let platforms = vec!["linux/amd64".parse::<Platform>().expect("a platform")];
        let budget = Duration::from_secs(20);
        let settings = Settings { tags_ttl: ttls.tags, budget, platforms, peer: None, most_bytes: 16 << 20 };
        Resolver::new(self.asking("", ttls), settings)
    }
}

const NEVER: CacheTtls = CacheTtls { tags: Duration::ZERO, digests: Duration::from_secs(3600) };

fn question(image: &str, strategy: &str) -> Question {
    let settings = PolicySettings { strategy: Some(strategy.into()), ..PolicySettings::default() };
    let policy = Policy::parse(&settings, Notation::Placeholder).expect("a policy");
    Question { repository: image.parse().expect("an image"), policy, access: Access::Operator }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_askers_make_one_request() {
    let fixture = Fixture::new().await;
    fixture.registry.tags("acme/web", ["1.0.0", "1.1.0"]);
    let registry = fixture.asking("", CacheTtls::default());
    let asking: Vec<_> = (0..50)
        .map(|number| {
            let image = "ghcr.io/acme/web".parse().expect("an image");
            let handle = registry.open(&image, &Access::Operator, &format!("project {number}"));
            tokio::spawn(async move { handle.listing(Mode::Ask).await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.expect("no panic").expect("tags").value.tags.len(), 2);
    }
    assert_eq!(fixture.registry.count(Route::Tags), 1);
}

/// Manifests and configurations too: all ask at once, before the first is answered.
#[tokio::test(flavor = "multi_thread")]
async fn many_askers_of_metadata_make_one_request_each() {
    use crate::support::registry::{Fault, Gate, When};
    let fixture = Fixture::new().await;
    fixture.registry.push_built("acme/web", "a", "2026-01-01T00:00:00Z");
    let image = "ghcr.io/acme/web".parse().expect("an image");
    let registry = fixture.asking("", CacheTtls::default());
    let target = ManifestRef::Tag("a".parse().expect("a tag"));
    let gate = Gate::default();
    fixture.registry.fault_on(Route::Any, When::Always, Fault::Held(gate.clone()));
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let (handle, target) = (registry.open(&image, &Access::Operator, "team"), target.clone());
            tokio::spawn(async move {
                let manifest = handle.manifest(&target, Mode::Ask).await.expect("a manifest");
                let Content::Image { config, .. } = &manifest.content else { panic!("an image") };
                handle.config(config, Mode::Ask).await.expect("a configuration")
            })
        })
        .collect();
    until("the first one asks", async || fixture.registry.count(Route::Manifest) > 0).await;
    gate.open();
    for asked in asking {
        asked.await.expect("no panic");
    }
    assert_eq!((fixture.registry.count(Route::Manifest), fixture.registry.count(Route::Blob)), (1, 1));
    // What is known is asked for by nobody, also not after a failure.
    let handle = registry.open(&image, &Access::Operator, "team");
    handle.manifest(&target, Mode::Ask).await.expect("a manifest");
    assert_eq!(fixture.registry.count(Route::Manifest), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_questions_are_asked_once_and_keep_their_spelling() {
    let fixture = Fixture::new().await;
    fixture.registry.tags("library/nginx", ["1.27.0"]);
    let questions =
        [question("nginx", "semver"), question("docker.io/library/nginx", "semver"), question("nginx", "alphabetical")];
    let pins = fixture.resolver(CacheTtls::default()).resolve(&questions, Caller::default()).await;
    let names: Vec<String> = pins.into_iter().map(|pin| pin.expect("a pin").repository.text().to_owned()).collect();
    assert_eq!(names, ["nginx", "docker.io/library/nginx", "nginx"]);
    assert_eq!(fixture.registry.count(Route::Tags), 1);
}

/// The aim: at most 4 requests for one more push.
#[tokio::test(flavor = "multi_thread")]
async fn one_more_build_costs_three_requests() {
    let fixture = Fixture::new().await;
    for n in 0..60 {
        fixture.registry.push_built("acme/web", &format!("build-{n}"), &format!("2026-01-01T00:00:{n:02}Z"));
    }
    let ask = async || {
        let resolver = fixture.resolver(NEVER);
        let pins = resolver.resolve(&[question("ghcr.io/acme/web", "newest-build")], Caller::default()).await;
        assert!(resolver.flush(PATIENCE).await);
        pins.into_iter().next().expect("one").expect("a pin").choice.pinned.to_string()
    };
    assert_eq!(ask().await, "build-59");
    fixture.registry.push_built("acme/web", "build-60", "2026-01-01T00:01:00Z");
    fixture.registry.forget_requests();
    assert_eq!(ask().await, "build-60");
    assert_eq!(fixture.registry.requests().len(), 3, "the list, a manifest, a configuration: {:?}", fixture.registry.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_noticed_when_its_digest_is_stale() {
    let fixture = Fixture::new().await;
    fixture.registry.push_built("acme/web", "a", "2026-01-01T00:00:00Z");
    fixture.registry.push_built("acme/web", "b", "2026-01-02T00:00:00Z");
    let stale = CacheTtls { tags: Duration::ZERO, digests: Duration::ZERO };
    let ask = async || {
        let pins = fixture.resolver(stale).resolve(&[question("ghcr.io/acme/web", "newest-build")], Caller::default()).await;
        pins.into_iter().next().expect("one").expect("a pin").choice.pinned.to_string()
    };
    assert_eq!(ask().await, "b");
    fixture.registry.push_built("acme/web", "a", "2026-01-03T00:00:00Z");
    assert_eq!(ask().await, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_counts_for_the_platform_that_is_asked_for() {
    let fixture = Fixture::new().await;
    let image = |platform: &str, created: &str| Image::new().platform(platform).created(created);
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    fixture.registry.push_index("acme/web", "a", vec![image("linux/amd64", new), image("linux/arm64", old)], true);
    fixture.registry.push_index("acme/web", "b", vec![image("linux/amd64", old), image("linux/arm64", new)], true);
    fixture.registry.push_image("acme/web", "c", image("windows/amd64", "2026-03-01T00:00:00Z"));
    let mut arm = question("ghcr.io/acme/web", "newest-build");
    let settings = PolicySettings {
        strategy: Some("newest-build".into()),
        platforms: Some(vec!["linux/arm64".into()]),
        ..PolicySettings::default()
    };
    arm.policy = Policy::parse(&settings, Notation::Placeholder).expect("a policy");
    let pins = fixture.resolver(NEVER).resolve(&[question("ghcr.io/acme/web", "newest-build"), arm], Caller::default()).await;
    let tags: Vec<String> = pins.into_iter().map(|pin| pin.expect("a pin").choice.pinned.to_string()).collect();
    assert_eq!(tags, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_epoch_of_a_reproducible_build_is_no_date() {
    let fixture = Fixture::new().await;
    let epoch = || Image::new().created("1970-01-01T00:00:00Z");
    fixture.registry.push_built("acme/web", "dated", "2026-01-01T00:00:00Z");
    fixture.registry.push_image(
        "acme/web",
        "labelled",
        epoch().label("org.opencontainers.image.created", "2026-02-01T00:00:00Z"),
    );
    fixture.registry.push_image(
        "acme/web",
        "annotated",
        epoch().annotation("org.opencontainers.image.created", "2026-03-01T00:00:00Z"),
    );
    let pins = fixture.resolver(NEVER).resolve(&[question("ghcr.io/acme/web", "newest-build")], Caller::default()).await;
    assert_eq!(pins[0].as_ref().expect("a pin").choice.pinned.to_string(), "annotated");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_under_the_credential_that_asked() {
    let fixture = Fixture::new().await;
    fixture.registry.tags("acme/web", ["1.0.0"]);
    let image = "ghcr.io/acme/web".parse().expect("an image");
    let anonymous = fixture.asking("", CacheTtls::default()).open(&image, &Access::Operator, "");
    let other = fixture.asking("  credentials: env:PATH\n", CacheTtls::default()).open(&image, &Access::Operator, "");
    assert_ne!(anonymous.key(), other.key());
    anonymous.listing(Mode::Ask).await.expect("tags");
    anonymous.save();
    let store = fixture.store();
    until("the listing is stored", async || store.record(anonymous.key()).await.is_ok_and(|record| record.is_some())).await;
    assert_eq!(store.record(other.key()).await, Ok(None));
}

/// A lookup goes on when its time is up, and what it learned is there for the next one; it is no answer to a question of later.
#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_goes_on_behind_and_is_not_an_answer_to_a_later_question() {
    use crate::support::registry::{Fault, Gate, When};
    let fixture = Fixture::new().await;
    fixture.registry.tags("acme/web", ["1.0.0"]);
    let resolver = fixture.resolver(NEVER);
    let questions = [question("ghcr.io/acme/web", "semver")];
    let gate = Gate::default();
    fixture.registry.fault_on(Route::Tags, When::Always, Fault::Held(gate.clone()));
    // Half of the caller's second is for lookups.
    let deadline = std::time::Instant::now() + Duration::from_secs(1);
    let late =
        resolver.resolve(&questions, Caller { tenant: "", deadline: Some(deadline) }).await.remove(0).expect_err("too slow");
    assert!(late.to_string().contains("within"), "{late}");
    assert_eq!(resolver.last(&questions[0], "").await, None);
    gate.open();
    until("the lookup ended with its caller", async || resolver.last(&questions[0], "").await.is_some()).await;
    fixture.registry.clear_faults();
    fixture.registry.tags("acme/web", ["1.0.0", "1.1.0"]);
    // The lookup has answered and may still be ending.
    until("an answer of before", async || {
        let now = resolver.resolve(&questions, Caller::default()).await.remove(0).expect("a pin");
        now.choice.pinned.to_string() == "1.1.0"
    })
    .await;
}
