//! Tests of turns at an app's repository, and of what only their holder may move, on the store in memory.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use visor::{
    names::{AppName, RevId},
    schema::{Branch, Extra, Promoter, Stored, Turn},
    store::model::{Fate, ModelStore},
    transitions::{releases::NewRelease, repos::Taken},
    visor::{Refusal, Visor, VisorError},
};

fn app() -> AppName {
    "a".parse().expect("an app name")
}

async fn cluster() -> (ModelStore, Visor) {
    let store = ModelStore::new();
    let visor = Visor::new(store.client().shared());
    visor.set_up().await.expect("it is empty");
    visor.register_app(&app(), "ada", "t", Timestamp::UNIX_EPOCH).await.expect("the name is free");
    (store, visor)
}

async fn lease(visor: &Visor) -> i64 {
    visor.store().grant(Duration::from_secs(10)).await.expect("the model answers")
}

fn turn(rm: &str, process: &str, push: &str) -> Turn {
    Turn { rm: rm.parse().expect("a name"), process: process.into(), push: push.into(), extra: Extra::new() }
}

fn state(generation: u64, commit: char) -> Stored {
    let commit: RevId = commit.to_string().repeat(40).parse().expect("a rev");
    let branch = Branch { commit, push: format!("push{generation}"), no_rollout: false, extra: Extra::new() };
    Stored {
        token: "t".into(),
        generation,
        manifest: format!("{generation:064x}").parse().expect("a digest"),
        branches: BTreeMap::from([("refs/heads/master".into(), branch)]),
        head: "refs/heads/master".into(),
        extra: Extra::new(),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, VisorError>) -> Refusal {
    match result {
        Err(VisorError::Refused(refusal)) => refusal,
        other => panic!("it was to be refused: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_one_pushs_until_its_lease_or_its_process_has_ended() {
    let (_, visor) = cluster().await;
    let (first, second) = (lease(&visor).await, lease(&visor).await);
    let one = turn("rm1", "p1", "push1");
    assert_eq!(visor.take_turn(&app(), &one, first).await.expect("it answers"), Taken::Ours);
    assert_eq!(visor.take_turn(&app(), &one, first).await.expect("it answers"), Taken::Ours, "once more");
    for other in [turn("rm2", "p2", "push2"), turn("rm1", "p1", "push3")] {
        let taken = visor.take_turn(&app(), &other, second).await.expect("it answers");
        assert!(matches!(taken, Taken::Held(held) if held.push == "push1"), "{other:?}");
    }
    let restarted = turn("rm1", "p9", "push4");
    assert_eq!(visor.take_turn(&app(), &restarted, second).await.expect("it answers"), Taken::Ours);
    visor.store().revoke(second).await.expect("it is there");
    let third = lease(&visor).await;
    let taken = visor.take_turn(&app(), &turn("rm2", "p2", "push2"), third).await.expect("it answers");
    assert_eq!(taken, Taken::Ours);
    visor.destroy_app(&app()).await.expect("it is there");
    assert_eq!(refusal(visor.take_turn(&app(), &one, third).await), Refusal::Destroying(app()));
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_moves_within_the_turn_and_from_what_was_seen() {
    let (_, visor) = cluster().await;
    let held = lease(&visor).await;
    let store = async |push: &'static str, before, after: &Stored| {
        visor.store_repo(&app(), push, before, after).await
    };
    assert_eq!(refusal(store("push1", None, &state(1, '1')).await), Refusal::TurnOver(app()));
    visor.take_turn(&app(), &turn("rm1", "p", "push1"), held).await.expect("it answers");
    store("push1", None, &state(1, '1')).await.expect("it is its turn");
    store("push1", None, &state(1, '1')).await.expect("a lost reply's own work");
    assert_eq!(refusal(store("push1", None, &state(2, '2')).await), Refusal::RepoMoved(app()));
    let now = visor.stored(&app()).await.expect("it answers").expect("it is there");
    assert_eq!(now.value, state(1, '1'));
    assert_eq!(
        refusal(store("push2", Some(now.mod_revision), &state(2, '2')).await),
        Refusal::TurnOver(app())
    );
    // The lease has ended, and the turn with it: an rm that was paused moves nothing.
    visor.store().revoke(held).await.expect("it is there");
    assert_eq!(
        refusal(store("push1", Some(now.mod_revision), &state(2, '2')).await),
        Refusal::TurnOver(app())
    );
    let mut another = state(2, '2');
    another.token = "a registration before".into();
    assert_eq!(refusal(store("push1", None, &another).await), Refusal::NoSuchApp(app()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_leaves_one_turn_and_one_move() {
    for fate in [Fate::LoseReply, Fate::LoseRequest] {
        let (store, _) = cluster().await;
        let client = store.client();
        let faults = client.faults();
        let visor = Visor::new(client.shared());
        let held = lease(&visor).await;
        visor.stored(&app()).await.expect("it answers");
        faults.next_writes([fate]);
        let taken = visor.take_turn(&app(), &turn("rm1", "p", "push1"), held).await.expect("it answers");
        assert_eq!(taken, Taken::Ours, "{fate:?}");
        faults.next_writes([fate]);
        visor.store_repo(&app(), "push1", None, &state(1, '1')).await.expect("read back");
        assert_eq!(visor.stored(&app()).await.expect("it answers").expect("there").value, state(1, '1'));
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_whose_turn_is_over_begins_no_release() {
    let (_, visor) = cluster().await;
    let commit: RevId = "1".repeat(40).parse().expect("a rev");
    let rev = visor::schema::Rev {
        slug: visor::schema::Slug { sha256: "0".repeat(64).parse().expect("a digest"), size_bytes: 1 },
        procs: BTreeMap::from([("web".parse().expect("a name"), "run".to_owned())]),
        kind: "procfile".into(),
        by: "ada".into(),
        at: Timestamp::UNIX_EPOCH,
        subject: String::new(),
        extra: Extra::new(),
    };
    visor.register_rev(&app(), &commit, &rev, &Default::default()).await.expect("new");
    let new = NewRelease {
        rev: Some(commit),
        token: "push1".into(),
        turn: Some("push1".into()),
        ..NewRelease::default()
    };
    let begin =
        async || visor.begin_release(&app(), &new, Promoter::Pusher, None, Timestamp::UNIX_EPOCH).await;
    assert_eq!(refusal(begin().await), Refusal::TurnOver(app()));
    let held = lease(&visor).await;
    visor.take_turn(&app(), &turn("rm1", "p", "push2"), held).await.expect("it answers");
    assert_eq!(refusal(begin().await), Refusal::TurnOver(app()), "it is another's");
    visor.store().revoke(held).await.expect("it is there");
    let held = lease(&visor).await;
    visor.take_turn(&app(), &turn("rm1", "p", "push1"), held).await.expect("it answers");
    begin().await.expect("it is its turn");
}
