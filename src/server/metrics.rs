//! What the server counts, in Prometheus' text form.
//!
//! The code that does the work holds a handle to its own counters ([`Requests`], [`Hits`]); [`Metrics`] shows all of them.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::generate::Generated;
use crate::metrics::{Hits, Layer, Requests};
use crate::process::Runner;
use crate::process::pool::Counts;
use crate::process::sandbox::{Guarantee, Mode, Sandboxes};
use crate::render::render_cache::RenderCache;
use crate::server::scheduler::Gauges;
use crate::store;

/// How a render ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed,
    Deadline,
    /// Its caller went away.
    Cancelled,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RenderLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HelmLabels {
    runner: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SandboxLabels {
    guarantee: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

/// The server's numbers.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    renders: Family<RenderLabels, Counter>,
    seconds: Histogram,
    phases: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    stale: Counter,
    hits: Hits,
}

fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 18))
}

impl Metrics {
    /// Shows these numbers beside the renders'.
    pub fn new(requests: &Requests, hits: &Hits, queue: &Gauges) -> Self {
        let mut registry = Registry::with_prefix("pinion");
        let (renders, stale) = (Family::default(), Counter::default());
        let (seconds, phases) = (buckets(), Family::new_with_constructor(buckets as fn() -> Histogram));
        registry.register("renders", "Renders that were asked for", Family::clone(&renders));
        registry.register("render_seconds", "Time of a render, its turn included, the transfer not", Histogram::clone(&seconds));
        registry.register(
            "phase_seconds",
            "Time of the parts of a render: receive, wait, prepare, lookup, tool, finish",
            Family::clone(&phases),
        );
        registry.register("stale_pins", "Pins that were served though the registry could not be asked", Counter::clone(&stale));
        registry.register("cache", "Questions to caches, by layer and result", hits.0.clone());
        registry.register("registry_requests", "Requests to registries, by registry and status", requests.family.clone());
        registry.register("renders_waiting", "Renders that wait for their turn", queue.waiting.clone());
        registry.register("renders_running", "Renders that have their turn", queue.running.clone());
        Self { registry, renders, seconds, phases, stale, hits: hits.clone() }
    }

    /// Shows what is remembered of rendered texts.
    pub fn render_cache(&mut self, cache: &RenderCache) {
        self.registry.register("render_cache_texts", "Rendered texts that are kept", cache.texts.clone());
        self.registry.register("render_cache_bytes", "Bytes of rendered texts that are kept, packed", cache.bytes.clone());
    }

    /// Shows what is remembered in memory, and the budget of it all.
    pub fn memory<'g>(&mut self, parts: impl IntoIterator<Item = (&'static str, &'g Gauge)>, budget: u64) {
        let all = self.registry.sub_registry_with_prefix("memory");
        for (part, gauge) in parts {
            all.sub_registry_with_label(("part".into(), part.into())).register(
                "bytes",
                "Bytes of tags, metadata, pins and shown pins in memory, by part",
                gauge.clone(),
            );
        }
        let limit: Gauge = Gauge::default();
        limit.set(i64::try_from(budget).unwrap_or(i64::MAX));
        self.registry.register("memory_budget_bytes", "What `--cache-bytes` permits for the sum of pinion_memory_bytes", limit);
    }

    /// Shows what the store counts.
    pub fn store(&mut self, counts: &store::Counts) {
        let registry = &mut self.registry;
        registry.register("store_bytes", "Bytes of the store's file that are in use", counts.bytes.clone());
        registry.register("store_writes", "Batches that the store has written", counts.writes.clone());
        registry.register(
            "store_failed_writes",
            "Batches that the store could not write, and tries again",
            counts.failed_writes.clone(),
        );
        registry.register(
            "store_dropped",
            "Changes that the store could not write for so long that they were dropped",
            counts.dropped.clone(),
        );
    }

    /// Shows what the sandbox of tools keeps on this kernel.
    pub fn sandbox(&mut self, sandboxes: &Sandboxes) {
        let kept: Family<SandboxLabels, Gauge> = Family::default();
        for Guarantee { name, is_kept, .. } in sandboxes.level().guarantees() {
            let is_kept = is_kept && sandboxes.mode() != Mode::Off;
            kept.get_or_create(&SandboxLabels { guarantee: name }).set(is_kept.into());
        }
        self.registry.register(
            "sandbox",
            "What the sandbox of tools keeps: 1, or 0 where the kernel cannot or `--sandbox=off`",
            kept,
        );
    }

    /// Shows what renders charts.
    pub fn helm(&mut self, runner: &Runner, workers: &Counts) {
        let helm: Family<HelmLabels, Gauge> = Family::default();
        let runner = match runner {
            Runner::Process => "process",
            Runner::Pool(_) => "worker",
        };
        helm.get_or_create(&HelmLabels { runner }).set(1);
        self.registry.register("helm", "What renders charts: `worker` or `process`", helm);
        self.registry.register("helm_workers", "Warm Helm workers that live", workers.workers.clone());
        self.registry.register("helm_worker_renders", "Renders that a warm worker did", workers.renders.clone());
        self.registry.register(
            "helm_worker_lost",
            "Renders that a process did because a worker could not",
            workers.again.clone(),
        );
    }

    /// Counts a render that ended in some way, and the times of its parts. The first of them is the transfer.
    pub fn render(&self, outcome: Outcome, parts: &[(&'static str, Duration)]) {
        self.renders.get_or_create(&RenderLabels { outcome: outcome.name() }).inc();
        if let [_, rendered @ ..] = parts
            && !rendered.is_empty()
        {
            self.seconds.observe(rendered.iter().map(|(_, took)| took.as_secs_f64()).sum());
        }
        for (phase, took) in parts {
            self.phases.get_or_create(&PhaseLabels { phase }).observe(took.as_secs_f64());
        }
    }

    /// Counts what is special to a render that gave manifests.
    pub fn generated(&self, generated: &Generated) {
        self.stale.inc_by(generated.stale() as u64);
        // A directory has no tool whose text could be known.
        if generated.tool != "directory" {
            self.hits.count(Layer::Text, generated.is_cached);
        }
    }

    /// Counts a question to a cache.
    pub fn hit(&self, layer: Layer, is_hit: bool) {
        self.hits.count(layer, is_hit);
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
    use crate::metrics::MAX_REGISTRIES;

    #[test]
    fn what_is_counted_is_shown() {
        let (requests, hits) = (Requests::default(), Hits::default());
        let mut metrics = Metrics::new(&requests, &hits, &Gauges::default());
        metrics.helm(&Runner::Process, &Counts::default());
        let parts = [("receive", 7), ("tool", 5)].map(|(part, took)| (part, Duration::from_secs(took)));
        metrics.render(Outcome::Done, &parts);
        metrics.render(Outcome::Failed, &parts[..1]);
        hits.count(Layer::Pin, true);
        requests.count("ghcr.io", Some(429));
        requests.count("ghcr.io", None);
        let text = metrics.text();
        for line in [
            "pinion_renders_total{outcome=\"done\"} 1",
            "pinion_renders_total{outcome=\"failed\"} 1",
            "pinion_render_seconds_sum 5.0",
            "pinion_render_seconds_count 1",
            "pinion_phase_seconds_count{phase=\"receive\"} 2",
            "pinion_phase_seconds_count{phase=\"tool\"} 1",
            "pinion_cache_total{layer=\"pin\",result=\"hit\"} 1",
            "pinion_registry_requests_total{registry=\"ghcr.io\",status=\"429\"} 1",
            "pinion_registry_requests_total{registry=\"ghcr.io\",status=\"none\"} 1",
            "pinion_renders_waiting 0",
            "pinion_helm{runner=\"process\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn applications_cannot_make_endless_numbers() {
        let requests = Requests::default();
        let metrics = Metrics::new(&requests, &Hits::default(), &Gauges::default());
        (0..10_000).for_each(|number| requests.count(&format!("registry-{number}.example"), Some(200)));
        let lines = metrics.text().lines().filter(|line| line.starts_with("pinion_registry_requests_total")).count();
        assert_eq!(lines, MAX_REGISTRIES + 1);
        assert!(metrics.text().contains("registry=\"other\",status=\"200\"} 9900"));
    }
}
