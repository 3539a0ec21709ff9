//! How long choosing takes over 100,000 tags, and finding and replacing placeholders in a values file of 5 MB.

mod timing;

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pinion::image::{Digest, Platform, Tag};
use pinion::placeholder::Scan;
use pinion::policy::{Candidate, ImageBuild, Notation, Policy, Settings, Strategy, TagMetadata};
use timing::{median_of, ms, table, time};

const TAGS: usize = 100_000;

const ROUNDS: usize = 7;

const VALUES: usize = 5_000_000;

fn main() {
    strategies();
    constraint();
    substitution();
}

fn strategies() {
    let now: Timestamp = "2026-06-01T00:00:00Z".parse().expect("a time");
    let tags = candidates(now);
    let mut rows = vec![["policy", "time", "a tag", "winner"].map(str::to_owned)];
    for words in [
        "~1.5",
        ">=1.2.0-0 <1.9 || ~2",
        "semver --allow-tags ^v[0-9.]+$",
        "semver --allow-tags ^v(?P<v>[0-9.]+)$ --extract $v",
        "semver --platform linux/arm64 --min-age 30days",
        "newest-build",
        "newest-build --allow-tags ^main- --ignore-tags main-0* --platform linux/amd64",
        "alphabetical --allow-tags ^main-",
        "numerical --allow-tags ^build-(?P<n>[0-9]+)$ --extract $n",
        "digest latest",
    ] {
        let policy = policy(words);
        let select = || policy.choose(black_box(&tags), now).unwrap_or_else(|error| panic!("{words}: {error}"));
        let median = median_of(ROUNDS, || time(select));
        rows.push([words.to_owned(), ms(median), per(median, TAGS), select().tag.to_string()]);
    }
    table("Choosing among 100,000 tags of which everything is known", &rows);
}

/// Tags as repositories have them, in no order: versions, pre-releases, builds of branches, numbered builds. A third each of the dated
/// ones is for one platform, for the other, and for both.
fn candidates(now: Timestamp) -> Vec<Candidate> {
    let platform = |text: &str| Some(text.parse::<Platform>().expect("a platform"));
    let platforms = [platform("linux/amd64"), platform("linux/arm64")];
    let tag = |serial: usize| match serial % 5 {
        0 => format!("v{}.{}.{}", serial / 20_000, serial / 200 % 100, serial % 200),
        1 => format!("{}.{}.{}-rc.{}", serial / 20_000, serial / 200 % 100, serial % 200, serial % 3),
        2 => format!("main-{:07x}", serial * 2_654_435_761 % (1 << 28)),
        3 => format!("build-{serial}"),
        _ => format!("feature-{}-{:07x}", serial % 37, serial * 40_503 % (1 << 28)),
    };
    let candidate = |serial: usize| {
        let serial = serial * 7919 % TAGS;
        let created = now - SignedDuration::from_mins(i64::try_from(serial * 7 % TAGS).expect("a small number"));
        let images = platforms.iter().enumerate().filter(|(index, _)| serial % 3 != *index);
        let images = images.map(|(_, platform)| ImageBuild { platform: platform.clone(), created: Some(created) }).collect();
        let name = if serial == 0 { "latest".to_owned() } else { tag(serial) };
        let digest = Some(Digest::of(name.as_bytes()));
        Candidate { tag: name.parse::<Tag>().expect("a tag"), facts: Some(TagMetadata { digest, images }), position: None }
    };
    (0..TAGS).map(candidate).collect()
}

/// What these words of a placeholder say.
fn policy(words: &str) -> Policy {
    let mut settings = Settings::default();
    let mut words = words.split(' ').peekable();
    let mut constraint = Vec::new();
    while let Some(word) = words.next() {
        let mut value = || words.next().expect("a value").to_owned();
        match word {
            "--allow-tags" => settings.allow_tags = Some(value()),
            "--ignore-tags" => settings.ignore_tags.get_or_insert_default().push(value()),
            "--extract" => settings.extract = Some(value()),
            "--platform" => settings.platforms.get_or_insert_default().push(value()),
            "--min-age" => settings.min_age = Some(value()),
            name if Strategy::NAMES.contains(&name) => settings.strategy = Some(name.to_owned()),
            _ => constraint.push(word),
        }
    }
    settings.constraint = Some(constraint.join(" "));
    Policy::parse(&settings, Notation::Placeholder).expect("a policy")
}

fn constraint() {
    const TIMES: usize = 10_000;
    let now = Timestamp::UNIX_EPOCH;
    let tags: Vec<Candidate> = ["1.4.2", "1.5.0", "2.0.0-rc.1"]
        .map(|tag| Candidate { tag: tag.parse().expect("a tag"), facts: None, position: None })
        .to_vec();
    let mut rows = vec![["constraint", "parse", "parse and select of 3"].map(str::to_owned)];
    for text in ["~1.4", ">=1.2.0-0 <2 || 3.x, !=3.1.4"] {
        let settings = Settings { constraint: Some(text.to_owned()), ..Settings::default() };
        let parse = || Policy::parse(black_box(&settings), Notation::Placeholder).expect("a policy");
        let parsing = median_of(ROUNDS, || time(|| (0..TIMES).for_each(|_| drop(black_box(parse())))));
        let both = median_of(ROUNDS, || time(|| (0..TIMES).for_each(|_| drop(black_box(parse().choose(&tags, now))))));
        rows.push([text.to_owned(), per(parsing, TIMES), per(both, TIMES)]);
    }
    table("A constraint", &rows);
}

fn substitution() {
    let mut rows = vec![["a values file of 5 MB", "find", "splice", "both"].map(str::to_owned)];
    for placeholders in [0, 1, 100, 1000] {
        let text = values(placeholders);
        let finding = median_of(ROUNDS, || time(|| Scan::of(black_box(&text)).expect("YAML")));
        let mut row = [format!("{placeholders} placeholders"), ms(finding), String::new(), throughput(text.len(), finding)];
        if let Some(scan) = Scan::of(&text).expect("YAML") {
            assert_eq!(scan.placeholders.len(), placeholders);
            let values = vec![Some("1.4.2".to_owned()); placeholders];
            let splicing = median_of(ROUNDS, || time(|| scan.substitute(black_box(&values))));
            row[2] = ms(splicing);
            row[3] = throughput(text.len(), finding + splicing);
        }
        rows.push(row);
    }
    table("Finding and replacing placeholders", &rows);
}

/// Values of many services; those with a placeholder are spread evenly.
fn values(placeholders: usize) -> String {
    let entry = "  replicas: 3\n  resources:\n    limits: {cpu: 500m, memory: 256Mi} # per pod\n    requests:\n      cpu: \"100m\"\n  \
                 env:\n    - name: LOG_LEVEL\n      value: info\n    - name: MESSAGE\n      value: >-\n        some folded text\n        over \
                 two lines\n";
    let services = VALUES / (entry.len() + 80);
    let mut text = String::with_capacity(VALUES + 100_000);
    for service in 0..services {
        let is_pinned =
            placeholders > 0 && service % (services / placeholders) == 0 && service / (services / placeholders) < placeholders;
        let tag = if is_pinned { "$(pin ~1.4)" } else { "1.4.0" };
        writeln!(text, "service-{service}:\n  image:\n    repository: ghcr.io/acme/service\n    tag: {tag}\n{entry}")
            .expect("memory takes it");
    }
    text
}

fn per(time: Duration, count: usize) -> String {
    format!("{:.0} ns", time.as_secs_f64() * 1e9 / count as f64)
}

fn throughput(bytes: usize, time: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / time.as_secs_f64())
}
