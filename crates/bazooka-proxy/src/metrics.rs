//! bazooka-proxy's metrics.

use std::sync::{Arc, Mutex};

use hickory_proto::op::ResponseCode;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The metrics of the process.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    /// Reloads that HAProxy made.
    pub reloads: Counter,
    /// Reloads that failed, and configurations that HAProxy refused.
    pub refused_reloads: Counter,
    /// Starts of HAProxy after the first.
    pub restarts: Counter,
    /// Changes by the Runtime API, by kind.
    pub steps: Family<[(&'static str, &'static str); 1], Counter>,
    /// Changes that HAProxy refused.
    pub failed_steps: Counter,
    /// The duration of a batch of commands, from sending to the last answer, in seconds.
    pub command_duration: Histogram,
    /// The time from a change in the image until it is in force, in seconds.
    pub apply_duration: Histogram,
    /// Old workers that were ended to make room, with their open connections.
    pub ended_workers: Counter,
    /// Routed instances.
    pub servers: Gauge,
    /// Services.
    pub services: Gauge,
    /// Ports that can't be opened.
    pub refused: Gauge,
    /// Instances that were taken out and have open sessions.
    pub busy: Gauge,
    /// HAProxy's workers, old ones included.
    pub workers: Gauge,
    /// The revision in force.
    pub applied: Gauge,
    /// Answers to DNS questions, by response code.
    pub dns_answers: Family<[(&'static str, &'static str); 1], Counter>,
}

impl ProxyMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Arc<Mutex<Registry>>) -> Self {
        // 0.1 ms, doubling: the eleventh bucket is about 0.1 s.
        let durations = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let metrics = ProxyMetrics {
            reloads: Counter::default(),
            refused_reloads: Counter::default(),
            restarts: Counter::default(),
            steps: Family::default(),
            failed_steps: Counter::default(),
            command_duration: durations(),
            apply_duration: durations(),
            ended_workers: Counter::default(),
            servers: Gauge::default(),
            services: Gauge::default(),
            refused: Gauge::default(),
            busy: Gauge::default(),
            workers: Gauge::default(),
            applied: Gauge::default(),
            dns_answers: Family::default(),
        };
        let mut registry = registry.lock().expect("no holder of this lock panics");
        let registry = registry.sub_registry_with_prefix("bazooka_proxy");
        registry.register("reloads", "Reloads that HAProxy took", metrics.reloads.clone());
        registry.register(
            "refused_reloads",
            "Configurations and reloads that HAProxy refused",
            metrics.refused_reloads.clone(),
        );
        registry.register("haproxy_restarts", "Starts of HAProxy after its first", metrics.restarts.clone());
        registry.register("steps", "Changes by the Runtime API", metrics.steps.clone());
        registry.register("failed_steps", "Changes that HAProxy refused", metrics.failed_steps.clone());
        registry.register(
            "runtime_command_duration_seconds",
            "A batch of Runtime API commands",
            metrics.command_duration.clone(),
        );
        registry.register(
            "apply_duration_seconds",
            "From a change in the image to its being in force",
            metrics.apply_duration.clone(),
        );
        registry.register("ended_workers", "Old workers ended to make room", metrics.ended_workers.clone());
        registry.register("servers", "Routed instances", metrics.servers.clone());
        registry.register("services", "Services", metrics.services.clone());
        registry.register("refused_ports", "Ports that can't be opened", metrics.refused.clone());
        registry.register("busy", "Instances taken out that have sessions", metrics.busy.clone());
        registry.register("workers", "HAProxy's workers, old ones included", metrics.workers.clone());
        registry.register("applied_revision", "The revision in force", metrics.applied.clone());
        registry.register("dns_answers", "Questions about names, by answer", metrics.dns_answers.clone());
        metrics
    }

    /// Counts the answer to a DNS question.
    pub fn dns_answered(&self, code: ResponseCode) {
        let code = match code {
            ResponseCode::NoError => "noerror",
            ResponseCode::NXDomain => "nxdomain",
            ResponseCode::Refused => "refused",
            ResponseCode::ServFail => "servfail",
            _ => "other",
        };
        self.dns_answers.get_or_create(&[("code", code)]).inc();
    }
}
