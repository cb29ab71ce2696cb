//! The deletion of old releases against whoever refers to them at the same moment.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use visor::{
    keys::{self, Key},
    names::{AppName, EnvRef, InstanceId, ProcName, ReleaseId, RevId},
    quota::{Bounds, MOST_RELEASES},
    rules::pruning::doomed,
    schema::{Env, Extra, Head, Instance, Promoter, Release, ReleaseStatus, Rev, Rm, Slug},
    seal::Sealed,
    snapshot::{AppView, Many},
    store::{Revision, model::ModelStore},
    transitions::{
        envs::NewEnv,
        pruning::{Doomed, Pruned},
        releases::NewRelease,
    },
    visor::{Change, Refusal, Visor, VisorError},
};

/// So long ago that the days of it are counted no more.
fn then() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

fn app() -> AppName {
    "shop".parse().expect("valid")
}

fn web() -> ProcName {
    "web".parse().expect("valid")
}

fn rev(n: u32) -> RevId {
    format!("{n:040x}").parse().expect("valid")
}

/// An app with releases v1 to v9, each with a rev and an env of its own, of which v9 is head.
async fn nine() -> Visor {
    let visor = Visor::new(ModelStore::new().shared());
    visor.set_up().await.expect("it is in memory");
    visor.register_app(&app(), "ada", "t", then()).await.expect("it is free");
    for n in 1..=9 {
        let row = Rev {
            slug: Slug { sha256: format!("{n:064x}").parse().expect("valid"), size_bytes: 1 },
            procs: BTreeMap::from([(web(), "run".to_owned())]),
            kind: "procfile".into(),
            by: "ada".into(),
            at: then(),
            subject: String::new(),
            extra: Extra::new(),
        };
        visor.register_rev(&app(), &rev(n), &row, &BTreeSet::new()).await.expect("it is there");
        let env = Key::Env(app(), EnvRef(n));
        visor.commit(Change::new().put(&env, &sealed(1))).await.expect("it answers");
        let new = NewRelease { env: Some(EnvRef(n)), ..to(n) };
        visor.begin_release(&app(), &new, Promoter::Converger, None, then()).await.expect("it may");
    }
    visor
}

fn sealed(kib: usize) -> Env {
    let sealed = Some(Sealed { cipher: String::new(), payload: "x".repeat(kib << 10), form: 2 });
    Env { sealed, vars: None, links: BTreeSet::new(), by: String::new(), at: then(), extra: Extra::new() }
}

fn to(n: u32) -> NewRelease {
    NewRelease { rev: Some(rev(n)), token: format!("t{n}"), ..NewRelease::default() }
}

/// The same rev once more, in another push.
fn anew(n: u32) -> NewRelease {
    NewRelease { token: "another".into(), ..to(n) }
}

fn back_to(n: u32) -> NewRelease {
    NewRelease { env: Some(EnvRef(n)), back_to: Some(ReleaseId(n)), token: String::new(), ..to(n) }
}

async fn view(visor: &Visor) -> (AppView, Revision) {
    let mut snapshot = visor.read(keys::app(&app())).await.expect("it answers");
    (snapshot.apps.remove(&app()).expect("it is there"), snapshot.revision)
}

/// What may go while five are kept: v1 to v4.
fn old(view: &AppView) -> Doomed {
    let old = doomed(view, &Many::new(), Bounds { releases: 5, ..Bounds::default() }, now());
    assert_eq!(old.releases.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    old
}

/// Prunes from a view that was read before `rival` did something.
async fn prune_after(rival: impl AsyncFnOnce(&Visor)) -> Pruned {
    let visor = nine().await;
    let (seen, at) = view(&visor).await;
    rival(&visor).await;
    let pruned = visor.prune(&app(), &seen, at, &old(&seen)).await.expect("it answers");
    if pruned == Pruned::default() {
        let (after, _) = view(&visor).await;
        assert!((1..=4).all(|n| after.releases.contains_key(&ReleaseId(n))));
    }
    counts(pruned)
}

/// The same without the revision.
fn counts(pruned: Pruned) -> Pruned {
    Pruned { until: 0, ..pruned }
}

const FOUR: Pruned = Pruned { releases: 4, envs: 0, revs: 0, until: 0 };

#[tokio::test]
async fn whoever_comes_to_refer_to_an_old_release_keeps_it() {
    assert_eq!(prune_after(async |_| {}).await, FOUR);
    let nothing = Pruned::default();
    let back = async |visor: &Visor| {
        let begun = visor.begin_release(&app(), &back_to(2), Promoter::Converger, None, now()).await;
        begun.expect("it is kept");
    };
    assert_eq!(prune_after(back).await, nothing, "a rollback");
    let push = async |visor: &Visor| {
        let begun = visor.begin_release(&app(), &anew(3), Promoter::Converger, None, now()).await;
        begun.expect("its rev is there");
    };
    assert_eq!(prune_after(push).await, nothing, "a push of an old rev");
    let beside = async |visor: &Visor| {
        visor.scale(&app(), &web(), 1, Some(&rev(3)), "ada", now()).await.expect("its rev is there");
    };
    assert_eq!(prune_after(beside).await, nothing, "a canary");
    let abort = async |visor: &Visor| {
        let head = Head { release: ReleaseId(4), extra: Extra::new() };
        visor.commit(Change::new().put(&Key::Head(app()), &head)).await.expect("it answers");
    };
    assert_eq!(prune_after(abort).await, nothing, "head goes back");
    let placed = async |visor: &Visor| {
        let instance = Instance {
            host: "host1".parse().expect("valid"),
            proc: web(),
            release: ReleaseId(2),
            rev: rev(2),
            index: 0,
            placed_at: now(),
            reason: String::new(),
            extra: Extra::new(),
        };
        let change = Change::new().put(&Key::Instance(app(), InstanceId(7)), &instance);
        visor.commit(change).await.expect("it answers");
    };
    assert_eq!(prune_after(placed).await, nothing, "a placement from an old view");
    let other = async |visor: &Visor| {
        visor.register_app(&"other".parse().expect("valid"), "eve", "u", now()).await.expect("it is free");
    };
    assert_eq!(prune_after(other).await, FOUR, "another app's rows are no reason");
}

#[tokio::test]
async fn what_is_pruned_is_refused_in_words_and_twice_is_once() {
    let visor = nine().await;
    let (seen, at) = view(&visor).await;
    let old = old(&seen);
    assert_eq!(counts(visor.prune(&app(), &seen, at, &old).await.expect("it answers")), FOUR);
    assert_eq!(visor.prune(&app(), &seen, at, &old).await.expect("it answers"), Pruned::default());
    let refused = visor.begin_release(&app(), &back_to(2), Promoter::Converger, None, now()).await;
    let words = refused.expect_err("it is pruned").to_string();
    assert_eq!(words, "v2 of app 'shop' is pruned; the oldest one kept since is v5");
    let refused = visor.begin_release(&app(), &back_to(10), Promoter::Converger, None, now()).await;
    assert_eq!(refused.expect_err("there is none").to_string(), "app 'shop' has no release v10");
    // Its env and its rev go next; a push builds the rev again, and config vars go on from head's.
    let (seen, at) = view(&visor).await;
    let next = doomed(&seen, &Many::new(), Bounds { releases: 5, ..Bounds::default() }, now());
    let pruned = visor.prune(&app(), &seen, at, &next).await.expect("it answers");
    assert_eq!(counts(pruned), Pruned { envs: 4, revs: 4, ..Pruned::default() });
    let refused = visor.begin_release(&app(), &anew(1), Promoter::Converger, None, now()).await;
    assert!(matches!(refused, Err(VisorError::Refused(Refusal::NoSuchRev(..)))), "{refused:?}");
    assert!(visor::check::findings(&visor.stock().await.expect("it answers").snapshot).is_empty());
}

/// Config vars of this size, made from head's.
async fn config(visor: &Visor, kib: usize) -> NewRelease {
    let (view, _) = view(visor).await;
    let newest = view.envs.keys().next_back().copied().unwrap_or(EnvRef(0));
    let from = view.head_release().map_or(newest, |(_, head)| head.env);
    let (env, row) = (EnvRef(newest.0 + 1), sealed(kib));
    let registration = view.app.as_ref().map(|app| app.token.clone());
    let made = NewEnv { from, env, registration, row, wraps: Default::default(), rms: BTreeMap::new() };
    NewRelease { config: Some(made), token: format!("c{}", env.0), ..NewRelease::default() }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_until_there_is_room() {
    let visor = nine().await;
    let set = async |kib: usize| {
        let new = config(&visor, kib).await;
        visor.begin_release(&app(), &new, Promoter::Converger, None, now()).await
    };
    for _ in 0..12 {
        set(1_300).await.expect("it fits");
    }
    let refused = set(1_300).await.expect_err("it doesn't fit");
    assert!(matches!(refused, VisorError::Refused(Refusal::OverQuota { .. })), "{refused}");
    assert!(refused.to_string().contains("15.3 MiB of the 16.0 MiB"), "{refused}");
    set(10).await.expect("less does");
    // A rollback keeps nothing that isn't there.
    visor.begin_release(&app(), &back_to(2), Promoter::Converger, None, now()).await.expect("it may");
    // An operator gives more, or old ones go.
    let rm = Rm { app_bytes: Some(20 << 20), ..Rm::at("http://rm") };
    let key = Key::Rm("rm1".parse().expect("valid"));
    visor.commit(Change::new().put(&key, &rm)).await.expect("it answers");
    set(1_300).await.expect("it fits now");
}

#[tokio::test]
async fn no_app_has_more_releases_than_can_be_pruned_but_a_way_back() {
    let visor = nine().await;
    let row = Release {
        rev: rev(1),
        env: EnvRef(1),
        by: "ada".into(),
        at: then(),
        reason: String::new(),
        status: ReleaseStatus::Failed,
        cause: None,
        token: String::new(),
        extra: Extra::new(),
    };
    let last = u32::try_from(MOST_RELEASES).expect("it is small");
    for n in 10..=last {
        visor.commit(Change::new().put(&Key::Release(app(), ReleaseId(n)), &row)).await.expect("it answers");
    }
    let refused = visor.begin_release(&app(), &anew(3), Promoter::Converger, None, now()).await;
    assert!(matches!(refused, Err(VisorError::Refused(Refusal::TooManyReleases(..)))), "{refused:?}");
    let beside = visor.scale(&app(), &web(), 1, Some(&rev(3)), "ada", now()).await;
    assert!(matches!(beside, Err(VisorError::Refused(Refusal::TooManyReleases(..)))), "{beside:?}");
    visor
        .begin_release(&app(), &back_to(2), Promoter::Converger, None, now())
        .await
        .expect("a way back is open");
}
