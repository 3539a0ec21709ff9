//! Choosing: [`Policy::choose`].
//!
//! ```text
//! candidates ─▶ attachments ─▶ allow-tags ─▶ ignore-tags ─▶ extract ─▶ strategy ─▶ rank ─▶ platform, date, age ─▶ winner
//!               └────────────────────── by name alone ───────────────────────┘   └─ by facts, from the best down ─┘
//! ```
//!
//! Facts about a tag cost requests to the registry, so they are asked for late: about all that is left for `newest-build`, which ranks by them; about
//! the best few at a time for the other strategies, and only if platforms or an age are asked for. A candidate is never passed over
//! because its facts are unknown. Where tags have a position in time, `newest-build` ranks by that and is like the other strategies.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};
use semver::Version;

use super::selection::NEAREST;
use super::version::{self, Decimal};
use super::{
    Candidate, Constraint, FilterReport, ImageBuild, NoMatch, NoSelection, Order, Policy, Selection, Step, Strategy, TagMetadata,
    filter,
};
use crate::image::{Platform, Tag, printable};

/// How many candidates are asked about at a time where one that suits is enough.
const BATCH: usize = 4;

/// How many rejected tags a step shows.
const EXAMPLES: usize = 3;

/// A candidate that is still in the running, and what it is ranked by.
struct Entry<'a> {
    candidate: &'a Candidate,
    extracted: Option<String>,
    rank: Rank,
}

enum Rank {
    /// By what [`Entry::text`] says.
    Text,
    Version(Version),
    Decimal(Decimal),
    Created(Timestamp),
    Position(u32),
}

impl Entry<'_> {
    /// What a strategy reads: the tag, or what `extract` yielded for it.
    fn text(&self) -> &str {
        self.extracted.as_deref().unwrap_or(self.candidate.tag.as_str())
    }

    fn version(&self) -> Option<&Version> {
        match &self.rank {
            Rank::Version(version) => Some(version),
            _ => None,
        }
    }

    fn cmp_rank(&self, other: &Self) -> Ordering {
        match (&self.rank, &other.rank) {
            (Rank::Text, Rank::Text) => self.text().cmp(other.text()),
            (Rank::Version(a), Rank::Version(b)) => a.cmp_precedence(b),
            (Rank::Decimal(a), Rank::Decimal(b)) => a.cmp(b),
            (Rank::Created(a), Rank::Created(b)) => a.cmp(b),
            (Rank::Position(a), Rank::Position(b)) => a.cmp(b),
            // No listing has positions for some of its tags. The order is total all the same.
            (Rank::Position(_), _) => Ordering::Greater,
            (_, Rank::Position(_)) => Ordering::Less,
            _ => Ordering::Equal,
        }
    }
}

/// What the facts say about a candidate.
enum Verdict {
    Unknown,
    Accepted,
    Rejected(Reason),
}

#[derive(Clone, Copy, PartialEq)]
enum Reason {
    Platform,
    Undated,
    Young,
}

/// What choosing came to.
struct Outcome<'a> {
    funnel: FilterReport,
    winner: Option<Entry<'a>>,
    next: Option<&'a Tag>,
    missing: Vec<Tag>,
    near_miss: Option<String>,
}

impl Policy {
    /// Chooses the best permitted tag, or says what must be known first.
    ///
    /// The outcome is the same for any order of the candidates, and tags that are listed twice count once. Of equal rank, the tag that
    /// is greatest by bytes wins.
    ///
    /// # Errors
    ///
    /// [`NoSelection::NeedsMetadata`] names tags: fetch their metadata and call again. A tag is named again if its metadata holds no
    /// digest and the pin needs one, so stop when a round brought nothing new. [`NoSelection::NoMatch`] counts what each step rejected.
    pub fn choose(&self, candidates: &[Candidate], now: Timestamp) -> Result<Selection, NoSelection> {
        let Outcome { funnel, winner, next, missing, near_miss } = self.evaluate(candidates, now);
        if !missing.is_empty() {
            return Err(NoSelection::NeedsMetadata(missing));
        }
        let Some(Entry { candidate, extracted, .. }) = winner else {
            return Err(NoSelection::NoMatch(NoMatch { funnel, near_miss }));
        };
        let facts = candidate.facts.as_ref();
        Ok(Selection {
            tag: candidate.tag.clone(),
            digest: facts.and_then(|facts| facts.digest.clone()),
            created: facts.and_then(|facts| self.created(facts)),
            extracted,
            funnel,
            next: next.cloned(),
        })
    }

    fn evaluate<'a>(&self, candidates: &'a [Candidate], now: Timestamp) -> Outcome<'a> {
        let mut funnel = FilterReport::default();
        let mut near_miss = None;
        let mut entries = distinct(candidates);
        funnel.total = entries.len();
        self.filter_names(&mut funnel, &mut entries, &mut near_miss);
        self.apply_strategy(&mut funnel, &mut entries, &mut near_miss);
        if self.strategy.ranks_by_build() {
            funnel.by_position = !entries.is_empty() && !entries.iter().any(|e| self.ranks_by_date(e.candidate));
            let unknown = |e: &&Entry| self.ranks_by_date(e.candidate) && e.candidate.facts.is_none();
            let missing: Vec<Tag> = entries.iter().filter(unknown).map(|e| e.candidate.tag.clone()).collect();
            if !missing.is_empty() {
                funnel.permitted = entries.len();
                return Outcome { funnel, winner: None, next: None, missing, near_miss };
            }
            for reason in [Reason::Platform, Reason::Undated, Reason::Young] {
                let suits = |e: &mut Entry| !self.ranks_by_date(e.candidate) || !self.judge(e.candidate, now).is(reason);
                self.sift(&mut funnel, &mut entries, || self.describe(reason), suits);
            }
            for entry in &mut entries {
                let created = || entry.candidate.facts.as_ref().and_then(|facts| self.created(facts));
                if let Some(rank) = entry.candidate.position.map(Rank::Position).or_else(|| created().map(Rank::Created)) {
                    entry.rank = rank;
                }
            }
        }
        entries.sort_by(|a, b| self.best_first(a, b));
        self.take_best(funnel, entries, near_miss, now)
    }

    /// The steps that need nothing but names.
    fn filter_names<'a>(&self, funnel: &mut FilterReport, entries: &mut Vec<Entry<'a>>, near_miss: &mut Option<String>) {
        let attached = || "attached to an image (signatures and the like)".to_owned();
        self.sift(funnel, entries, attached, |e| !filter::is_attached(e.candidate.tag.as_str()));
        if let Some(pattern) = &self.allow {
            let before = entries.len();
            let unmatched = || format!("not matching `{}`", printable(pattern.text()));
            self.sift(funnel, entries, unmatched, |e| pattern.is_match(e.candidate.tag.as_str()));
            if before > 0 && entries.is_empty() && pattern.text().trim() != pattern.text() {
                *near_miss =
                    Some("the pattern of allow-tags begins or ends with white space, which no tag has: remove it".to_owned());
            }
        }
        let ignored = || {
            let shown: Vec<String> =
                self.ignore.iter().take(EXAMPLES).map(|ignored| format!("`{}`", printable(&ignored.text()))).collect();
            let more = if self.ignore.len() > shown.len() { " or …" } else { "" };
            format!("ignored by {}{more}", shown.join(" or "))
        };
        self.sift(funnel, entries, ignored, |e| !self.ignore.iter().any(|ignored| ignored.is_match(e.candidate.tag.as_str())));
        if let (Some(template), Some(pattern)) = (&self.extract, &self.allow) {
            let empty = || format!("with an empty `{}`", printable(template.text()));
            self.sift(funnel, entries, empty, |e| {
                e.extracted = template.expand(pattern, e.candidate.tag.as_str()).filter(|text| !text.is_empty());
                e.extracted.is_some()
            });
        }
    }

    /// Drops what the strategy can't rank or its constraint excludes.
    fn apply_strategy<'a>(&self, funnel: &mut FilterReport, entries: &mut Vec<Entry<'a>>, near_miss: &mut Option<String>) {
        let before = entries.len();
        match &self.strategy {
            Strategy::Semver(constraint) => {
                let unreadable = || "not readable as a version".to_owned();
                let unversioned = self.sift(funnel, entries, unreadable, |e| {
                    version::parse(e.text()).map(|version| e.rank = Rank::Version(version)).is_some()
                });
                if before > 0 && entries.is_empty() && self.extract.is_none() {
                    *near_miss = unversioned.iter().find_map(|candidate| prefix_hint(&candidate.tag));
                }
                // The examples of the next step are then those nearest to winning.
                entries.sort_by(|a, b| self.best_first(a, b));
                let permits = |e: &Entry| e.version().is_some_and(|version| constraint.matches(version));
                if !entries.iter().any(permits) {
                    *near_miss = near_miss.take().or_else(|| prerelease_hint(constraint, entries));
                }
                self.sift(funnel, entries, || format!("outside `{constraint}`"), |e| permits(e));
            }
            Strategy::Numerical(_) => {
                let unreadable = || "not readable as a number".to_owned();
                self.sift(funnel, entries, unreadable, |e| {
                    Decimal::parse(e.text()).map(|number| e.rank = Rank::Decimal(number)).is_some()
                });
            }
            Strategy::Digest(tag) => {
                self.sift(funnel, entries, || format!("other than `{tag}`"), |e| e.candidate.tag == *tag);
            }
            Strategy::NewestBuild | Strategy::Alphabetical(_) => {}
        }
    }

    /// Goes from the best entry down to the first that is acceptable, or until enough are found whose facts are unknown.
    fn take_best<'a>(
        &self,
        mut funnel: FilterReport,
        entries: Vec<Entry<'a>>,
        near_miss: Option<String>,
        now: Timestamp,
    ) -> Outcome<'a> {
        let mut rejected: Vec<(Reason, &'a Tag)> = Vec::new();
        let mut missing = Vec::new();
        let (mut winner, mut next) = (None, None);
        let left = entries.len();
        for entry in entries {
            let tag = &entry.candidate.tag;
            match self.judge(entry.candidate, now) {
                Verdict::Rejected(reason) if winner.is_none() => rejected.push((reason, tag)),
                Verdict::Rejected(_) => {}
                _ if winner.is_some() => {
                    next = Some(tag);
                    break;
                }
                Verdict::Unknown => {
                    missing.push(tag.clone());
                    if missing.len() == BATCH {
                        break;
                    }
                }
                Verdict::Accepted => winner = Some(entry),
            }
        }
        for reason in [Reason::Platform, Reason::Undated, Reason::Young] {
            let tags: Vec<&Tag> = rejected.iter().filter(|(other, _)| *other == reason).map(|&(_, tag)| tag).collect();
            if !tags.is_empty() {
                let most = if winner.is_some() || !missing.is_empty() { EXAMPLES } else { NEAREST };
                let examples = tags.iter().take(most).map(|&tag| tag.clone()).collect();
                funnel.steps.push(Step { what: self.describe(reason), rejected: tags.len(), examples });
            }
        }
        funnel.permitted = left - rejected.len();
        if missing.is_empty() && self.pins_digest() {
            let undigested = |entry: &&Entry| entry.candidate.facts.as_ref().is_none_or(|facts| facts.digest.is_none());
            missing.extend(winner.iter().filter(undigested).map(|entry| entry.candidate.tag.clone()));
        }
        Outcome { funnel, winner, next, missing, near_miss }
    }

    /// Keeps the entries that `keep` accepts, counts the others as a step, and returns them. If none is left, the step shows those that
    /// rank highest, for the message.
    fn sift<'a>(
        &self,
        funnel: &mut FilterReport,
        entries: &mut Vec<Entry<'a>>,
        what: impl FnOnce() -> String,
        mut keep: impl FnMut(&mut Entry) -> bool,
    ) -> Vec<&'a Candidate> {
        let mut rejected = Vec::new();
        entries.retain_mut(|entry| {
            let kept = keep(entry);
            if !kept {
                rejected.push(entry.candidate);
            }
            kept
        });
        if !rejected.is_empty() {
            let examples = if entries.is_empty() {
                self.best_of(&rejected)
            } else {
                rejected.iter().take(EXAMPLES).map(|candidate| candidate.tag.clone()).collect()
            };
            funnel.steps.push(Step { what: what(), rejected: rejected.len(), examples });
        }
        rejected
    }

    /// The tags that rank highest, whatever else is wrong with them. Those that the strategy cannot rank come last.
    fn best_of(&self, candidates: &[&Candidate]) -> Vec<Tag> {
        let (mut ranked, mut others) = (Vec::new(), Vec::new());
        for &candidate in candidates {
            let tag = candidate.tag.as_str();
            let created = || candidate.facts.as_ref().and_then(|facts| self.created(facts));
            let rank = match &self.strategy {
                Strategy::Semver(_) => version::parse(tag).map(Rank::Version),
                Strategy::Numerical(_) => Decimal::parse(tag).map(Rank::Decimal),
                Strategy::NewestBuild => candidate.position.map(Rank::Position).or_else(|| created().map(Rank::Created)),
                Strategy::Alphabetical(_) | Strategy::Digest(_) => Some(Rank::Text),
            };
            let list = if rank.is_some() { &mut ranked } else { &mut others };
            list.push(Entry { candidate, extracted: None, rank: rank.unwrap_or(Rank::Text) });
        }
        ranked.sort_by(|a, b| self.best_first(a, b));
        others.sort_by(|a, b| self.best_first(a, b));
        ranked.iter().chain(&others).take(NEAREST).map(|entry| entry.candidate.tag.clone()).collect()
    }

    /// Is this candidate's time of building what it is ranked by?
    fn ranks_by_date(&self, candidate: &Candidate) -> bool {
        self.strategy.ranks_by_build() && candidate.position.is_none()
    }

    fn judge(&self, candidate: &Candidate, now: Timestamp) -> Verdict {
        let dated = self.min_age.is_some() || self.ranks_by_date(candidate);
        if !dated && self.platforms.is_empty() {
            return Verdict::Accepted;
        }
        let Some(facts) = &candidate.facts else {
            return Verdict::Unknown;
        };
        if !facts.images.iter().any(|image| self.accepts(image)) && !self.platforms.is_empty() {
            return Verdict::Rejected(Reason::Platform);
        }
        let young = |created: Timestamp| {
            let limit = self.min_age.and_then(|age| SignedDuration::try_from(age).ok());
            limit.is_some_and(|limit| now.duration_since(created) < limit)
        };
        match self.created(facts) {
            None if dated => Verdict::Rejected(Reason::Undated),
            Some(created) if young(created) => Verdict::Rejected(Reason::Young),
            _ => Verdict::Accepted,
        }
    }

    fn accepts(&self, image: &ImageBuild) -> bool {
        let offered = |wanted: &Platform| image.platform.as_ref().is_some_and(|platform| wanted.accepts(platform));
        self.platforms.is_empty() || self.platforms.iter().any(offered)
    }

    /// When the newest image was created, among those for the platforms that are asked for.
    fn created(&self, facts: &TagMetadata) -> Option<Timestamp> {
        facts.images.iter().filter(|image| self.accepts(image)).filter_map(|image| image.created).max()
    }

    fn best_first(&self, a: &Entry, b: &Entry) -> Ordering {
        let rank = match self.strategy.order() {
            Order::Asc => a.cmp_rank(b),
            Order::Desc => b.cmp_rank(a),
        };
        rank.then_with(|| a.candidate.tag.cmp(&b.candidate.tag)).reverse()
    }

    fn describe(&self, reason: Reason) -> String {
        match reason {
            Reason::Platform => {
                let platforms: Vec<String> = self.platforms.iter().map(|platform| format!("`{platform}`")).collect();
                format!("not built for {}", platforms.join(" or "))
            }
            Reason::Undated => "without a creation date".to_owned(),
            Reason::Young => format!("younger than {}", humantime::format_duration(self.min_age.unwrap_or_default())),
        }
    }
}

impl Verdict {
    fn is(&self, reason: Reason) -> bool {
        matches!(self, Self::Rejected(other) if *other == reason)
    }
}

/// One entry for each tag, greatest by bytes first. Of candidates with the same tag, the one with more facts counts.
fn distinct(candidates: &[Candidate]) -> Vec<Entry<'_>> {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.dedup_by(|a, b| a.tag == b.tag);
    sorted.into_iter().map(|candidate| Entry { candidate, extracted: None, rank: Rank::Text }).collect()
}

/// If only pre-releases are near: the constraint that would permit them.
fn prerelease_hint(constraint: &Constraint, entries: &[Entry]) -> Option<String> {
    let opened = constraint.with_prereleases()?;
    let near = entries.iter().find(|e| e.version().is_some_and(|version| !version.pre.is_empty() && opened.matches(version)))?;
    let tag = &near.candidate.tag;
    Some(format!("only pre-releases are near, such as `{tag}`: add `-0` to the constraint to permit them, as in `{opened}`"))
}

/// If a version stands behind other text: how to take it out.
fn prefix_hint(tag: &Tag) -> Option<String> {
    let text = tag.as_str();
    let starts = |&at: &usize| text.as_bytes()[at].is_ascii_digit() && !text.as_bytes()[at - 1].is_ascii_digit();
    let at = (1..text.len()).filter(starts).find(|&at| text[at..].contains('.') && version::parse(&text[at..]).is_some())?;
    let prefix = &text[..at];
    let pattern = prefix.replace('.', r"\.");
    Some(format!("to rank by the version behind `{prefix}`, set allow-tags to `regexp:^{pattern}(.+)$` and extract to `$1`"))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
