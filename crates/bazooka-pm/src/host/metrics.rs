//! The metrics of the host's part.

use std::{collections::BTreeMap, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use visor::schema::{Exit, State};

use super::{model::Locals, slugs::SourceKind};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HowLabel {
    how: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FromLabel {
    from: &'static str,
}

/// The answer to a request for the archive of a slug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveAnswer {
    /// The archive is sent.
    Served,
    /// The caller may not have it.
    Refused,
    /// The archive is not here.
    Missing,
    /// Too many others are served.
    Busy,
}

/// The metrics of a host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    instances: Family<StateLabel, Gauge>,
    converge: Histogram,
    starts: Counter,
    failed_starts: Counter,
    exits: Family<HowLabel, Counter>,
    fetches: Family<ResultLabel, Counter>,
    sources: Family<FromLabel, Counter>,
    archives: Family<ResultLabel, Counter>,
    failed_reports: Counter,
    log_readers: Gauge,
    refused_log_readers: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            instances: Family::default(),
            converge: Histogram::new([0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]),
            starts: Counter::default(),
            failed_starts: Counter::default(),
            exits: Family::default(),
            fetches: Family::default(),
            sources: Family::default(),
            archives: Family::default(),
            failed_reports: Counter::default(),
            log_readers: Gauge::default(),
            refused_log_readers: Counter::default(),
        };
        let m = metrics.clone();
        registry.register("bazooka_pm_instances", "Instances on this host, by state", m.instances);
        registry.register(
            "bazooka_pm_converge_duration_seconds",
            "How long a plan and its application took",
            m.converge,
        );
        registry.register("bazooka_pm_starts", "Processes started", m.starts);
        registry.register("bazooka_pm_failed_starts", "Processes that could not be started", m.failed_starts);
        registry.register("bazooka_pm_exits", "Processes that ended, by how", m.exits);
        registry.register("bazooka_pm_slug_fetches", "Slugs fetched, by result", m.fetches);
        registry.register("bazooka_pm_slug_sources", "Slugs fetched, by kind of source", m.sources);
        registry.register(
            "bazooka_pm_archive_requests",
            "Requests of other hosts for archives of slugs, by result",
            m.archives,
        );
        registry.register("bazooka_pm_failed_reports", "Reports that had to be repeated", m.failed_reports);
        registry.register("bazooka_pm_log_readers", "Readers of output at present", m.log_readers);
        registry.register(
            "bazooka_pm_refused_log_readers",
            "Readers of output that were one too many",
            m.refused_log_readers,
        );
        metrics
    }

    /// Records the end of a round.
    pub fn converged(&self, took: Duration, locals: &Locals) {
        self.converge.observe(took.as_secs_f64());
        for (state, count) in by_state(locals) {
            self.instances.get_or_create(&StateLabel { state }).set(count);
        }
    }

    /// Counts a start.
    pub fn start(&self) {
        self.starts.inc();
    }

    /// Counts a failed start.
    pub fn start_failed(&self) {
        self.failed_starts.inc();
    }

    /// Counts an exit.
    pub fn exited(&self, exit: &Exit) {
        let how = match (exit.out_of_memory, exit.code, exit.signal) {
            (true, ..) => "out_of_memory",
            (false, Some(0), _) => "success",
            (false, Some(_), _) => "failure",
            (false, None, _) => "signal",
        };
        self.exits.get_or_create(&HowLabel { how }).inc();
    }

    /// Counts a slug that was fetched (`done`), or given up.
    pub fn slug_fetched(&self, done: bool) {
        let result = if done { "done" } else { "failed" };
        self.fetches.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a slug by the kind of its source.
    pub fn slug_came(&self, from: SourceKind) {
        let from = match from {
            SourceKind::Rm => "rm",
            SourceKind::Host => "host",
        };
        self.sources.get_or_create(&FromLabel { from }).inc();
    }

    /// Counts a request of another host for the archive of a slug.
    pub fn archive_asked(&self, answer: ArchiveAnswer) {
        let result = match answer {
            ArchiveAnswer::Served => "served",
            ArchiveAnswer::Refused => "refused",
            ArchiveAnswer::Missing => "missing",
            ArchiveAnswer::Busy => "busy",
        };
        self.archives.get_or_create(&ResultLabel { result }).inc();
    }

    /// Records the number of readers of output.
    pub fn readers(&self, count: usize) {
        self.log_readers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a reader of output that was one too many.
    pub fn reader_refused(&self) {
        self.refused_log_readers.inc();
    }

    /// Counts a report that has to be repeated.
    pub fn report_failed(&self) {
        self.failed_reports.inc();
    }
}

/// Returns the number of instances in each state.
fn by_state(locals: &Locals) -> BTreeMap<&'static str, i64> {
    let mut counts = BTreeMap::from_iter(
        ["claimed", "running", "backoff", "stopping", "exited", "failed"].map(|state| (state, 0)),
    );
    for local in locals.instances.values() {
        let name = match local.state() {
            State::Claimed => "claimed",
            State::Running => "running",
            State::Backoff => "backoff",
            State::Stopping => "stopping",
            State::Exited => "exited",
            State::Failed | State::Lost => "failed",
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}
