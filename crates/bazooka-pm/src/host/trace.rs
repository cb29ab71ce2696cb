//! The engine's log of its steps and events.

use super::{
    observe::Event,
    plan::{Reason, Step},
};

/// Logs a step and its reason.
pub fn log_step(step: &Step, reason: &Reason) {
    match step {
        Step::Claim(id, assignment) | Step::Decline(id, assignment) => {
            let (app, proc, rev) = (&assignment.app, &assignment.proc, assignment.rev.short());
            tracing::info!(action = step.name(), instance = %id, %app, %proc, rev, %reason, "instance");
        }
        Step::Start(id) | Step::End(id, _) | Step::Finish(id) | Step::Force(id) => {
            tracing::info!(action = step.name(), instance = %id, %reason, "instance");
        }
        Step::Adopt(id) | Step::Retry(id) | Step::Pass(id) | Step::Forget(id) | Step::Note(id, _) => {
            tracing::debug!(action = step.name(), instance = %id, %reason, "instance");
        }
        Step::Fetch(digest) => tracing::info!(action = "fetch", slug = %digest, %reason, "slug"),
        Step::ReadEnv(app, env) => tracing::debug!(action = "read-env", %app, %env, %reason, "env"),
    }
}

/// Logs an event.
pub fn log_event(event: &Event) {
    match event {
        Event::Started { id, pid, .. } => tracing::info!(instance = %id, pid, "instance runs"),
        Event::Exited { id, words, .. } => tracing::info!(instance = %id, how = words, "instance has ended"),
        Event::StartFailed { id, cause, .. } => tracing::warn!(instance = %id, cause, "instance can't start"),
        Event::SlugFailed(digest, cause) => tracing::error!(slug = %digest, cause, "slug can't be had"),
        Event::PortTaken { id, by, .. } => tracing::warn!(instance = %id, by, "instance needs another port"),
        _ => tracing::debug!(?event, "seen"),
    }
}
