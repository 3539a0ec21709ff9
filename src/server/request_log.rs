//! One render as the log and the metrics tell of it: one line, also when it fails and when its caller goes away.

use tonic::{Code, Status};

use super::metrics::{Metrics, Outcome};
use super::upload::Upload;
use crate::generate::Generated;
use crate::generate::phases::{self, PhaseTimer};
use crate::metrics::Layer;

/// A render that is under way.
pub struct RequestLog<'a> {
    metrics: &'a Metrics,
    timer: PhaseTimer,
    /// Whose it is, as far as it is known.
    pub application: String,
    /// Was the archive `known` or `new`?
    archive: &'static str,
    is_closed: bool,
}

impl<'a> RequestLog<'a> {
    /// Opens the log of a request that arrives now.
    pub fn open(metrics: &'a Metrics) -> Self {
        Self { metrics, timer: PhaseTimer::start("receive"), application: String::new(), archive: "-", is_closed: false }
    }

    /// What measures its parts.
    pub fn timer(&self) -> &PhaseTimer {
        &self.timer
    }

    /// Notes whose request has arrived.
    pub fn received(&mut self, received: &Upload) {
        self.archive = if received.is_known { "known" } else { "new" };
        self.metrics.hit(Layer::Archive, received.is_known);
    }

    /// Closes the log with what came of it. Returns the application's name.
    pub fn close(mut self, generated: &Result<Generated, Status>) -> String {
        self.is_closed = true;
        match generated {
            Ok(generated) => self.done(generated),
            Err(status) if status.code() == Code::DeadlineExceeded => {
                self.failed(Outcome::Deadline, status.message(), "the render came too late");
            }
            Err(status) => self.failed(Outcome::Failed, status.message(), "the render failed"),
        }
        std::mem::take(&mut self.application)
    }

    fn done(&self, generated: &Generated) {
        let (application, archive) = (self.application.as_str(), self.archive);
        for note in &generated.notes {
            tracing::warn!(application, "{note}");
        }
        let parts = self.timer.parts();
        self.metrics.render(Outcome::Done, &parts);
        self.metrics.generated(generated);
        let (tool, stale, unused, pins) = (generated.tool, generated.stale(), generated.unused(), generated.pins_text());
        let text = match tool {
            "directory" => "-",
            _ if generated.is_cached => "known",
            _ => "new",
        };
        let (milliseconds, phases) = (phases::milliseconds(&parts), phases::text(&parts));
        tracing::info!(application, tool, milliseconds, stale, unused, archive, text, phases, pins, "rendered");
    }

    fn failed(&self, outcome: Outcome, error: &str, what: &str) {
        let parts = self.timer.parts();
        self.metrics.render(outcome, &parts);
        let (milliseconds, phases) = (phases::milliseconds(&parts), phases::text(&parts));
        tracing::error!(application = self.application, milliseconds, archive = self.archive, phases, error, "{what}");
    }
}

impl Drop for RequestLog<'_> {
    fn drop(&mut self) {
        if !self.is_closed {
            let error = "the connection was closed or the call cancelled before the answer";
            self.failed(Outcome::Cancelled, error, "the caller went away");
        }
    }
}
