//! The plan: all the next steps, and when to plan again.
//!
//! Owns the driver that calls each app's planners and joins their results. Pure: the same image, memory and moment
//! give the same plan. Each app is planned by itself. The apps share only capacity, which is given out at the end:
//! place 0 of every service before place 1 of any. So a plan over the apps that changed and those that wait for
//! capacity equals the plan over all apps.

#[cfg(test)]
mod absurd;
#[cfg(test)]
mod cases;

use std::collections::BTreeMap;

use visor::{
    keys::Key,
    names::{AppName, InstanceId, ProcName, ReleaseId},
    rules::{
        placement::{Found, PlacementRequest, Reasons, Room, allot},
        wanted::{Wanted, procs, unsound},
    },
    snapshot::{AppView, Snapshot},
    transitions::placement::HISTORY_PER_PROC,
};

use super::{
    draft::{Context, Demand, Draft},
    envs,
    facts::{Facts, Instances, Reader},
    memory::{AppMemory, Memory, Now},
    service,
    sources::{self, Sources},
    step::{Act, Hindrance, Plan, Slot, Step},
    tally::Tally,
    trial,
};

/// Plans every app.
pub fn plan(snapshot: &Snapshot, memory: &Memory, now: Now) -> Plan {
    let instances = Reader::of(snapshot).apps(snapshot.apps.keys());
    plan_apps(snapshot, &Tally::of(snapshot), memory, &instances, now)
}

/// Plans some apps, whose instances the caller passes. Instances and tally must be those of this snapshot.
pub fn plan_apps(
    snapshot: &Snapshot,
    tally: &Tally,
    memory: &Memory,
    apps: &Instances<'_>,
    now: Now,
) -> Plan {
    let mut plan = Plan::default();
    let mut drafts = BTreeMap::new();
    let nothing = AppMemory::default();
    for (name, instances) in apps {
        let Some((name, view)) = snapshot.apps.get_key_value(*name) else { continue };
        if let Some(why) = unsound(snapshot, name, view) {
            plan.blocked.insert(name.clone(), why);
            continue;
        }
        let memory_of = memory.apps.get(name).unwrap_or(&nothing);
        let hosts = &memory.hosts;
        let context = Context { snapshot, name, view, instances, memory: memory_of, hosts, now };
        drafts.insert(name, plan_app(context));
    }
    give_room(snapshot, tally, &mut drafts, &mut plan, now);
    let mut sources = Sources::of(snapshot);
    for (name, mut draft) in drafts {
        say_bounds(snapshot, name, &snapshot.apps[name], &mut draft);
        say_hindrances(&snapshot.apps[name], &mut draft);
        envs::plan(snapshot, name, &snapshot.apps[name], now, &mut draft);
        sources::plan(&mut sources, &snapshot.apps[name], &apps[name], &mut draft);
        if draft.lacks_sources {
            plan.lacking_sources.insert(name.clone());
        }
        let steps = draft.acts.into_iter().map(|(act, reason)| Step { app: name.clone(), act, reason });
        plan.steps.extend(steps);
        plan.look_again.extend(draft.look_again.map(|at| (name.clone(), at)));
    }
    plan
}

/// Plans one app, up to the point where its new instances are placed.
fn plan_app(context: Context<'_>) -> Draft {
    let mut draft = Draft::default();
    trial::plan(context, &mut draft);
    let wanted = Wanted::of(context.view);
    let mut by_proc: BTreeMap<&ProcName, Vec<Facts<'_>>> = BTreeMap::new();
    for facts in context.instances {
        by_proc.entry(&facts.row.proc).or_default().push(*facts);
    }
    for proc in procs(context.view) {
        let instances = by_proc.remove(proc).unwrap_or_default();
        service::plan(context, proc, &wanted.of_proc(proc), &instances, &mut draft);
        trim_history(context.view, proc, &mut draft);
    }
    // A release that this very plan fails gets no new instance.
    let failed: Vec<ReleaseId> = draft
        .acts
        .iter()
        .filter_map(|(act, _)| if let Act::Fail { release, .. } = act { Some(*release) } else { None })
        .collect();
    draft.demands.retain(|demand| !failed.contains(&demand.release));
    draft
}

/// Notes that a formation wants more than a service may have, if nothing else is in the service's way.
fn say_bounds(snapshot: &Snapshot, name: &AppName, view: &AppView, draft: &mut Draft) {
    // Rows are hardly ever out of bounds.
    let Some(head) = view.head.as_ref().filter(|_| !snapshot.bounded.is_empty()) else { return };
    for proc in view.formation.keys().filter(|proc| !view.wanted(proc).is_empty()) {
        let out = snapshot.out_of_bounds(&Key::Formation(name.clone(), proc.clone()));
        let Some(out) = out.filter(|out| out.instances > 0) else { continue };
        draft.hindrances.entry(proc.clone()).or_insert_with(|| Hindrance {
            release: head.release,
            short: out.instances,
            reason: out.line(),
            reasons: Reasons::new(),
        });
    }
}

/// The most instances that one plan places. Its transactions then take about half a second, so that the next plan soon
/// sees what has changed meanwhile.
const PLACED_AT_ONCE: usize = 8_000;

/// Gives capacity to the demands of all apps.
fn give_room<'a>(
    snapshot: &'a Snapshot,
    tally: &Tally,
    drafts: &mut BTreeMap<&'a AppName, Draft>,
    plan: &mut Plan,
    now: Now,
) {
    let demands: Vec<(&'a AppName, Demand)> = drafts
        .iter_mut()
        .flat_map(|(name, draft)| draft.demands.drain(..).map(|demand| (*name, demand)))
        .collect();
    if demands.is_empty() {
        return;
    }
    let mut room = Room::of(snapshot, |name, _| tally.used(name));
    for (name, draft) in drafts.iter() {
        for (proc, at) in &draft.spread {
            room.spread(name, proc, at);
        }
    }
    let requests: Vec<_> = demands.iter().map(|(name, demand)| (*name, &demand.request)).collect();
    allot(&mut room, &requests, PLACED_AT_ONCE, |nth, index, found| {
        let (name, demand) = &demands[nth];
        let draft = drafts.get_mut(name).expect("the demand came from it");
        let PlacementRequest { proc, trial, .. } = &demand.request;
        match found {
            Found::Place(place) => {
                let slot = Slot { proc: proc.clone(), release: demand.release, index, trial: *trial };
                return draft.act(Act::Place { slot, place }, demand.reason.clone());
            }
            Found::Later => return draft.look_again_at(now.clock),
            Found::NoRoom(n, reasons) => lack(draft, demand, n, || (no_room(reasons), reasons.clone())),
            // Any change may bring what is lacking, just as it may free capacity.
            Found::Impossible(n, why) => lack(draft, demand, n, || (why.to_owned(), Reasons::new())),
        }
        if !plan.waiting_for_capacity.contains(*name) {
            plan.waiting_for_capacity.insert((*name).clone());
        }
    });
}

/// Counts `n` more instances of a service that have no place. The first reason for this proc is kept.
fn lack(draft: &mut Draft, demand: &Demand, n: usize, why: impl FnOnce() -> (String, Reasons)) {
    let lacking = draft.hindrances.entry(demand.request.proc.clone()).or_insert_with(|| {
        let (reason, reasons) = why();
        Hindrance { release: demand.release, short: 0, reason, reasons }
    });
    lacking.short = lacking.short.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
}

fn no_room(reasons: &Reasons) -> String {
    match reasons.values().map(|hosts| hosts.hosts).sum::<u32>() {
        0 => "no host is registered".into(),
        1 => "the only host can't take it".into(),
        n => format!("none of {n} hosts can take it"),
    }
}

/// Writes down what is in each service's way, where that has changed.
fn say_hindrances(view: &AppView, draft: &mut Draft) {
    let destroying = view.app.as_ref().is_none_or(|app| app.destroying);
    let mut said = std::mem::take(&mut draft.hindrances);
    if destroying {
        said.clear();
    }
    let over: Vec<ProcName> = view.pending.keys().filter(|proc| !said.contains_key(*proc)).cloned().collect();
    for (proc, hindrance) in said {
        if !view.pending.get(&proc).is_some_and(|row| hindrance.is_said_by(row)) {
            let reason = hindrance.reason.clone();
            draft.act(Act::Pend { proc, pending: Some(hindrance) }, reason);
        }
    }
    for proc in over {
        draft.act(Act::Pend { proc, pending: None }, "nothing is in its way any more");
    }
}

/// Bounds the number of archived instances, also after many have ended at once.
fn trim_history(view: &AppView, proc: &ProcName, draft: &mut Draft) {
    /// Deletes go in small batches.
    const MOST: usize = 50;
    let of_proc = (proc.clone(), InstanceId(0))..=(proc.clone(), InstanceId(u64::MAX));
    let mut kept: Vec<InstanceId> = view.history.range(of_proc).map(|((_, id), _)| *id).collect();
    for (act, _) in &mut draft.acts {
        if let Act::Archive { id, oldest } = act
            && view.instances.get(id).is_some_and(|row| row.proc == *proc)
            && kept.len() >= HISTORY_PER_PROC
        {
            oldest.push(kept.remove(0));
        }
    }
    let surplus = kept.len().saturating_sub(HISTORY_PER_PROC).min(MOST);
    if surplus > 0 {
        let ids = kept.drain(..surplus).collect();
        draft.act(Act::Forget { proc: proc.clone(), ids }, "older than the last few");
    }
}
