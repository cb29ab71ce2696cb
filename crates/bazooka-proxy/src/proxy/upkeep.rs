//! Upkeep: starts HAProxy when it has gone.
//!
//! Owns the decision to start it: only where bazooka-proxy runs HAProxy, and only with a configuration that HAProxy
//! accepts. Where a systemd unit runs HAProxy, upkeep writes a valid file once and waits.

use std::time::Duration;

use bazooka_daemon::in_words;
use tokio::time::Instant;
use visor::{
    pause::{Doubling, Pauses},
    planted::{Bug, planted},
};

use crate::{
    balancer::Balancer,
    config::Settings,
    haproxy::{CliError, process::Presence},
    metrics::ProxyMetrics,
    plan::Wanted,
};

/// The time that a running master may be unreachable before it is killed and started again.
const OUT_OF_REACH: Duration = Duration::from_secs(5);

/// The time that a master may accept commands without answering before it is killed and started again. A busy master
/// answers within milliseconds; without answers, no instance can be added or taken out.
const OUT_OF_ANSWER: Duration = Duration::from_secs(10);

/// The pause after a failed start.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(200), Duration::from_secs(5));

/// A start within this time of the last one counts as a failure.
const SOON: Duration = Duration::from_secs(5);

/// The state of HAProxy's upkeep.
pub(super) struct Upkeep {
    metrics: ProxyMetrics,
    /// The process id of the master that answered last.
    master: Option<u32>,
    /// When HAProxy stopped answering.
    missing_since: Option<Instant>,
    /// True once it was said that HAProxy can't be asked or looked at.
    complained: bool,
    /// True, where a unit runs HAProxy, once a valid file was written since it went.
    laid_out: bool,
    /// When HAProxy was last started.
    started_at: Option<Instant>,
    /// The time before which HAProxy isn't started, with the pauses; set by a failed start or several starts in a
    /// short time.
    hold: Option<(Instant, Pauses)>,
}

impl Upkeep {
    /// Creates the upkeep of a HAProxy that hasn't been observed yet.
    pub fn new(metrics: ProxyMetrics) -> Self {
        Upkeep {
            metrics,
            master: None,
            missing_since: None,
            complained: false,
            laid_out: false,
            started_at: None,
            hold: None,
        }
    }

    /// Records that HAProxy answered, with its master's process id.
    pub fn found(&mut self, master: u32) {
        self.master = Some(master);
        self.missing_since = None;
        (self.laid_out, self.complained) = (false, false);
    }

    fn complain(&mut self, error: &dyn std::error::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(error = in_words(error), "HAProxy can't be asked or looked at; it stays as it is");
        }
    }

    /// Reports whether HAProxy has gone and may be started now. Where a unit runs it: whether a valid file is to be
    /// written. A HAProxy that can't be asked or looked at has not gone.
    pub fn is_due(&mut self, balancer: &mut dyn Balancer, error: &CliError, now: Instant) -> bool {
        if error.is_unasked() {
            // The time without an answer begins anew: HAProxy may have been there all along.
            self.missing_since = None;
            self.complain(error);
            return false;
        }
        let since = *self.missing_since.get_or_insert(now);
        if self.hold.is_some_and(|(until, _)| now < until) {
            return false;
        }
        if planted(Bug::GoneHaproxyIsNotStarted) && self.master.is_some() {
            return false;
        }
        let unreachable = matches!(error, CliError::Unreachable { .. } | CliError::NoWorker(_));
        if !balancer.runs_here() {
            // The unit starts HAProxy; it only needs a valid file, once.
            return unreachable && !std::mem::replace(&mut self.laid_out, true);
        }
        // A master that is slow to answer still has workers that serve.
        let patience = if unreachable { OUT_OF_REACH } else { OUT_OF_ANSWER };
        if now.duration_since(since) >= patience {
            return true;
        }
        match balancer.presence(self.master) {
            Presence::Running => false,
            Presence::Gone => true,
            Presence::Unknown(error) => {
                self.complain(&error);
                false
            }
        }
    }

    /// Starts HAProxy and returns true if it runs.
    ///
    /// The configuration is `wanted` if that is known, else the one that HAProxy ran last.
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
        // A HAProxy that ends soon after each start is started at growing intervals.
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
