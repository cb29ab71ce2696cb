//! The host's plan: the next steps, from the assignments and the instances' state. Pure.
//!
//! Owns every decision of the host's part. A plan leaves no choice to the part that carries it out. Each step that is
//! carried out, and each observation, is followed by a new plan.

use std::{fmt, time::Duration};

use visor::{
    names::{AppName, Digest, EnvRef, InstanceId},
    planted::{Bug, planted},
    schema::{Assignment, Check, Desired},
    transitions::envs::EMPTY_ENV,
};

use super::model::{Assigned, Ending, EnvState, Local, Locals, Phase, SlugState, Tick};

/// The time for which an instance must not exit before it counts as running, if its only check is that it was started.
pub const STARTED_GRACE: Duration = Duration::from_millis(100);

/// The same time for an instance that has crashed. On a busy machine an interpreter may take longer than
/// [`STARTED_GRACE`] to reach the fault; each start would then look like a recovery.
pub const STARTED_AGAIN_GRACE: Duration = Duration::from_secs(1);

/// The time beyond the stop timeout after which the shim itself is killed.
const SHIM_GRACE: Duration = Duration::from_secs(5);

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Takes an instance up.
    Claim(InstanceId, Box<Assignment>),
    /// Notes that an instance's assignment has changed.
    Note(InstanceId, Box<Assignment>),
    /// Fetches and unpacks a slug.
    Fetch(Digest),
    /// Reads an env.
    ReadEnv(AppName, EnvRef),
    /// Starts an instance.
    Start(InstanceId),
    /// Finds out whether an instance of an earlier bazooka-pm still runs.
    Adopt(InstanceId),
    /// Ends the wait before an instance's next start.
    Retry(InstanceId),
    /// Counts an instance as running, because it has not exited for long enough.
    Pass(InstanceId),
    /// Tells an instance's shim to end it, for this reason.
    End(InstanceId, Ending),
    /// Kills an instance's shim, because it doesn't end the instance.
    Force(InstanceId),
    /// Ends an instance that is not wanted any more and of which nothing runs.
    Finish(InstanceId),
    /// Reports as ended an instance that was never taken up and isn't wanted any more.
    Decline(InstanceId, Box<Assignment>),
    /// Drops an instance that has ended and is no longer assigned. Only its output stays, for a while.
    Forget(InstanceId),
}

impl Step {
    /// Returns the step's name.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Claim(..) => "claim",
            Step::Note(..) => "note",
            Step::Fetch(_) => "fetch",
            Step::ReadEnv(..) => "read-env",
            Step::Start(_) => "start",
            Step::Adopt(_) => "adopt",
            Step::Retry(_) => "retry",
            Step::Pass(_) => "pass",
            Step::End(_, Ending::Unwanted) => "stop",
            Step::End(_, Ending::TimedOut) => "time-out",
            Step::End(_, Ending::PortTaken) => "leave-port",
            Step::Force(_) => "force",
            Step::Finish(_) => "finish",
            Step::Decline(..) => "decline",
            Step::Forget(_) => "forget",
        }
    }
}

/// The reason for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant's words are its description")]
pub enum Reason {
    Assigned,
    AssignmentChanged,
    NeededToStart,
    AllIsThere,
    FoundHere,
    WaitIsOver,
    HasNotExited,
    ToldToStop,
    NoLongerAssigned,
    Draining,
    NotHealthyInTime,
    PortTaken,
    ShimDoesNotEnd,
    Ended,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Assigned => "assigned to this host",
            Reason::AssignmentChanged => "its assignment has changed",
            Reason::NeededToStart => "an instance needs it",
            Reason::AllIsThere => "all that it needs is here",
            Reason::FoundHere => "found here at start",
            Reason::WaitIsOver => "its wait is over",
            Reason::HasNotExited => "it has not exited at once",
            Reason::ToldToStop => "told to stop",
            Reason::NoLongerAssigned => "no longer assigned to this host",
            Reason::Draining => "it takes no more requests",
            Reason::NotHealthyInTime => "its check has not passed in time",
            Reason::PortTaken => "another process listens on its port",
            Reason::ShimDoesNotEnd => "its shim does not end",
            Reason::Ended => "it has ended and is no longer assigned",
        })
    }
}

/// The next steps, and when to plan again if nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in the order in which they are to be carried out.
    pub steps: Vec<(Step, Reason)>,
    /// The earliest time at which a step becomes due by itself.
    pub look_again_at: Option<Tick>,
}

impl Plan {
    fn add(&mut self, step: Step, reason: Reason) {
        if !self.steps.iter().any(|(other, _)| *other == step) {
            self.steps.push((step, reason));
        }
    }

    /// Reports whether `at` has come. If not, the next plan is made then at the latest.
    fn is_due(&mut self, at: Tick, now: Tick) -> bool {
        if now >= at {
            return true;
        }
        self.look_again_at = Some(self.look_again_at.map_or(at, |other| other.min(at)));
        false
    }
}

/// The desired state of an instance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Drain,
    /// The instance should not run, for this reason.
    End(Reason),
}

/// Plans the host's next steps.
///
/// `assigned` is none until a complete list has been seen. Until then the last known assignment of each instance
/// holds, and no instance ends for lack of one. `may_claim` is true while this host is registered, so that no other
/// bazooka-pm acts in its name. Until `serve_until`, an instance that is no longer assigned goes on if it answers
/// requests.
pub fn plan(
    assigned: Option<&Assigned>,
    locals: &Locals,
    may_claim: bool,
    serve_until: Tick,
    now: Tick,
) -> Plan {
    let mut plan = Plan::default();
    for (id, local) in &locals.instances {
        let said = match assigned {
            Some(assigned) => Some(assigned.instances.get(id)),
            None => planted(Bug::IncompleteListEndsInstances).then_some(None),
        };
        let unsaid =
            assigned.is_some_and(|assigned| assigned.unreadable.contains(id) || assigned.held.contains(id));
        let wanted = match said {
            Some(None) if !unsaid => {
                // Proxies that were cut off together with this host may still send it requests.
                if local.phase == Phase::Running
                    && answers(&local.assignment)
                    && !plan.is_due(serve_until, now)
                {
                    Wanted::Drain
                } else {
                    Wanted::End(Reason::NoLongerAssigned)
                }
            }
            Some(None) | None => wanted_by(local.assignment.desired),
            Some(Some(assignment)) => {
                if *assignment != local.assignment {
                    plan.add(Step::Note(*id, Box::new(assignment.clone())), Reason::AssignmentChanged);
                }
                wanted_by(assignment.desired)
            }
        };
        plan_one(&mut plan, *id, local, wanted, locals, now);
    }
    for (id, assignment) in assigned.iter().flat_map(|assigned| &assigned.instances) {
        if !may_claim || locals.instances.contains_key(id) {
            continue;
        }
        let assignment = Box::new(assignment.clone());
        match assignment.desired {
            Desired::Run => plan.add(Step::Claim(*id, assignment), Reason::Assigned),
            Desired::Drain => plan.add(Step::Decline(*id, assignment), Reason::Draining),
            Desired::Stop => plan.add(Step::Decline(*id, assignment), Reason::ToldToStop),
        }
    }
    plan
}

/// Reports whether an instance answers requests over the network.
fn answers(assignment: &Assignment) -> bool {
    assignment.run.check_for(&assignment.proc) != Check::Started
}

fn wanted_by(desired: Desired) -> Wanted {
    match desired {
        Desired::Run => Wanted::Run,
        Desired::Drain => Wanted::Drain,
        Desired::Stop => Wanted::End(Reason::ToldToStop),
    }
}

fn plan_one(plan: &mut Plan, id: InstanceId, local: &Local, wanted: Wanted, locals: &Locals, now: Tick) {
    match (&local.phase, wanted) {
        (Phase::Found, _) => plan.add(Step::Adopt(id), Reason::FoundHere),
        // An answer is on its way in any case. The plan after it looks at what is wanted.
        (Phase::Starting | Phase::Adopting, _) => {}

        (Phase::Waiting | Phase::Backoff { .. }, Wanted::End(reason)) => plan.add(Step::Finish(id), reason),
        (Phase::Waiting | Phase::Backoff { .. }, Wanted::Drain) => {
            plan.add(Step::Finish(id), Reason::Draining)
        }
        (Phase::Waiting, Wanted::Run) => plan_start(plan, id, local, locals, now),
        (Phase::Backoff { until, .. }, Wanted::Run) => {
            if plan.is_due(*until, now) {
                plan.add(Step::Retry(id), Reason::WaitIsOver);
            }
        }

        (Phase::Booting { .. } | Phase::Running, Wanted::End(reason)) => {
            plan.add(Step::End(id, Ending::Unwanted), reason);
        }
        (Phase::Booting { .. }, Wanted::Run | Wanted::Drain) if local.port_lost => {
            plan.add(Step::End(id, Ending::PortTaken), Reason::PortTaken);
        }
        (Phase::Booting { since }, Wanted::Run | Wanted::Drain) => {
            let run = &local.assignment.run;
            if !answers(&local.assignment) {
                let grace = if local.crashes == 0 { STARTED_GRACE } else { STARTED_AGAIN_GRACE };
                if plan.is_due(since.after(grace), now) {
                    plan.add(Step::Pass(id), Reason::HasNotExited);
                }
            } else if plan.is_due(since.after(run.boot_timeout()), now) {
                plan.add(Step::End(id, Ending::TimedOut), Reason::NotHealthyInTime);
            }
        }
        (Phase::Running, Wanted::Run | Wanted::Drain) => {}

        // An instance that is being killed for another reason gets no stop timeout if it isn't wanted any more: it ends
        // in a moment.
        (Phase::Ending { why, since, forced }, _) => {
            let grace = match why {
                Ending::Unwanted => local.assignment.run.stop_timeout(),
                Ending::TimedOut | Ending::PortTaken => Duration::ZERO,
            };
            if plan.is_due(since.after(grace + SHIM_GRACE * (forced + 1)), now) {
                plan.add(Step::Force(id), Reason::ShimDoesNotEnd);
            }
        }

        (Phase::Ended { .. }, Wanted::End(Reason::NoLongerAssigned)) => {
            plan.add(Step::Forget(id), Reason::Ended);
        }
        (Phase::Ended { .. }, _) => {}
    }
}

fn plan_start(plan: &mut Plan, id: InstanceId, local: &Local, locals: &Locals, now: Tick) {
    let Assignment { app, env, slug, .. } = &local.assignment;
    let slug_is_here = match locals.slugs.get(&slug.sha256) {
        Some(SlugState::Ready) => true,
        Some(SlugState::Fetching) => planted(Bug::StartIgnoresSlug),
        None => {
            plan.add(Step::Fetch(slug.sha256.clone()), Reason::NeededToStart);
            false
        }
    };
    let env_is_here = *env == EMPTY_ENV
        || match locals.envs.get(&(app.clone(), *env)) {
            Some(EnvState::Ready(_)) => true,
            Some(EnvState::Reading) => planted(Bug::StartIgnoresVars),
            Some(EnvState::Later(at)) if !plan.is_due(*at, now) => false,
            Some(EnvState::Later(_)) | None => {
                plan.add(Step::ReadEnv(app.clone(), *env), Reason::NeededToStart);
                false
            }
        };
    if slug_is_here && env_is_here {
        plan.add(Step::Start(id), Reason::AllIsThere);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::host::simulation::{assignment, at};

    const ID: InstanceId = InstanceId(7);

    /// Plans for one instance and returns the steps in words.
    fn planned(desired: Option<Desired>, phase: Option<Phase>, now: u64) -> (Vec<&'static str>, Option<u64>) {
        let mut assigned = Assigned::default();
        if let Some(desired) = desired {
            assigned.instances.insert(ID, Assignment { desired, ..assignment("web") });
        }
        let mut locals = Locals::default();
        let digest = assignment("web").slug.sha256;
        locals.slugs.insert(digest, SlugState::Ready);
        if let Some(phase) = phase {
            let assignment = Assignment { desired: desired.unwrap_or(Desired::Run), ..assignment("web") };
            let mut local = Local::claimed(assignment, at(0).at);
            local.phase = phase;
            locals.instances.insert(ID, local);
        }
        let plan = plan(Some(&assigned), &locals, true, Tick(0), Tick(now));
        (plan.steps.iter().map(|(step, _)| step.name()).collect(), plan.look_again_at.map(|tick| tick.0))
    }

    #[test]
    fn each_phase_meets_what_is_wanted() {
        let booting = Phase::Booting { since: Tick(0) };
        let backoff = Phase::Backoff { until: Tick(500), next_start_at: at(500).at };
        let ending = Phase::Ending { why: Ending::Unwanted, since: Tick(0), forced: 0 };
        let ended = Phase::Ended { fault: None };
        let (run, drain, stop, gone) = (Some(Desired::Run), Some(Desired::Drain), Some(Desired::Stop), None);
        let cases = [
            ("a new one is claimed", run, None, 0, vec!["claim"], None),
            ("one that was never started needn't be drained", drain, None, 0, vec!["decline"], None),
            ("nor stopped", stop, None, 0, vec!["decline"], None),
            ("a waiting one is started", run, Some(Phase::Waiting), 0, vec!["start"], None),
            ("unless it is not wanted", stop, Some(Phase::Waiting), 0, vec!["finish"], None),
            ("or not for long", drain, Some(Phase::Waiting), 0, vec!["finish"], None),
            ("a start's answer is waited for", stop, Some(Phase::Starting), 0, vec![], None),
            ("one that was found is adopted", stop, Some(Phase::Found), 0, vec!["adopt"], None),
            ("a booting one has its time", run, Some(booting.clone()), 100, vec![], Some(60_000)),
            ("and no more than that", run, Some(booting.clone()), 60_000, vec!["time-out"], None),
            ("a draining one may still come up", drain, Some(booting.clone()), 100, vec![], Some(60_000)),
            ("one that isn't wanted is stopped while it boots", stop, Some(booting), 1, vec!["stop"], None),
            ("a running one is left alone", run, Some(Phase::Running), 0, vec![], None),
            ("so is a draining one", drain, Some(Phase::Running), 0, vec![], None),
            ("until it is stopped", stop, Some(Phase::Running), 0, vec!["stop"], None),
            ("one that is no longer assigned is stopped", gone, Some(Phase::Running), 0, vec!["stop"], None),
            ("a crashed one waits", run, Some(backoff.clone()), 499, vec![], Some(500)),
            ("and is tried again", run, Some(backoff.clone()), 500, vec!["retry"], None),
            ("unless it drains", drain, Some(backoff), 500, vec!["finish"], None),
            ("one that ends has its grace", stop, Some(ending.clone()), 1, vec![], Some(35_000)),
            ("after that its shim is killed", stop, Some(ending.clone()), 35_000, vec!["force"], None),
            ("whoever wants it to run again", run, Some(ending), 1, vec![], Some(35_000)),
            ("an ended one stays ended", run, Some(ended.clone()), 0, vec![], None),
            ("until nobody asks after it", gone, Some(ended), 0, vec!["forget"], None),
        ];
        for (what, desired, phase, now, steps, wake) in cases {
            assert_eq!(planned(desired, phase, now), (steps, wake), "{what}");
        }
    }

    #[test]
    fn nothing_is_ended_before_a_complete_list_has_been_seen() {
        let mut locals = Locals::default();
        let mut local = Local::claimed(assignment("web"), at(0).at);
        local.phase = Phase::Running;
        locals.instances.insert(ID, local);
        assert_eq!(plan(None, &locals, true, Tick(0), Tick(0)), Plan::default());
    }

    #[test]
    fn an_assignment_that_cannot_be_read_ends_nothing() {
        let mut locals = Locals::default();
        let mut local = Local::claimed(assignment("web"), at(0).at);
        local.phase = Phase::Running;
        locals.instances.insert(ID, local);
        let assigned = Assigned { unreadable: [ID].into(), ..Assigned::default() };
        assert_eq!(plan(Some(&assigned), &locals, true, Tick(0), Tick(0)), Plan::default());
    }

    #[test]
    fn what_a_restored_coordinator_never_knew_runs_on_and_is_started_again() {
        let mut locals = Locals::default();
        let mut local = Local::claimed(assignment("web"), at(0).at);
        local.phase = Phase::Running;
        locals.instances.insert(ID, local);
        let assigned = Assigned { held: [ID].into(), ..Assigned::default() };
        assert_eq!(plan(Some(&assigned), &locals, true, Tick(0), Tick(0)), Plan::default());
        let crashed = Phase::Backoff { until: Tick(500), next_start_at: at(500).at };
        locals.instances.get_mut(&ID).expect("it is there").phase = crashed;
        assert_eq!(
            plan(Some(&assigned), &locals, true, Tick(0), Tick(500)).steps,
            [(Step::Retry(ID), Reason::WaitIsOver)]
        );
    }

    #[test]
    fn what_was_replaced_while_its_host_was_cut_off_answers_for_a_moment_longer() {
        for (what, proc, phase, now, steps, wake) in [
            ("it is asked still", "web", Phase::Running, 4_999, vec![], Some(Tick(5_000))),
            ("and then no more", "web", Phase::Running, 5_000, vec!["stop"], None),
            ("nobody asks it", "job", Phase::Running, 4_999, vec!["stop"], None),
            ("it can't answer", "web", Phase::Booting { since: Tick(0) }, 4_999, vec!["stop"], None),
            ("it isn't there", "web", Phase::Waiting, 4_999, vec!["finish"], None),
        ] {
            let mut locals = Locals::default();
            let mut local = Local::claimed(assignment(proc), at(0).at);
            local.phase = phase;
            locals.instances.insert(ID, local);
            let plan = plan(Some(&Assigned::default()), &locals, true, Tick(5_000), Tick(now));
            let planned: Vec<&str> = plan.steps.iter().map(|(step, _)| step.name()).collect();
            assert_eq!((planned, plan.look_again_at), (steps, wake), "{what}");
        }
    }

    #[test]
    fn nothing_is_claimed_while_the_host_is_not_registered() {
        let assigned =
            Assigned { instances: BTreeMap::from([(ID, assignment("web"))]), ..Assigned::default() };
        assert_eq!(plan(Some(&assigned), &Locals::default(), false, Tick(0), Tick(0)), Plan::default());
    }

    #[test]
    fn a_slug_and_an_env_are_fetched_once_for_all_that_need_them() {
        let mut locals = Locals::default();
        for id in 1..=100 {
            let assignment = Assignment { env: EnvRef(3), ..assignment("web") };
            locals.instances.insert(InstanceId(id), Local::claimed(assignment, at(0).at));
        }
        let plan = plan(None, &locals, true, Tick(0), Tick(0));
        let steps: Vec<&str> = plan.steps.iter().map(|(step, _)| step.name()).collect();
        assert_eq!(steps, ["fetch", "read-env"]);
    }

    #[test]
    fn one_whose_check_is_its_start_runs_after_a_moment() {
        let mut locals = Locals::default();
        let mut local = Local::claimed(assignment("job"), at(0).at);
        local.phase = Phase::Booting { since: Tick(1_000) };
        locals.instances.insert(ID, local);
        assert_eq!(plan(None, &locals, true, Tick(0), Tick(1_099)).look_again_at, Some(Tick(1_100)));
        let steps = plan(None, &locals, true, Tick(0), Tick(1_100)).steps;
        assert_eq!(steps, [(Step::Pass(ID), Reason::HasNotExited)]);
    }

    #[test]
    fn one_that_has_crashed_has_to_last_longer_until_it_runs() {
        let mut locals = Locals::default();
        let mut local = Local::claimed(assignment("job"), at(0).at);
        (local.phase, local.crashes) = (Phase::Booting { since: Tick(1_000) }, 1);
        locals.instances.insert(ID, local);
        let early = plan(None, &locals, true, Tick(0), Tick(1_999));
        assert_eq!((early.steps, early.look_again_at), (vec![], Some(Tick(2_000))));
        let steps = plan(None, &locals, true, Tick(0), Tick(2_000)).steps;
        assert_eq!(steps, [(Step::Pass(ID), Reason::HasNotExited)]);
    }
}
