//! Where renders run: on threads of their own, a bounded number at a time, in the order in which they came.
//!
//! Of one tenant (AppProject) a bounded number is admitted, so that renders which wait for slow registries keep only renders of their own
//! tenant from running. A render reads files and parses YAML without a pause; on the server's own threads it would keep deadlines and probes waiting.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::turn::{Turn, Turns};

/// Renders that may wait without a turn, for each that has one.
const ASIDE: usize = 8;

/// Renders of one tenant that are admitted at a time, for each turn. Together they can all wait without a turn.
const ADMITTED: usize = 2;

/// How much of the typical time the last render decides.
const WEIGHT: u64 = 8;

/// Threads, and turns on them.
#[derive(Debug)]
pub struct RenderScheduler {
    /// Always there until it is dropped.
    runtime: Option<Runtime>,
    turns: Arc<Semaphore>,
    /// Places for renders that wait for something without their turn.
    asides: Arc<Semaphore>,
    tenants: Mutex<HashMap<String, Weak<Tenant>>>,
    /// Renders that wait among all tenants'.
    queued: AtomicUsize,
    at_once: usize,
    /// How long a render holds its turn, lately, in microseconds.
    typical: AtomicU64,
    /// For the metrics: renders that wait, and that run.
    pub gauges: Gauges,
}

/// The renders of one tenant, as long as there are any.
#[derive(Debug)]
struct Tenant {
    admitted: Arc<Semaphore>,
    turns: Turns,
    /// Renders that wait to be admitted, or for one of their tenant's turns.
    waiting: AtomicUsize,
}

/// The queue as numbers.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    pub waiting: Gauge,
    pub running: Gauge,
}

/// Why a render did not run to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Those before it would take longer than its caller waits.
    #[error("{ahead} renders wait before this one, which take {} together: the caller does not wait so long", humantime::format_duration(rounded(*expected)))]
    TooLate { ahead: usize, expected: Duration },
    /// Its caller's time was up before its turn came.
    #[error("the render waited for its turn until the caller's time was up; {running} others ran")]
    NoTurn { running: usize },
    #[error("the render broke off; the server's log says more")]
    BrokeOff,
}

fn rounded(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

impl RenderScheduler {
    /// Threads for so many renders at a time.
    ///
    /// # Errors
    ///
    /// When threads cannot be started.
    pub fn new(at_once: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(at_once).thread_name("render").enable_all().build()?;
        Ok(Self {
            runtime: Some(runtime),
            turns: Arc::new(Semaphore::new(at_once)),
            asides: Arc::new(Semaphore::new(at_once * ASIDE)),
            tenants: Mutex::default(),
            queued: AtomicUsize::new(0),
            at_once,
            typical: AtomicU64::new(0),
            gauges: Gauges::default(),
        })
    }

    /// Runs work when its turn has come. Dropping the future ends the work where it next waits for something.
    ///
    /// # Errors
    ///
    /// [`Rejected`], at once when the turn would come after the deadline.
    pub async fn run<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        tenant: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Rejected> {
        let waiting = Counted::new(&self.gauges.waiting);
        let tenant = self.tenant(tenant);
        if let Some(late) = self.late(deadline, &tenant) {
            return Err(late);
        }
        let queue = async {
            let waiting = Place::take(&tenant.waiting);
            let admitted = Arc::clone(&tenant.admitted).acquire_owned().await;
            let queued = || {
                drop(waiting);
                Place::take(&self.queued)
            };
            (admitted, tenant.turns.take(queued).await)
        };
        let (admitted, turn) = match deadline {
            Some(deadline) => {
                let turn = tokio::time::timeout_at(deadline.into(), queue).await;
                turn.map_err(|_| Rejected::NoTurn { running: self.at_once })?
            }
            None => queue.await,
        };
        let _admitted = admitted.map_err(|_| Rejected::BrokeOff)?;
        drop(waiting);
        let _running = Counted::new(&self.gauges.running);
        // Also what is cut off at its deadline tells how long renders take.
        let turn = Turn::new(tenant.turns.clone(), Arc::clone(&self.asides), turn);
        let _learning = Learning(&self.typical, Instant::now(), Arc::clone(&turn));
        let mut tasks = JoinSet::new();
        let runtime = self.runtime.as_ref().expect("it is there until the end");
        tasks.spawn_on(turn.work(work), runtime.handle());
        let done = tasks.join_next().await;
        match done {
            Some(Ok(done)) => Ok(done),
            Some(Err(error)) => {
                tracing::error!(%error, "a render broke off");
                Err(Rejected::BrokeOff)
            }
            None => Err(Rejected::BrokeOff),
        }
    }

    fn tenant(&self, name: &str) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = tenants.get(name).and_then(Weak::upgrade) {
            return tenant;
        }
        tenants.retain(|_, tenant| tenant.strong_count() > 0);
        let admitted = Arc::new(Semaphore::new(self.at_once * ADMITTED));
        // One turn at least is left for others.
        let own = Arc::new(Semaphore::new((self.at_once * 3 / 4).max(1)));
        let turns = Turns { own, all: Arc::clone(&self.turns) };
        let tenant = Arc::new(Tenant { admitted, turns, waiting: AtomicUsize::new(0) });
        tenants.insert(name.to_owned(), Arc::downgrade(&tenant));
        tenant
    }

    /// Rejects a render whose turn is expected after its deadline: behind those of its tenant, and those that are admitted.
    fn late(&self, deadline: Option<Instant>, tenant: &Tenant) -> Option<Rejected> {
        let left = deadline?.saturating_duration_since(Instant::now());
        let ahead = tenant.waiting.load(Ordering::Relaxed) + self.queued.load(Ordering::Relaxed);
        if self.turns.available_permits() > 0 && tenant.turns.own.available_permits() > 0 {
            return None;
        }
        let rounds = u32::try_from(ahead / self.at_once + 1).unwrap_or(u32::MAX);
        let expected = Duration::from_micros(self.typical.load(Ordering::Relaxed)).saturating_mul(rounds);
        (expected > left).then_some(Rejected::TooLate { ahead, expected })
    }
}

/// Learns how long a turn was held.
struct Learning<'a>(&'a AtomicU64, Instant, Arc<Turn>);

impl Drop for Learning<'_> {
    fn drop(&mut self) {
        let held = self.1.elapsed().saturating_sub(self.2.aside());
        let took = u64::try_from(held.as_micros()).unwrap_or(u64::MAX);
        let learnt = |typical: u64| match typical {
            0 => took,
            typical => typical - typical / WEIGHT + took / WEIGHT,
        };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |typical| Some(learnt(typical)));
    }
}

impl Drop for RenderScheduler {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed where the server runs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A place in a queue until it is dropped: also when its caller goes away.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(queue: &'a AtomicUsize) -> Self {
        queue.fetch_add(1, Ordering::Relaxed);
        Self(queue)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one up until it is dropped: also when its caller goes away.
struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn soon(milliseconds: u64) -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(milliseconds))
    }

    #[tokio::test]
    async fn who_cannot_be_served_in_time_is_told_at_once() {
        let renders = Arc::new(RenderScheduler::new(1).expect("threads"));
        let nap = |time| tokio::time::sleep(Duration::from_millis(time));
        // Nothing is known yet, so nobody is refused.
        renders.run(soon(60_000), "", nap(400)).await.expect("it runs");
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let busy = Arc::clone(&renders);
        let first = tokio::spawn(async move { busy.run(None, "", released).await });
        while renders.turns.available_permits() > 0 {
            nap(5).await;
        }
        let refused = renders.run(soon(100), "", nap(0)).now_or_never().expect("at once").expect_err("too late");
        assert!(matches!(refused, Rejected::TooLate { ahead: 0, .. }), "{refused}");
        release.send(()).expect("it waits");
        renders.run(soon(60_000), "", nap(0)).await.expect("it has time");
        first.await.expect("it ends").expect("it ran").expect("released");
    }

    /// All turns are held by renders that run into their deadlines: the next ones know.
    #[tokio::test]
    async fn who_waited_for_nothing_is_told_so_and_the_next_at_once() {
        let renders = Arc::new(RenderScheduler::new(1).expect("threads"));
        let (busy, waiting) = (Arc::clone(&renders), Arc::clone(&renders));
        let began = Instant::now();
        let slow = tokio::spawn(async move { busy.run(None, "", std::future::pending::<()>()).await });
        while renders.turns.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = waiting.run(soon(200), "", async {}).await.expect_err("no turn");
        assert_eq!(refused, Rejected::NoTurn { running: 1 });
        tokio::time::sleep(Duration::from_millis(600).saturating_sub(began.elapsed())).await;
        slow.abort();
        assert!(slow.await.is_err());
        let busy = Arc::clone(&renders);
        let slow = tokio::spawn(async move { busy.run(None, "", std::future::pending::<()>()).await });
        while renders.turns.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = renders.run(soon(300), "", async {}).await.expect_err("too late");
        assert!(matches!(refused, Rejected::TooLate { .. }), "{refused}");
        slow.abort();
    }

    #[tokio::test]
    async fn what_is_dropped_ends_and_gives_its_turn_back() {
        let renders = RenderScheduler::new(1).expect("threads");
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let endless = renders.run(None, "", async move {
            let _held = sender;
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), endless).await.is_err());
        assert!(receiver.await.is_err(), "what the work held is dropped");
        assert_eq!(renders.run(None, "", async { 7 }).await, Ok(7));
        assert_eq!((renders.gauges.waiting.get(), renders.gauges.running.get()), (0, 0));
    }

    #[tokio::test]
    async fn renders_that_wait_for_something_keep_only_their_own_tenant_from_running() {
        let renders = Arc::new(RenderScheduler::new(1).expect("threads"));
        let mut waiting = Vec::new();
        for _ in 0..50 {
            let renders = Arc::clone(&renders);
            let slow = async || crate::turn::aside(std::future::pending::<()>()).await;
            waiting.push(tokio::spawn(async move { renders.run(soon(60_000), "slow", async move { slow().await }).await }));
        }
        while renders.asides.available_permits() > ASIDE - ADMITTED {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(renders.run(soon(60_000), "other", async { 7 }).await, Ok(7));
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn renders_that_work_for_long_leave_a_turn_to_other_tenants() {
        let renders = Arc::new(RenderScheduler::new(4).expect("threads"));
        let mut working = Vec::new();
        for _ in 0..20 {
            let renders = Arc::clone(&renders);
            working.push(tokio::spawn(async move { renders.run(None, "slow", std::future::pending::<()>()).await }));
        }
        while renders.turns.available_permits() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..3 {
            assert_eq!(renders.run(soon(60_000), "other", async { 7 }).await, Ok(7));
        }
        working.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_panic_is_one_failed_render() {
        let renders = RenderScheduler::new(1).expect("threads");
        let panicking = async { assert!(std::hint::black_box(false), "on purpose") };
        assert_eq!(renders.run(None, "", panicking).await, Err(Rejected::BrokeOff));
        assert_eq!(renders.run(None, "", async { 7 }).await, Ok(7));
    }
}
