//! Where the time of a render goes, also of one that fails or is cut off.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Measures the parts of a render, one after the other. Clones are the same timer: who tells of the time need not be who renders.
#[derive(Clone, Debug)]
pub struct PhaseTimer(Arc<Mutex<Vec<(&'static str, Instant)>>>);

impl PhaseTimer {
    /// A timer whose first part begins now.
    pub fn start(part: &'static str) -> Self {
        Self(Arc::new(Mutex::new(vec![(part, Instant::now())])))
    }

    /// Ends the part that is under way and begins the next, unless it is under way already.
    pub fn begin(&self, part: &'static str) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.last().is_none_or(|(last, _)| *last != part) {
            parts.push((part, Instant::now()));
        }
    }

    /// The parts and their times, the last until now.
    pub fn parts(&self) -> Vec<(&'static str, Duration)> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ends = parts.iter().skip(1).map(|(_, began)| *began).chain([Instant::now()]);
        parts.iter().zip(ends).map(|((part, began), end)| (*part, end.duration_since(*began))).collect()
    }
}

/// All of them together, in milliseconds.
pub fn milliseconds(parts: &[(&str, Duration)]) -> u64 {
    let total: Duration = parts.iter().map(|(_, time)| *time).sum();
    u64::try_from(total.as_millis()).unwrap_or(u64::MAX)
}

/// Times in milliseconds, as one text for the log.
pub fn text(parts: &[(&str, Duration)]) -> String {
    let times = parts.iter().map(|(part, time)| format!("{part}={:.1}", time.as_secs_f64() * 1000.0));
    times.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_the_last_runs_until_it_is_asked() {
        let timer = PhaseTimer::start("receive");
        let same = timer.clone();
        same.begin("tool");
        same.begin("tool");
        std::thread::sleep(Duration::from_millis(5));
        let parts = timer.parts();
        assert_eq!(parts.iter().map(|(part, _)| *part).collect::<Vec<_>>(), ["receive", "tool"]);
        assert!(parts[1].1 >= Duration::from_millis(5), "{parts:?}");
        assert_eq!(text(&[("receive", Duration::from_micros(1240)), ("tool", Duration::ZERO)]), "receive=1.2 tool=0.0");
    }
}
