//! How far a service is from what is wanted of it.
//!
//! Owns one pure judgement over an image, shared by whoever waits for a change: `bazooka scale`, a
//! config change, a push that streams its rollout. It knows no time: how long "no room" may last before
//! it is a failure is the caller's to measure ([`NO_ROOM`](crate::deadlines::NO_ROOM)).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::{
    names::{AppName, InstanceId, ProcName, ReleaseId},
    schema::{Desired, Fault, Frozen, Instance, Pending, State, Status},
    snapshot::{AppView, Snapshot},
    store::Revision,
};

/// What hosts were told and what they say, by instance. Where nothing is known yet, there is no entry.
#[derive(Clone, Debug, Default)]
pub struct Observed<'a> {
    /// What each instance is meant to do. One that is missing is taken to run.
    pub desired: BTreeMap<InstanceId, Desired>,
    /// What its host says, and at which revision it said so.
    pub statuses: BTreeMap<InstanceId, (&'a Status, Revision)>,
}

impl<'a> Observed<'a> {
    /// What a snapshot that holds the app's hosts says of its instances.
    pub fn of(snapshot: &'a Snapshot, app: &AppName) -> Self {
        let mut observed = Observed::default();
        let Some(view) = snapshot.apps.get(app) else { return observed };
        for (id, instance) in &view.instances {
            let Some(host) = snapshot.hosts.get(&instance.host) else { continue };
            if let Some(assigned) = host.assigned.get(id) {
                observed.desired.insert(*id, assigned.desired);
            }
            if let Some(status) = host.status.get(id) {
                observed.statuses.insert(*id, (&status.value, status.mod_revision));
            }
        }
        observed
    }

    fn status(&self, id: InstanceId) -> Option<&'a Status> {
        self.statuses.get(&id).map(|(status, _)| *status)
    }

    fn state(&self, id: InstanceId) -> Option<State> {
        self.status(id).map(|status| status.state)
    }

    fn is_meant_to_run(&self, id: InstanceId) -> bool {
        self.desired.get(&id).is_none_or(|desired| *desired == Desired::Run)
    }
}

/// Whether a service is as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Exactly what is wanted runs, and nothing else of it.
    Converged,
    /// As many run as are wanted, some of them of an earlier release, and stay so until the app's rollouts
    /// are let go on.
    Paused,
    /// There is still something to come, and nothing that stands in its way for good.
    Underway,
    /// What is wanted fails: it may get better by itself, but nobody should wait for it.
    Stuck {
        /// Why, in one line, for people.
        cause: String,
    },
}

/// How far a service has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many instances of each release should run.
    pub wanted: BTreeMap<ReleaseId, u32>,
    /// How many of those run and are to go on. Releases that nobody wants are left out.
    pub running: BTreeMap<ReleaseId, u32>,
    /// Those that were placed and don't run yet.
    pub starting: Vec<InstanceId>,
    /// Those that are to go: too many, of an old release, or to be replaced.
    pub stopping: Vec<InstanceId>,
    /// Those of the wanted ones that fail, and why.
    pub failing: Vec<(InstanceId, String)>,
    /// What has no place, and why.
    pub pending: Option<Pending>,
    /// The revision of the latest report of a wanted instance that runs: a proxy that has applied it routes
    /// them all.
    pub routed_at: Revision,
    /// The judgement.
    pub verdict: Verdict,
}

impl Progress {
    /// How many should run in all.
    pub fn wanted_in_all(&self) -> u32 {
        self.wanted.values().sum()
    }

    /// How many of them run.
    pub fn running_in_all(&self) -> u32 {
        self.running.values().sum()
    }
}

/// Judges how far a service has come.
///
/// Instances of a release that is on trial are neither wanted nor in the way: they are the trial's.
pub fn progress(view: &AppView, observed: &Observed<'_>, proc: &ProcName) -> Progress {
    let wanted = view.wanted(proc);
    let trial = view.trial.as_ref().map(|trial| trial.release);
    let mut running = BTreeMap::new();
    let (mut starting, mut stopping, mut failing) = (Vec::new(), Vec::new(), Vec::new());
    let mut routed_at = 0;

    let mut by_release: BTreeMap<ReleaseId, Vec<InstanceId>> = BTreeMap::new();
    for (id, instance) in view.instances.iter().filter(|(_, instance)| instance.proc == *proc) {
        let counts = wanted.contains_key(&instance.release);
        if trial == Some(instance.release) && !counts {
            continue;
        }
        if !counts || !observed.is_meant_to_run(*id) || is_to_be_replaced(view, proc, *id) {
            stopping.push(*id);
        } else {
            by_release.entry(instance.release).or_default().push(*id);
        }
    }
    for (release, mut ids) in by_release {
        let count = wanted.get(&release).copied().unwrap_or(0);
        // The healthiest stay, whoever they are: where there are too many, failing ones go first.
        ids.sort_by_key(|id| (rank(observed.state(*id)), *id));
        for (place, id) in (0..).zip(ids) {
            if place >= count {
                stopping.push(id);
                continue;
            }
            match observed.statuses.get(&id) {
                Some((status, revision)) if status.state == State::Running => {
                    *running.entry(release).or_insert(0) += 1;
                    routed_at = routed_at.max(*revision);
                }
                Some((status, _)) if fails(status) => failing.push((id, cause_of(status))),
                _ => starting.push(id),
            }
        }
    }
    stopping.sort();

    let pending = view.pending.get(proc).map(|pending| pending.value.clone());
    let verdict = if let Some((id, cause)) = failing.iter().find(|(id, _)| is_for_good(observed.status(*id)))
    {
        Verdict::Stuck { cause: format!("instance {id} of {proc}: {cause}") }
    } else if running == wanted && stopping.is_empty() {
        Verdict::Converged
    } else if holds_still(view, observed, proc, &running, &wanted, &stopping) {
        Verdict::Paused
    } else {
        Verdict::Underway
    };
    Progress { wanted, running, starting, stopping, failing, pending, routed_at, verdict }
}

/// Which part that should act isn't there, in words, by a snapshot that has the leader and the hosts.
pub fn missing(there: &Snapshot) -> Option<String> {
    match &there.leader {
        None => Some("no converger is elected, so that nothing is placed or stopped".to_owned()),
        Some(leader) if leader.frozen.is_some() => leader.frozen.as_ref().map(frozen_words),
        Some(_) if there.hosts.values().all(|host| host.host.is_none()) => {
            Some("no host is registered, so that there is nowhere to run anything".to_owned())
        }
        Some(_) => None,
    }
}

/// That the converger holds still, and why.
pub fn frozen_words(frozen: &Frozen) -> String {
    let hosts: Vec<&str> = frozen.hosts.iter().map(|host| host.as_str()).collect();
    format!("so many hosts are gone at once that none is taken for lost: {}", hosts.join(", "))
}

/// How long an instance that crashed before must have run to be more than between two crashes.
const STEADY_AFTER: SignedDuration = SignedDuration::from_secs(1);

/// Whether each instance of the current release's proc crashes: what failed before is no news after a change.
pub fn was_failing(view: &AppView, observed: &Observed<'_>, proc: &ProcName, now: Timestamp) -> bool {
    let Some(head) = &view.head else { return false };
    let mut of_head = instances_of(view, proc)
        .filter(|(id, instance)| instance.release == head.release && observed.is_meant_to_run(*id))
        .peekable();
    let crashes = |status: &Status| match status.state {
        State::Backoff | State::Failed => true,
        State::Running => status.restarts > 0 && now.duration_since(status.since) < STEADY_AFTER,
        State::Claimed => status.restarts > 0,
        State::Stopping | State::Exited | State::Lost => false,
    };
    of_head.peek().is_some() && of_head.all(|(id, _)| observed.status(id).is_some_and(crashes))
}

/// Whether a pause keeps a service as it is: what isn't of a wanted release serves in the place of what is.
fn holds_still(
    view: &AppView,
    observed: &Observed<'_>,
    proc: &ProcName,
    running: &BTreeMap<ReleaseId, u32>,
    wanted: &BTreeMap<ReleaseId, u32>,
    stopping: &[InstanceId],
) -> bool {
    let held = |id: &InstanceId| {
        let old = view.instances.get(id).is_some_and(|row| !wanted.contains_key(&row.release));
        old && observed.is_meant_to_run(*id)
            && observed.state(*id) == Some(State::Running)
            && !view.pending.contains_key(proc)
    };
    let missing = wanted.values().sum::<u32>().saturating_sub(running.values().sum());
    view.pause.is_some()
        && missing > 0
        && stopping.iter().all(held)
        && usize::try_from(missing).is_ok_and(|missing| missing == stopping.len())
}

/// Whether a restart asked for this instance's replacement.
pub fn is_to_be_replaced(view: &AppView, proc: &ProcName, id: InstanceId) -> bool {
    view.formation.get(proc).is_some_and(|formation| {
        formation.replace.contains(&id) || formation.replace_before.is_some_and(|first| id < first)
    })
}

/// Why a status is what it is, in one line.
pub fn cause_of(status: &Status) -> String {
    let state = match status.state {
        State::Claimed => "starting",
        State::Running => "running",
        State::Backoff => "crashed",
        State::Stopping => "stopping",
        State::Exited => "exited",
        State::Failed => "failed",
        State::Lost => "lost with its host",
    };
    status.cause.clone().unwrap_or_else(|| state.to_owned())
}

/// The service's instances of each release, for whoever shows them: ids in order.
pub fn instances_of<'a>(
    view: &'a AppView,
    proc: &ProcName,
) -> impl Iterator<Item = (InstanceId, &'a Instance)> {
    let proc = proc.clone();
    view.instances
        .iter()
        .filter(move |(_, instance)| instance.proc == proc)
        .map(|(id, instance)| (*id, &instance.value))
}

fn rank(state: Option<State>) -> u8 {
    match state {
        Some(State::Running) => 0,
        Some(State::Claimed) => 1,
        None => 2,
        Some(State::Backoff) => 3,
        Some(State::Stopping | State::Exited | State::Failed | State::Lost) => 4,
    }
}

fn fails(status: &Status) -> bool {
    matches!(status.state, State::Backoff | State::Failed | State::Lost | State::Exited)
}

/// Whether waiting on is pointless: a crash is the app's own, while what failed for its host's sake is
/// replaced on another.
fn is_for_good(status: Option<&Status>) -> bool {
    status.is_some_and(|status| match status.state {
        State::Backoff => true,
        State::Failed => !matches!(status.fault, Some(Fault::Host | Fault::NoPort)),
        State::Claimed | State::Running | State::Stopping | State::Exited | State::Lost => false,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;

    use super::*;
    use crate::{
        names::{EnvRef, RevId},
        schema::{App, Extra, Formation, Head, Pause, Promoter, Release, ReleaseStatus, Rev, Slug, Trial},
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

    /// An app with releases v1 to v3 of revs with a `web`, v2 being head.
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

    /// A row of the table: what stands there, and what is to come of it.
    struct Case {
        what: &'static str,
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
        what: "",
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

    #[test]
    fn what_crashes_before_a_change_is_no_news_after_it() {
        use Desired::*;
        use State::*;
        let now = Timestamp::from_second(1_000).expect("a time");
        // Release, desired, state, restarts, and since how many seconds.
        type Crashed = (u32, Desired, State, u32, i64);
        let cases: [(&str, &[Crashed], bool); 11] = [
            ("nothing is there", &[], false),
            ("it runs", &[(2, Run, Running, 0, 60)], false),
            ("it backs off", &[(2, Run, Backoff, 3, 60)], true),
            ("it was given up", &[(2, Run, Failed, 3, 60)], true),
            ("it starts for the first time", &[(2, Run, Claimed, 0, 0)], false),
            ("it starts again", &[(2, Run, Claimed, 1, 0)], true),
            ("it runs between two crashes", &[(2, Run, Running, 2, 0)], true),
            ("it crashed once, and has run since", &[(2, Run, Running, 1, 60)], false),
            ("one of two runs", &[(2, Run, Backoff, 3, 60), (2, Run, Running, 0, 60)], false),
            (
                "one of another release backs off",
                &[(1, Run, Backoff, 3, 60), (2, Run, Running, 0, 60)],
                false,
            ),
            ("what is to stop doesn't count", &[(2, Stop, Backoff, 3, 60)], false),
        ];
        for (what, instances, wanted) in cases {
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
            assert_eq!(was_failing(&view, &observed, &web(), now), wanted, "{what}");
        }
    }

    #[test]
    fn a_service_has_converged_when_what_is_wanted_runs_and_nothing_else() {
        use Desired::*;
        let cases = [
            Case { what: "one is wanted and none is placed", ..NONE },
            Case { what: "none is wanted, none is there", count: 0, verdict: Verdict::Converged, ..NONE },
            Case {
                what: "placed, and its host hasn't spoken",
                instances: &[(1, 2, Run, None, "")],
                starting: &[1],
                ..NONE
            },
            Case {
                what: "starting",
                instances: &[(1, 2, Run, Some(State::Claimed), "")],
                starting: &[1],
                ..NONE
            },
            Case {
                what: "running",
                instances: &[(1, 2, Run, Some(State::Running), "")],
                verdict: Verdict::Converged,
                ..NONE
            },
            Case {
                what: "running, with an old one that still drains",
                instances: &[(1, 1, Drain, Some(State::Running), ""), (2, 2, Run, Some(State::Running), "")],
                stopping: &[1],
                ..NONE
            },
            Case {
                what: "an old release runs instead of the new one",
                instances: &[(1, 1, Run, Some(State::Running), "")],
                stopping: &[1],
                ..NONE
            },
            Case {
                what: "it backs off",
                instances: &[(1, 2, Run, Some(State::Backoff), "exited with status 1, 4 times")],
                verdict: stuck("instance 1 of web: exited with status 1, 4 times"),
                ..NONE
            },
            Case {
                what: "it failed for the app's own sake",
                instances: &[(1, 2, Run, Some(State::Failed), "")],
                verdict: stuck("instance 1 of web: failed"),
                ..NONE
            },
            Case {
                what: "its host was lost: a replacement will come",
                instances: &[(1, 2, Run, Some(State::Lost), "")],
                ..NONE
            },
            Case {
                what: "the failing one of two is the surplus",
                instances: &[(1, 2, Run, Some(State::Backoff), "x"), (2, 2, Run, Some(State::Running), "")],
                stopping: &[1],
                ..NONE
            },
            Case {
                what: "scaled to none, and one still runs",
                count: 0,
                instances: &[(1, 2, Run, Some(State::Running), "")],
                stopping: &[1],
                ..NONE
            },
            Case {
                what: "the trial's instance is nobody else's business",
                trial: Some(3),
                instances: &[(1, 2, Run, Some(State::Running), ""), (2, 3, Run, Some(State::Backoff), "x")],
                verdict: Verdict::Converged,
                ..NONE
            },
            Case {
                what: "a canary is wanted beside",
                beside: &[(3, 1)],
                instances: &[(1, 2, Run, Some(State::Running), ""), (2, 3, Run, Some(State::Running), "")],
                verdict: Verdict::Converged,
                ..NONE
            },
            Case {
                what: "a canary is wanted and missing",
                beside: &[(3, 1)],
                instances: &[(1, 2, Run, Some(State::Running), "")],
                ..NONE
            },
            Case {
                what: "it runs, and is to be replaced",
                replace: &[1],
                instances: &[(1, 2, Run, Some(State::Running), "")],
                stopping: &[1],
                ..NONE
            },
            Case {
                what: "all are to be replaced, one is",
                count: 2,
                replace_before: Some(3),
                instances: &[
                    (1, 2, Run, Some(State::Running), ""),
                    (2, 2, Drain, Some(State::Stopping), ""),
                    (3, 2, Run, Some(State::Running), ""),
                ],
                stopping: &[1, 2],
                ..NONE
            },
            Case {
                what: "a pause keeps an old one in a new one's place",
                count: 2,
                paused: true,
                instances: &[(1, 1, Run, Some(State::Running), ""), (2, 2, Run, Some(State::Running), "")],
                verdict: Verdict::Paused,
                stopping: &[1],
                ..NONE
            },
            Case {
                what: "a pause, and the batch that had begun goes on",
                count: 2,
                paused: true,
                instances: &[
                    (1, 1, Run, Some(State::Running), ""),
                    (2, 1, Drain, Some(State::Running), ""),
                    (3, 2, Run, Some(State::Running), ""),
                ],
                stopping: &[1, 2],
                ..NONE
            },
            Case {
                what: "a pause, and one of the old has crashed",
                count: 2,
                paused: true,
                instances: &[(1, 1, Run, Some(State::Backoff), ""), (2, 2, Run, Some(State::Running), "")],
                stopping: &[1],
                ..NONE
            },
            Case {
                what: "all were replaced",
                replace_before: Some(3),
                instances: &[(3, 2, Run, Some(State::Running), "")],
                verdict: Verdict::Converged,
                ..NONE
            },
        ];
        for case in cases {
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
            assert_eq!(progress.verdict, case.verdict, "{}", case.what);
            assert_eq!(progress.stopping, ids(case.stopping), "{}", case.what);
            assert_eq!(progress.starting, ids(case.starting), "{}", case.what);
        }
    }

    #[test]
    fn what_has_no_place_is_told_and_an_app_that_goes_wants_nothing() {
        let mut view = view(1);
        let row = Pending {
            release: ReleaseId(2),
            short: 1,
            reason: "no host has room".into(),
            refusals: BTreeMap::new(),
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
}
