//! What choosing takes and tells: [`Candidate`]s with their [`TagMetadata`]; a [`Selection`] or a [`NoMatch`], both with the [`FilterReport`].

use std::fmt;

use jiff::Timestamp;

use crate::image::{Digest, Platform, Tag};

/// A tag, and what is known of what it points at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    pub tag: Tag,
    /// None: not asked yet.
    pub facts: Option<TagMetadata>,
    /// Its place in time among the tags, the oldest first, where the registry lists them so. Such a place stands for the time of
    /// building wherever tags are ranked by that. None: the registry's order says nothing.
    pub position: Option<u32>,
}

/// What a tag points at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TagMetadata {
    /// The digest that the tag points at: an index's if it holds several platforms. None: not known.
    pub digest: Option<Digest>,
    /// One for each platform.
    pub images: Vec<ImageBuild>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageBuild {
    /// None: unknown, which suits no platform that is asked for.
    pub platform: Option<Platform>,
    pub created: Option<Timestamp>,
}

/// The choice, with its reasons.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    pub tag: Tag,
    /// The digest that the tag points at, if the facts hold it; always, if [`Policy::pins_digest`](super::Policy::pins_digest).
    pub digest: Option<Digest>,
    /// When the newest of its images was created, among those for the platforms that are asked for; None if the facts are not known.
    pub created: Option<Timestamp>,
    /// What `extract` yielded, which was ranked instead of the tag.
    pub extracted: Option<String>,
    pub funnel: FilterReport,
    /// The runner-up, as far as the known facts tell.
    pub next: Option<Tag>,
}

/// How many tags each step rejected: `total` is the sum of these and of `permitted`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterReport {
    /// How many different tags there were.
    pub total: usize,
    /// Only steps that rejected something.
    pub steps: Vec<Step>,
    /// How many are left. Where one that suits is enough, those that rank below it were not examined and count as permitted.
    pub permitted: usize,
    /// Were those ranked by their [`Candidate::position`], and not by the time of building?
    pub by_position: bool,
}

/// How many tags an error names that came near.
pub(super) const NEAREST: usize = 5;

/// One step of a [`FilterReport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Why the tags were rejected, to be read after their number: `outside ~1.4`.
    pub what: String,
    pub rejected: usize,
    /// Up to three of them, those nearest to winning first; up to five where this step left none.
    pub examples: Vec<Tag>,
}

/// Writes `214 tags, 209 not matching …, 5 outside …`.
impl fmt::Display for FilterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.total {
            0 => f.write_str("there are no tags")?,
            1 => f.write_str("1 tag")?,
            total => write!(f, "{total} tags")?,
        }
        self.steps.iter().try_for_each(|step| write!(f, ", {} {}", step.rejected, step.what))
    }
}

/// Why nothing was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSelection {
    /// The metadata of these tags must be known first. There is at least one.
    #[error("nothing is known about {}", names(.0))]
    NeedsMetadata(Vec<Tag>),
    #[error(transparent)]
    NoMatch(NoMatch),
}

fn names(tags: &[Tag]) -> String {
    match tags {
        [first, _, ..] => format!("{} tags, such as `{first}`", tags.len()),
        _ => tags.iter().map(|tag| format!("`{tag}`")).collect(),
    }
}

/// The tags are known, and none is permitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no permitted tag: {funnel}")]
pub struct NoMatch {
    pub funnel: FilterReport,
    pub(super) near_miss: Option<String>,
}

impl NoMatch {
    /// What would permit a tag, if there is a near miss; and the tags that came nearest, with the reason for each.
    pub fn hint(&self) -> Option<String> {
        let lines: Vec<String> = self.near_miss.iter().cloned().chain(self.nearest()).collect();
        (!lines.is_empty()).then(|| lines.join("\n  "))
    }

    /// Tags that exist: those that got furthest first.
    fn nearest(&self) -> Option<String> {
        let mut left = NEAREST;
        let mut groups = Vec::new();
        for step in self.funnel.steps.iter().rev() {
            let tags: Vec<String> = step.examples.iter().take(left).map(|tag| format!("`{tag}`")).collect();
            left -= tags.len();
            if !tags.is_empty() {
                groups.push(format!("{} ({})", tags.join(", "), step.what));
            }
        }
        let rest = if self.funnel.total > NEAREST { ", …" } else { "" };
        (!groups.is_empty()).then(|| format!("nearest of the tags that exist: {}{rest}", groups.join(", ")))
    }
}
