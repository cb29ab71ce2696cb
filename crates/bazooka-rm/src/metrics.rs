//! bazooka-rm's metrics.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The labels of a build.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct BuildLabels {
    /// The build's result: `done`, `failed` or `reused`.
    pub result: &'static str,
    /// The tree's kinds: `node`, `python`, ...
    pub kind: String,
}

/// The label of a result.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    /// The result, in one word.
    pub result: &'static str,
}

/// The label of what was pruned.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    /// The kind, in one word.
    pub kind: &'static str,
}

/// The metrics.
#[derive(Clone, Debug)]
pub struct RmMetrics {
    /// The number of builds.
    pub builds: Family<BuildLabels, Counter>,
    /// The duration of builds.
    pub build_duration: Histogram,
    /// The number of pushes by result: `accepted` or `rejected`.
    pub pushes: Family<ResultLabel, Counter>,
    /// The number of pushes under way.
    pub pushes_under_way: Gauge,
    /// The number of pushes that wait for a build.
    pub builds_waiting: Gauge,
    /// The size of each stored slug.
    pub slug_bytes: Histogram,
    /// The number of things that were pruned, by kind: `release`, `env`, `rev`, `slug`, `cache`.
    pub pruned: Family<KindLabel, Counter>,
    /// The number of attempts to prune that failed.
    pub prune_failures: Counter,
    /// The number of requests for slugs by result: `served`, `passed-on` (from the shared storage) or `missing`.
    pub slug_requests: Family<ResultLabel, Counter>,
}

impl RmMetrics {
    /// Registers new metrics.
    pub fn register(registry: &mut Registry) -> RmMetrics {
        let metrics = RmMetrics {
            builds: Family::default(),
            build_duration: Histogram::new(exponential_buckets(0.01, 4.0, 9)),
            pushes: Family::default(),
            pushes_under_way: Gauge::default(),
            builds_waiting: Gauge::default(),
            slug_bytes: Histogram::new(exponential_buckets(1024.0, 8.0, 8)),
            pruned: Family::default(),
            prune_failures: Counter::default(),
            slug_requests: Family::default(),
        };
        registry.register("bazooka_rm_builds", "Builds by result and kind", metrics.builds.clone());
        registry.register(
            "bazooka_rm_build_duration_seconds",
            "From a push's checks to its stored slug",
            metrics.build_duration.clone(),
        );
        registry.register("bazooka_rm_pushes", "Pushes by result", metrics.pushes.clone());
        registry.register(
            "bazooka_rm_pushes_under_way",
            "Pushes that are under way",
            metrics.pushes_under_way.clone(),
        );
        registry.register(
            "bazooka_rm_builds_waiting",
            "Pushes that wait in the queue of builds",
            metrics.builds_waiting.clone(),
        );
        registry.register(
            "bazooka_rm_slug_bytes",
            "Size of the slugs that were stored",
            metrics.slug_bytes.clone(),
        );
        registry.register("bazooka_rm_pruned", "What was pruned, by kind", metrics.pruned.clone());
        registry.register(
            "bazooka_rm_prune_failures",
            "Attempts to prune that failed",
            metrics.prune_failures.clone(),
        );
        registry.register("bazooka_rm_slug_requests", "Slugs asked for", metrics.slug_requests.clone());
        metrics
    }

    /// Counts a build.
    pub fn built(&self, result: &'static str, kind: &str) {
        self.builds.get_or_create(&BuildLabels { result, kind: kind.to_owned() }).inc();
    }

    /// Counts a push.
    pub fn pushed(&self, result: &'static str) {
        self.pushes.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts what was pruned.
    pub fn pruned(&self, kind: &'static str, count: usize) {
        if count > 0 {
            self.pruned.get_or_create(&KindLabel { kind }).inc_by(count as u64);
        }
    }

    /// Counts a request for a slug.
    pub fn slug_requested(&self, result: &'static str) {
        self.slug_requests.get_or_create(&ResultLabel { result }).inc();
    }
}
