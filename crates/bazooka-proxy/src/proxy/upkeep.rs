//! What keeps HAProxy there.
//!
//! Owns the decision to start it: only where bazooka-proxy runs it, and only with a configuration that it
//! is known to take. Where a unit of its own runs it, waiting is all.

use std::time::Duration;

use tokio::time::Instant;
use visor::pause::{Doubling, Pauses};

use crate::{balancer::Balancer, config::Settings, haproxy::CliError, metrics::ProxyMetrics, plan::Wanted};

/// How long a master that runs may be out of reach before it is ended and started anew.
const OUT_OF_REACH: Duration = Duration::from_secs(5);

/// How long a master may take requests and answer none before it is ended and started anew. A busy one answers
/// within milliseconds; while it doesn't, no instance can be taken out or come in.
const OUT_OF_ANSWER: Duration = Duration::from_secs(10);

/// The pause after a start that failed.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(200), Duration::from_secs(5));

/// A start so soon after the last one is no accident.
const SOON: Duration = Duration::from_secs(5);

/// Keeps HAProxy there.
pub(super) struct Upkeep {
    metrics: ProxyMetrics,
    /// The master that answered last.
    master: Option<u32>,
    /// Since when a running master can't be reached.
    missing_since: Option<Instant>,
    /// Where a unit runs it: a valid file was seen to since it went.
    laid_out: bool,
    /// When it was started last.
    started_at: Option<Instant>,
    /// After a failed start, or several soon after another: not before this, and how the pauses go on.
    hold: Option<(Instant, Pauses)>,
}

impl Upkeep {
    /// Of one that hasn't been seen yet.
    pub fn new(metrics: ProxyMetrics) -> Self {
        Upkeep { metrics, master: None, missing_since: None, laid_out: false, started_at: None, hold: None }
    }

    /// It answers, and this is its master.
    pub fn found(&mut self, master: u32) {
        self.master = Some(master);
        self.missing_since = None;
        self.laid_out = false;
    }

    /// Whether it has gone for good and may be started now.
    pub fn is_due(&mut self, balancer: &mut dyn Balancer, error: &CliError, now: Instant) -> bool {
        let since = *self.missing_since.get_or_insert(now);
        if self.hold.is_some_and(|(until, _)| now < until) {
            return false;
        }
        let unreachable = matches!(error, CliError::Unreachable { .. } | CliError::NoWorker(_));
        if !balancer.runs_here() {
            // A unit of its own starts it; all that it needs is a valid file, once.
            return unreachable && !std::mem::replace(&mut self.laid_out, true);
        }
        // A master that is slow to answer still has workers that serve.
        let patience = if unreachable { OUT_OF_REACH } else { OUT_OF_ANSWER };
        now.duration_since(since) >= patience || !balancer.is_running(self.master)
    }

    /// Starts it. Returns whether it runs.
    ///
    /// With what is wanted, if that is known; else it starts with what it ran last.
    pub async fn start(
        &mut self,
        balancer: &mut dyn Balancer,
        wanted: Option<&Wanted>,
        settings: &Settings,
        now: Instant,
    ) -> bool {
        if self.master.is_some() && balancer.runs_here() {
            tracing::error!("HAProxy has gone; starting it again");
            self.metrics.restarts.inc();
        }
        let valid = balancer.lay_out(wanted, settings).await;
        if !balancer.runs_here() {
            return false;
        }
        if !valid {
            return self.pause(now);
        }
        if let Err(error) = balancer.start().await {
            tracing::error!(error = &error as &dyn std::error::Error, "HAProxy can't be started");
            return self.pause(now);
        }
        // One that ends soon after each start is started less and less often.
        if self.started_at.is_some_and(|last| now.duration_since(last) < SOON) {
            self.pause(now);
        } else {
            self.hold = None;
        }
        self.started_at = Some(now);
        true
    }

    fn pause(&mut self, now: Instant) -> bool {
        let mut pauses = self.hold.map_or(PAUSE.begin(), |(_, pauses)| pauses);
        self.hold = Some((now + pauses.next(), pauses));
        false
    }
}
