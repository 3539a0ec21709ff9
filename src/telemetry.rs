//! What the server counts, in Prometheus' text form.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::process::Runner;
use crate::process::pool::Counts;

/// How a render ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    Done,
    Failed,
    Deadline,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Helm {
    runner: &'static str,
}

/// The server's numbers.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    renders: Family<Labels, Counter>,
    seconds: Histogram,
    stale: Counter,
    /// Renders that wait for their turn.
    pub waiting: Gauge,
    helm: Family<Helm, Gauge>,
    pub workers: Counts,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("pinion"),
            renders: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            stale: Counter::default(),
            waiting: Gauge::default(),
            helm: Family::default(),
            workers: Counts::default(),
        };
        let Self { mut registry, renders, seconds, stale, waiting, helm, workers } = metrics;
        registry.register("renders", "Renders that were asked for", renders.clone());
        registry.register("render_seconds", "Time of a render, its turn included, the transfer not", seconds.clone());
        registry.register("stale_pins", "Pins that were served though the registry could not be asked", stale.clone());
        registry.register("renders_waiting", "Renders that wait for their turn", waiting.clone());
        registry.register("helm", "What renders charts: `worker` or `process`", helm.clone());
        registry.register("helm_workers", "Warm Helm workers that live", workers.workers.clone());
        registry.register("helm_worker_renders", "Renders that a warm worker did", workers.renders.clone());
        registry.register("helm_worker_lost", "Renders that a process did because a worker could not", workers.again.clone());
        Self { registry, renders, seconds, stale, waiting, helm, workers }
    }
}

impl Metrics {
    /// Counts a render.
    pub fn render(&self, outcome: Outcome, took: Duration, stale: usize) {
        self.renders.get_or_create(&Labels { outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
        self.stale.inc_by(stale as u64);
    }

    /// Tells what renders charts.
    pub fn helm(&self, runner: &Runner) {
        let runner = match runner {
            Runner::Process => "process",
            Runner::Pool(_) => "worker",
        };
        self.helm.get_or_create(&Helm { runner }).set(1);
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_are_counted_by_outcome() {
        let metrics = Metrics::default();
        metrics.render(Outcome::Done, Duration::from_millis(5), 2);
        metrics.render(Outcome::Failed, Duration::from_millis(5), 0);
        metrics.helm(&Runner::Process);
        let text = metrics.text();
        for line in [
            "pinion_renders_total{outcome=\"Done\"} 1",
            "pinion_renders_total{outcome=\"Failed\"} 1",
            "pinion_stale_pins_total 2",
            "pinion_helm{runner=\"process\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
