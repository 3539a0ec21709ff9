//! Questions become pins: which tag of a repository does a policy permit, now?
//!
//! All questions go out at once and all failures come back together. A pin is chosen from a complete answer or not at all (P2): when
//! fresh data cannot be had completely, the last pin of the same question is served and marked stale; without one, a choice from the
//! last complete listing; without that, the policy's fallback; else the question fails. Every answer comes within the budget (P5); a
//! lookup whose time is up goes on behind, for the next one who asks.

mod lookup;
pub mod peer;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::failure::chain;
use crate::image::{Platform, Repository};
use crate::metrics::Layer;
use crate::pin::{Choice, Pin, PinState, Pinned, SelectionReport, Usage};
use crate::policy::{NoMatch, Policy};
use crate::registry::{Access, LookupError, Mode, Registry, RegistryError, RepositoryHandle};
use crate::shares::SharedCache;
use crate::store::{self, PinRow, Store, StoredChoice, Ticket};
use lookup::{Lookup, NotChosen};
use peer::PeerClient;

/// Questions of one render, and tags of one question, that are looked into at a time.
const AT_ONCE: usize = 20;

/// How old a last known good pin may be to shorten the wait for a newer one.
const RECENT: Duration = Duration::from_secs(3600);

/// The longest wait for a question that has a recent last known good pin: a hanging registry must not slow every render down.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a lookup may go on when nobody waits for it any more.
const BEHIND: Duration = Duration::from_secs(600);

/// Lookups that go on at a time; further ones end with those who wait for them.
const MAX_BEHIND: usize = 256;

/// Lookups that go on at a time for one tenant.
const MAX_BEHIND_EACH: usize = 64;

/// The longest wait for the store to have a pin that has changed.
const STORED: Duration = Duration::from_millis(50);

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
    /// The questions of one render look at too many tags together.
    #[error("could not resolve `{question}`: all questions of the render together look at too many tags")]
    TooManyTags { question: String },
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
            // While it is down, an earlier answer would be used.
            Self::Registry { source, .. } if source.is_transient() => {
                let none =
                    "Pinion has no earlier answer to this question. `--fallback TAG` in the policy names a tag for this case";
                Some(source.hint().map_or_else(|| none.to_owned(), |hint| format!("{hint}; {none}")))
            }
            Self::Registry { source, .. } => source.hint(),
            Self::Budget { .. } => {
                Some("raise `--lookup-timeout`, or the caller's own; what is learned meanwhile is there the next time".into())
            }
            Self::NoMatch { source, .. } => source.hint(),
            Self::TooManyTags { .. } => Some(
                "let images of large repositories share policies, hold some with `pins` or a lock file, or remove old tags"
                    .into(),
            ),
            Self::Broken { .. } => None,
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// The AppProject. What is remembered and what is under way is charged to it.
    pub tenant: &'a str,
    /// When the caller gives up.
    pub deadline: Option<std::time::Instant>,
}

/// Answers questions.
#[derive(Debug)]
pub struct Resolver {
    inner: Arc<Inner>,
    /// By question and tenant: no tenant waits for another one's turn.
    under_way: Mutex<HashMap<(String, String), UnderWay>>,
}

/// A lookup that several may wait for.
type SharedLookup = Shared<BoxFuture<'static, Result<Choice, ResolveError>>>;

#[derive(Debug)]
struct UnderWay {
    lookup: SharedLookup,
    task: AbortHandle,
}

/// What a lookup needs, also when nobody waits for it.
#[derive(Debug)]
struct Inner {
    registry: Registry,
    settings: Settings,
    /// The last choice for each question, by question and tenant.
    pins: SharedCache<(String, String), Known>,
}

/// A choice, and when the listing was read that it was made from.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    at: Timestamp,
    choice: Arc<Choice>,
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
    pub peer: Option<PeerClient>,
    /// Bytes of choices in memory.
    pub most_bytes: u64,
}

/// A question that is opened: what its answer is kept under, and the repository.
struct Opened<'q> {
    question: &'q Question,
    key: String,
    handle: RepositoryHandle,
}

impl Resolver {
    pub fn new(registry: Registry, settings: Settings) -> Self {
        let pins = SharedCache::new(settings.most_bytes);
        Self { inner: Arc::new(Inner { registry, settings, pins }), under_way: Mutex::default() }
    }

    /// Loads the choices of the store into memory, so that a locked file delays no render.
    pub async fn preload(&self) {
        let Ok(rows) = self.inner.store().pins().await else { return };
        for PinRow { key, tenant, stored } in rows {
            if let Some(known) = Known::read(&stored) {
                self.inner.remember(&key, &tenant, known);
            }
        }
    }

    /// Answers all questions at once, each within the budget, and within half of the time until the deadline: the tool needs the rest.
    /// Answers are in the order of the questions; equal questions are asked once.
    ///
    /// A choice that has changed is in the store before this returns, if that takes no longer than 50 ms. All else is stored behind.
    pub async fn resolve(&self, questions: &[Question], caller: Caller<'_>) -> Vec<Result<Pin, ResolveError>> {
        // The budget is that of all questions together: a hanging registry must not use it up again for each wave of them.
        let start = Instant::now();
        let left = caller.deadline.map(|deadline| Instant::from_std(deadline).saturating_duration_since(start) / 2);
        let budget = self.inner.settings.budget.min(left.unwrap_or(Duration::MAX));
        let tags = Arc::new(AtomicUsize::new(0));
        let opened: Vec<Opened> = questions.iter().map(|question| self.inner.open(question, caller.tenant)).collect();
        let mut distinct: BTreeMap<&str, &Opened> = BTreeMap::new();
        for opened in &opened {
            distinct.entry(&opened.key).or_insert(opened);
        }
        // Collected first: a closure in the stream would have to be general over every lifetime.
        let asked: Vec<_> =
            distinct.into_values().map(|opened| self.answered(opened, caller.tenant, start, budget, &tags)).collect();
        let answers: Vec<(&str, Answered)> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        if let Some(ticket) = answers.iter().filter_map(|(_, answered)| answered.ticket).max() {
            self.inner.store().written(ticket, wait_for_the_store()).await;
        }
        let answers: BTreeMap<&str, Answered> = answers.into_iter().collect();
        let answer = |opened: &Opened| {
            let pin = answers.get(opened.key.as_str()).expect("every question was asked").pin.clone();
            // Each question keeps its own spelling of the image.
            pin.map(|pin| Pin { repository: opened.question.repository.clone(), ..pin })
        };
        opened.iter().map(answer).collect()
    }

    /// What a question's answer is kept under.
    pub fn key(&self, question: &Question, tenant: &str) -> String {
        self.inner.open(question, tenant).key
    }

    /// The last pin of a question, however old. Asks nobody.
    pub async fn last(&self, question: &Question, tenant: &str) -> Option<Pinned> {
        let opened = self.inner.open(question, tenant);
        Some(self.inner.known(&opened.key, tenant).await?.choice.pinned.clone())
    }

    /// Waits until everything that was learned is stored, but not longer than this. For the end of a process.
    pub async fn flush(&self, within: Duration) -> bool {
        self.inner.store().flush(within).await
    }

    /// What is remembered in memory: its name, and the bytes of it.
    pub fn gauges(&self) -> [(&'static str, &Gauge); 2] {
        [("repositories", self.inner.registry.gauge()), ("pins", self.inner.pins.gauge())]
    }

    /// Waits until a thread of the store has ended, which it never should.
    pub async fn store_ended(&self) {
        self.inner.store().ended().await;
    }

    /// What the store counts.
    pub fn store_counts(&self) -> &store::Counts {
        self.inner.store().counts()
    }

    async fn answered<'o>(
        &self,
        opened: &'o Opened<'_>,
        tenant: &str,
        start: Instant,
        budget: Duration,
        tags: &Arc<AtomicUsize>,
    ) -> (&'o str, Answered) {
        (&opened.key, self.answer(opened, tenant, start, budget, tags).await)
    }

    async fn answer(
        &self,
        opened: &Opened<'_>,
        tenant: &str,
        start: Instant,
        budget: Duration,
        tags: &Arc<AtomicUsize>,
    ) -> Answered {
        let Opened { question, key, handle } = opened;
        let inner = &*self.inner;
        let known = inner.known(key, tenant).await;
        if let Some(known) = known.as_ref().filter(|known| inner.clock().is_fresh(known.at, inner.settings.tags_ttl)) {
            inner.registry.count(Layer::Pin, true);
            let ticket = inner.keep(key, tenant, known.clone());
            return Answered { pin: Ok(pin(question, &known.choice, PinState::Fresh)), ticket };
        }
        inner.registry.count(Layer::Pin, false);
        // A pin that was good a moment ago is good enough; an old one is worth the wait, or a slow registry would keep it for ever.
        let is_recent = known.as_ref().is_some_and(|known| inner.clock().is_fresh(known.at, RECENT));
        let budget = if is_recent { budget.min(PATIENCE) } else { budget };
        let looked_up = if start.elapsed() < budget {
            tokio::time::timeout_at(start + budget, self.lookup(opened, tenant, tags)).await.ok()
        } else {
            // No lookup is begun that nobody waits for.
            None
        };
        let error = match looked_up {
            Some(Ok(choice)) => {
                let fresh = pin(question, &choice, PinState::Fresh);
                let at = choice.listed.unwrap_or_else(|| inner.clock().now());
                let ticket = inner.keep(key, tenant, Known { at, choice: Arc::new(choice) });
                return Answered { pin: Ok(fresh), ticket };
            }
            Some(Err(error)) => error,
            None => {
                let budget = Duration::from_millis(u64::try_from(budget.as_millis()).unwrap_or(u64::MAX));
                ResolveError::Budget { question: question.name(), budget }
            }
        };
        let reason = reason(&error);
        if matches!(error, ResolveError::NoMatch { .. }) {
            return Answered { pin: fallback(question, reason).ok_or(error), ticket: None };
        }
        // The lookup may have learned of a newer one: from another process.
        let known = inner.known(key, tenant).await.or(known);
        let mut recalled = inner.recall(opened, known, &reason, tags).await;
        // Before a render fails for want of something that was stored, the store is looked over.
        if recalled.is_none() && inner.store().look_for_damage().await {
            handle.reload();
            recalled = inner.recall(opened, inner.known(key, tenant).await, &reason, tags).await;
        }
        if recalled.is_none() {
            let copied = inner.store().pin_of_the_copy(key).await.and_then(|stored| Known::read(&stored));
            recalled = match copied {
                Some(copied) => inner.recall(opened, Some(copied), &reason, tags).await,
                None => None,
            };
        }
        Answered { pin: recalled.or_else(|| fallback(question, reason)).ok_or(error), ticket: None }
    }

    /// The lookup of a question: the one that is under way, or a new one, which goes on when nobody waits for it any more.
    fn lookup(&self, opened: &Opened, tenant: &str, tags: &Arc<AtomicUsize>) -> SharedLookup {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended is no answer to a later question.
        under_way.retain(|_, lookup| !lookup.task.is_finished());
        let place = (opened.key.clone(), tenant.to_owned());
        if let Some(same) = under_way.get(&place) {
            return same.lookup.clone();
        }
        let (inner, key, handle) = (Arc::clone(&self.inner), opened.key.clone(), opened.handle.for_lookup());
        let (question, tenant) = (opened.question.clone(), tenant.to_owned());
        let (name, tags) = (question.name(), Arc::clone(tags));
        let caller = tenant.clone();
        let work = async move {
            let looked_up = tokio::time::timeout(BEHIND, inner.look_up(&key, &handle, &question, &caller, &tags)).await;
            looked_up.unwrap_or_else(|_| Err(ResolveError::Budget { question: question.name(), budget: BEHIND }))
        };
        let own = under_way.keys().filter(|(_, other)| *other == tenant).count();
        if under_way.len() >= MAX_BEHIND || own >= MAX_BEHIND_EACH {
            return work.boxed().shared();
        }
        let broken = ResolveError::Broken { question: name };
        let task = tokio::spawn(work);
        let handle = task.abort_handle();
        let lookup = task.map(|ended| ended.unwrap_or(Err(broken))).boxed().shared();
        under_way.insert(place, UnderWay { lookup: lookup.clone(), task: handle });
        lookup
    }
}

/// A question's answer.
struct Answered {
    pin: Result<Pin, ResolveError>,
    /// For waiting until it is stored, if it has changed.
    ticket: Option<Ticket>,
}

impl Inner {
    fn store(&self) -> &Store {
        self.registry.store()
    }

    fn clock(&self) -> &Clock {
        self.registry.clock()
    }

    /// Opens the repository of a question. The key of its answer also holds the credential that asks, and the platforms that are looked at.
    fn open<'q>(&self, question: &'q Question, tenant: &str) -> Opened<'q> {
        let handle = self.registry.open(&question.repository, &question.access, tenant);
        let ranks_by_build = question.policy.strategy().ranks_by_build();
        let platforms = self.settings.platforms.iter().filter(|_| ranks_by_build);
        let platforms: Vec<String> = platforms.map(ToString::to_string).collect();
        let key = format!("{} {} {}", handle.key(), question.policy, platforms.join(","));
        Opened { question, key, handle }
    }

    /// The last choice for a question: this tenant's in memory, else the newest of all tenants in the store.
    async fn known(&self, key: &str, tenant: &str) -> Option<Known> {
        let place = (key.to_owned(), tenant.to_owned());
        if let Some(known) = self.pins.get(&place, tenant, self.clock().now()) {
            return Some(known);
        }
        let stored = self.store().pin(key).await.ok().flatten()?;
        Known::read(&stored)
    }

    fn remember(&self, key: &str, tenant: &str, known: Known) {
        let bytes = known.bytes(key, tenant);
        self.pins.insert((key.to_owned(), tenant.to_owned()), tenant, self.clock().now(), known, bytes);
    }

    /// Keeps a choice in memory and in the store, unless both have it. Returns a ticket if its tag or digest has changed.
    fn keep(&self, key: &str, tenant: &str, known: Known) -> Option<Ticket> {
        let place = (key.to_owned(), tenant.to_owned());
        let before = self.pins.get(&place, tenant, self.clock().now());
        if before.as_ref() == Some(&known) {
            return None;
        }
        let has_changed = before.is_none_or(|before| before.choice.pinned != known.choice.pinned);
        let text = serde_json::to_string(&*known.choice).expect("a choice is JSON");
        let stored = StoredChoice { at: known.at, choice: text };
        let ticket = self.store().put_pin(PinRow { key: key.to_owned(), tenant: tenant.to_owned(), stored });
        self.remember(key, tenant, known);
        has_changed.then_some(ticket)
    }

    /// Asks, chooses and keeps the choice.
    async fn look_up(
        &self,
        key: &str,
        handle: &RepositoryHandle,
        question: &Question,
        tenant: &str,
        tags: &AtomicUsize,
    ) -> Result<Choice, ResolveError> {
        if let Some(peer) = &self.settings.peer
            && let Some(pin) = peer.ask(key, question, tenant).await
            && let Some(at) = pin.choice.listed
        {
            let is_newer = self.known(key, tenant).await.is_none_or(|known| known.at < at || known.at > self.clock().now());
            if is_newer {
                // Also one that is stale there is the last known good one here.
                self.keep(key, tenant, Known { at, choice: Arc::new(pin.choice.clone()) });
            }
            if pin.is_fresh && self.clock().is_fresh(at, self.settings.tags_ttl) {
                return Ok(pin.choice);
            }
        }
        let chosen = self.choose(handle, question, Mode::Ask, tags).await;
        handle.save();
        let name = || question.name();
        let choice = chosen.map_err(|error| match error {
            NotChosen::NoMatch(source) => ResolveError::NoMatch { question: name(), source },
            NotChosen::Incomplete(tag) => {
                tracing::error!(question = name(), %tag, "the metadata that was fetched lacks what the policy needs");
                ResolveError::Broken { question: name() }
            }
            NotChosen::TooManyTags => ResolveError::TooManyTags { question: name() },
            NotChosen::Missing(LookupError::Registry(source)) => ResolveError::Registry { question: name(), source },
            NotChosen::Missing(LookupError::NotKnown | LookupError::Gone) => ResolveError::Broken { question: name() },
        })?;
        let at = choice.listed.unwrap_or_else(|| self.clock().now());
        self.keep(key, tenant, Known { at, choice: Arc::new(choice.clone()) });
        Ok(choice)
    }

    async fn choose(
        &self,
        handle: &RepositoryHandle,
        question: &Question,
        mode: Mode,
        tags: &AtomicUsize,
    ) -> Result<Choice, NotChosen> {
        let now = self.clock().now();
        let lookup = Lookup { question, handle, mode, platforms: &self.settings.platforms, now, tags };
        let (selection, at) = lookup.choose().await?;
        let digest = selection.digest.filter(|_| question.policy.pins_digest());
        Ok(Choice {
            pinned: Pinned { tag: selection.tag, digest },
            created: selection.created,
            listed: Some(at),
            considered: Some(SelectionReport::from(&selection.funnel)),
        })
    }

    /// The last pin, else a choice from what is remembered. None if anything that the policy needs is missing.
    async fn recall(&self, opened: &Opened<'_>, known: Option<Known>, reason: &str, tags: &AtomicUsize) -> Option<Pin> {
        let Opened { question, handle, .. } = opened;
        let stale = |since| PinState::Stale { since, reason: reason.to_owned() };
        if let Some(known) = known {
            let shown = &known.choice.pinned;
            tracing::warn!(question = question.name(), pin = %shown, since = %known.at, %reason, "serving the last known good pin");
            return Some(pin(question, &known.choice, stale(known.at)));
        }
        let choice = self.choose(handle, question, Mode::Recall, tags).await.ok()?;
        let since = choice.listed?;
        tracing::warn!(question = question.name(), pin = %choice.pinned, %reason, "serving a choice from the last complete listing");
        Some(pin(question, &choice, stale(since)))
    }
}

impl Known {
    /// Reads what was stored. None if that is no choice.
    fn read(stored: &StoredChoice) -> Option<Self> {
        let choice = serde_json::from_str(&stored.choice).ok()?;
        Some(Self { at: stored.at, choice: Arc::new(choice) })
    }

    /// Bytes in memory, roughly.
    fn bytes(&self, key: &str, tenant: &str) -> u64 {
        let considered = self.choice.considered.as_ref().map_or(0, |considered| {
            let step =
                |step: &crate::pin::Rejected| step.because.len() + step.examples.iter().map(String::len).sum::<usize>() + 150;
            considered.rejected.iter().map(step).sum()
        });
        (3 * key.len() + 3 * tenant.len() + considered + 400) as u64
    }
}

fn wait_for_the_store() -> Duration {
    fail::fail_point!("resolve::wait_for_the_store", |_| Duration::from_secs(60));
    STORED
}

fn pin(question: &Question, choice: &Choice, freshness: PinState) -> Pin {
    Pin {
        repository: question.repository.clone(),
        policy: question.policy.clone(),
        choice: choice.clone(),
        freshness,
        usage: Usage::Unknown,
    }
}

fn fallback(question: &Question, reason: String) -> Option<Pin> {
    let tag = question.policy.fallback()?.clone();
    tracing::warn!(question = question.name(), %tag, %reason, "using the fallback");
    Some(pin(question, &Choice::told(Pinned { tag, digest: None }), PinState::Fallback { reason }))
}

/// The chain of causes in one line, without the question.
fn reason(error: &ResolveError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), chain)
}
