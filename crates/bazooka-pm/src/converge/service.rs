//! The plan of one service: the next steps from its instances to what is wanted.
//!
//! Owns the arithmetic of scaling and of rollouts. A rollout is not an object: an instance that runs and shouldn't (of
//! an old release, to be replaced, or on a draining host) is *old*, and
//!
//! - new instances come up first, a batch at a time, and each batch is healthy before the next one starts;
//! - old ones go as new ones become healthy, so that never fewer than the count less `max_unavailable` are healthy;
//! - if new ones keep failing, the rule starts no further step, so the rollout stops by itself;
//! - while the app's rollouts are paused, old instances of another release keep their places: a batch that has started
//!   ends, no other starts, and scaling, restarts and drains go on.

#[cfg(test)]
mod cases;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use visor::{
    links,
    names::{InstanceId, ProcName, ReleaseId, ZoneName},
    planted::{Bug, planted},
    rules::{
        host_fit::{EnvHosts, env_hosts},
        order::staying,
        placement::{Indexes, PlacementRequest},
        replacing::{is_restart_of_the_past, is_to_restart},
        wanted::tried,
        zones::Places,
    },
    schema::{Desired, ReleaseStatus, State},
    snapshot::AppView,
    transitions::envs::EMPTY_ENV,
};

use super::{
    attempts::{allowance, avoided, goes_elsewhere, refused},
    draft::{Context, Demand, Draft},
    drain,
    facts::Facts,
    settings::Settings,
    step::{Act, Hindrance},
};

/// The time that an instance which has crashed must be healthy before a rollout counts on it, if its proc doesn't ask
/// for more.
///
/// Without it, a rev that passes its trial and then crashes every other second would be counted on between two
/// crashes, and would replace a release that works.
const STEADY: Duration = Duration::from_secs(10);

/// One release of a service: the instances that stay, and the old ones that they replace.
struct Group<'a> {
    release: Option<ReleaseId>,
    count: u32,
    fresh: Vec<Facts<'a>>,
    old: Vec<Facts<'a>>,
    /// Old instances that keep their places while rollouts are paused. `count` excludes them.
    held: Vec<Facts<'a>>,
    /// The zones that its instances are assigned to, with the count of each.
    zones: BTreeMap<ZoneName, u32>,
}

impl Group<'_> {
    fn new(release: Option<ReleaseId>, count: u32) -> Self {
        let zones = BTreeMap::new();
        Group { release, count, fresh: Vec::new(), old: Vec::new(), held: Vec::new(), zones }
    }

    /// Lets old instances of another release keep the places that no new instance has.
    fn hold(&mut self) {
        let count = usize::try_from(self.count).unwrap_or(usize::MAX);
        let places = count.saturating_sub(self.places_taken());
        let stays = |facts: &Facts<'_>| Some(facts.row.release) != self.release && !facts.host_drains;
        let (mut held, mut old): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.old).into_iter().partition(stays);
        held.sort_by_key(|facts| staying(facts.health(), facts.row.index, facts.id));
        old.extend(held.split_off(places.min(held.len())));
        self.count -= u32::try_from(held.len()).unwrap_or(u32::MAX).min(self.count);
        (self.held, self.old) = (held, old);
    }

    /// Returns how many places the group's own release has. An instance that is to be replaced shares its place with
    /// its replacement; without one it keeps the place for itself, as long as it runs.
    fn places_taken(&self) -> usize {
        let own = self.old.iter().filter(|facts| Some(facts.row.release) == self.release && facts.runs());
        let indexes: BTreeSet<u32> = self.fresh.iter().chain(own).map(|facts| facts.row.index).collect();
        indexes.len().max(self.fresh.len())
    }
}

/// Plans one service.
pub(super) fn plan(
    context: Context<'_>,
    proc: &ProcName,
    wanted: &BTreeMap<ReleaseId, u32>,
    instances: &[Facts<'_>],
    draft: &mut Draft,
) {
    let settings = Settings::of(context.view, proc);
    let head = context.view.head.as_ref().map(|head| head.release);
    let mut groups: BTreeMap<Option<ReleaseId>, Group<'_>> = BTreeMap::new();
    for (release, count) in wanted.iter().map(|(r, n)| (Some(*r), *n)).chain([(head, 0)]) {
        groups.entry(release).or_insert_with(|| Group::new(release, count));
    }
    let formation = context.view.formation.get(proc);
    if let (Some(formation), Some(group)) = (formation, groups.get_mut(&head)) {
        group.zones.clone_from(&formation.zones);
    }
    for facts in instances.iter().filter(|facts| facts.desired() == Desired::Run && !facts.is_over()) {
        let release = facts.row.release;
        if let Some(group) = groups.get_mut(&Some(release)).filter(|_| wanted.contains_key(&release)) {
            let goes = !facts.unreadable && is_to_be_replaced(context, facts);
            if goes { group.old.push(*facts) } else { group.fresh.push(*facts) }
        } else if facts.unreadable {
            // An instance with an unreadable row can be neither replaced nor stopped.
        } else if let Some(group) = groups.get_mut(&head).filter(|_| served(context.view, release)) {
            group.old.push(*facts);
        } else {
            drain::remove(context, facts, "its release is not wanted any more", draft);
        }
    }
    for facts in instances {
        drain::go_on(context, facts, groups.contains_key(&Some(facts.row.release)), draft);
    }
    if context.view.pause.is_some() {
        groups.values_mut().for_each(Group::hold);
    }
    let staying = groups.values().flat_map(|group| group.fresh.iter().chain(&group.held));
    draft.spread.insert(proc.clone(), staying.filter_map(|facts| facts.host_at).collect());
    for group in groups.into_values() {
        plan_group(context, proc, &settings, group, instances, draft);
    }
}

/// Reports whether a release has been head. Its instances then serve until head's own do.
fn served(view: &AppView, release: ReleaseId) -> bool {
    view.releases.get(&release).is_none_or(|row| row.status == ReleaseStatus::Released)
}

/// Reports whether an instance of a wanted release is to be replaced by another one of the same release.
fn is_to_be_replaced(context: Context<'_>, facts: &Facts<'_>) -> bool {
    let last = context.snapshot.instance_counter.as_ref().map(|counter| counter.value);
    facts.host_drains
        || (is_to_restart(context.view, &facts.row.proc, facts.id)
            && is_restart_of_the_past(context.view, &facts.row.proc, last))
}

fn plan_group(
    context: Context<'_>,
    proc: &ProcName,
    settings: &Settings,
    mut group: Group<'_>,
    instances: &[Facts<'_>],
    draft: &mut Draft,
) {
    let count = usize::try_from(group.count).unwrap_or(usize::MAX);
    let held = u32::try_from(group.held.len()).unwrap_or(u32::MAX);
    let mut places = Places::of(group.count.saturating_add(held), &group.zones);
    // Held instances stay in any case, so they take their places first.
    seat(&mut places, &group.held);
    for facts in surplus(&mut group.fresh, count, &places) {
        drain::remove(context, &facts, "scaled down", draft);
    }
    let misplaced = seat(&mut places, &group.fresh);
    let (moved, fresh) = group.fresh.into_iter().partition(|facts| misplaced.contains(&facts.id));
    group.fresh = fresh;
    group.old.extend::<Vec<_>>(moved);
    let is_ready = |facts: &Facts<'_>| context.memory.is_ready(facts.id, proof(settings, facts), context.now);
    let ready = group.fresh.iter().filter(|facts| facts.runs() && is_ready(facts)).count();
    let judged = put_ended_away(context, proc, &group, instances, draft);

    let rolling = !group.old.is_empty();
    let missing = count.saturating_sub(group.fresh.len() + judged);
    if rolling && (ready < group.fresh.len()) {
        let soon = group.fresh.iter().filter_map(|f| context.memory.ready_at(f.id, proof(settings, f)));
        soon.filter(|at| *at > context.now.clock).for_each(|at| draft.look_again_at(at));
    }
    if let Some(release) = group.release.filter(|_| missing > 0) {
        let start = if rolling { batch(settings, &group, ready, instances) } else { missing };
        demand(context, proc, settings, release, &group, &places, start.min(missing), missing, draft);
    }
    let ailing = group.fresh.iter().find(|facts| facts.is_failing());
    if let (true, Some(facts), Some(release)) = (rolling, ailing, group.release) {
        let failing = group.fresh.iter().filter(|facts| facts.is_failing()).count();
        let short = u32::try_from(count - ready.min(count)).unwrap_or(u32::MAX);
        draft.hindrances.entry(proc.clone()).or_insert_with(|| Hindrance {
            release,
            short,
            reason: format!(
                "the rollout of {release} waits: {failing} of its {} instances fail ({})",
                group.fresh.len(),
                facts.failure()
            ),
            reasons: BTreeMap::new(),
        });
    }
    retire(context, settings, count, ready, &group, draft);
}

/// Returns how long an instance must be healthy before a rollout counts on it.
fn proof(settings: &Settings, facts: &Facts<'_>) -> Duration {
    let crashed = facts.status.is_some_and(|status| status.restarts > 0);
    if crashed { settings.min_ready.max(STEADY) } else { settings.min_ready }
}

/// Takes the surplus instances out of `fresh`: failing ones first, then those that don't run yet, then those in the
/// wrong zone, then those with the highest index, the youngest first.
fn surplus<'a>(fresh: &mut Vec<Facts<'a>>, count: usize, places: &Places) -> Vec<Facts<'a>> {
    fresh.sort_by_key(|facts| {
        // An instance with an unreadable row can't be stopped.
        (!facts.unreadable, staying(facts.health(), facts.row.index, facts.id))
    });
    if planted(Bug::ScaleDownTakesHealthy) {
        fresh.reverse();
    }
    if fresh.len() > count && places.are_in_zones() {
        let misplaced = seat(&mut places.clone(), fresh.iter());
        fresh.sort_by_key(|facts| (!facts.unreadable, facts.health(), misplaced.contains(&facts.id)));
    }
    let keep = fresh.iter().filter(|facts| facts.unreadable).count().max(count);
    let surplus = fresh.split_off(keep.min(fresh.len()));
    fresh.sort_by_key(|facts| facts.id);
    surplus
}

/// Gives each instance a place in its zone. Returns those for which their zone has none left.
fn seat<'a>(places: &mut Places, instances: impl IntoIterator<Item = &'a Facts<'a>>) -> BTreeSet<InstanceId> {
    places.seat(instances.into_iter().map(|facts| (facts.id, facts.zone)))
}

/// Returns how many new instances a rollout may start now.
fn batch(settings: &Settings, group: &Group<'_>, ready: usize, instances: &[Facts<'_>]) -> usize {
    let count = usize::try_from(group.count).unwrap_or(usize::MAX);
    let batch = settings.proc.batch_of(count);
    let unready = group.fresh.len() - ready;
    // Draining instances take capacity too: a rollout never has more than a batch of instances above the count.
    let leaving = instances
        .iter()
        .filter(|facts| facts.desired() != Desired::Run && !facts.is_over() && facts.host_here);
    let there = group.fresh.len() + group.old.len() + leaving.count();
    let by_batch = batch.saturating_sub(unready).min((count + batch).saturating_sub(there));
    // After a scale-up, instances whose places no old one holds start at once, unless new ones fail.
    let failing = group.fresh.iter().any(Facts::is_failing);
    let uncovered = count.saturating_sub(group.fresh.len() + group.old.len());
    if failing { by_batch } else { by_batch.max(uncovered) }
}

/// Asks for places for `start` instances of a release; for fewer, if it has failed too often lately.
#[allow(clippy::too_many_arguments, reason = "one call, which names each of them")]
fn demand(
    context: Context<'_>,
    proc: &ProcName,
    settings: &Settings,
    release: ReleaseId,
    group: &Group<'_>,
    places: &Places,
    start: usize,
    missing: usize,
    draft: &mut Draft,
) {
    let failures = context.memory.failures_of(proc, release);
    let allowed = allowance(context, proc, release, &failures, draft);
    if allowed < start
        && let Some(last) = failures.last()
    {
        draft.hindrances.entry(proc.clone()).or_insert_with(|| Hindrance {
            release,
            short: u32::try_from(missing).unwrap_or(u32::MAX),
            reason: format!(
                "{} instances of {release} failed lately, so the next starts wait (last on {}: {})",
                failures.len(),
                last.host,
                last.cause
            ),
            reasons: BTreeMap::new(),
        });
    }
    let mut refuse = refused(context, &failures, draft);
    let mut avoid = avoided(&failures);
    let env = context.view.releases.get(&release).map_or(EMPTY_ENV, |row| row.env);
    let EnvHosts { unfit, keyless } = env_hosts(context.snapshot, context.view, env);
    refuse.extend(unfit);
    avoid.extend(keyless);
    let broken = links::broken(context.snapshot, context.view, env);
    let trial = tried(context.view).contains(&(proc, release));
    let taken = group.fresh.iter().map(|facts| facts.row.index).collect();
    let mut indexes = Indexes::Free { from: 0, count: start.min(allowed), taken: Arc::new(taken) };
    let mut next = places.next(start.min(allowed));
    if trial && group.zones.is_empty() {
        // The trial's instance is not one of the service's own, but may need what is in the zone of most of them.
        let formation = context.view.formation.get(proc);
        let usual = formation.and_then(|row| Places::of(row.count, &row.zones).usual().cloned());
        next = next.into_iter().map(|(zone, n)| (zone.or(usual.clone()), n)).collect();
    }
    let (avoid, refuse) = (Arc::new(avoid), Arc::new(refuse));
    for (zone, n) in next {
        let indexes = indexes.split_first(n);
        let request = PlacementRequest {
            proc: proc.clone(),
            limits: settings.proc.run.limits.clone(),
            trial,
            indexes,
            impossible: broken.as_ref().map(|lead| format!("{release} {lead}")),
            avoid: avoid.clone(),
            refuse: refuse.clone(),
            zone,
        };
        let reason =
            if trial { format!("to try {release}") } else { format!("{proc} is short by {missing}") };
        draft.demands.push(Demand { release, reason, request });
    }
}

/// Takes old instances out as new ones become healthy.
fn retire(
    context: Context<'_>,
    settings: &Settings,
    count: usize,
    ready: usize,
    group: &Group<'_>,
    draft: &mut Draft,
) {
    let ready = if planted(Bug::OldGoBeforeNewServe) { group.fresh.len() + ready } else { ready };
    let unavailable = usize::try_from(settings.max_unavailable).unwrap_or(usize::MAX);
    let floor = count.saturating_sub(unavailable);
    // Old instances that don't serve go first. Those that serve may use up the rest of this number.
    let mut any = (ready + group.old.len()).saturating_sub(floor);
    // A held instance counts as serving only while it runs.
    let running = |all: &[Facts<'_>]| all.iter().filter(|facts| facts.runs()).count();
    let serving = ready + running(&group.old) + running(&group.held);
    let mut spare = serving.saturating_sub((count + group.held.len()).saturating_sub(unavailable));
    // A failing old instance may go as soon as a new one exists, healthy or not. The number stays the same, and a proc
    // that crashes in both releases doesn't run twice for ever.
    let mut dead = (group.fresh.len() + group.old.len()).saturating_sub(count);
    let mut old = group.old.clone();
    old.sort_by_key(|facts| Reverse(staying(facts.health(), facts.row.index, facts.id)));
    for facts in &old {
        let may_go =
            if facts.runs() { any > 0 && spare > 0 } else { any > 0 || (facts.is_failing() && dead > 0) };
        if may_go {
            any = any.saturating_sub(1);
            dead = dead.saturating_sub(1);
            spare = spare.saturating_sub(usize::from(facts.runs()));
            drain::remove(context, facts, &why_old(context.view, group, facts), draft);
        }
    }
}

fn why_old(view: &AppView, group: &Group<'_>, facts: &Facts<'_>) -> String {
    match group.release {
        _ if view.app.as_ref().is_some_and(|app| app.destroying) => "the app is being destroyed".into(),
        Some(release) if release == facts.row.release && group.count > 0 => {
            if is_to_restart(view, &facts.row.proc, facts.id) {
                "restarted".into()
            } else if facts.host_drains {
                format!("host {} is being drained", facts.row.host)
            } else {
                "it is to stand in another zone".into()
            }
        }
        Some(release) if group.count > 0 => format!("{release} has taken over"),
        _ => "scaled down".into(),
    }
}

/// Archives instances that have ended although they should run. Returns how many of them the trial's verdict has yet
/// to judge.
fn put_ended_away(
    context: Context<'_>,
    proc: &ProcName,
    group: &Group<'_>,
    instances: &[Facts<'_>],
    draft: &mut Draft,
) -> usize {
    let mut judged = 0;
    let Some(release) = group.release else { return judged };
    let ended = instances
        .iter()
        .filter(|facts| facts.row.release == release && facts.is_over() && facts.desired() == Desired::Run);
    let wanted = group.count > 0;
    let failures = context.memory.failures_of(proc, release);
    let held_back = allowance(context, proc, release, &failures, &mut Draft::default()) == 0;
    let trying = tried(context.view).contains(&(proc, release));
    for facts in ended {
        let (id, state) = (facts.id, facts.state());
        let taken_over = group.fresh.iter().any(|fresh| fresh.runs() && fresh.row.index == facts.row.index);
        let missing = group.fresh.len() < usize::try_from(group.count).unwrap_or(usize::MAX);
        let stays = wanted
            && match state {
                // A lost instance stays until another one runs in its place: it may return with its host.
                Some(State::Lost) => !taken_over && missing_or_unready(group),
                // The trial's verdict still has to read this failure.
                Some(State::Failed) if trying && !goes_elsewhere(context, proc, release, facts) => {
                    judged += 1;
                    true
                }
                // While its replacement has to wait, the failed instance shows why.
                Some(State::Failed) => held_back && missing,
                _ => false,
            };
        if !stays {
            let reason = facts.status.and_then(|status| status.cause.clone());
            draft.act(
                Act::Archive { id, oldest: Vec::new() },
                reason.unwrap_or_else(|| "it has ended".into()),
            );
        }
    }
    judged
}

/// Reports whether fewer instances run than are wanted.
fn missing_or_unready(group: &Group<'_>) -> bool {
    let running = group.fresh.iter().filter(|facts| facts.runs()).count();
    running < usize::try_from(group.count).unwrap_or(usize::MAX)
}
