use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    names::{InstanceId, ProcName},
    schema::{
        App, AppDay, Branch, Env, Extra, Formation, Head, Instance, Promoter, Release, Rev, Slug, Stored,
        Trial,
    },
    seal::Sealed,
    snapshot::Versioned,
};

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

/// A moment that each count of days has long closed.
fn long_ago() -> Timestamp {
    "2020-03-01T12:00:00Z".parse().expect("a time")
}

fn row<T>(value: T, at: i64) -> Versioned<T> {
    Versioned { value, create_revision: at, mod_revision: at, lease: None }
}

fn rev(n: u32) -> RevId {
    format!("{n:040x}").parse().expect("valid")
}

fn web() -> ProcName {
    "web".parse().expect("valid")
}

fn release(n: u32, env: u32, status: ReleaseStatus) -> Release {
    Release {
        rev: rev(n),
        env: EnvRef(env),
        by: "ada".into(),
        at: long_ago(),
        reason: String::new(),
        status,
        cause: None,
        token: format!("t{n}"),
        extra: Extra::new(),
    }
}

/// An app whose releases v1 to `last` each have a rev and an env of their own, of so many KiB; the last is head.
fn app(last: u32, kib: usize) -> AppView {
    let mut view = AppView::default();
    let own = App {
        owner: "ada".into(),
        created_at: long_ago(),
        token: "t".into(),
        destroying: false,
        extra: Extra::new(),
    };
    view.app = Some(row(own, 1));
    for n in 1..=last {
        let at = i64::from(n);
        view.releases.insert(ReleaseId(n), row(release(n, n, ReleaseStatus::Released), at));
        let sealed = Some(Sealed { cipher: String::new(), payload: "x".repeat(kib << 10), form: 2 });
        let (links, by) = (Default::default(), String::new());
        let env = Env { sealed, vars: None, links, by, at: long_ago(), extra: Extra::new() };
        view.envs.insert(EnvRef(n), row(env, at));
        let made = Rev {
            slug: Slug { sha256: "0".repeat(64).parse().expect("valid"), size_bytes: 1 },
            procs: BTreeMap::from([(web(), "run".to_owned())]),
            kind: "procfile".into(),
            by: "ada".into(),
            at: long_ago(),
            subject: String::new(),
            extra: Extra::new(),
        };
        view.revs.insert(rev(n), row(made, at));
        view.head = Some(row(Head { release: ReleaseId(n), extra: Extra::new() }, at));
    }
    view
}

fn instance(view: &mut AppView, id: u64, of: u32) {
    let instance = Instance {
        host: "host1".parse().expect("valid"),
        proc: web(),
        release: ReleaseId(of),
        rev: rev(of),
        index: 0,
        placed_at: long_ago(),
        reason: String::new(),
        extra: Extra::new(),
    };
    view.instances.insert(InstanceId(id), row(instance, 1));
}

fn bounds(releases: u32) -> Bounds {
    Bounds { releases, ..Bounds::default() }
}

fn look(view: &AppView, bounds: Bounds) -> Doomed {
    doomed(view, &Many::new(), bounds, now())
}

/// Deletes what may go, until nothing more may.
fn pruned(mut view: AppView, bounds: Bounds) -> AppView {
    for _ in 0..10 {
        let doomed = look(&view, bounds);
        if doomed.is_empty() {
            return view;
        }
        delete(&mut view, &doomed);
    }
    panic!("it never ends: {:?}", look(&view, bounds));
}

fn delete(view: &mut AppView, doomed: &Doomed) {
    view.releases.retain(|id, _| !doomed.releases.contains_key(id));
    view.envs.retain(|env, _| !doomed.envs.contains_key(env));
    view.revs.retain(|rev, _| !doomed.revs.contains_key(rev));
}

fn left(view: &AppView) -> Vec<u32> {
    view.releases.keys().map(|id| id.0).collect()
}

#[test]
fn the_last_ones_stay_with_what_they_refer_to() {
    let view = pruned(app(60, 1), bounds(50));
    assert_eq!(left(&view), (11..=60).collect::<Vec<_>>());
    assert_eq!(view.envs.keys().map(|env| env.0).collect::<Vec<_>>(), left(&view));
    assert_eq!(view.revs.len(), 50);
    assert!(look(&app(50, 1), bounds(50)).is_empty());
}

#[test]
fn releases_go_before_what_they_refer_to() {
    let mut view = app(12, 1);
    let first = look(&view, bounds(10));
    assert_eq!((first.releases.len(), first.envs.len(), first.revs.len()), (2, 0, 0));
    delete(&mut view, &first);
    let second = look(&view, bounds(10));
    assert_eq!((second.releases.len(), second.envs.len(), second.revs.len()), (0, 2, 2));
}

#[test]
fn what_is_needed_stays_however_old_it_is() {
    let of = |change: &dyn Fn(&mut AppView)| {
        let mut view = app(20, 1);
        change(&mut view);
        left(&pruned(view, bounds(5)))
    };
    let last = |more: &[u32]| -> Vec<u32> { more.iter().copied().chain(16..=20).collect() };
    assert_eq!(of(&|_| {}), last(&[]));
    assert_eq!(of(&|view| instance(view, 1, 3)), last(&[3]));
    let beside = |view: &mut AppView| {
        let formation = Formation { beside: [(ReleaseId(4), 0)].into(), ..Formation::default() };
        view.formation.insert(web(), row(formation, 1));
    };
    assert_eq!(of(&beside), last(&[4]));
    let trial = |view: &mut AppView| {
        let trial = Trial { release: ReleaseId(5), promote: Promoter::Pusher, extra: Extra::new() };
        view.trial = Some(row(trial, 1));
    };
    assert_eq!(of(&trial), last(&[5]));
    // Head, the one before it, and the one to which a rollback goes, which differs from head.
    let old_head = |view: &mut AppView| {
        view.head = Some(row(Head { release: ReleaseId(9), extra: Extra::new() }, 1));
        for n in [7, 8] {
            let same = Release { rev: rev(9), env: EnvRef(9), ..release(n, 9, ReleaseStatus::Released) };
            view.releases.insert(ReleaseId(n), row(same, 1));
        }
    };
    assert_eq!(of(&old_head), last(&[6, 8, 9]));
    let open = |view: &mut AppView| {
        view.releases.insert(ReleaseId(2), row(release(2, 2, ReleaseStatus::Verified), 1));
    };
    assert_eq!(of(&open), last(&[2]));
    let branch = |view: &mut AppView| {
        let (commit, push) = (rev(3), "t3".to_owned());
        let branch = Branch { commit, push, no_rollout: false, extra: Extra::new() };
        let stored = Stored {
            token: "t".into(),
            generation: 1,
            manifest: "0".repeat(64).parse().expect("valid"),
            branches: BTreeMap::from([("refs/heads/master".to_owned(), branch)]),
            head: "refs/heads/master".into(),
            extra: Extra::new(),
        };
        view.stored = Some(row(stored, 1));
    };
    assert_eq!(of(&branch), last(&[3]));
}

#[test]
fn failed_ones_count_among_the_last_and_the_way_back_stays() {
    let mut view = app(4, 1);
    for n in 5..=20 {
        view.releases.insert(ReleaseId(n), row(release(4, 4, ReleaseStatus::Failed), 1));
    }
    assert_eq!(left(&pruned(view, bounds(5))), [3, 4, 16, 17, 18, 19, 20]);
}

#[test]
fn an_app_that_takes_too_much_keeps_fewer() {
    let bounds = Bounds { releases: 50, bytes: 16 << 20, ..Bounds::default() };
    // 12 MiB are left for twelve envs of 1 MiB, less what their rows take.
    let view = pruned(app(30, 1024), bounds);
    assert_eq!(left(&view), (20..=30).collect::<Vec<_>>());
    assert!(quota::bytes(&view) <= bounds.pruned_to());
    assert_eq!(left(&pruned(app(9, 1300), bounds)).len(), 9, "it may take as much");
    // What is needed stays whatever it takes.
    let mut view = app(30, 1024);
    (1..=20).for_each(|n| instance(&mut view, n.into(), n));
    let view = pruned(view, bounds);
    assert_eq!(left(&view), (1..=20).chain([29, 30]).collect::<Vec<_>>());
}

#[test]
fn what_the_days_have_yet_to_count_stays() {
    let mut view = app(20, 1);
    for row in view.releases.values_mut() {
        row.value.at = now();
    }
    for row in view.revs.values_mut() {
        row.value.at = now() - jiff::SignedDuration::from_hours(2);
    }
    let look = |days: &Many<Day, DayStats>| doomed(&view, days, bounds(5), now()).releases.len();
    assert_eq!(look(&Many::new()), 0, "nobody has counted the day");
    let counted = AppDay { revs: 20, releases: 20, counted_to: 10 };
    let day = DayStats { by_app: [("t".to_owned(), counted)].into(), ..DayStats::default() };
    let days = Many::from([(crate::stats::day_of(now()), row(day, 99))]);
    assert_eq!(look(&days), 10);
}

#[test]
fn a_rev_waits_for_its_push_and_an_env_for_the_first() {
    let mut view = app(3, 1);
    view.releases.clear();
    view.head = None;
    assert_eq!(pruned(view.clone(), bounds(5)).envs.keys().collect::<Vec<_>>(), [&EnvRef(3)]);
    // None of ten revs has a release. Five are the newest, and one was registered a minute ago.
    let mut view = app(10, 1);
    view.releases.clear();
    view.head = None;
    view.revs.get_mut(&rev(2)).expect("it is there").value.at = now() - jiff::SignedDuration::from_mins(1);
    let day = DayStats { closed: true, ..DayStats::default() };
    let days = Many::from([(crate::stats::day_of(now()), row(day, 99))]);
    let gone: Vec<RevId> = doomed(&view, &days, bounds(5), now()).revs.into_keys().collect();
    assert_eq!(gone, [1, 3, 4, 5].map(rev));
}

#[test]
fn an_app_that_goes_is_left_to_its_destruction() {
    let mut view = app(60, 1);
    view.app.as_mut().expect("it is there").value.destroying = true;
    assert!(look(&view, bounds(50)).is_empty());
    view.app = None;
    assert!(look(&view, bounds(50)).is_empty());
}

/// What happened to an app: by release, its rev, its env, its status; what runs; which one is head and which is beside.
fn apps() -> impl Strategy<Value = AppView> {
    use ReleaseStatus::{Beside, Failed, Released, Trying, Verified};
    let status = prop::sample::select(vec![Released, Released, Released, Failed, Beside, Trying, Verified]);
    let releases = prop::collection::vec((1..15_u32, 0..15_u32, status), 1..25);
    let some = || prop::collection::vec(1..25_u32, 0..4);
    (releases, 1..25_u32, some(), some(), prop::option::of(1..25_u32), 0..900_usize).prop_map(
        |(releases, head, runs, beside, trial, kib)| {
            let mut view = app(15, kib);
            view.releases.clear();
            let last = u32::try_from(releases.len()).expect("they are few");
            let there = |n: u32| ReleaseId(n.min(last));
            for (n, (of, env, status)) in (1..).zip(releases) {
                let made = Release { rev: rev(of), ..release(n, env, status) };
                view.releases.insert(ReleaseId(n), row(made, i64::from(n)));
            }
            view.head = Some(row(Head { release: there(head), extra: Extra::new() }, 1));
            for (id, of) in (1..).zip(runs) {
                let of = there(of);
                instance(&mut view, id, of.0);
                let rev = view.releases[&of].rev.clone();
                view.instances.get_mut(&InstanceId(id)).expect("it was placed").value.rev = rev;
            }
            let beside = beside.into_iter().map(|n| (there(n), 1)).collect();
            view.formation.insert(web(), row(Formation { beside, ..Formation::default() }, 1));
            view.trial = trial
                .map(|n| row(Trial { release: there(n), promote: Promoter::Pusher, extra: Extra::new() }, 1));
            view
        },
    )
}

proptest! {
    /// Whatever refers to a row, the row stays; a way back stays the same one; and a second look finds nothing.
    #[test]
    fn nothing_that_is_referred_to_goes(view in apps(), most in 2..12_u32, mib in 8..16_u64) {
        let bounds = Bounds { releases: most, bytes: mib << 20, ..Bounds::default() };
        let after = pruned(view.clone(), bounds);
        let heads = view.head.iter().map(|head| head.release);
        let referred = heads
            .chain(view.trial.iter().map(|trial| trial.release))
            .chain(view.instances.values().map(|row| row.release))
            .chain(view.formation.values().flat_map(|row| row.beside.keys().copied()));
        for id in referred {
            prop_assert!(after.releases.contains_key(&id), "{id} is referred to");
        }
        for (id, row) in &after.releases {
            prop_assert!(after.revs.contains_key(&row.rev), "the rev of {id}");
            let env = row.env == EMPTY_ENV || after.envs.contains_key(&row.env);
            prop_assert!(env, "the env of {id}");
        }
        let id = |found: Option<(ReleaseId, &Release)>| found.map(|(id, _)| id);
        prop_assert_eq!(id(way_back(&after)), id(way_back(&view)));
        prop_assert_eq!(after.releases.keys().next_back(), view.releases.keys().next_back(), "numbers go on");
        prop_assert_eq!(after.envs.keys().next_back(), view.envs.keys().next_back(), "refs go on");
        prop_assert!(after.releases.len() >= view.releases.len().min(2));
        prop_assert!(look(&after, bounds).is_empty());
    }

    /// Whichever rows go first, the same are left in the end.
    #[test]
    fn the_order_does_not_matter(view in apps(), most in 2..12_u32, odd in any::<bool>()) {
        // Without a bound in bytes, below which fewer rows are kept than after the first ones have gone.
        let bounds = Bounds { releases: most, bytes: 1 << 40, ..Bounds::default() };
        let mut some = look(&view, bounds);
        some.releases.retain(|id, _| (id.0 % 2 == 1) == odd);
        let mut first = view.clone();
        delete(&mut first, &some);
        prop_assert_eq!(pruned(first, bounds), pruned(view, bounds));
    }
}
