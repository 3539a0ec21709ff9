//! Examples of choosing, one behaviour each.

use super::*;
use crate::image::Digest;
use crate::policy::{Notation, Settings};

pub(super) fn tag(text: &str) -> Tag {
    text.parse().expect(text)
}

fn policy(strategy: &str, constraint: &str) -> Policy {
    with(strategy, constraint, |_| {})
}

pub(super) fn with(strategy: &str, constraint: &str, change: impl FnOnce(&mut Settings)) -> Policy {
    let mut settings = Settings { strategy: Some(strategy.into()), constraint: Some(constraint.into()), ..Settings::default() };
    change(&mut settings);
    Policy::parse(&settings, Notation::Placeholder).expect("a policy")
}

pub(super) fn bare(tags: &[&str]) -> Vec<Candidate> {
    tags.iter().map(|text| Candidate { tag: tag(text), facts: None, position: None }).collect()
}

fn at(hours: i64) -> Timestamp {
    Timestamp::from_second(hours * 3600).expect("a time")
}

pub(super) const NOW: Timestamp = Timestamp::constant(1000 * 3600, 0);

/// A candidate whose images are given as `platform@hours`, `?` standing for what is unknown.
pub(super) fn built(name: &str, images: &[&str]) -> Candidate {
    let image = |text: &&str| {
        let (platform, hours) = text.split_once('@').expect(text);
        ImageBuild { platform: platform.parse().ok(), created: hours.parse().ok().map(at) }
    };
    let facts = TagMetadata { digest: Some(Digest::of(name.as_bytes())), images: images.iter().map(image).collect() };
    Candidate { tag: tag(name), facts: Some(facts), position: None }
}

/// Candidates as a registry lists them that has the oldest first.
fn listed(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let at = |(position, candidate)| Candidate { position: Some(position), ..candidate };
    (0..).zip(candidates).map(at).collect()
}

/// The tags whose metadata is needed first.
fn needs(policy: &Policy, candidates: &[Candidate]) -> Vec<Tag> {
    match policy.choose(candidates, NOW) {
        Err(NoSelection::NeedsMetadata(tags)) => tags,
        Ok(_) | Err(NoSelection::NoMatch(_)) => Vec::new(),
    }
}

#[track_caller]
fn no_match(policy: &Policy, candidates: &[Candidate]) -> NoMatch {
    match policy.choose(candidates, NOW) {
        Err(NoSelection::NoMatch(no_match)) => no_match,
        other => panic!("{other:?}"),
    }
}

fn winner(policy: &Policy, candidates: &[Candidate]) -> String {
    policy.choose(candidates, NOW).map_or_else(|error| error.to_string(), |selection| selection.tag.to_string())
}

/// What Argo CD Image Updater 1.3 chooses, and Flux's policies.
#[test]
fn strategies_pick_by_name() {
    for (strategy, constraint, tags, picked) in [
        ("semver", "", &["1.0", "v1.0.0", "1.0.0"][..], "v1.0.0"),
        ("semver", "", &["1.10.0", "1.9.0", "2.0.0-rc1", "latest"], "1.10.0"),
        ("semver", "", &["20240101", "1.2.3"], "20240101"),
        ("semver", "2.x-0", &["2.0.0-rc.9", "2.0.0-rc.10", "3.0.0-rc1"], "2.0.0-rc.10"),
        ("semver", "~1.2", &["1.2.3", "1.3.0", "1.2.10"], "1.2.10"),
        ("alphabetical", "", &["2024.9", "2024.10", "a"], "a"),
        ("alphabetical", "desc", &["b", "a", "c"], "a"),
        ("numerical", "", &["9", "10", "x", "9.5"], "10"),
        ("numerical", "desc", &["9", "10", "08"], "08"),
        ("numerical", "desc", &["1", "1.0", "01"], "1.0"),
        ("numerical", "", &["100000000000000000000001", "100000000000000000000000"], "100000000000000000000001"),
    ] {
        assert_eq!(winner(&policy(strategy, constraint), &bare(tags)), picked, "{strategy} {constraint}");
    }
}

#[test]
fn the_digest_strategy_needs_the_digest_of_its_tag() {
    let policy = policy("digest", "latest");
    assert_eq!(needs(&policy, &bare(&["1.0", "latest"])), [tag("latest")]);
    assert_eq!(needs(&policy, &bare(&["1.0"])), []);
    let found = policy.choose(&[built("1.0", &[]), built("latest", &[])], NOW).expect("a selection");
    assert_eq!((found.tag, found.digest), (tag("latest"), Some(Digest::of(b"latest"))));
    assert_eq!(winner(&policy, &bare(&["1.0"])), "no permitted tag: 1 tag, 1 other than `latest`");
}

#[test]
fn with_digest_asks_about_the_winner_alone() {
    let policy = with("semver", "", |settings| settings.with_digest = Some(true));
    assert_eq!(needs(&policy, &bare(&["1.0", "1.1"])), [tag("1.1")]);
    let known = [bare(&["1.0"]), vec![built("1.1", &[])]].concat();
    assert_eq!(needs(&policy, &known), []);
    assert_eq!(policy.choose(&known, NOW).expect("a selection").digest, Some(Digest::of(b"1.1")));
    let undigested = [Candidate { tag: tag("1.1"), facts: Some(TagMetadata { digest: None, images: vec![] }), position: None }];
    assert_eq!(needs(&policy, &undigested), [tag("1.1")]);
}

#[test]
fn newest_build_asks_about_all_that_is_left() {
    let policy = with("newest-build", "", |settings| settings.allow_tags = Some("^main-".into()));
    let candidates = [bare(&["main-a", "main-b", "dev"]), vec![built("main-c", &["linux/amd64@5"])]].concat();
    assert_eq!(needs(&policy, &candidates), [tag("main-b"), tag("main-a")]);
    assert_eq!(
        policy.choose(&candidates, NOW).expect_err("missing").to_string(),
        "nothing is known about 2 tags, such as `main-b`"
    );
}

#[test]
fn newest_build_picks_the_newest_image_for_the_platforms() {
    let candidates = [
        built("a", &["linux/amd64@5", "linux/arm64@9"]),
        built("b", &["linux/amd64@7"]),
        built("c", &["linux/amd64@7"]),
        built("d", &["?@99"]),
        built("e", &["linux/arm64/v8@?"]),
        built("f", &[]),
    ];
    let on = |platform: &str| with("newest-build", "", |settings| settings.platforms = Some(vec![platform.into()]));
    assert_eq!(winner(&policy("newest-build", ""), &candidates), "d");
    assert_eq!(winner(&on("linux/arm64"), &candidates), "a");
    assert_eq!(winner(&on("linux/s390x"), &candidates), "no permitted tag: 6 tags, 6 not built for `linux/s390x`");
    let found = on("linux/amd64").choose(&candidates, NOW).expect("a selection");
    assert_eq!((found.tag, found.created, found.next), (tag("c"), Some(at(7)), Some(tag("b"))));
    let found = on("linux/arm64").choose(&candidates, NOW).expect("a selection");
    assert_eq!(found.funnel.to_string(), "6 tags, 4 not built for `linux/arm64`, 1 without a creation date");
    assert_eq!((found.created, found.funnel.permitted), (Some(at(9)), 1));
}

#[test]
fn a_position_stands_for_the_time_of_building() {
    let tags = ["2.0", "main-b", "1.0", "main-a", "3.0-rc", "dev"];
    let main = |settings: &mut Settings| settings.allow_tags = Some("^main-".into());
    for (policy, picked, is_ranked) in [
        (policy("newest-build", ""), "dev", true),
        (with("newest-build", "", main), "main-a", true),
        (policy("semver", ""), "2.0", false),
        (policy("alphabetical", ""), "main-b", false),
        (policy("alphabetical", "desc"), "1.0", false),
        (policy("numerical", "desc"), "1.0", false),
    ] {
        let mut candidates = listed(bare(&tags));
        for _ in 0..2 {
            assert_eq!(needs(&policy, &candidates), [], "{policy}");
            let found = policy.choose(&candidates, NOW).expect("a selection");
            assert_eq!((found.tag, found.created, found.funnel.by_position), (tag(picked), None, is_ranked), "{policy}");
            candidates.reverse();
        }
    }
    let same = [("a", 1), ("b", 1), ("c", 0)].map(|(name, at)| Candidate { position: Some(at), ..bare(&[name]).remove(0) });
    assert_eq!(winner(&policy("newest-build", ""), &same), "b");
    assert_eq!(needs(&policy("digest", "dev"), &listed(bare(&tags))), [tag("dev")]);
}

/// What the registry's order does not tell is read, from the newest down.
#[test]
fn a_position_stands_for_nothing_else() {
    let arm = with("newest-build", "", |settings| settings.platforms = Some(vec!["linux/arm64".into()]));
    let mut candidates = listed(bare(&["f", "e", "d", "c", "b", "a"]));
    assert_eq!(needs(&arm, &candidates), ["a", "b", "c", "d"].map(tag));
    candidates =
        listed([bare(&["f", "e", "d"]), vec![built("c", &["linux/arm64@?"]), built("b", &[]), built("a", &[])]].concat());
    assert_eq!(needs(&arm, &candidates), []);
    let found = arm.choose(&candidates, NOW).expect("a selection");
    assert_eq!((found.tag, found.next, found.funnel.permitted), (tag("c"), Some(tag("d")), 4));
    assert_eq!(found.funnel.to_string(), "6 tags, 2 not built for `linux/arm64`");

    let aged = with("newest-build", "", |settings| settings.min_age = Some("2h".into()));
    let dated = [("old", "?@1"), ("older", "?@0"), ("undated", "?@?"), ("young", "?@999")];
    let candidates = listed(dated.iter().map(|(name, image)| built(name, &[image])).collect());
    assert_eq!(needs(&aged, &listed(bare(&["1", "2"]))), ["2", "1"].map(tag));
    let found = aged.choose(&candidates, NOW).expect("a selection");
    assert_eq!((found.tag, found.created), (tag("older"), Some(at(0))), "the registry's order, and not the dates");

    let pinned = with("newest-build", "", |settings| settings.with_digest = Some(true));
    assert_eq!(needs(&pinned, &listed(bare(&["1", "2"]))), [tag("2")]);
    let metadata = [&arm, &aged, &pinned].map(|policy| (policy.reads_metadata(false), policy.reads_metadata(true)));
    assert_eq!(metadata, [(true, true), (true, true), (true, false)]);
}

#[test]
fn candidates_are_checked_from_the_best_down() {
    let policy = with("semver", "", |settings| settings.platforms = Some(vec!["linux/arm64".into()]));
    let mut candidates = bare(&["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"]);
    assert_eq!(needs(&policy, &candidates), ["1.5", "1.4", "1.3", "1.2"].map(tag));
    candidates[5] = built("1.5", &["linux/amd64@1"]);
    candidates[3] = built("1.3", &["linux/arm64@1"]);
    assert_eq!(needs(&policy, &candidates), [tag("1.4")]);
    assert_eq!(winner(&policy, &candidates), "nothing is known about `1.4`");
    candidates[4] = built("1.4", &["linux/amd64@1"]);
    assert_eq!(needs(&policy, &candidates), []);
    let found = policy.choose(&candidates, NOW).expect("a selection");
    assert_eq!((found.tag, found.next), (tag("1.3"), Some(tag("1.2"))));
    assert_eq!(found.funnel.to_string(), "6 tags, 2 not built for `linux/arm64`");
    assert_eq!(found.funnel.permitted, 4);
}

#[test]
fn young_and_undated_images_are_rejected() {
    let policy = with("semver", "", |settings| settings.min_age = Some("2h".into()));
    let candidates = [
        built("1.4", &["linux/amd64@2000"]),
        built("1.3", &["linux/amd64@999"]),
        built("1.2", &["?@?"]),
        built("1.1", &["?@998"]),
    ];
    let found = policy.choose(&candidates, NOW).expect("a selection");
    assert_eq!(found.tag, tag("1.1"));
    assert_eq!(found.funnel.to_string(), "4 tags, 1 without a creation date, 2 younger than 2h");
}

#[test]
fn steps_tell_what_they_rejected() {
    let attached = format!("sha256-{}.sig", "a".repeat(64));
    let policy = with("semver", "~1.4", |settings| {
        settings.allow_tags = Some(r"^v?\d".into());
        settings.ignore_tags = Some(vec!["*-dev".into(), "regexp:^7".into()]);
    });
    let tags = ["latest", "main", "1.4.0-dev", "1.3.0", "10.0.0", "2.0.0", "v1.2.3", "0x", "7.0.0", "1.5.0", attached.as_str()];
    let error = no_match(&policy, &bare(&tags));
    assert_eq!(
        error.to_string(),
        r"no permitted tag: 11 tags, 1 attached to an image (signatures and the like), 2 not matching `^v?\d`, ".to_owned()
            + "2 ignored by `*-dev` or `regexp:^7`, 1 not readable as a version, 5 outside `~1.4`"
    );
    assert_eq!(error.funnel.steps.last().expect("a step").examples, ["10.0.0", "2.0.0", "1.5.0", "1.3.0", "v1.2.3"].map(tag));
    assert_eq!(winner(&policy, &[]), "no permitted tag: there are no tags");
}

#[test]
fn what_extract_yields_is_ranked() {
    let policy = with("numerical", "", |settings| {
        settings.allow_tags = Some("^main-[a-f0-9]+-(?<ts>[0-9]*)$".into());
        settings.extract = Some("$ts".into());
    });
    let found = policy.choose(&bare(&["main-ff-9", "main-0a-10", "main-1-", "dev-1-99"]), NOW).expect("a selection");
    assert_eq!((found.tag, found.extracted.as_deref(), found.next), (tag("main-0a-10"), Some("10"), Some(tag("main-ff-9"))));
    assert_eq!(found.funnel.to_string(), "4 tags, 1 not matching `^main-[a-f0-9]+-(?<ts>[0-9]*)$`, 1 with an empty `$ts`");
    let policy = with("semver", "1.x", |settings| {
        settings.allow_tags = Some("^(.+)-alpine$".into());
        settings.extract = Some("$1".into());
    });
    assert_eq!(winner(&policy, &bare(&["1.9-alpine", "1.10-alpine", "2.0-alpine", "1.11"])), "1.10-alpine");
}

#[test]
fn near_misses_are_hinted_at() {
    let hint = |policy: Policy, tags: &[&str]| no_match(&policy, &bare(tags)).hint();
    let text = hint(policy("semver", "~1.4 || 3"), &["1.4.0-rc.1", "1.4.0-rc.2", "1.3.0"]).expect("a hint");
    assert!(text.contains("`1.4.0-rc.2`") && text.contains("`~1.4-0 || 3-0`"), "{text}");
    let text = hint(policy("semver", ""), &["release-v1.2.3", "latest"]).expect("a hint");
    assert!(text.contains("`regexp:^release-v(.+)$`"), "{text}");
    let spaced = with("semver", "", |settings| settings.allow_tags = Some("regexp: ^v".into()));
    assert!(hint(spaced, &["v1"]).expect("a hint").contains("white space"));
    let text = hint(policy("semver", "~2"), &["1.0.0-rc1", "1.0.0"]).expect("a hint");
    assert_eq!(text, "nearest of the tags that exist: `1.0.0`, `1.0.0-rc1` (outside `~2`)");
    assert_eq!(hint(policy("semver", "~2"), &[]), None);
}

#[test]
fn tags_that_exist_are_named_where_none_is_permitted() {
    let hint = |policy: Policy, candidates: &[Candidate]| no_match(&policy, candidates).hint().expect("a hint");
    let tags = bare(&["latest", "1.0.0", "9.0.0", "10.0.0", "2.0.0"]);
    let text = hint(policy("semver", "~3"), &tags);
    let wanted = "`10.0.0`, `9.0.0`, `2.0.0`, `1.0.0` (outside `~3`), `latest` (not readable as a version)";
    assert_eq!(text, format!("nearest of the tags that exist: {wanted}"));
    // By the policy's order, also where the names alone do not suit.
    let text = hint(with("semver", "", |settings| settings.allow_tags = Some("^v".into())), &tags);
    assert_eq!(text, "nearest of the tags that exist: `10.0.0`, `9.0.0`, `2.0.0`, `1.0.0`, `latest` (not matching `^v`)");
    let young = with("newest-build", "", |settings| settings.min_age = Some("2h".into()));
    let text = hint(young, &[built("a", &["?@998"]), built("c", &["?@1000"]), built("b", &["?@999"])][1..]);
    assert_eq!(text, "nearest of the tags that exist: `c`, `b` (younger than 2h)");
    let many: Vec<String> = (0..20).map(|minor| format!("1.{minor}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let text = hint(policy("semver", "~2"), &bare(&many));
    assert_eq!(text, "nearest of the tags that exist: `1.19`, `1.18`, `1.17`, `1.16`, `1.15` (outside `~2`), …");
}

#[test]
fn duplicates_count_once_and_the_better_known_counts() {
    let policy = with("semver", "", |settings| settings.with_digest = Some(true));
    let candidates = [bare(&["1.0", "1.0"]), vec![built("1.0", &[])], bare(&["1.0"])].concat();
    let found = policy.choose(&candidates, NOW).expect("a selection");
    assert_eq!((found.funnel.total, found.funnel.permitted, found.next), (1, 1, None));
    assert!(found.digest.is_some());
}
