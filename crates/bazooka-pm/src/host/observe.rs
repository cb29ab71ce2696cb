//! The transitions of an instance's state. Pure.
//!
//! Owns each transition that an outside event causes; those that a step of the plan causes are in `enact`. A late
//! answer, for a start that is no longer the last one, changes nothing.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use visor::{
    names::{AppName, Digest, EnvRef, InstanceId},
    planted::{Bug, planted},
    schema::{Assignment, Desired, Exit, Fault, Handed},
    seal::Vars,
};

use super::{
    model::{Ending, EnvState, Local, Locals, Now, Phase, SlugState, Tick},
    plan::Step,
    policy::{self, Crash, Next, Standing},
    slugs::Fetched,
};

/// The pause before an env is read again after a failure.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// The end of a cause when the next start follows at once.
const AT_ONCE: &str = "; started again at once";

/// The words before the time until the next start, at the end of a cause.
const AFTER: &str = "; next start in ";

/// An event that the engine observes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A slug is here, unpacked as a whole.
    SlugReady(Digest),
    /// A slug has come from a source of this kind, and its archive may have been kept. [`Event::SlugReady`] follows.
    SlugFetched(Digest, Fetched),
    /// A slug isn't here yet, for this cause.
    SlugDelayed(Digest, String),
    /// A slug can't be had, for this cause.
    SlugFailed(Digest, String),
    /// An env is here, sealed to this host.
    EnvRead(AppName, EnvRef, Handed),
    /// An env was read that an earlier version wrote in plain text. The engine seals and keeps it first; the state
    /// changes only after that.
    PlainEnvRead(AppName, EnvRef, Vars),
    /// An env hasn't been handed over, for this cause. The engine first checks whether it has been meanwhile.
    EnvMissing(AppName, EnvRef, String),
    /// An env couldn't be read or opened, for this cause.
    EnvFailed(AppName, EnvRef, String),
    /// A shim has started its instance, or was found to have started it.
    Started {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// The instance's process.
        pid: u32,
        /// The time of the start, on the wall clock.
        started_at: Timestamp,
        /// The time of the start, on the monotonic clock.
        since: Tick,
    },
    /// A start failed.
    StartFailed {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// The part at fault.
        fault: Fault,
        /// The cause.
        cause: String,
    },
    /// A start turned out to have come to nothing, or to have ended with the machine.
    NotStarted {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// The cause.
        words: String,
    },
    /// An instance's check has passed.
    Healthy {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// How it passed, in words.
        how: String,
    },
    /// Another process listens on the instance's port.
    PortTaken {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// The process that listens, in words.
        by: String,
    },
    /// The host can't give an instance something that it usually has.
    Lacks {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// The thing, in words.
        what: String,
    },
    /// A check saw something other than what it waits for.
    Heard {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// The answer that the check got, in words.
        what: String,
    },
    /// An instance has ended: nothing of it runs any more.
    Exited {
        /// The instance.
        id: InstanceId,
        /// The number of the start.
        run: u32,
        /// The exit of its first process.
        exit: Exit,
        /// The same in words.
        words: String,
        /// The last lines of output.
        last_output: Vec<String>,
    },
}

/// Processes an event. Returns the instances that it may have changed.
pub fn observe(locals: &mut Locals, event: Event, now: Now) -> Vec<InstanceId> {
    match event {
        Event::SlugReady(digest) => {
            let waiting = waiting_for(locals, |local| local.assignment.slug.sha256 == digest);
            for id in &waiting {
                if let Some(local) = locals.instances.get_mut(id) {
                    local.tell(now.at, format!("slug {} is here", short(&digest)));
                }
            }
            locals.slugs.insert(digest, SlugState::Ready);
            waiting
        }
        Event::SlugFetched(digest, fetched) => {
            if fetched.kept {
                locals.archives.insert(digest);
            }
            Vec::new()
        }
        Event::SlugDelayed(digest, cause) => {
            say_cause(locals, |local| local.assignment.slug.sha256 == digest, &cause, now)
        }
        Event::SlugFailed(digest, cause) => {
            // The next instance that needs the slug tries again.
            locals.slugs.remove(&digest);
            let waiting = waiting_for(locals, |local| local.assignment.slug.sha256 == digest);
            for id in &waiting {
                if let Some(local) = locals.instances.get_mut(id) {
                    fail(local, Fault::Host, cause.clone(), now);
                }
            }
            waiting
        }
        Event::EnvRead(app, env, handed) => {
            let waiting =
                waiting_for(locals, |local| local.assignment.app == app && local.assignment.env == env);
            locals.envs.insert((app, env), EnvState::Ready(handed));
            waiting
        }
        Event::PlainEnvRead(..) | Event::EnvMissing(..) => Vec::new(),
        Event::EnvFailed(app, env, cause) => {
            locals.envs.insert((app.clone(), env), EnvState::Later(now.tick.after(READ_AGAIN)));
            say_cause(locals, |local| local.assignment.app == app && local.assignment.env == env, &cause, now)
        }
        Event::Started { id, run, pid, started_at, since } => change(locals, id, run, |local| {
            let found = match local.phase {
                Phase::Starting => false,
                Phase::Adopting => true,
                _ => return,
            };
            local.pid = Some(pid);
            local.started_at = Some(started_at);
            if found && local.healthy_run == run {
                local.enter(Phase::Running, now.at);
            } else {
                // The cause of the last crash stays until this start has passed its check.
                local.cause = local.cause.take().filter(|_| !local.exits.is_empty()).map(without_schedule);
                local.enter(Phase::Booting { since }, now.at);
            }
            if !found {
                let port = local.port.map_or_else(String::new, |port| format!(" with port {port}"));
                local.tell(now.at, format!("started as process {pid}{port}"));
            }
        }),
        Event::StartFailed { id, run, fault, cause } => change(locals, id, run, |local| {
            if matches!(local.phase, Phase::Starting | Phase::Adopting) {
                fail(local, fault, cause, now);
            }
        }),
        Event::NotStarted { id, run, words } => change(locals, id, run, |local| {
            if matches!(local.phase, Phase::Starting | Phase::Adopting) {
                local.pid = None;
                local.tell(now.at, words);
                local.enter(Phase::Waiting, now.at);
            }
        }),
        Event::Healthy { id, run, how } => change(locals, id, run, |local| {
            if matches!(local.phase, Phase::Booting { .. }) {
                pass(local, how, now);
            }
        }),
        Event::PortTaken { id, run, by } => change(locals, id, run, |local| {
            if matches!(local.phase, Phase::Booting { .. }) {
                local.port_lost = true;
                local.heard = Some(by);
            }
        }),
        Event::Lacks { id, run, what } => change(locals, id, run, |local| local.tell(now.at, what)),
        Event::Heard { id, run, what } => change(locals, id, run, |local| local.heard = Some(what)),
        Event::Exited { id, run, exit, words, last_output } => change(locals, id, run, |local| {
            if local.may_run() {
                exited(local, exit, &words, last_output, now);
            }
        }),
    }
}

/// Changes the state by a step that is being carried out. The caller performs the effects.
pub fn enact(locals: &mut Locals, step: &Step, now: Now) {
    let instances = &mut locals.instances;
    match step {
        Step::Claim(id, assignment) => {
            instances.insert(*id, Local::claimed((**assignment).clone(), now.at));
        }
        Step::Decline(id, assignment) => {
            let mut local = Local::claimed((**assignment).clone(), now.at);
            local.story.clear();
            finish(&mut local, now);
            instances.insert(*id, local);
        }
        Step::Note(id, assignment) => {
            if let Some(local) = instances.get_mut(id) {
                local.assignment = (**assignment).clone();
            }
        }
        Step::Fetch(digest) => drop(locals.slugs.insert(digest.clone(), SlugState::Fetching)),
        Step::ReadEnv(app, env) => drop(locals.envs.insert((app.clone(), *env), EnvState::Reading)),
        Step::Start(id) => with(instances.get_mut(id), |local| {
            local.run += 1;
            (local.heard, local.port_lost) = (None, false);
            if local.run > 1 && !local.exits.is_empty() {
                local.restarts += 1;
            }
            local.enter(Phase::Starting, now.at);
        }),
        Step::Adopt(id) => with(instances.get_mut(id), |local| local.enter(Phase::Adopting, now.at)),
        Step::Retry(id) => with(instances.get_mut(id), |local| local.enter(Phase::Waiting, now.at)),
        Step::Pass(id) => {
            with(instances.get_mut(id), |local| pass(local, "runs".to_owned(), now));
        }
        Step::End(id, why) => with(instances.get_mut(id), |local| {
            if *why == Ending::Unwanted {
                let reason = local.assignment.reason.clone();
                local
                    .tell(now.at, reason.map_or("told to stop".into(), |why| format!("told to stop: {why}")));
            }
            local.enter(Phase::Ending { why: *why, since: now.tick, forced: 0 }, now.at);
        }),
        Step::Force(id) => with(instances.get_mut(id), |local| {
            if let Phase::Ending { forced, .. } = &mut local.phase {
                *forced += 1;
            }
        }),
        Step::Finish(id) => with(instances.get_mut(id), |local| finish(local, now)),
        Step::Forget(id) => drop(instances.remove(id)),
    }
}

/// Removes from a cause the words about the next start, because that start has come.
fn without_schedule(mut cause: String) -> String {
    if let Some(at) = cause.rfind(AT_ONCE).or_else(|| cause.rfind(AFTER)) {
        cause.truncate(at);
    }
    cause
}

fn with(local: Option<&mut Local>, change: impl FnOnce(&mut Local)) {
    if let Some(local) = local {
        change(local);
    }
}

fn change(locals: &mut Locals, id: InstanceId, run: u32, change: impl FnOnce(&mut Local)) -> Vec<InstanceId> {
    match locals.instances.get_mut(&id) {
        Some(local) if local.run == run || (local.run > run && planted(Bug::EarlierStartAnswers)) => {
            change(local);
            vec![id]
        }
        _ => Vec::new(),
    }
}

fn waiting_for(locals: &Locals, what: impl Fn(&Local) -> bool) -> Vec<InstanceId> {
    let waiting = locals.instances.iter().filter(|(_, local)| local.phase == Phase::Waiting && what(local));
    waiting.map(|(id, _)| *id).collect()
}

fn say_cause(locals: &mut Locals, of: impl Fn(&Local) -> bool, cause: &str, now: Now) -> Vec<InstanceId> {
    let waiting = waiting_for(locals, of);
    for id in &waiting {
        if let Some(local) = locals.instances.get_mut(id) {
            if local.cause.as_deref() != Some(cause) {
                local.tell(now.at, cause.to_owned());
                local.cause = Some(cause.to_owned());
            }
        }
    }
    waiting
}

fn pass(local: &mut Local, how: String, now: Now) {
    local.healthy_run = local.run;
    local.cause = None;
    local.heard = None;
    local.enter(Phase::Running, now.at);
    let took = local.started_at.map(|at| now.at.duration_since(at).as_millis().max(0));
    local.tell(now.at, took.map_or(how.clone(), |took| format!("{how}, {took} ms after its start")));
}

fn fail(local: &mut Local, fault: Fault, cause: String, now: Now) {
    local.pid = None;
    local.tell(now.at, format!("given up: {cause}"));
    local.cause = Some(cause);
    local.enter(Phase::Ended { fault: Some(fault) }, now.at);
}

fn finish(local: &mut Local, now: Now) {
    local.pid = None;
    local.cause = local.assignment.reason.clone();
    local.enter(Phase::Ended { fault: None }, now.at);
}

fn exited(local: &mut Local, exit: Exit, words: &str, last_output: Vec<String>, now: Now) {
    local.pid = None;
    let ran = Duration::from_millis(exit.ran_ms);
    let (out_of_memory, at) = (exit.out_of_memory, exit.at);
    let ending = match local.phase {
        Phase::Ending { why, .. } => Some(why),
        _ => None,
    };
    if ending == Some(Ending::PortTaken) {
        let by = local.heard.take().unwrap_or_default();
        local.tell(now.at, format!("{by}; takes another port"));
        (local.port, local.port_lost) = (None, false);
        local.enter(Phase::Waiting, now.at);
        return;
    }
    local.add_exit(exit);
    if ending == Some(Ending::Unwanted) || local.assignment.desired != Desired::Run {
        local.tell(at, format!("{words} after {}", seconds(ran)));
        finish(local, now);
        return;
    }
    let words = match ending {
        Some(Ending::TimedOut) => {
            let waited = seconds(local.assignment.run.boot_timeout());
            match local.heard.take() {
                Some(heard) => format!("not healthy within {waited}: {heard}"),
                None => format!("not healthy within {waited}"),
            }
        }
        _ => words.to_owned(),
    };
    local.last_output = last_output;
    local.crashes = policy::crashes_in_a_row(local.crashes, ran);
    let was_healthy = local.healthy_run == local.run;
    local.proven |= was_healthy && ran >= policy::SERVED;
    local.tell(at, format!("{words}, after {}", seconds(ran)));
    let fault = if out_of_memory { Fault::OutOfMemory } else { Fault::App };
    let times = if local.crashes == 1 { String::new() } else { format!(", {} times", local.crashes) };
    let Assignment { trial, index, .. } = local.assignment;
    let standing = Standing { trial, proven: local.proven, index };
    let crash = Crash { in_a_row: local.crashes, ran, was_healthy };
    let next = match ending {
        Some(Ending::TimedOut) => policy::after_time_out(crash, standing),
        _ => policy::after_crash(crash, standing),
    };
    match next {
        Next::AtOnce => {
            local.cause = Some(format!("{words}{times}{AT_ONCE}"));
            local.enter(Phase::Waiting, now.at);
        }
        Next::After(wait) => {
            local.cause = Some(format!("{words}{times}{AFTER}{}", seconds(wait)));
            let next_start_at = now.at.saturating_add(SignedDuration::try_from(wait).unwrap_or_default());
            let until = now.tick.after(wait);
            let next_start_at = next_start_at.unwrap_or(now.at);
            local.enter(Phase::Backoff { until, next_start_at }, now.at);
            local.since = now.at;
        }
        Next::GiveUp => fail(local, fault, format!("{words}{times}"), now),
    }
}

/// Formats a duration for people.
pub fn seconds(duration: Duration) -> String {
    let all = duration.as_secs();
    match all {
        0..10 if duration.subsec_millis() > 0 => format!("{:.1} s", duration.as_secs_f32()),
        0..120 => format!("{all} s"),
        120..7_200 => format!("{} min", all / 60),
        _ => format!("{} h", all / 3_600),
    }
}

fn short(digest: &Digest) -> &str {
    &digest.as_str()[..12]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::host::simulation::{assignment, at};
    use visor::schema::State;

    const ID: InstanceId = InstanceId(7);

    fn booting(run: u32) -> Locals {
        let mut local = Local::claimed(assignment("web"), at(0).at);
        local.run = run;
        local.phase = Phase::Booting { since: Tick(0) };
        Locals { instances: BTreeMap::from([(ID, local)]), ..Locals::default() }
    }

    #[test]
    fn the_answer_of_an_earlier_start_changes_nothing() {
        let mut locals = booting(2);
        let before = locals.clone();
        let late = Event::Healthy { id: ID, run: 1, how: "listens".into() };
        assert!(observe(&mut locals, late, at(5)).is_empty());
        assert_eq!(locals, before);
    }

    #[test]
    fn a_taken_port_is_left_and_counts_as_no_crash() {
        let mut locals = booting(1);
        observe(&mut locals, Event::PortTaken { id: ID, run: 1, by: "another listens".into() }, at(1));
        enact(&mut locals, &Step::End(ID, Ending::PortTaken), at(1));
        let exit = Exit {
            at: at(2).at,
            code: None,
            signal: Some(9),
            out_of_memory: false,
            ran_ms: 2,
            extra: visor::schema::Extra::new(),
        };
        let ended = Event::Exited { id: ID, run: 1, exit, words: "killed".into(), last_output: Vec::new() };
        observe(&mut locals, ended, at(2));
        let local = &locals.instances[&ID];
        assert_eq!(
            (&local.phase, local.port, local.crashes, local.exits.len()),
            (&Phase::Waiting, None, 0, 0)
        );
    }

    #[test]
    fn one_on_trial_that_has_not_come_up_in_its_time_is_given_up_at_once() {
        for (trial, state) in [(true, State::Failed), (false, State::Backoff)] {
            let mut locals = booting(1);
            if let Some(local) = locals.instances.get_mut(&ID) {
                local.assignment.trial = trial;
            }
            let what = "it does not listen on $PORT (21000)".to_owned();
            observe(&mut locals, Event::Heard { id: ID, run: 1, what }, at(1));
            enact(&mut locals, &Step::End(ID, Ending::TimedOut), at(60_000));
            let (signal, extra) = (Some(9), visor::schema::Extra::new());
            let exit =
                Exit { at: at(60_001).at, code: None, signal, out_of_memory: false, ran_ms: 60_001, extra };
            let ended =
                Event::Exited { id: ID, run: 1, exit, words: "killed".into(), last_output: Vec::new() };
            observe(&mut locals, ended, at(60_001));
            let local = &locals.instances[&ID];
            assert_eq!(local.state(), state, "on trial: {trial}");
            let cause = local.cause.as_deref().unwrap_or_default();
            assert!(
                cause.starts_with("not healthy within 60 s: it does not listen on $PORT (21000)"),
                "{cause}"
            );
        }
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        for (millis, words) in
            [(70, "0.1 s"), (1_500, "1.5 s"), (30_000, "30 s"), (960_000, "16 min"), (7_200_000, "2 h")]
        {
            assert_eq!(seconds(Duration::from_millis(millis)), words);
        }
    }
}
