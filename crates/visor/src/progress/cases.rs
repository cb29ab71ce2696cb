//! Tests of the judgement, case by case.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use Desired::{Drain, Run};

use super::*;
use crate::{
    names::{EnvRef, RevId},
    schema::{
        App, Extra, Formation, Head, Instance, Pause, Promoter, Release, ReleaseStatus, Rev, Slug, Trial,
    },
    snapshot::Versioned,
};

fn at<T>(value: T, revision: Revision) -> Versioned<T> {
    Versioned { value, create_revision: revision, mod_revision: revision, lease: None }
}

fn web() -> ProcName {
    "web".parse().expect("valid")
}

fn rev(n: u32) -> RevId {
    format!("{n:040x}").parse().expect("forty digits")
}

/// Returns an app with releases v1 to v3 of revs with a `web`; v2 is head.
fn view(count: u32) -> AppView {
    let now = Timestamp::UNIX_EPOCH;
    let app = App {
        owner: "ada".into(),
        created_at: now,
        token: "t".into(),
        destroying: false,
        extra: Extra::new(),
    };
    let mut view = AppView { app: Some(at(app, 1)), ..AppView::default() };
    for n in 1..=3 {
        let slug = Slug { sha256: format!("{n:064x}").parse().expect("valid"), size_bytes: 1 };
        let row = Rev {
            slug,
            procs: BTreeMap::from([(web(), "run".to_owned())]),
            kind: "procfile".into(),
            by: "ada".into(),
            at: now,
            subject: String::new(),
            extra: Extra::new(),
        };
        view.revs.insert(rev(n), at(row, 2));
        let release = Release {
            rev: rev(n),
            env: EnvRef(0),
            by: "ada".into(),
            at: now,
            reason: "push".into(),
            status: ReleaseStatus::Released,
            cause: None,
            token: String::new(),
            extra: Extra::new(),
        };
        view.releases.insert(ReleaseId(n), at(release, 3));
    }
    view.head = Some(at(Head { release: ReleaseId(2), extra: Extra::new() }, 4));
    view.formation.insert(web(), at(Formation { count, ..Formation::default() }, 5));
    view
}

fn place(view: &mut AppView, id: u64, release: u32) {
    let instance = Instance {
        host: "h1".parse().expect("valid"),
        proc: web(),
        release: ReleaseId(release),
        rev: rev(release),
        index: 0,
        placed_at: Timestamp::UNIX_EPOCH,
        reason: "scale".into(),
        extra: Extra::new(),
    };
    view.instances.insert(InstanceId(id), at(instance, 6));
}

/// A row of the table: the instances, and the expected judgement.
struct Case {
    count: u32,
    beside: &'static [(u32, u32)],
    trial: Option<u32>,
    replace: &'static [u64],
    replace_before: Option<u64>,
    paused: bool,
    /// Id, release, desired, state and cause.
    instances: &'static [(u64, u32, Desired, Option<State>, &'static str)],
    verdict: Verdict,
    stopping: &'static [u64],
    starting: &'static [u64],
}

const NONE: Case = Case {
    count: 1,
    beside: &[],
    trial: None,
    replace: &[],
    replace_before: None,
    paused: false,
    instances: &[],
    verdict: Verdict::Underway,
    stopping: &[],
    starting: &[],
};

fn stuck(cause: &str) -> Verdict {
    Verdict::Stuck { cause: cause.into() }
}

/// Judges a case and compares.
fn judge(case: Case) {
    let mut view = view(case.count);
    let formation = view.formation.get_mut(&web()).expect("it was set");
    formation.value.beside = case.beside.iter().map(|(r, n)| (ReleaseId(*r), *n)).collect();
    formation.value.replace = case.replace.iter().copied().map(InstanceId).collect::<BTreeSet<_>>();
    formation.value.replace_before = case.replace_before.map(InstanceId);
    view.trial = case.trial.map(|release| {
        let release = ReleaseId(release);
        at(Trial { release, promote: Promoter::Converger, extra: Extra::new() }, 7)
    });
    let pause = Pause { by: "ada".into(), at: Timestamp::UNIX_EPOCH, extra: Extra::new() };
    view.pause = case.paused.then(|| at(pause, 7));
    let mut statuses = BTreeMap::new();
    let mut observed = Observed::default();
    for (id, release, desired, state, cause) in case.instances {
        place(&mut view, *id, *release);
        observed.desired.insert(InstanceId(*id), *desired);
        if let Some(state) = state {
            let mut status = Status::new(*state, Timestamp::UNIX_EPOCH);
            status.cause = (!cause.is_empty()).then(|| (*cause).to_owned());
            statuses.insert(InstanceId(*id), status);
        }
    }
    observed.statuses = statuses.iter().map(|(id, status)| (*id, (status, 9))).collect();
    let progress = progress(&view, &observed, &web());
    let ids = |ids: &[u64]| ids.iter().copied().map(InstanceId).collect::<Vec<_>>();
    assert_eq!(progress.verdict, case.verdict);
    assert_eq!(progress.stopping, ids(case.stopping));
    assert_eq!(progress.starting, ids(case.starting));
}

#[test]
fn one_is_wanted_and_none_is_placed() {
    judge(Case { ..NONE });
}

#[test]
fn none_is_wanted_none_is_there() {
    judge(Case { count: 0, verdict: Verdict::Converged, ..NONE });
}

#[test]
fn placed_and_its_host_hasnt_spoken() {
    judge(Case { instances: &[(1, 2, Run, None, "")], starting: &[1], ..NONE });
}

#[test]
fn starting() {
    judge(Case { instances: &[(1, 2, Run, Some(State::Claimed), "")], starting: &[1], ..NONE });
}

#[test]
fn running() {
    judge(Case { instances: &[(1, 2, Run, Some(State::Running), "")], verdict: Verdict::Converged, ..NONE });
}

#[test]
fn running_with_an_old_one_that_still_drains() {
    judge(Case {
        instances: &[(1, 1, Drain, Some(State::Running), ""), (2, 2, Run, Some(State::Running), "")],
        stopping: &[1],
        ..NONE
    });
}

#[test]
fn an_old_release_runs_instead_of_the_new_one() {
    judge(Case { instances: &[(1, 1, Run, Some(State::Running), "")], stopping: &[1], ..NONE });
}

#[test]
fn it_backs_off() {
    judge(Case {
        instances: &[(1, 2, Run, Some(State::Backoff), "exited with status 1, 4 times")],
        verdict: stuck("instance 1 of web: exited with status 1, 4 times"),
        ..NONE
    });
}

#[test]
fn it_failed_for_the_apps_own_sake() {
    judge(Case {
        instances: &[(1, 2, Run, Some(State::Failed), "")],
        verdict: stuck("instance 1 of web: failed"),
        ..NONE
    });
}

#[test]
fn its_host_was_lost_a_replacement_will_come() {
    judge(Case { instances: &[(1, 2, Run, Some(State::Lost), "")], ..NONE });
}

#[test]
fn the_failing_one_of_two_is_the_surplus() {
    judge(Case {
        instances: &[(1, 2, Run, Some(State::Backoff), "x"), (2, 2, Run, Some(State::Running), "")],
        stopping: &[1],
        ..NONE
    });
}

#[test]
fn scaled_to_none_and_one_still_runs() {
    judge(Case { count: 0, instances: &[(1, 2, Run, Some(State::Running), "")], stopping: &[1], ..NONE });
}

#[test]
fn the_trials_instance_is_nobody_elses_business() {
    judge(Case {
        trial: Some(3),
        instances: &[(1, 2, Run, Some(State::Running), ""), (2, 3, Run, Some(State::Backoff), "x")],
        verdict: Verdict::Converged,
        ..NONE
    });
}

#[test]
fn a_canary_is_wanted_beside() {
    judge(Case {
        beside: &[(3, 1)],
        instances: &[(1, 2, Run, Some(State::Running), ""), (2, 3, Run, Some(State::Running), "")],
        verdict: Verdict::Converged,
        ..NONE
    });
}

#[test]
fn a_canary_is_wanted_and_missing() {
    judge(Case { beside: &[(3, 1)], instances: &[(1, 2, Run, Some(State::Running), "")], ..NONE });
}

#[test]
fn it_runs_and_is_to_be_replaced() {
    judge(Case {
        replace: &[1],
        instances: &[(1, 2, Run, Some(State::Running), "")],
        stopping: &[1],
        ..NONE
    });
}

#[test]
fn all_are_to_be_replaced_one_is() {
    judge(Case {
        count: 2,
        replace_before: Some(3),
        instances: &[
            (1, 2, Run, Some(State::Running), ""),
            (2, 2, Drain, Some(State::Stopping), ""),
            (3, 2, Run, Some(State::Running), ""),
        ],
        stopping: &[1, 2],
        ..NONE
    });
}

#[test]
fn a_pause_keeps_an_old_one_in_a_new_ones_place() {
    judge(Case {
        count: 2,
        paused: true,
        instances: &[(1, 1, Run, Some(State::Running), ""), (2, 2, Run, Some(State::Running), "")],
        verdict: Verdict::Paused,
        stopping: &[1],
        ..NONE
    });
}

#[test]
fn a_pause_and_the_batch_that_had_begun_goes_on() {
    judge(Case {
        count: 2,
        paused: true,
        instances: &[
            (1, 1, Run, Some(State::Running), ""),
            (2, 1, Drain, Some(State::Running), ""),
            (3, 2, Run, Some(State::Running), ""),
        ],
        stopping: &[1, 2],
        ..NONE
    });
}

#[test]
fn a_pause_and_one_of_the_old_has_crashed() {
    judge(Case {
        count: 2,
        paused: true,
        instances: &[(1, 1, Run, Some(State::Backoff), ""), (2, 2, Run, Some(State::Running), "")],
        stopping: &[1],
        ..NONE
    });
}

#[test]
fn all_were_replaced() {
    judge(Case {
        replace_before: Some(3),
        instances: &[(3, 2, Run, Some(State::Running), "")],
        verdict: Verdict::Converged,
        ..NONE
    });
}

#[test]
fn a_proc_was_failing_if_each_of_heads_instances_crashes() {
    use State::{Backoff, Claimed, Running};
    let now = Timestamp::from_second(1_000).expect("a time");
    // Release, desired, state, restarts, and for how many seconds it has been in that state.
    let failing = |instances: &[(u32, Desired, State, u32, i64)]| {
        let mut view = view(2);
        let mut statuses = Vec::new();
        for (id, (release, desired, state, restarts, ago)) in (1..).zip(instances) {
            place(&mut view, id, *release);
            let mut status = Status::new(*state, now - SignedDuration::from_secs(*ago));
            status.restarts = *restarts;
            statuses.push((InstanceId(id), *desired, status));
        }
        let mut observed = Observed::default();
        for (id, desired, status) in &statuses {
            observed.desired.insert(*id, *desired);
            observed.statuses.insert(*id, (status, 7));
        }
        was_failing(&view, &observed, &web(), now)
    };
    assert!(failing(&[(2, Desired::Run, Backoff, 3, 60)]));
    assert!(failing(&[(2, Desired::Run, Claimed, 1, 0)]), "it starts again");
    assert!(failing(&[(2, Desired::Run, Running, 2, 0)]), "it runs between two crashes");
    assert!(!failing(&[(2, Desired::Run, Running, 1, 60)]), "it crashed once, and has run since");
    assert!(!failing(&[(1, Desired::Run, Backoff, 3, 60), (2, Desired::Run, Running, 0, 60)]), "not head's");
    assert!(!failing(&[(2, Desired::Stop, Backoff, 3, 60)]), "what is to stop doesn't count");
}

#[test]
fn of_too_many_the_highest_place_goes_as_the_converger_has_it() {
    let mut view = view(1);
    place(&mut view, 1, 2);
    place(&mut view, 2, 2);
    view.instances.get_mut(&InstanceId(1)).expect("it is there").value.index = 1;
    let status = Status::new(State::Running, Timestamp::UNIX_EPOCH);
    let mut observed = Observed::default();
    observed.statuses.insert(InstanceId(1), (&status, 20));
    observed.statuses.insert(InstanceId(2), (&status, 17));
    assert_eq!(progress(&view, &observed, &web()).stopping, [InstanceId(1)]);
}

#[test]
fn what_has_no_place_is_told_and_an_app_that_goes_wants_nothing() {
    let mut view = view(1);
    let row = Pending {
        release: ReleaseId(2),
        short: 1,
        reason: "no host has room".into(),
        refusals: BTreeMap::new(),
        reasons: Default::default(),
        since: Timestamp::UNIX_EPOCH,
        extra: Extra::new(),
    };
    view.pending.insert(web(), at(row.clone(), 8));
    let before = progress(&view, &Observed::default(), &web());
    assert_eq!(before.pending, Some(row));
    assert_eq!(before.verdict, Verdict::Underway);
    view.app.as_mut().expect("it is there").value.destroying = true;
    let after = progress(&view, &Observed::default(), &web());
    assert_eq!((after.wanted_in_all(), after.verdict), (0, Verdict::Converged));
}

#[test]
fn the_revision_to_be_routed_is_the_latest_running_ones() {
    let mut view = view(2);
    place(&mut view, 1, 2);
    place(&mut view, 2, 2);
    let status = Status::new(State::Running, Timestamp::UNIX_EPOCH);
    let mut observed = Observed::default();
    observed.statuses.insert(InstanceId(1), (&status, 20));
    observed.statuses.insert(InstanceId(2), (&status, 17));
    let progress = progress(&view, &observed, &web());
    assert_eq!((progress.routed_at, progress.running_in_all()), (20, 2));
}
