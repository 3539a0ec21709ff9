//! Questions become pins: which tag of a repository does a policy permit, now?
//!
//! All questions go out at once and all failures come back together. A pin is chosen from a complete answer or not at all (P2): when
//! fresh data cannot be had completely, the last pin of the same question is served and marked stale; without one, a choice from the
//! last complete listing; without that, the policy's fallback; else the question fails. Every answer comes within the budget (P5); a
//! lookup whose time is up goes on behind, for the next one who asks.

pub mod neighbour;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use moka::sync::Cache as Memory;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::failure::chain;
use crate::image::{Platform, Repository, Tag};
use crate::pin::{Considered, Freshness, Pin, Pinned, Usage};
use crate::policy::{Built, Candidate, Facts, NoMatch, Policy, Selection, Strategy};
use crate::registry::cache::{Cache, Remembered, is_fresh};
use crate::registry::store::{Store, StoredPin};
use crate::registry::{Access, Content, Listed, Listing, Manifest, RegistryError, TagSource, Target};
use crate::telemetry::Layer;
use neighbour::Neighbour;

/// Tags of one question that are looked into at a time.
const AT_ONCE: usize = 20;

/// Tags that take long enough to be worth a line in the log.
const MANY: usize = 100;

/// How old a last known good pin may be to shorten the wait for a newer one.
const RECENT: Duration = Duration::from_secs(3600);

/// The longest wait for a question that has a recent last known good pin: a hanging registry must not slow every render down.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a lookup may go on when nobody waits for it any more.
const BEHIND: Duration = Duration::from_secs(600);

/// Lookups that go on at a time; further ones end with those who wait for them.
const MAX_BEHIND: usize = 256;

/// Pins in memory.
const MAX_PINS: u64 = 100_000;

/// What is asked of a registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub repository: Repository,
    pub policy: Policy,
    pub access: Access,
}

impl Question {
    /// Two questions with the same name have the same answer.
    pub fn name(&self) -> String {
        format!("{} {}", self.repository, self.policy)
    }
}

/// Why a question has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// The registry could not be asked, and nothing is remembered.
    #[error("could not resolve `{question}`")]
    Registry {
        question: String,
        #[source]
        source: RegistryError,
    },
    /// The registry took longer than the budget, and nothing is remembered.
    #[error("could not resolve `{question}` within {}", humantime::format_duration(*budget))]
    Budget { question: String, budget: Duration },
    /// A defect of ours.
    #[error("the lookup of `{question}` broke off; the log says more")]
    Broken { question: String },
    /// The tags are known, and none is permitted.
    #[error("could not resolve `{question}`")]
    NoMatch {
        question: String,
        #[source]
        source: NoMatch,
    },
}

impl ResolveError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry { source, .. } => source.hint(),
            Self::Budget { .. } => {
                Some("raise `--lookup-timeout`, or the caller's own; what is learned meanwhile is there the next time".into())
            }
            Self::NoMatch { source, .. } => source.hint(),
            Self::Broken { .. } => None,
        }
    }
}

/// Answers questions.
pub struct Resolver<S> {
    asking: Arc<Asking<S>>,
    under_way: Mutex<HashMap<String, (Lookup, AbortHandle)>>,
}

/// A lookup that several may wait for.
type Lookup = Shared<BoxFuture<'static, Result<Pin, ResolveError>>>;

/// What a lookup needs, also when nobody waits for it.
struct Asking<S> {
    cache: Cache<S>,
    store: Arc<Store>,
    settings: Settings,
    /// Pins of fresh questions, so that a render reads no file for them.
    pins: Memory<String, StoredPin>,
}

/// The operator's choices.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For how long an answer is served again without asking.
    pub tags_ttl: Duration,
    /// The longest that all lookups of a render may take.
    pub budget: Duration,
    /// The platforms that `newest-build` looks at where the policy names none. Other strategies read no metadata and use none.
    pub platforms: Vec<Platform>,
    /// Who is asked before a registry is.
    pub neighbour: Option<Neighbour>,
}

impl<S: TagSource + 'static> Resolver<S> {
    pub fn new(cache: Cache<S>, store: Arc<Store>, settings: Settings) -> Self {
        let pins = Memory::builder().max_capacity(MAX_PINS).time_to_live(settings.tags_ttl).build();
        Self { asking: Arc::new(Asking { cache, store, settings, pins }), under_way: Mutex::default() }
    }

    /// Answers all questions at once, each within the budget, and within half of the time until the deadline: the tool needs the rest.
    /// Answers are in the order of the questions; equal questions are asked once.
    ///
    /// What is learned is kept in the store before this returns.
    pub async fn resolve(&self, questions: &[Question], deadline: Option<std::time::Instant>) -> Vec<Result<Pin, ResolveError>> {
        let names: Vec<String> = questions.iter().map(|question| self.asking.key(question)).collect();
        let mut distinct: BTreeMap<&str, &Question> = BTreeMap::new();
        for (name, question) in names.iter().zip(questions) {
            distinct.entry(name).or_insert(question);
        }
        // The budget is that of all questions together: a hanging registry must not use it up again for each wave of them.
        let start = Instant::now();
        let left = deadline.map(|deadline| Instant::from_std(deadline).saturating_duration_since(start) / 2);
        let budget = self.asking.settings.budget.min(left.unwrap_or(Duration::MAX));
        // Collected first: a closure in the stream would have to be general over every lifetime.
        let asked: Vec<_> = distinct.into_iter().map(|(key, question)| self.answered(key, question, start, budget)).collect();
        let answers: BTreeMap<String, Result<Pin, ResolveError>> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        self.asking.cache.save().await;
        let answer = |(name, question): (&String, &Question)| {
            let pin = answers.get(name).expect("every question was asked").clone();
            // Each question keeps its own spelling of the image.
            pin.map(|pin| Pin { repository: question.repository.clone(), ..pin })
        };
        names.iter().zip(questions).map(answer).collect()
    }

    /// What a question's answer is kept under.
    pub fn key(&self, question: &Question) -> String {
        self.asking.key(question)
    }

    /// The last pin of a question, however old. Asks nobody.
    pub async fn last(&self, question: &Question) -> Option<Pinned> {
        self.asking.stored(&self.asking.key(question)).await?.pin.parse().ok()
    }

    async fn answered(
        &self,
        key: &str,
        question: &Question,
        start: Instant,
        budget: Duration,
    ) -> (String, Result<Pin, ResolveError>) {
        (key.to_owned(), self.answer(key, question, start, budget).await)
    }

    async fn answer(&self, key: &str, question: &Question, start: Instant, budget: Duration) -> Result<Pin, ResolveError> {
        let Asking { settings, pins, .. } = &*self.asking;
        let in_memory = pins.get(key).filter(|pin| is_fresh(pin.at, settings.tags_ttl));
        let stored = if in_memory.is_some() { in_memory } else { self.asking.stored(key).await };
        if let Some(pin) = stored.as_ref().filter(|pin| is_fresh(pin.at, settings.tags_ttl)) {
            pins.insert(key.to_owned(), pin.clone());
            self.asking.cache.count(Layer::Pin, true);
            return Ok(recall(pin, question, Freshness::Fresh));
        }
        self.asking.cache.count(Layer::Pin, false);
        // A pin that was good a moment ago is good enough; an old one is worth the wait, or a slow registry would keep it for ever.
        let is_recent = stored.as_ref().is_some_and(|pin| is_fresh(pin.at, RECENT));
        let budget = if is_recent { budget.min(PATIENCE) } else { budget };
        let error = match tokio::time::timeout_at(start + budget, self.lookup(key, question)).await {
            Ok(Ok(pin)) => return Ok(pin),
            Ok(Err(error)) => error,
            Err(_) => {
                let budget = Duration::from_millis(u64::try_from(budget.as_millis()).unwrap_or(u64::MAX));
                ResolveError::Budget { question: question.name(), budget }
            }
        };
        let reason = reason(&error);
        if matches!(error, ResolveError::NoMatch { .. }) {
            return fallback(question, reason).ok_or(error);
        }
        if let Some(stored) = stored {
            tracing::warn!(question = question.name(), pin = %stored.pin, since = %stored.at, %reason, "serving the last known good pin");
            let freshness = Freshness::Stale { since: stored.at, reason };
            return Ok(recall(&stored, question, freshness));
        }
        if let Some(pin) = self.asking.remember(question, &reason).await {
            tracing::warn!(question = question.name(), pin = %pin.pinned, %reason, "serving a choice from the last complete listing");
            return Ok(pin);
        }
        fallback(question, reason).ok_or(error)
    }

    /// The lookup of a question: the one that is under way, or a new one, which goes on when nobody waits for it any more.
    fn lookup(&self, key: &str, question: &Question) -> Lookup {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended is no answer to a later question.
        under_way.retain(|_, (_, task)| !task.is_finished());
        if let Some((lookup, _)) = under_way.get(key) {
            return lookup.clone();
        }
        let (asking, key, question) = (Arc::clone(&self.asking), key.to_owned(), question.clone());
        let (name, question_name) = (key.clone(), question.name());
        let work = async move {
            let pin = tokio::time::timeout(BEHIND, asking.look_up(&key, &question)).await;
            pin.unwrap_or_else(|_| Err(ResolveError::Budget { question: question.name(), budget: BEHIND }))
        };
        if under_way.len() >= MAX_BEHIND {
            return work.boxed().shared();
        }
        let broken = ResolveError::Broken { question: question_name };
        let task = tokio::spawn(work);
        let handle = task.abort_handle();
        let lookup = task.map(|ended| ended.unwrap_or(Err(broken))).boxed().shared();
        under_way.insert(name, (lookup.clone(), handle));
        lookup
    }
}

impl<S: TagSource> Asking<S> {
    /// What a question's answer is kept under: also the credential that asks, and the platforms that are looked at.
    fn key(&self, question: &Question) -> String {
        let platforms: Vec<String> = match question.policy.strategy() {
            Strategy::NewestBuild => self.settings.platforms.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        format!("{} {} {}", self.cache.key(&question.repository, &question.access), question.policy, platforms.join(","))
    }

    /// The last pin, from the store.
    async fn stored(&self, key: &str) -> Option<StoredPin> {
        self.blocking(key.to_owned(), |store, key| store.pin(&key)).await.flatten()
    }

    /// Asks, chooses and keeps the pin.
    async fn look_up(&self, key: &str, question: &Question) -> Result<Pin, ResolveError> {
        if let Some(neighbour) = &self.settings.neighbour
            && let Some((pin, at)) = neighbour.ask(key, question).await
            && is_fresh(at, self.settings.tags_ttl)
        {
            self.keep(key, &pin, at).await;
            return Ok(pin);
        }
        let chosen = self.choose(question).await;
        let pin = match chosen {
            Ok((selection, at)) => {
                let pin = pin(question, selection, at, Freshness::Fresh);
                self.keep(key, &pin, at).await;
                Ok(pin)
            }
            Err(error) => Err(error),
        };
        self.cache.save().await;
        pin
    }

    /// A tag's facts. None if it is listed but gone, unless it is the tag that is followed.
    async fn looked_up(
        &self,
        question: &Question,
        policy: &Policy,
        is_ordered: bool,
        tag: Tag,
    ) -> Result<(Tag, Option<Facts>), RegistryError> {
        let facts = self.facts(question, policy, is_ordered, &tag).await?;
        Ok((tag, facts))
    }

    /// Uses the store on a thread that may block.
    async fn blocking<I: Send + 'static, T: Send + 'static>(&self, input: I, work: fn(&Store, I) -> T) -> Option<T> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || work(&store, input)).await.ok()
    }

    async fn keep(&self, key: &str, pin: &Pin, at: Timestamp) {
        let stored = StoredPin {
            key: key.to_owned(),
            pin: pin.pinned.to_string(),
            created: pin.created,
            at,
            considered: pin.considered.clone(),
        };
        self.pins.insert(key.to_owned(), stored.clone());
        self.blocking(stored, Store::keep).await;
    }

    /// The question's policy, with the operator's platforms where dates are read. Where the registry's order tells which tag is newer,
    /// nothing is read that the question does not ask for.
    fn policy(&self, question: &Question, is_ordered: bool) -> Policy {
        let policy = question.policy.clone();
        if is_ordered { policy } else { policy.with_default_platforms(&self.settings.platforms) }
    }

    /// What is chosen from, and the policy with its defaults for that.
    fn candidates(&self, question: &Question, listing: &Listing) -> (Policy, Vec<Candidate>) {
        // Google's registries say in the listing when each image was built, but not for which platform.
        let is_dated = question.policy.platforms().is_empty() && listing.tags.iter().all(|listed| listed.created.is_some());
        let policy = if is_dated { question.policy.clone() } else { self.policy(question, listing.is_ordered()) };
        let candidate = |listed: &Listed| {
            let images = vec![Built { platform: None, created: listed.created }];
            let facts = is_dated.then(|| Facts { digest: listed.digest.clone(), images });
            Candidate { tag: listed.tag.clone(), facts, position: listed.position }
        };
        (policy, listing.tags.iter().map(candidate).collect())
    }

    /// Chooses from fresh data.
    async fn choose(&self, question: &Question) -> Result<(Selection, Timestamp), ResolveError> {
        let name = question.name();
        let failed = |source| ResolveError::Registry { question: name.clone(), source };
        let listing = self.cache.dated_tags(&question.repository, &question.access).await.map_err(&failed)?;
        let is_ordered = listing.value.is_ordered();
        let (policy, mut candidates) = self.candidates(question, &listing.value);
        let now = Timestamp::now();
        loop {
            let wanted = policy.wanted(&candidates, now);
            if wanted.len() > MANY {
                tracing::info!(repository = %question.repository, tags = wanted.len(), "looking into many tags");
            }
            if wanted.is_empty() {
                let selection = policy.select(&candidates, now);
                return selection
                    .map(|selection| (selection, listing.at))
                    .map_err(|source| ResolveError::NoMatch { question: name, source });
            }
            let lookups: Vec<_> = wanted.into_iter().map(|tag| self.looked_up(question, &policy, is_ordered, tag)).collect();
            let found: Vec<(Tag, Option<Facts>)> =
                stream::iter(lookups).buffer_unordered(AT_ONCE).try_collect().await.map_err(&failed)?;
            let (found, gone) = found.into_iter().partition::<Vec<_>, _>(|(_, facts)| facts.is_some());
            candidates.retain(|candidate| gone.iter().all(|(tag, _)| *tag != candidate.tag));
            let found = found.into_iter().filter_map(|(tag, facts)| Some((tag, facts?))).collect();
            if !fill(&mut candidates, found) && gone.is_empty() {
                let selection = policy.select(&candidates, now);
                return selection
                    .map(|selection| (selection, listing.at))
                    .map_err(|source| ResolveError::NoMatch { question: name, source });
            }
        }
    }

    /// What must be known of a tag. None if its own manifest is gone, unless it is the tag that is followed: what is missing behind a
    /// manifest that is there makes no complete answer.
    async fn facts(
        &self,
        question: &Question,
        policy: &Policy,
        is_ordered: bool,
        tag: &Tag,
    ) -> Result<Option<Facts>, RegistryError> {
        let Question { repository, access, .. } = question;
        let is_gone = |error: &RegistryError| {
            let is_gone = matches!(error, RegistryError::NotFound { .. }) && !matches!(policy.strategy(), Strategy::Digest(_));
            if is_gone {
                tracing::warn!(%error, "a tag is listed but is gone");
            }
            is_gone
        };
        if !policy.reads_metadata(is_ordered) {
            return match self.cache.digest(repository, tag, access).await {
                Err(error) if is_gone(&error) => Ok(None),
                digest => Ok(Some(Facts { digest: Some(digest?), images: Vec::new() })),
            };
        }
        let manifest = match self.cache.manifest(repository, &Target::Tag(tag.clone()), access).await {
            Err(error) if is_gone(&error) => return Ok(None),
            manifest => manifest?,
        };
        let mut images = Vec::new();
        match &manifest.content {
            Content::Image { .. } => images.push(self.built(question, &manifest, None).await?),
            Content::Index { entries, created } => {
                for entry in entries {
                    let Some(platform) = &entry.platform else { continue };
                    if !policy.platforms().is_empty() && policy.platforms().iter().all(|wanted| !wanted.accepts(platform)) {
                        images.push(Built { platform: Some(platform.clone()), created: None });
                        continue;
                    }
                    let child = match self.cache.manifest(repository, &Target::Digest(entry.digest.clone()), access).await {
                        // An index that was copied for some of its platforms: not built for this one.
                        Err(RegistryError::NotFound { .. }) => continue,
                        child => child?,
                    };
                    let built = self.built(question, &child, *created).await?;
                    images.push(Built { platform: Some(platform.clone()), ..built });
                }
            }
            Content::Other { media_type } => tracing::debug!(%tag, %media_type, "not an image"),
        }
        Ok(Some(Facts { digest: Some(manifest.digest.clone()), images }))
    }

    async fn built(&self, question: &Question, manifest: &Manifest, index: Option<Timestamp>) -> Result<Built, RegistryError> {
        let Content::Image { config, created } = &manifest.content else { return Ok(Built { platform: None, created: index }) };
        let config = self.cache.config(&question.repository, config, &question.access).await?;
        Ok(dated(&config, *created, index))
    }

    /// Chooses from what is remembered, without asking anybody. `None` if anything that the policy needs is missing.
    async fn remember(&self, question: &Question, reason: &str) -> Option<Pin> {
        let Question { repository, access, .. } = question;
        let listing = self.cache.last_tags(repository, access).await?;
        let is_ordered = listing.value.is_ordered();
        let (policy, mut candidates) = self.candidates(question, &listing.value);
        let now = Timestamp::now();
        loop {
            let wanted = policy.wanted(&candidates, now);
            if wanted.is_empty() {
                let selection = policy.select(&candidates, now).ok()?;
                let freshness = Freshness::Stale { since: listing.at, reason: reason.to_owned() };
                return Some(pin(question, selection, listing.at, freshness));
            }
            let mut found = Vec::new();
            for tag in wanted {
                let facts = self.remembered_facts(question, &policy, is_ordered, &tag).await?;
                found.push((tag, facts));
            }
            if !fill(&mut candidates, found) {
                return None;
            }
        }
    }

    async fn remembered_facts(&self, question: &Question, policy: &Policy, is_ordered: bool, tag: &Tag) -> Option<Facts> {
        let Question { repository, access, .. } = question;
        let remembered = Remembered(&self.cache);
        if !policy.reads_metadata(is_ordered) {
            return Some(Facts { digest: Some(remembered.digest(repository, tag, access).await?), images: Vec::new() });
        }
        let manifest = remembered.manifest(repository, tag, access).await?;
        let mut images = Vec::new();
        match &manifest.content {
            Content::Image { config, created } => {
                images.push(dated(&*remembered.config(repository, config, access).await?, *created, None));
            }
            Content::Index { entries, created: index } => {
                for entry in entries {
                    let Some(platform) = &entry.platform else { continue };
                    let is_wanted =
                        policy.platforms().is_empty() || policy.platforms().iter().any(|wanted| wanted.accepts(platform));
                    if !is_wanted {
                        continue;
                    }
                    let child = remembered.child(repository, &entry.digest, access).await?;
                    let Content::Image { config, created } = &child.content else { continue };
                    let built = dated(&*remembered.config(repository, config, access).await?, *created, *index);
                    images.push(Built { platform: Some(platform.clone()), ..built });
                }
            }
            Content::Other { .. } => {}
        }
        Some(Facts { digest: Some(manifest.digest.clone()), images })
    }
}

/// When an image was built: by its configuration, unless that holds the epoch of reproducible builds and an annotation knows better.
fn dated(config: &crate::registry::ImageConfig, annotation: Option<Timestamp>, index: Option<Timestamp>) -> Built {
    let epoch_ends = Timestamp::from_second(347_155_200).expect("the start of 1981 is a time");
    let created = match config.created.filter(|created| *created >= epoch_ends) {
        Some(created) => Some(created),
        None => annotation.or(index).or(config.created),
    };
    Built { platform: config.platform.clone(), created }
}

/// Adds what was found; says whether that is anything new.
fn fill(candidates: &mut [Candidate], found: Vec<(Tag, Facts)>) -> bool {
    let mut found: BTreeMap<Tag, Facts> = found.into_iter().collect();
    let mut is_new = false;
    for candidate in candidates {
        if let Some(facts) = found.remove(&candidate.tag).map(Some)
            && candidate.facts != facts
        {
            candidate.facts = facts;
            is_new = true;
        }
    }
    is_new
}

fn pin(question: &Question, selection: Selection, at: Timestamp, freshness: Freshness) -> Pin {
    let digest = selection.digest.filter(|_| question.policy.pins_digest());
    Pin {
        repository: question.repository.clone(),
        policy: question.policy.clone(),
        pinned: Pinned { tag: selection.tag, digest },
        created: selection.created,
        freshness,
        listed: Some(at),
        considered: Some(Considered::from(&selection.funnel)),
        usage: Usage::Unknown,
    }
}

fn recall(stored: &StoredPin, question: &Question, freshness: Freshness) -> Pin {
    Pin {
        repository: question.repository.clone(),
        policy: question.policy.clone(),
        pinned: stored.pin.parse().expect("the store gives pins that parse"),
        created: stored.created,
        freshness,
        listed: Some(stored.at),
        considered: stored.considered.clone(),
        usage: Usage::Unknown,
    }
}

fn fallback(question: &Question, reason: String) -> Option<Pin> {
    let tag = question.policy.fallback()?.clone();
    tracing::warn!(question = question.name(), %tag, %reason, "using the fallback");
    Some(Pin {
        repository: question.repository.clone(),
        policy: question.policy.clone(),
        pinned: Pinned { tag, digest: None },
        created: None,
        freshness: Freshness::Fallback { reason },
        listed: None,
        considered: None,
        usage: Usage::Unknown,
    })
}

/// The chain of causes in one line, without the question.
fn reason(error: &ResolveError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), chain)
}
