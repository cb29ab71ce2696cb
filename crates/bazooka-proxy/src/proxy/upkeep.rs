//! What keeps HAProxy there.
//!
//! Owns the decision to start it: only where bazooka-proxy runs it, and only with a configuration that it
//! is known to take. Where a unit of its own runs it, waiting is all.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    config::Settings,
    driver::Driver,
    files::{Contents, Place},
    haproxy::{CliError, process::Process},
    metrics::ProxyMetrics,
    plan::Wanted,
    routes::Routes,
};

/// How long a master that runs may be out of reach before it is ended and started anew.
const OUT_OF_REACH: Duration = Duration::from_secs(5);

/// How long a master may take requests and answer none before it is ended and started anew. A busy one answers
/// within milliseconds; while it doesn't, no instance can be taken out or come in.
const OUT_OF_ANSWER: Duration = Duration::from_secs(10);

/// The first pause after a start that failed; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A start so soon after the last one is no accident.
const SOON: Duration = Duration::from_secs(5);

/// Keeps HAProxy there.
pub struct Upkeep {
    place: Place,
    /// None where a unit of its own runs it.
    process: Option<Process>,
    metrics: ProxyMetrics,
    /// The master that answered last.
    master: Option<u32>,
    /// Since when a running master can't be reached.
    missing_since: Option<Instant>,
    /// Where a unit runs it: a valid file was seen to since it went.
    laid_out: bool,
    /// When it was started last.
    started_at: Option<Instant>,
    /// After a failed start, or several soon after another: not before this, with the pause.
    hold: Option<(Instant, Duration)>,
}

impl Upkeep {
    /// With a process, where bazooka-proxy runs HAProxy itself.
    pub fn new(place: Place, process: Option<Process>, metrics: ProxyMetrics) -> Self {
        Upkeep {
            place,
            process,
            metrics,
            master: None,
            missing_since: None,
            laid_out: false,
            started_at: None,
            hold: None,
        }
    }

    /// It answers, and this is its master and its worker.
    pub fn found(&mut self, master: u32, worker: u32) {
        self.master = Some(master);
        if let Some(process) = &mut self.process {
            process.remember([master, worker]);
        }
        self.missing_since = None;
        self.laid_out = false;
    }

    /// Whether bazooka-proxy runs HAProxy itself.
    pub fn runs_haproxy(&self) -> bool {
        self.process.is_some()
    }

    /// Whether it has gone for good and may be started now.
    pub fn is_due(&mut self, error: &CliError, now: Instant) -> bool {
        let since = *self.missing_since.get_or_insert(now);
        if self.hold.is_some_and(|(until, _)| now < until) {
            return false;
        }
        let unreachable = matches!(error, CliError::Unreachable { .. } | CliError::NoWorker(_));
        // A master that is slow to answer still has workers that serve.
        let patience = if unreachable { OUT_OF_REACH } else { OUT_OF_ANSWER };
        let given_up = now.duration_since(since) >= patience;
        match &mut self.process {
            Some(process) => given_up || !process.is_running(self.master),
            // A unit of its own starts it; all that it needs is a valid file, once.
            None => unreachable && !std::mem::replace(&mut self.laid_out, true),
        }
    }

    /// Ends what is left of it: workers without a master serve nothing and hold its ports.
    pub async fn clear(&mut self) {
        if let Some(process) = &mut self.process {
            process.clear().await;
        }
    }

    /// Starts it. Returns whether it runs.
    ///
    /// `contents` is what is wanted, if that is known; else HAProxy starts with what it ran last.
    pub async fn start(
        &mut self,
        contents: Option<Contents>,
        driver: &Driver,
        settings: &Settings,
        now: Instant,
    ) -> bool {
        if self.master.is_some() && self.process.is_some() {
            tracing::error!("HAProxy has gone; starting it again");
            self.metrics.restarts.inc();
        }
        let valid = self.lay_out(contents, driver, settings).await;
        let Some(process) = &mut self.process else { return false };
        let started = match valid {
            true => process.start().await,
            false => return self.pause(now),
        };
        if let Err(error) = started {
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

    /// Sees to it that a valid configuration stands where HAProxy reads it: what is wanted, or what is
    /// there, or the last good one, or one without any service.
    async fn lay_out(&self, contents: Option<Contents>, driver: &Driver, settings: &Settings) -> bool {
        let here = self.place.config.exists() && self.place.map.exists();
        if contents.is_none() && here && self.place.check(&self.place.config).await.is_ok() {
            return true;
        }
        let mut candidates: Vec<Contents> = contents.into_iter().collect();
        let map = std::fs::read_to_string(&self.place.map).unwrap_or_default();
        if let Ok(config) = std::fs::read_to_string(&self.place.last_good) {
            candidates.push(Contents { config, map });
        }
        candidates
            .push(super::apply::contents(&Wanted { routes: Routes::default(), settings: settings.clone() }));
        for candidate in candidates {
            match driver.writer().install(candidate).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "HAProxy can't start with this"
                    );
                }
            }
        }
        false
    }

    fn pause(&mut self, now: Instant) -> bool {
        let pause = self.hold.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        self.hold = Some((now + pause, pause));
        false
    }

    /// Keeps a copy of the configuration that HAProxy took.
    pub async fn keep_as_good(&self) {
        if let Err(error) = self.place.keep_as_good().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the last good configuration isn't kept"
            );
        }
    }

    /// The last that HAProxy said.
    pub fn last_words(&self) -> String {
        self.process.as_ref().map(Process::last_words).unwrap_or_default()
    }

    /// Keeps HAProxy's own output within its limit.
    pub fn bound_log(&self) {
        if let Some(process) = &self.process {
            process.bound_log();
        }
    }

    /// Ends HAProxy, where bazooka-proxy runs it.
    pub async fn stop(&mut self) {
        if let Some(process) = &mut self.process {
            process.stop().await;
        }
    }
}
