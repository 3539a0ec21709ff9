//! The time of day, through one handle that tests can move.
//!
//! Deadlines, timeouts and waits between attempts use tokio's clock, which tests can pause. This handle is for times that are compared with
//! what was stored, perhaps by another process and before a restart: the ages of listings, digests and pins.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The system's clock, or a time that a test sets. Clones of a set clock show the same time.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<Mutex<Timestamp>>>);

impl Clock {
    /// A clock that stands still at this time until it is set.
    pub fn fixed(at: Timestamp) -> Self {
        Self(Some(Arc::new(Mutex::new(at))))
    }

    /// The time, in whole microseconds, as the store keeps it.
    pub fn now(&self) -> Timestamp {
        let now = match &self.0 {
            None => Timestamp::now(),
            Some(time) => *time.lock().unwrap_or_else(PoisonError::into_inner),
        };
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// Moves a fixed clock, forwards or backwards. The system's clock stays as it is.
    pub fn move_by(&self, by: SignedDuration) {
        if let Some(time) = &self.0 {
            let mut time = time.lock().unwrap_or_else(PoisonError::into_inner);
            *time = time.saturating_add(by).unwrap_or(*time);
        }
    }

    /// Whether something read at `at` is younger than `ttl`. A time in the future is not: a clock was wrong, then or now.
    pub fn is_fresh(&self, at: Timestamp, ttl: Duration) -> bool {
        let age = self.now().duration_since(at);
        !age.is_negative() && age.unsigned_abs() < ttl
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_the_future_is_never_fresh() {
        let clock = Clock::fixed(Timestamp::from_second(1_000_000).expect("a time"));
        let at = clock.now();
        let ttl = Duration::from_secs(60);
        assert!(clock.is_fresh(at, ttl));
        clock.move_by(SignedDuration::from_secs(59));
        assert!(clock.is_fresh(at, ttl));
        clock.move_by(SignedDuration::from_secs(1));
        assert!(!clock.is_fresh(at, ttl));
        clock.clone().move_by(SignedDuration::from_secs(-61));
        assert!(!clock.is_fresh(at, ttl), "the clock was set back");
    }
}
