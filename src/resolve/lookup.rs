//! Choosing for one question: the same steps whether the registry is asked or what is remembered is recalled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::{AT_ONCE, Question};
use crate::image::{Platform, Tag};
use crate::policy::{Candidate, ImageBuild, NoMatch, NoSelection, Policy, Selection, TagMetadata};
use crate::registry::{Blob, Content, ImageConfig, Listed, Listing, LookupError, Manifest, ManifestRef, Mode, RepositoryHandle};

/// Tags that take long enough to be worth a line in the log.
const MANY: usize = 100;

/// Tags that all questions of one render look at together. A render with 100 images of 1,000 tags each looks at 100,000.
const MAX_TAGS: usize = 2_000_000;

/// Tags that are evaluated on the thread of the lookup itself.
const LARGE: usize = 10_000;

/// Why nothing was chosen.
#[derive(Debug)]
pub enum NotChosen {
    /// Something that the policy needs is missing.
    Missing(LookupError),
    /// The tags are known, and none is permitted.
    NoMatch(NoMatch),
    /// The metadata of this tag was fetched and still lacks what the policy needs: a defect.
    Incomplete(Tag),
    /// The questions of one render look at too many tags together.
    TooManyTags,
}

impl From<LookupError> for NotChosen {
    fn from(error: LookupError) -> Self {
        Self::Missing(error)
    }
}

/// One question, and where its answers come from.
pub struct Lookup<'a> {
    pub question: &'a Question,
    pub handle: &'a RepositoryHandle,
    pub mode: Mode,
    /// The operator's, for policies that read dates and name no platform.
    pub platforms: &'a [Platform],
    pub now: Timestamp,
    /// Tags that the questions of the render have looked at.
    pub tags: &'a AtomicUsize,
}

impl Lookup<'_> {
    /// Chooses from a complete listing, and from the metadata of all candidates that the policy needs (P2). Returns when the listing was
    /// read.
    ///
    /// # Errors
    ///
    /// [`NotChosen`].
    pub async fn choose(&self) -> Result<(Selection, Timestamp), NotChosen> {
        let listing = self.handle.listing(self.mode).await?;
        let count = listing.value.tags.len();
        if self.tags.fetch_add(count, Ordering::Relaxed) + count > MAX_TAGS {
            return Err(NotChosen::TooManyTags);
        }
        let is_ordered = listing.value.is_ordered();
        let (policy, mut candidates) = self.candidates(&listing.value);
        let policy = Arc::new(policy);
        let _place = if count >= LARGE && self.mode == Mode::Recall { Some(self.handle.recall_place().await) } else { None };
        loop {
            let outcome;
            (candidates, outcome) = self.evaluate(&policy, candidates).await;
            let wanted = match outcome {
                Ok(selection) => return Ok((selection, listing.at)),
                Err(NoSelection::NoMatch(no_match)) => return Err(NotChosen::NoMatch(no_match)),
                Err(NoSelection::NeedsMetadata(tags)) => tags,
            };
            if wanted.len() > MANY && self.mode == Mode::Ask {
                tracing::info!(repository = %self.question.repository, tags = wanted.len(), "looking into many tags");
            }
            let first = wanted[0].clone();
            let lookups: Vec<_> = wanted.into_iter().map(|tag| self.looked_up(&policy, is_ordered, tag)).collect();
            let found: Vec<(Tag, Option<TagMetadata>)> = stream::iter(lookups).buffer_unordered(AT_ONCE).try_collect().await?;
            if !fill(&mut candidates, found) {
                return Err(NotChosen::Incomplete(first));
            }
        }
    }

    /// Evaluates a policy over candidates: many of them on a thread where nobody waits, since it takes a processor for some time.
    async fn evaluate(
        &self,
        policy: &Arc<Policy>,
        candidates: Vec<Candidate>,
    ) -> (Vec<Candidate>, Result<Selection, NoSelection>) {
        let (policy, now) = (Arc::clone(policy), self.now);
        let evaluate = move || {
            let outcome = policy.choose(&candidates, now);
            (candidates, outcome)
        };
        if self.tags.load(Ordering::Relaxed) < LARGE {
            return evaluate();
        }
        tokio::task::spawn_blocking(evaluate).await.expect("choosing does not panic")
    }

    /// What is chosen from, and the policy with its defaults for that.
    fn candidates(&self, listing: &Listing) -> (Policy, Vec<Candidate>) {
        let asked = &self.question.policy;
        // Google's registries say in the listing when each image was built, but not for which platform.
        let is_dated = asked.platforms().is_empty() && listing.tags.iter().all(|listed| listed.created.is_some());
        // Where the registry's order tells which tag is newer, nothing is read that the question does not ask for.
        let needs_platforms = !is_dated && !listing.is_ordered();
        let policy = if needs_platforms { asked.clone().with_default_platforms(self.platforms) } else { asked.clone() };
        let candidate = |listed: &Listed| {
            let images = vec![ImageBuild { platform: None, created: listed.created }];
            let facts = is_dated.then(|| TagMetadata { digest: listed.digest.clone(), images });
            Candidate { tag: listed.tag.clone(), facts, position: listed.position }
        };
        (policy, listing.tags.iter().map(candidate).collect())
    }

    async fn looked_up(&self, policy: &Policy, is_ordered: bool, tag: Tag) -> Result<(Tag, Option<TagMetadata>), LookupError> {
        let facts = self.facts(policy, is_ordered, &tag).await?;
        Ok((tag, facts))
    }

    /// What must be known of a tag. None if its own manifest is gone, unless it is the tag that is followed: what is missing behind a
    /// manifest that is there makes no complete answer.
    async fn facts(&self, policy: &Policy, is_ordered: bool, tag: &Tag) -> Result<Option<TagMetadata>, LookupError> {
        let is_gone = |error: &LookupError| {
            let is_gone = error.is_gone() && !policy.strategy().follows_a_tag();
            if is_gone && self.mode == Mode::Ask {
                tracing::warn!(repository = %self.question.repository, %tag, "a tag is listed but is gone");
            }
            is_gone
        };
        if !policy.reads_metadata(is_ordered) {
            return match self.handle.digest(tag, self.mode).await {
                Err(error) if is_gone(&error) => Ok(None),
                digest => Ok(Some(TagMetadata { digest: Some(digest?), images: Vec::new() })),
            };
        }
        let manifest = match self.handle.manifest(&ManifestRef::Tag(tag.clone()), self.mode).await {
            Err(error) if is_gone(&error) => return Ok(None),
            manifest => manifest?,
        };
        let mut images = Vec::new();
        match &manifest.content {
            Content::Image { config, created } => images.push(self.built(config, *created, None).await?),
            Content::Index { entries, created: index } => {
                for entry in entries {
                    let Some(platform) = &entry.platform else { continue };
                    if !policy.platforms().is_empty() && policy.platforms().iter().all(|wanted| !wanted.accepts(platform)) {
                        images.push(ImageBuild { platform: Some(platform.clone()), created: None });
                        continue;
                    }
                    // Also one that is missing makes no complete answer: perhaps the registry has lost it for a moment only.
                    let child = self.handle.manifest(&ManifestRef::Digest(entry.digest.clone()), self.mode).await?;
                    let built = self.built_for(&child, *index).await?;
                    images.push(ImageBuild { platform: Some(platform.clone()), ..built });
                }
            }
            Content::Other { media_type } => tracing::debug!(%tag, %media_type, "not an image"),
        }
        Ok(Some(TagMetadata { digest: Some(manifest.digest.clone()), images }))
    }

    async fn built_for(&self, manifest: &Manifest, index: Option<Timestamp>) -> Result<ImageBuild, LookupError> {
        match &manifest.content {
            Content::Image { config, created } => self.built(config, *created, index).await,
            _ => Ok(ImageBuild { platform: None, created: index }),
        }
    }

    async fn built(
        &self,
        config: &Blob,
        annotation: Option<Timestamp>,
        index: Option<Timestamp>,
    ) -> Result<ImageBuild, LookupError> {
        Ok(dated(&*self.handle.config(config, self.mode).await?, annotation, index))
    }
}

/// When an image was built: by its configuration, unless that holds the epoch of reproducible builds and an annotation knows better.
fn dated(config: &ImageConfig, annotation: Option<Timestamp>, index: Option<Timestamp>) -> ImageBuild {
    let epoch_ends = Timestamp::from_second(347_155_200).expect("the start of 1981 is a time");
    let created = match config.created.filter(|created| *created >= epoch_ends) {
        Some(created) => Some(created),
        None => annotation.or(index).or(config.created),
    };
    ImageBuild { platform: config.platform.clone(), created }
}

/// Adds what was found, and removes tags that are gone. Says whether that is anything new.
fn fill(candidates: &mut Vec<Candidate>, found: Vec<(Tag, Option<TagMetadata>)>) -> bool {
    let mut found: BTreeMap<Tag, Option<TagMetadata>> = found.into_iter().collect();
    let mut is_new = false;
    candidates.retain_mut(|candidate| match found.remove(&candidate.tag) {
        None => true,
        Some(None) => {
            is_new = true;
            false
        }
        Some(facts) => {
            if candidate.facts != facts {
                candidate.facts = facts;
                is_new = true;
            }
            true
        }
    });
    is_new
}
