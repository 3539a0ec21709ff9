//! How fast a registry is asked, and how long to wait before asking again.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

/// Requests that may go out at once after a quiet time, before the rate counts.
const BURST: u32 = 100;

/// First wait between attempts; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// A limit of requests a second, as the generic cell rate algorithm: one instant says it all.
#[derive(Debug)]
pub struct RateLimiter {
    /// Time between requests; [`None`] is no limit.
    interval: Option<Duration>,
    /// When the next request would be due if there were no burst.
    due: Mutex<Instant>,
}

impl RateLimiter {
    pub fn new(limit: Option<NonZeroU32>) -> Self {
        Self { interval: limit.map(|limit| Duration::from_secs(1) / limit.get()), due: Mutex::new(Instant::now()) }
    }

    /// Waits for this request's turn. Says `false`, at once and without taking a turn, if the limit puts it behind the deadline.
    pub async fn acquire(&self, deadline: Instant) -> bool {
        match self.take(Instant::now(), deadline) {
            Some(turn) => {
                tokio::time::sleep_until(turn).await;
                true
            }
            None => false,
        }
    }

    fn take(&self, now: Instant, deadline: Instant) -> Option<Instant> {
        let Some(interval) = self.interval else { return Some(now) };
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*due).max(now);
        let turn = next.checked_sub(interval * (BURST - 1)).unwrap_or(now).max(now);
        // When the time is up already, that is what the caller has to tell, and not a limit.
        if turn > deadline.max(now) {
            return None;
        }
        *due = next + interval;
        Some(turn)
    }
}

/// The wait after this many failed attempts: exponential, and spread over its upper half so that clients don't come back together.
pub fn backoff(attempts: u32) -> Duration {
    let longest = FIRST_WAIT * 2_u32.saturating_pow(attempts.saturating_sub(1));
    // A new hasher has random keys, which is all the randomness that a wait needs.
    let random = RandomState::new().hash_one(attempts) % 1000;
    longest / 2 + longest / 2 * u32::try_from(random).unwrap_or(0) / 1000
}

/// Reads `Retry-After`: seconds or a date ([RFC 9110 §10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3)). Nonsense is
/// [`None`], and a date that has passed is no wait.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_out_at_once_and_the_rest_in_turn() {
        let rate = RateLimiter::new(NonZeroU32::new(10));
        let start = Instant::now();
        let deadline = start + Duration::from_secs(60);
        for _ in 0..BURST {
            assert!(rate.acquire(deadline).await);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..10 {
            assert!(rate.acquire(deadline).await);
        }
        assert_eq!(start.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_after_the_deadline_is_not_waited_for() {
        let rate = RateLimiter::new(NonZeroU32::new(1));
        let now = Instant::now();
        for _ in 0..BURST {
            assert!(rate.acquire(now).await);
        }
        assert!(!rate.acquire(now).await);
        assert!(rate.acquire(now + Duration::from_secs(1)).await);
        assert!(RateLimiter::new(None).acquire(now).await);
    }

    #[test]
    fn waits_double_and_are_spread() {
        for (attempts, longest) in [(1, 200), (2, 400), (3, 800)] {
            let wait = backoff(attempts).as_millis();
            assert!((longest / 2..=longest).contains(&wait), "{attempts}: {wait}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().expect("a time");
        for (text, seconds) in [
            ("3", Some(3)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
