//! The part of the loop that changes HAProxy: plan, Runtime API, reload, files.
//!
//! Owns the handling of a HAProxy that refuses a change or whose state differs from the recorded one.

use std::time::Duration;

use tokio::time::Instant;
use visor::planted::{Bug, planted};

use super::Proxy;
use crate::{
    balancer::{InTheWay, ReloadError},
    config::structural_hash,
    plan::{Plan, Reload, Step, Wanted, plan},
};

/// The part of a plan that HAProxy has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// HAProxy must be observed again first.
    HaproxyUnreachable,
    /// The servers and hosts are in force; the structure waits for old workers to end.
    AwaitingReload,
    /// The plan is in force, except for a configuration that HAProxy refuses.
    InForce,
}

impl Proxy {
    /// Applies what is wanted to HAProxy, and returns how much of it is in force.
    pub(super) async fn apply_plan(&mut self, wanted: &Wanted, now: Instant) -> Applied {
        // Twice, because HAProxy's state may differ from the recorded one; it is then observed again.
        for _ in 0..2 {
            let Some(in_force) = &self.in_force else { return Applied::HaproxyUnreachable };
            let Plan { steps, reload } = plan(in_force, wanted);
            let steps: Vec<Step> = steps.into_iter().filter(|step| self.retired.may(step, now)).collect();
            let as_believed = self.change_members(&steps, now).await;
            if self.in_force.is_none() {
                self.look_again(Some(now));
                return Applied::HaproxyUnreachable;
            }
            if !as_believed {
                match self.balancer.observe().await {
                    Ok(in_force) => self.in_force = Some(in_force),
                    Err(_) => {
                        self.in_force = None;
                        self.look_again(Some(now));
                        return Applied::HaproxyUnreachable;
                    }
                }
                continue;
            }
            match reload {
                None => {
                    self.attempts.succeeded();
                    self.good = Some(wanted.clone());
                    self.write(wanted.clone());
                }
                Some(reason) => {
                    if self.waits_for_old_workers(wanted, now).await {
                        return Applied::AwaitingReload;
                    }
                    self.reload(wanted, &reason, now).await;
                }
            }
            return if self.in_force.is_some() { Applied::InForce } else { Applied::HaproxyUnreachable };
        }
        // HAProxy refuses repeatedly: what is wanted isn't in force, so no revision is reported as applied.
        self.look_again(Some(now + Duration::from_secs(1)));
        Applied::HaproxyUnreachable
    }

    /// Changes servers and hosts by the Runtime API. Returns false if HAProxy refused a step, so that its state isn't
    /// the recorded one.
    async fn change_members(&mut self, steps: &[Step], now: Instant) -> bool {
        let Some(in_force) = &mut self.in_force else { return true };
        if steps.is_empty() {
            return true;
        }
        match self.balancer.carry_out(in_force, steps).await {
            Ok(refused) => {
                self.retired.note(steps, now);
                let mut as_believed = true;
                for (step, words) in refused {
                    if step.may_wait() {
                        self.retired.later(&step, now);
                        continue;
                    }
                    if planted(Bug::RefusedStepIsApplied) {
                        in_force.note(&step);
                    } else {
                        as_believed = false;
                    }
                    self.metrics.failed_steps.inc();
                    tracing::error!(action = step.action(), step = ?step, words, "HAProxy refused a change");
                }
                as_believed
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "HAProxy's state can't be read; looking for it"
                );
                if planted(Bug::UnansweredStepIsApplied) {
                    steps.iter().for_each(|step| in_force.note(step));
                } else {
                    self.in_force = None;
                }
                true
            }
        }
    }

    /// Reports whether the reload is postponed: the limit on workers would cut open connections of old ones.
    async fn waits_for_old_workers(&mut self, wanted: &Wanted, now: Instant) -> bool {
        let in_the_way = self.balancer.in_the_way().await.unwrap_or(InTheWay::Nothing);
        let Some(at) = self.reload_wait.wait(in_the_way, now) else { return false };
        self.look_again(Some(at));
        self.keep_structure(wanted);
        true
    }

    /// Updates the files with the wanted servers and hosts, which are in force, in the structure that HAProxy has.
    fn keep_structure(&mut self, wanted: &Wanted) {
        if let Some(good) = &mut self.good {
            good.routes.take_members(&wanted.routes);
            let good = good.clone();
            self.write(good);
        }
    }

    async fn reload(&mut self, wanted: &Wanted, reason: &Reload, now: Instant) {
        let hash = structural_hash(&wanted.routes, &wanted.settings);
        if let Some(at) = self.attempts.not_before(&hash, now) {
            self.look_again(Some(at));
            self.keep_structure(wanted);
            return;
        }
        tracing::info!(reason = %reason, "reloading HAProxy");
        self.balancer.bound_log();
        match self.balancer.reload(wanted).await {
            Ok(in_force) => {
                if in_force.structural_hash != hash {
                    tracing::warn!("HAProxy runs another configuration than it was given");
                }
                self.attempts.succeeded();
                self.retired.restart(&in_force, now);
                self.in_force = Some(in_force);
                self.on_disk = Some(wanted.clone());
                self.good = Some(wanted.clone());
                self.balancer.keep_as_good().await;
            }
            Err(error) => {
                self.metrics.refused_reloads.inc();
                let last_words = match error {
                    ReloadError::Refused => self.balancer.last_words(),
                    _ => String::new(),
                };
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    last_words,
                    "the new configuration is not in force; the last one is"
                );
                let at = self.attempts.failed(hash, error_chain(&error), now);
                self.look_again(Some(at));
                // A valid file with which HAProxy couldn't start must not stay on disk for its next start.
                if let (ReloadError::Refused, Some(good)) = (&error, &self.good) {
                    let good = good.clone();
                    self.write(good);
                }
                // Only HAProxy knows how much of the reload has happened.
                self.in_force = self.balancer.observe().await.ok();
            }
        }
    }

    /// Writes the files, unless they already hold this configuration.
    fn write(&mut self, wanted: Wanted) {
        if self.on_disk.as_ref() != Some(&wanted) {
            self.balancer.write(&wanted);
            self.on_disk = Some(wanted);
        }
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text.chars().take(500).collect()
}
