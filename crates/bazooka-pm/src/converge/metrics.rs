//! The converger's metrics.

use std::{sync::atomic::AtomicU64, time::Duration};

use bazooka_daemon::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

/// The converger's metrics.
#[derive(Clone, Debug)]
pub(super) struct ConvergerMetrics {
    /// 1 while this process is the elected one.
    pub leader: Gauge,
    /// Services that aren't as they should be.
    pub pending: Gauge,
    /// Hosts that are gone and not given up, because they are too many.
    pub frozen_hosts: Gauge,
    /// Apps whose rows can't be acted on.
    pub blocked_apps: Gauge,
    plan: Histogram,
    steps: Family<Kind, Counter<u64, AtomicU64>>,
    overtaken: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl ConvergerMetrics {
    pub fn register(metrics: &Metrics) -> Self {
        // 50 µs to 1.6 s: from one app's plan to a whole cluster's.
        let buckets = prometheus_client::metrics::histogram::exponential_buckets(0.000_05, 2.0, 16);
        let own = ConvergerMetrics {
            leader: Gauge::default(),
            pending: Gauge::default(),
            frozen_hosts: Gauge::default(),
            blocked_apps: Gauge::default(),
            plan: Histogram::new(buckets),
            steps: Family::default(),
            overtaken: Counter::default(),
        };
        let mut registry = metrics.lock().expect("no holder of this lock panics");
        let registry = registry.sub_registry_with_prefix("bazooka_converger");
        registry.register("leader", "1 while this process is the elected one", own.leader.clone());
        registry.register("pending", "Services that are not as they should be", own.pending.clone());
        registry.register(
            "frozen_hosts",
            "Hosts that are gone and not given up, because too many vanished at once",
            own.frozen_hosts.clone(),
        );
        registry.register(
            "blocked_apps",
            "Apps that are left alone because rows are missing or unreadable",
            own.blocked_apps.clone(),
        );
        registry.register("plan_duration_seconds", "The time that a plan took to make", own.plan.clone());
        registry.register("steps", "Steps planned, by kind", own.steps.clone());
        registry.register(
            "overtaken",
            "Plans of which a step met a change that the image did not show yet",
            own.overtaken.clone(),
        );
        own
    }

    pub fn planned<'a>(&self, took: Duration, kinds: impl Iterator<Item = &'a &'static str>) {
        self.plan.observe(took.as_secs_f64());
        for kind in kinds {
            self.steps.get_or_create(&Kind { kind }).inc();
        }
    }

    pub fn overtaken(&self) {
        self.overtaken.inc();
    }
}
