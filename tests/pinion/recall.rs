//! What is chosen from memory in an outage is what was chosen from the same data when it was fresh.

use std::time::Duration;

use pinion::clock::Clock;
use pinion::image::Platform;
use pinion::pin::PinState;
use pinion::policy::{Notation, Policy, Settings as PolicySettings};
use pinion::registry::{self, Access, CacheTtls, Client, Limits, RegistriesConfig, Registry};
use pinion::resolve::{Caller, Question, Resolver, Settings};
use pinion::store::{self, Store};

use crate::support::driver::{PATIENCE, entries};
use crate::support::random::Random;
use crate::support::registry::{Dialect, FakeRegistry, Fault, Image, Route, When};

/// A resolver with a store of its own in this directory.
fn resolver(registry: &FakeRegistry, more: &str, dir: &std::path::Path, clock: &Clock) -> Resolver {
    let config =
        RegistriesConfig::parse(&entries(registry, more), std::path::Path::new("registries.conf")).expect("a configuration");
    let limits = Limits { docker_config: None, ..Limits::default() };
    let store = store::Settings { dir: dir.to_owned(), most_bytes: 64 << 20, check: false, clock: clock.clone() };
    let ttls = CacheTtls { tags: Duration::from_secs(60), digests: Duration::from_secs(3600) };
    let settings = registry::Settings { ttls, clock: clock.clone(), ..registry::Settings::default() };
    let registry = Registry::new(Client::new(config, limits), Store::open(store), settings);
    let platforms = vec!["linux/amd64".parse::<Platform>().expect("a platform")];
    let budget = Duration::from_secs(100);
    Resolver::new(registry, Settings { tags_ttl: ttls.tags, budget, platforms, peer: None, most_bytes: 16 << 20 })
}

fn question(image: &str, settings: &PolicySettings) -> Option<Question> {
    let policy = Policy::parse(settings, Notation::Placeholder).ok()?;
    Some(Question { repository: image.parse().expect("an image"), policy, access: Access::Operator })
}

/// How a registry is made to list.
type Prepare = fn(&FakeRegistry);

/// Every strategy with every filter that goes with it.
fn questions(image: &str) -> Vec<Question> {
    let strategies = [
        (Some("semver"), Some("~1-0")),
        (Some("semver"), None),
        (Some("newest-build"), None),
        (Some("alphabetical"), None),
        (Some("numerical"), None),
        (Some("digest"), Some("latest")),
    ];
    let mut all = Vec::new();
    for (strategy, constraint) in strategies {
        for allow in [None, Some("^[0-9]"), Some("^main-")] {
            for platforms in [&[][..], &["linux/amd64"], &["linux/arm64", "linux/amd64"]] {
                for with_digest in [false, true] {
                    let settings = PolicySettings {
                        strategy: strategy.map(str::to_owned),
                        constraint: constraint.map(str::to_owned),
                        allow_tags: allow.map(str::to_owned),
                        platforms: Some(platforms.iter().map(|platform| (*platform).to_owned()).collect()),
                        with_digest: Some(with_digest),
                        ..PolicySettings::default()
                    };
                    all.extend(question(image, &settings));
                }
            }
        }
    }
    assert!(all.len() > 60, "{}", all.len());
    all
}

/// A repository of everything that registries hold: images, indexes, indexes whose images are missing, dates at the epoch, tags that are gone.
fn fill(registry: &FakeRegistry, repository: &str, random: &mut Random) {
    let names = ["1.0.0", "1.2.0", "1.2.3-rc.1", "v1.3", "2.0.0", "20240101", "main-a1", "main-b2", "latest", "1.9"];
    let date = |random: &mut Random| match random.below(5) {
        0 => "1970-01-01T00:00:00Z".to_owned(),
        1 => "nonsense".to_owned(),
        number => format!("2026-0{number}-1{}T00:00:00Z", random.below(9)),
    };
    for name in names {
        let image = |random: &mut Random| {
            let platform = ["linux/amd64", "linux/arm64", "windows/amd64"][random.below(3)];
            Image::new().platform(platform).created(date(random)).env(format!("N={}", random.below(1 << 30)))
        };
        match random.below(6) {
            0 => registry.raw_tag(repository, name),
            1 | 2 => {
                let images = (0..1 + random.below(3)).map(|_| image(random)).collect();
                registry.push_index(repository, name, images, random.below(2) == 0);
            }
            _ => {
                let image = image(random);
                registry.push_image(repository, name, image);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recalled_choice_is_the_fresh_one_for_the_same_data() {
    let mut random = Random::new(12);
    let (mut chosen, mut compared) = (0, 0);
    let google: Prepare = |registry| registry.dialect(Dialect::google());
    let rounds: [(&str, Prepare); 4] = [("", |_| {}), ("", |_| {}), ("", google), ("  tagsortmode: latest-first\n", |_| {})];
    for (round, (more, prepare)) in rounds.into_iter().enumerate() {
        let registry = FakeRegistry::start().await;
        prepare(&registry);
        fill(&registry, "acme/web", &mut random);
        let clock = Clock::default();
        let questions = questions("ghcr.io/acme/web");
        // Each question alone: what another one has learned would be there for it.
        for question in &questions {
            let dir = tempfile::tempdir().expect("a directory");
            let asking = resolver(&registry, more, dir.path(), &clock);
            let fresh = asking.resolve(std::slice::from_ref(question), Caller::default()).await.remove(0);
            assert!(asking.flush(Duration::from_secs(60)).await);
            let Ok(fresh) = fresh else { continue };
            chosen += 1;
            // The pin itself is forgotten; the listing and the metadata are not.
            let connection = rusqlite::Connection::open(dir.path().join("pinion.db")).expect("a database");
            connection.execute("DELETE FROM pins", []).expect("deleted");
            registry.fault_on(Route::Any, When::Always, Fault::status(403));
            let clock = Clock::fixed(clock.now() + jiff::SignedDuration::from_hours(5));
            let recalled = resolver(&registry, more, dir.path(), &clock)
                .resolve(std::slice::from_ref(question), Caller::default())
                .await
                .remove(0);
            registry.clear_faults();
            let recalled = recalled.unwrap_or_else(|error| panic!("round {round}, {}: {error}", question.name()));
            assert!(matches!(recalled.freshness, PinState::Stale { .. }), "{recalled:?}");
            assert_eq!(recalled.choice, fresh.choice, "round {round}, {}", question.name());
            compared += 1;
        }
    }
    assert!(compared == chosen && compared > 200, "{compared} of {chosen}");
}

/// The listing's time to live by the clock, and a clock that jumps: forwards by a day and back.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_makes_nothing_older_win() {
    let registry = FakeRegistry::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Clock::fixed("2026-01-01T00:00:00Z".parse().expect("a time"));
    let move_by = |seconds| clock.move_by(jiff::SignedDuration::from_secs(seconds));
    let settings = PolicySettings { constraint: Some("~1".into()), ..PolicySettings::default() };
    let question = question("ghcr.io/acme/web", &settings).expect("a question");
    let ask = async |resolver: &Resolver| {
        let pin = resolver.resolve(std::slice::from_ref(&question), Caller::default()).await.remove(0).expect("a pin");
        let is_fresh = pin.freshness == PinState::Fresh;
        (pin.choice.pinned.to_string(), is_fresh)
    };
    let resolver = || self::resolver(&registry, "", dir.path(), &clock);
    let first = resolver();
    registry.tags("acme/web", ["1.0.0"]);
    assert_eq!(ask(&first).await, ("1.0.0".to_owned(), true));
    registry.tags("acme/web", ["1.1.0"]);
    move_by(59);
    assert_eq!(ask(&first).await, ("1.0.0".to_owned(), true), "its time is not over");
    move_by(1);
    assert_eq!(ask(&first).await, ("1.1.0".to_owned(), true));
    // The clock is a day ahead, and what is read now is dated so.
    move_by(24 * 3600);
    registry.tags("acme/web", ["1.2.0"]);
    assert_eq!(ask(&first).await, ("1.2.0".to_owned(), true));
    assert!(first.flush(PATIENCE).await);
    // It is right again. What is dated in the future is not fresh, here and after a restart.
    move_by(-24 * 3600);
    registry.tags("acme/web", ["1.3.0"]);
    assert_eq!(ask(&first).await, ("1.3.0".to_owned(), true));
    assert!(first.flush(PATIENCE).await);
    registry.fault_on(Route::Any, When::Always, Fault::status(403));
    move_by(120);
    assert_eq!(ask(&first).await, ("1.3.0".to_owned(), false));
    assert_eq!(ask(&resolver()).await, ("1.3.0".to_owned(), false), "after a restart");
    // Also where only the listing is left.
    let connection = rusqlite::Connection::open(dir.path().join("pinion.db")).expect("a database");
    connection.execute("DELETE FROM pins", []).expect("deleted");
    assert_eq!(ask(&resolver()).await, ("1.3.0".to_owned(), false), "from the listing");
}
