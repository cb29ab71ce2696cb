//! Tests of a cluster that is backed up, changed, lost and restored, on the store in memory.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    check::findings,
    names::ReleaseId,
    schema::{State, Wraps},
    seal::{EnvOf, Keyring, Os, SecretKey, Vars},
    snapshot::Snapshot,
    store::{Store, model::ModelStore},
};

const AT: &str = "2026-01-01T00:00:00Z";

fn now() -> jiff::Timestamp {
    "2026-01-02T00:00:00Z".parse().expect("a time")
}

fn app() -> AppName {
    "a".parse().expect("valid")
}

fn rev(n: u32) -> String {
    format!("{n:040x}")
}

fn assignment(release: u32, env: u32, index: u32) -> Value {
    json!({"desired": "run", "app": "a", "proc": "web", "release": format!("v{release}"), "rev": rev(release),
        "env": format!("e{env}"), "slug": {"sha256": "0".repeat(64), "size_bytes": 1}, "command": "run", "index": index})
}

fn status(id: u16) -> Value {
    json!({"state": "running", "since": AT, "ip": "127.0.0.2", "port": 21_000 + id, "pid": 7})
}

fn host(name: &str) -> Value {
    json!({"address": "127.0.0.2", "url": format!("http://{name}"), "zone": "z", "version": "0",
        "capacity": {"memory_bytes": 1, "instances": 9}, "isolation": "none", "boot_id": "b", "since": AT, "token": name})
}

/// Makes the backup: v1 with two instances, 1 on host1 and 2 on host2; v2 on trial.
async fn backup() -> (Visor, Arc<ModelStore>) {
    let store = Arc::new(ModelStore::new());
    let visor = Visor::new(store.clone());
    visor.set_up().await.expect("it is in memory");
    let release = |n: u32, status: &str| json!({"rev": rev(n), "env": "e0", "by": "me", "at": AT, "reason": "push", "status": status, "token": ""});
    let rev_row = json!({"slug": {"sha256": "0".repeat(64), "size_bytes": 1}, "procs": {"web": "run"}, "kind": "p",
        "by": "me", "at": AT});
    let index = |host: &str, index: u32| {
        json!({"host": host, "proc": "web", "release": "v1", "rev": rev(1), "index": index, "placed_at": AT,
            "reason": "test"})
    };
    let rows = [
        ("apps/a".to_owned(), json!({"owner": "me", "created_at": AT, "token": "t"})),
        (format!("apps/a/revs/{}", rev(1)), rev_row.clone()),
        (format!("apps/a/revs/{}", rev(2)), rev_row),
        ("apps/a/procs/web".into(), json!({"port": 8501})),
        ("ports/8501".into(), json!({"app": "a", "proc": "web", "token": "t", "at": AT})),
        ("apps/a/releases/v1".into(), release(1, "released")),
        ("apps/a/releases/v2".into(), release(2, "trying")),
        ("apps/a/head".into(), json!({"release": "v1"})),
        ("apps/a/formation/web".into(), json!({"count": 2})),
        ("assigned/host1/1".into(), assignment(1, 0, 0)),
        ("apps/a/instances/1".into(), index("host1", 0)),
        ("status/host1/1".into(), status(1)),
        ("assigned/host2/2".into(), assignment(1, 0, 1)),
        ("apps/a/instances/2".into(), index("host2", 1)),
        ("status/host2/2".into(), status(2)),
        ("counters/instance".into(), json!(2)),
        ("counters/port".into(), json!(8501)),
        ("stats/2026-01-01".into(), json!({"started": 2, "last_instance": 2, "counted_at": AT})),
    ];
    let lease = visor.store().grant(Duration::from_secs(10)).await.expect("it is in memory");
    let leased = [
        ("hosts/host1", host("host1")),
        ("hosts/host2", host("host2")),
        ("apps/a/trial", json!({"release": "v2", "promote": "pusher"})),
        ("election/converger", json!({"name": "c", "since": AT})),
        ("proxies/p", json!({"url": "u", "public": "p", "domain": "d", "version": "0", "applied": 7})),
    ];
    let put = |key: String, value: Value, lease| Op::Put { key, value: value.to_string().into(), lease };
    let ops = rows.into_iter().map(|(key, value)| put(key, value, None));
    let ops = ops.chain(leased.into_iter().map(|(key, value)| put(key.into(), value, Some(lease))));
    let txn = Txn { then: ops.collect(), ..Txn::default() };
    visor.store().txn(txn).await.expect("it is in memory");
    (visor, store)
}

async fn image(visor: &Visor) -> Snapshot {
    visor.read(keys_of_all()).await.expect("it is in memory")
}

fn keys_of_all() -> Vec<Keys> {
    crate::keys::everything_and_private()
}

/// Returns a host's answer: each instance with its release and env.
fn found(name: &str, instances: &[(u64, u32, u32)]) -> Found {
    let instances = instances.iter().map(|(id, release, env)| {
        let instance = FoundInstance {
            assignment: serde_json::from_value(assignment(*release, *env, 0)).expect("valid"),
            status: serde_json::from_value(status(u16::try_from(*id).expect("small"))).expect("valid"),
            held: false,
        };
        (InstanceId(*id), instance)
    });
    Found {
        name: name.parse().expect("valid"),
        host: serde_json::from_value(host(name)).expect("valid"),
        seen: 50_000,
        incarnation: None,
        instances: instances.collect(),
        envs: Vec::new(),
    }
}

async fn recovered(visor: &Visor, found: &[Found]) -> (Recovery, Snapshot) {
    let lease = visor.presence_lease().await.expect("it is in memory");
    let recovery = plan(&image(visor).await, found, Moment::Restored(lease), now());
    for op in recovery.changes.iter().flat_map(|change| &change.then) {
        if let Op::Put { key, .. } | Op::Delete(Keys::One(key)) = op {
            let key: Key = key.parse().expect("a key of the schema");
            assert_ne!(key.row().recover, crate::rows::Recover::Kept, "{key} is written");
        }
    }
    visor.carry_out(&recovery).await.expect("nobody else writes");
    (recovery, image(visor).await)
}

fn ids(snapshot: &Snapshot) -> Vec<u64> {
    snapshot.apps[&app()].instances.keys().map(|id| id.0).collect()
}

#[tokio::test]
async fn what_runs_is_taken_up_and_nothing_else_is_left() {
    let (visor, _) = backup().await;
    let hosts = [found("host1", &[(5, 3, 0), (6, 3, 0)]), found("host2", &[(2, 1, 0), (7, 3, 0)])];
    let (recovery, after) = recovered(&visor, &hosts).await;
    assert_eq!(ids(&after), [2, 5, 6, 7]);
    let view = &after.apps[&app()];
    assert_eq!(
        view.head.as_ref().map(|head| head.release),
        Some(ReleaseId(3)),
        "most run it, and it is newer"
    );
    assert_eq!(view.formation.values().map(|row| row.count).collect::<Vec<_>>(), [3]);
    assert!(view.trial.is_none(), "whoever pushed has gone");
    assert!(after.leader.is_none(), "whoever led is elected anew");
    for host in hosts {
        let own = &after.hosts[&host.name];
        for (id, instance) in host.instances {
            assert_eq!(own.assigned[&id].value, instance.assignment);
            assert_eq!(own.status[&id].value, instance.status);
        }
        assert!(own.host.is_some(), "it counts as there until it is back");
    }
    assert!(after.proxies.values().all(|proxy| proxy.applied == 0));
    let last = after.instance_counter.as_ref().map_or(0, |row| row.value);
    assert!(last >= 1_000 + 7, "{last}");
    let counted = crate::stats::count(&after, now());
    assert!(
        counted.iter().all(|day| day.after.as_ref().is_none_or(|row| row.started <= 2)),
        "none was started"
    );
    assert!(after.revision > 50_000, "{}", after.revision);
    assert_eq!(after.schema.as_ref().and_then(|schema| schema.restored), Some(now()));
    let told = recovery.report.join("\n");
    for said in
        ["web 1 of a ended after", "v3 (0000000, e0) is newer", "scaled from 2 to 3", "web 5 of a (v3)"]
    {
        assert!(told.contains(said), "{said:?} in {told}");
    }
    assert!(recovery.by_hand.join("\n").contains("push again for the rest of its Procfile"));
    assert_eq!(findings(&after), []);
}

#[tokio::test]
async fn a_release_that_was_on_trial_and_runs_is_head() {
    let (visor, _) = backup().await;
    let (_, after) = recovered(&visor, &[found("host1", &[(5, 2, 0)]), found("host2", &[(6, 2, 0)])]).await;
    let view = &after.apps[&app()];
    assert_eq!(view.head.as_ref().map(|head| head.release), Some(ReleaseId(2)));
    assert_eq!(findings(&after), []);
}

#[tokio::test]
async fn what_most_do_not_run_stays_beside() {
    let (visor, _) = backup().await;
    let hosts = [found("host1", &[(1, 1, 0), (5, 3, 0)]), found("host2", &[(2, 1, 0)])];
    let (_, after) = recovered(&visor, &hosts).await;
    let view = &after.apps[&app()];
    assert_eq!(view.head.as_ref().map(|head| head.release), Some(ReleaseId(1)));
    let formation = view.formation.values().next().expect("there is one");
    assert_eq!((formation.count, &formation.beside), (2, &BTreeMap::from([(ReleaseId(3), 1)])));
    assert_eq!(findings(&after), []);
}

#[tokio::test]
async fn contradictions_are_shown_and_not_resolved() {
    let (visor, _) = backup().await;
    // Most say one thing of v3, and one host another; it has the name of a rev that nobody pushed.
    let mut wrong = found("host3", &[(9, 3, 0)]);
    let one = wrong.instances.get_mut(&InstanceId(9)).expect("it is there");
    one.assignment.rev = rev(9).parse().expect("valid");
    let hosts =
        [found("host1", &[(1, 1, 0), (5, 3, 0), (6, 3, 0)]), found("host2", &[(2, 1, 0), (7, 3, 0)]), wrong];
    let (recovery, after) = recovered(&visor, &hosts).await;
    let view = &after.apps[&app()];
    assert_eq!(view.head.as_ref().map(|head| head.release), Some(ReleaseId(1)), "{recovery:?}");
    assert_eq!(ids(&after), [1, 2], "what nobody disputes is taken up");
    assert!(!view.releases.contains_key(&ReleaseId(3)) && view.revs.len() == 2, "{view:?}");
    let told = recovery.by_hand.join("\n");
    assert!(told.contains("contradict each other about v3") && told.contains("on host3"), "{told}");
}

#[tokio::test]
async fn a_host_that_contradicts_the_backup_is_not_believed() {
    for what in ["its rev", "its env", "its slug", "its id"] {
        let (visor, _) = backup().await;
        let mut wrong = found("host3", &[(if what == "its id" { 2 } else { 9 }, 1, 0)]);
        let one = wrong.instances.values_mut().next().expect("it is there");
        match what {
            "its rev" => one.assignment.rev = rev(2).parse().expect("valid"),
            "its env" => one.assignment.env = "e7".parse().expect("valid"),
            "its slug" => one.assignment.slug.sha256 = "f".repeat(64).parse().expect("valid"),
            _ => {}
        }
        let hosts = [found("host1", &[(1, 1, 0)]), found("host2", &[(2, 1, 0)]), wrong];
        let (recovery, after) = recovered(&visor, &hosts).await;
        let entered = after.hosts.values().flat_map(|host| host.assigned.keys()).filter(|id| id.0 == 9);
        assert_eq!(entered.count(), 0, "{what}");
        let told = recovery.by_hand.join("\n");
        assert!(told.contains("host3") && told.contains("none of these is entered"), "{what}: {told}");
        let of_host1 = &after.hosts[&"host1".parse().expect("valid")].assigned;
        assert!(of_host1.contains_key(&InstanceId(1)), "{what}: what host1 runs is taken up");
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_keeps_its_rows_and_gets_no_requests() {
    let (visor, _) = backup().await;
    let (recovery, after) = recovered(&visor, &[found("host1", &[(1, 1, 0)])]).await;
    let host2 = &after.hosts[&"host2".parse().expect("valid")];
    assert_eq!((host2.assigned.len(), host2.status.len(), host2.host.is_some()), (1, 0, true));
    assert!(recovery.by_hand.join("\n").contains("host2 didn't answer: 1 instances"));
}

#[tokio::test]
async fn an_app_that_the_backup_does_not_know_is_told_and_ended_on_an_operators_word_alone() {
    let (visor, _) = backup().await;
    let mut host1 = found("host1", &[(1, 1, 0), (9, 1, 0)]);
    let stranger = host1.instances.get_mut(&InstanceId(9)).expect("it is there");
    stranger.assignment.app = "late".parse().expect("valid");
    let (recovery, after) = recovered(&visor, &[host1.clone(), found("host2", &[(2, 1, 0)])]).await;
    assert!(recovery.by_hand.join("\n").contains("of app 'late' runs"), "{:?}", recovery.by_hand);
    assert!(!after.hosts[&host1.name].assigned.contains_key(&InstanceId(9)));
    host1.instances.get_mut(&InstanceId(9)).expect("it is there").held = true;
    for (end_unknown, changes) in [(false, 0), (true, 1)] {
        let late = plan(&after, &[host1.clone()], Moment::Late { end_unknown }, now());
        assert_eq!(late.changes.len(), changes);
        visor.carry_out(&late).await.expect("nobody else writes");
    }
    let mut after = image(&visor).await;
    let own = after.hosts.get_mut(&host1.name).expect("it is there");
    assert_eq!(own.assigned[&InstanceId(9)].desired, crate::schema::Desired::Stop);
    // Once the host has reported the end, the row is deleted.
    let mut status = own.status[&InstanceId(1)].clone();
    status.value.state = State::Exited;
    own.status.insert(InstanceId(9), status);
    let found = findings(&after);
    assert_eq!(
        found.iter().map(|one| (one.rule, one.mendable)).collect::<Vec<_>>(),
        [("instance-of-no-app", true)]
    );
}

#[tokio::test]
async fn config_vars_that_hosts_alone_have_can_be_read_by_an_rm_again() {
    let (visor, _) = backup().await;
    let (host_ring, rm_ring) =
        (Keyring::of(SecretKey::fresh(&mut Os)), Keyring::of(SecretKey::fresh(&mut Os)));
    let vars: Vars = BTreeMap::from([("A".to_owned(), "1".to_owned())]).into();
    let mut handed = host_ring.keep(&app(), EnvRef(4), &vars, &mut Os);
    handed.links.insert("api:web".parse().expect("a link"));
    let rms = host_ring.wrapped_for(&handed, [&rm_ring.current()], &mut Os).expect("it is its own");
    let mut host1 = found("host1", &[(5, 3, 4), (6, 3, 4)]);
    host1.envs.push(FoundEnv { app: app(), env: EnvRef(4), handed: handed.clone(), rms });
    let (_, after) = recovered(&visor, &[host1, found("host2", &[])]).await;
    let view = &after.apps[&app()];
    let wraps: &Wraps = &view.earlier_wraps[&EnvRef(4)];
    let sealed = view.envs[&EnvRef(4)].sealed.as_ref().expect("it is sealed");
    let key = rm_ring.unwrap(&wraps.rms).expect("it is wrapped for the rm");
    let app = app();
    let of = EnvOf { app: &app, registration: None, env: EnvRef(4) };
    assert_eq!(key.open(of, sealed), Ok(vars));
    assert_eq!(wraps.hosts.keys().collect::<Vec<_>>(), [&handed.to]);
    assert_eq!(view.envs[&EnvRef(4)].links, handed.links);
    assert_eq!(view.releases[&ReleaseId(3)].env, EnvRef(4));
}

#[tokio::test]
async fn one_that_was_cut_short_is_done_again() {
    let (visor, store) = backup().await;
    let hosts = [found("host1", &[(5, 3, 0)]), found("host2", &[(6, 3, 0)])];
    let lease = visor.presence_lease().await.expect("it is in memory");
    let first = plan(&image(&visor).await, &hosts, Moment::Restored(lease), now());
    for change in first.changes.iter().take(first.changes.len() / 2) {
        visor.commit(change.clone()).await.expect("it is in memory");
    }
    let (_, after) = recovered(&visor, &hosts).await;
    assert_eq!(ids(&after), [5, 6]);
    assert_eq!(findings(&after), []);
    let page = store.range(Keys::One(STEP.into()), None).await.expect("it is in memory");
    assert!(page.entries.is_empty(), "nothing is left of the steps");
}
