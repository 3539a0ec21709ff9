//! One render as the log and the metrics tell of it: one line, also when it fails and when its caller goes away.

use tonic::{Code, Status};

use super::receive::Received;
use crate::generate::Generated;
use crate::generate::clock::{self, Clock};
use crate::telemetry::{Layer, Metrics, Outcome};

/// A render that is under way.
pub struct Account<'a> {
    metrics: &'a Metrics,
    clock: Clock,
    /// Whose it is, as far as it is known.
    pub application: String,
    /// Was the archive `known` or `new`?
    archive: &'static str,
    is_closed: bool,
}

impl<'a> Account<'a> {
    /// Opens the account of a request that arrives now.
    pub fn open(metrics: &'a Metrics) -> Self {
        Self { metrics, clock: Clock::start("receive"), application: String::new(), archive: "-", is_closed: false }
    }

    /// What measures its parts.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Notes whose request has arrived.
    pub fn received(&mut self, received: &Received) {
        self.archive = if received.is_known { "known" } else { "new" };
        self.metrics.hit(Layer::Archive, received.is_known);
    }

    /// Closes the account with what came of it. Returns the application's name.
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
        let parts = self.clock.parts();
        self.metrics.render(Outcome::Done, &parts);
        self.metrics.generated(generated);
        let (tool, stale, unused, pins) = (generated.tool, generated.stale(), generated.unused(), generated.pins_text());
        let text = match tool {
            "directory" => "-",
            _ if generated.is_recalled => "known",
            _ => "new",
        };
        let (milliseconds, phases) = (clock::milliseconds(&parts), clock::text(&parts));
        tracing::info!(application, tool, milliseconds, stale, unused, archive, text, phases, pins, "rendered");
    }

    fn failed(&self, outcome: Outcome, error: &str, what: &str) {
        let parts = self.clock.parts();
        self.metrics.render(outcome, &parts);
        let (milliseconds, phases) = (clock::milliseconds(&parts), clock::text(&parts));
        tracing::error!(application = self.application, milliseconds, archive = self.archive, phases, error, "{what}");
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        if !self.is_closed {
            let error = "the connection was closed or the call cancelled before the answer";
            self.failed(Outcome::Cancelled, error, "the caller went away");
        }
    }
}
