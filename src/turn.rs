//! A turn among those that work at once, given back while there is nothing to do but wait.
//!
//! What works takes memory and a processor, so that only so many do at once. Who waits for a registry or a chart repository needs neither,
//! and may wait long: with its turn, a few slow hosts would keep everybody from working. [`aside`] is where such waiting is done.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

tokio::task_local! {
    static TURN: Arc<Turn>;
}

/// A turn of one task.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    /// For those who wait without a turn: a bounded number, since each holds what it has read.
    asides: Arc<Semaphore>,
    held: Mutex<Held>,
}

/// The turns of one tenant, and of all. A tenant has less than all of them.
#[derive(Clone, Debug)]
pub struct Turns {
    pub own: Arc<Semaphore>,
    pub all: Arc<Semaphore>,
}

/// A turn of a tenant among all.
#[derive(Debug)]
pub struct Permit {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Turns {
    /// Waits for a turn: first for one of the tenant's own, so that only those who may have one wait among all. `queued` is called between.
    pub async fn take<G>(&self, queued: impl FnOnce() -> G) -> Permit {
        let own = Arc::clone(&self.own).acquire_owned().await.expect("the semaphore is never closed");
        let _queued = queued();
        let all = Arc::clone(&self.all).acquire_owned().await.expect("the semaphore is never closed");
        Permit { _own: own, _all: all }
    }
}

#[derive(Debug)]
struct Held {
    permit: Option<Permit>,
    /// Time without a turn.
    aside: Duration,
}

impl Turn {
    /// A turn that was taken. Turns and places for waiting are shared by all.
    pub fn new(turns: Turns, asides: Arc<Semaphore>, permit: Permit) -> Arc<Self> {
        Arc::new(Self { turns, asides, held: Mutex::new(Held { permit: Some(permit), aside: Duration::ZERO }) })
    }

    /// Works with this turn.
    pub async fn work<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        TURN.scope(self, work).await
    }

    /// How long its task has waited aside.
    pub fn aside(&self) -> Duration {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).aside
    }
}

/// Waits for something without holding the turn of this task, if it has one and there is a place to wait. What it waits for must need
/// little memory and no processor.
pub async fn aside<T>(wait: impl Future<Output = T>) -> T {
    let Ok(turn) = TURN.try_with(Arc::clone) else { return wait.await };
    let Ok(_place) = turn.asides.try_acquire() else { return wait.await };
    let started = Instant::now();
    let given_back = turn.held.lock().unwrap_or_else(PoisonError::into_inner).permit.take();
    if given_back.is_none() {
        // Two wait at once in one task: the other has given it back and takes it again.
        return wait.await;
    }
    drop(given_back);
    let done = wait.await;
    let permit = turn.turns.take(|| ()).await;
    let mut held = turn.held.lock().unwrap_or_else(PoisonError::into_inner);
    held.permit = Some(permit);
    held.aside += started.elapsed();
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn one() -> Turns {
        Turns { own: Arc::new(Semaphore::new(1)), all: Arc::new(Semaphore::new(1)) }
    }

    #[tokio::test]
    async fn who_waits_aside_keeps_nobody_from_working() {
        let (turns, asides) = (one(), Arc::new(Semaphore::new(1)));
        let take = async || Turn::new(turns.clone(), Arc::clone(&asides), turns.take(|| ()).await);
        let (say, hear) = oneshot::channel::<u8>();
        let first = take().await;
        let waiting = tokio::spawn(Arc::clone(&first).work(aside(hear)));
        // Its turn is free, or this waits for ever.
        let second = take().await;
        say.send(7).expect("it waits");
        assert_eq!(turns.all.available_permits(), 0, "the second has it");
        drop(second);
        assert_eq!(waiting.await.expect("no panic").expect("said"), 7);
        assert!(first.aside() > Duration::ZERO);
        drop(first);
        assert_eq!((turns.all.available_permits(), turns.own.available_permits()), (1, 1));
        assert_eq!(aside(async { 7 }).await, 7, "also without a turn");
    }

    #[tokio::test]
    async fn without_a_place_to_wait_the_turn_is_kept() {
        let (turns, asides) = (one(), Arc::new(Semaphore::new(0)));
        let turn = Turn::new(turns.clone(), asides, turns.take(|| ()).await);
        let seen = turn.work(aside(async { turns.all.available_permits() })).await;
        assert_eq!((seen, turns.all.available_permits()), (0, 1));
    }
}
