//! Laws of choosing: the order is total, the outcome depends on nothing but the set of candidates, and asking late changes nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{NOW, built, with};
use super::{Candidate, EXAMPLES, NEAREST, NoSelection, Policy, Selection, Step};
use crate::image::{Digest, Tag};

const STRATEGIES: [(&str, &str); 9] = [
    ("semver", ""),
    ("semver", ">=1-0 <3"),
    ("semver", "^1 || 2.x-0"),
    ("newest-build", ""),
    ("alphabetical", ""),
    ("alphabetical", "desc"),
    ("numerical", ""),
    ("numerical", "desc"),
    ("digest", "latest"),
];

prop_compose! {
    fn any_policy()(
        (strategy, constraint) in prop::sample::select(STRATEGIES.to_vec()),
        allow in prop::option::of(prop::sample::select(vec!["^v?[0-9]", "^(.+)-a", r"\.", "(.+)"])),
        ignored in prop::collection::vec(prop::sample::select(vec!["*-a", "v*", "regexp:rc", "[^1]*"]), 0..2),
        extract: bool, arm: bool, aged: bool, with_digest: bool,
    ) -> Policy {
        with(strategy, constraint, |settings| {
            let by_name = !["newest-build", "digest"].contains(&strategy);
            settings.extract = (extract && by_name && allow.is_some_and(|allow| allow.contains('('))).then(|| "$1".into());
            settings.allow_tags = allow.map(Into::into);
            settings.ignore_tags = Some(ignored.into_iter().map(str::to_owned).collect());
            settings.platforms = Some(arm.then(|| "linux/arm64".to_owned()).into_iter().collect());
            settings.min_age = aged.then(|| "3h".into());
            settings.with_digest = Some(with_digest);
        })
    }
}

prop_compose! {
    /// Few names, so that equal ranks and duplicates are common.
    fn any_candidate()(
        name in "(v?[0-2](\\.[01]){0,2}(-(a|rc1|rc\\.2))?|latest|main-[a-c])",
        images in prop::collection::vec((prop::option::of(prop::bool::ANY), prop::option::of(994i64..1002)), 0..3),
        position in prop::option::of(0u32..4),
    ) -> Candidate {
        let platform = |arm| if arm { "linux/arm64" } else { "linux/amd64" };
        let images: Vec<String> = images.into_iter()
            .map(|(arm, hours)| format!("{}@{}", arm.map_or("?", platform), hours.map_or("?".into(), |hours| hours.to_string())))
            .collect();
        Candidate { position, ..built(&name, &images.iter().map(String::as_str).collect::<Vec<_>>()) }
    }
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(any_candidate(), 0..12).prop_map(|candidates| {
        let unique: BTreeMap<Tag, Candidate> = candidates.into_iter().map(|c| (c.tag.clone(), c)).collect();
        unique.into_values().collect()
    })
}

proptest! {
    #[test]
    fn the_outcome_does_not_depend_on_the_order(policy in any_policy(), candidates in any_candidates(), seed: u64, again in 0usize..4) {
        let expected = policy.choose(&candidates, NOW);
        let mut shuffled: Vec<Candidate> = candidates.iter().chain(candidates.iter().take(again)).cloned().collect();
        shuffled.sort_by_key(|candidate| Digest::of(format!("{seed}{}", candidate.tag).as_bytes()));
        prop_assert_eq!(policy.choose(&shuffled, NOW), expected);
    }

    #[test]
    fn the_order_is_total(policy in any_policy(), candidates in any_candidates()) {
        let permitted: Vec<&Candidate> = candidates.iter().filter(|c| policy.choose(std::slice::from_ref(*c), NOW).is_ok()).collect();
        let better = |a: &Candidate, b: &Candidate| policy.choose(&[a.clone(), b.clone()], NOW).expect("both are permitted").tag;
        for a in &permitted {
            for b in &permitted {
                prop_assert_eq!(better(a, b), better(b, a));
                for c in &permitted {
                    if better(a, b) == a.tag && better(b, c) == b.tag {
                        prop_assert_eq!(better(a, c), a.tag.clone());
                    }
                }
            }
        }
        let best = permitted.iter().copied().reduce(|a, b| if better(a, b) == a.tag { a } else { b }).map(|best| &best.tag);
        let selected = policy.choose(&candidates, NOW).ok().map(|selection| selection.tag);
        prop_assert_eq!(selected.as_ref(), best);
    }

    #[test]
    fn the_winner_satisfies_the_policy_alone_and_the_funnel_adds_up(policy in any_policy(), candidates in any_candidates()) {
        let funnel = match policy.choose(&candidates, NOW) {
            Ok(selection) => {
                let alone: Vec<Candidate> = candidates.iter().filter(|c| c.tag == selection.tag).cloned().collect();
                prop_assert_eq!(policy.choose(&alone, NOW).map(|s| (s.tag, s.digest, s.created, s.extracted)),
                    Ok((selection.tag, selection.digest, selection.created, selection.extracted)));
                prop_assert!(selection.funnel.permitted > 0);
                prop_assert!(selection.next.is_none() || selection.funnel.permitted > 1);
            selection.funnel
            }
            Err(NoSelection::NeedsMetadata(tags)) => return Err(TestCaseError::fail(format!("all is known, but {tags:?}"))),
            Err(NoSelection::NoMatch(error)) => {
                prop_assert_eq!(error.funnel.permitted, 0);
                error.funnel
            }
        };
        prop_assert_eq!(funnel.total, candidates.len());
        prop_assert_eq!(funnel.total, funnel.permitted + funnel.steps.iter().map(|step| step.rejected).sum::<usize>());
        let most = if funnel.permitted == 0 { NEAREST } else { EXAMPLES };
        let is_bounded = |step: &Step| (step.rejected.min(EXAMPLES)..=step.rejected.min(most)).contains(&step.examples.len());
        prop_assert!(funnel.steps.iter().all(is_bounded));
    }

    /// Asking only what is wanted leads to the same choice as knowing everything.
    #[test]
    fn asking_late_changes_nothing(policy in any_policy(), candidates in any_candidates()) {
        let mut known: Vec<Candidate> = candidates.iter().map(|c| Candidate { facts: None, ..c.clone() }).collect();
        for _ in 0..=candidates.len() {
            let Err(NoSelection::NeedsMetadata(wanted)) = policy.choose(&known, NOW) else { break };
            for (known, full) in known.iter_mut().zip(&candidates).filter(|(known, _)| wanted.contains(&known.tag)) {
                prop_assert!(known.facts.is_none(), "asked twice about {}", known.tag);
                known.clone_from(full);
            }
        }
        let choice = |selection: Selection| (selection.tag, selection.extracted);
        prop_assert_eq!(policy.choose(&known, NOW).map(choice).ok(), policy.choose(&candidates, NOW).map(choice).ok());
    }
}
