//! The end of an instance: it leaves routing, drains, stops and is archived; or it is lost with its host.
//!
//! Owns the steps from `run` to the end, one at a time, each of which follows from observation:
//!
//! ```text
//! run ──routed──▶ drain ──no session left on any proxy, or 30 s──▶ stop ──ended──▶ archived
//!  └──not routed, or no proxy──────────────────────────────────────▲
//! ```

#[cfg(test)]
mod cases;

use visor::{
    deadlines::DRAIN,
    planted::{Bug, planted},
    rows::RowKind,
    schema::{Desired, Proxy, State},
};

use super::{
    draft::{Context, Draft},
    facts::Facts,
    step::Act,
};

/// Takes the first step of an instance's end.
pub(super) fn remove(context: Context<'_>, facts: &Facts<'_>, reason: &str, draft: &mut Draft) {
    let drains = facts.runs() && has_proxies(context) && !planted(Bug::ServingInstanceIsNotDrained);
    let to = if drains { Desired::Drain } else { Desired::Stop };
    draft.act(Act::Advance { id: facts.id, to }, reason);
}

/// Takes the next step of an instance's end, if it has begun; or marks the instance `lost`.
///
/// If its release is `wanted`, an instance that has ended although it should run is left to the planner of its
/// service.
pub(super) fn go_on(context: Context<'_>, facts: &Facts<'_>, wanted: bool, draft: &mut Draft) {
    let (id, now) = (facts.id, context.now.clock);
    if facts.unreadable {
        return;
    }
    if !facts.host_here && !facts.is_over() {
        return lose(context, facts, draft);
    }
    match facts.desired() {
        Desired::Run if facts.is_over() && !wanted => {
            draft.act(Act::Archive { id, oldest: Vec::new() }, "it has ended");
        }
        Desired::Run => {}
        Desired::Drain | Desired::Stop if facts.is_over() => {
            draft.act(Act::Archive { id, oldest: Vec::new() }, "it has ended");
        }
        Desired::Drain => {
            let until = context.memory.draining_since(id).unwrap_or(now) + DRAIN;
            let why = if facts.state() != Some(State::Running) {
                Some("it serves nobody")
            } else if is_drained(context, facts) {
                Some("it has been drained")
            } else if until <= now {
                Some("its drain time is over")
            } else {
                None
            };
            match why {
                Some(why) => draft.act(Act::Advance { id, to: Desired::Stop }, why),
                None => draft.look_again_at(until),
            }
        }
        Desired::Stop => {}
    }
}

fn lose(context: Context<'_>, facts: &Facts<'_>, draft: &mut Draft) {
    match context.hosts.lost_at(&facts.row.host) {
        Some(at) if at <= context.now.clock => {
            let reason = format!("host {} is lost", facts.row.host);
            draft.act(Act::Lose { id: facts.id }, reason);
        }
        Some(at) => draft.look_again_at(at),
        None => {}
    }
}

fn has_proxies(context: Context<'_>) -> bool {
    !context.snapshot.proxies.is_empty() || has_unreadable_proxies(context)
}

fn has_unreadable_proxies(context: Context<'_>) -> bool {
    context.snapshot.unreadable_of(RowKind::Proxy).next().is_some()
}

/// Reports whether every proxy has stopped routing to an instance and has no session left on it.
fn is_drained(context: Context<'_>, facts: &Facts<'_>) -> bool {
    let Some(assigned) = facts.assigned else { return true };
    let lets_go = |proxy: &Proxy| {
        (proxy.applied >= assigned.mod_revision || planted(Bug::DrainIgnoresProxies))
            && (!proxy.busy.contains(&facts.id) || planted(Bug::DrainIgnoresSessions))
    };
    !has_unreadable_proxies(context) && context.snapshot.proxies.values().all(|proxy| lets_go(proxy))
}
