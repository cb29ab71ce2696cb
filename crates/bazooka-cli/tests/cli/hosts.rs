//! Hosts: how they are listed, closed, emptied and given up.

use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use visor::{
    keys::Key,
    names::{HostName, InstanceId, ReleaseId},
    schema::{
        Assignment, Desired, Extra, Frozen, Instance, Leader, Pending, RunSettings, Slug, State, Status,
    },
    snapshot::Versioned,
    transitions::placement::archiving,
};

use crate::{
    player::register,
    rig::{REV, Rig, app, end, proc, words},
};

fn host(name: &str) -> HostName {
    name.parse().expect("valid")
}

async fn registered(rig: &Rig, names: &[&str]) {
    let lease = rig.visor.store().grant(std::time::Duration::from_secs(300)).await.expect("it is granted");
    for name in names {
        register(&rig.visor, &host(name), lease, "http://127.0.0.1:9").await;
    }
}

/// An instance of goto-rocket's web that runs on a host.
async fn runs(rig: &Rig, id: u64, on: &str, memory_limit_bytes: Option<u64>) {
    let (id, on) = (InstanceId(id), host(on));
    let mut run = RunSettings::default();
    run.limits.memory_limit_bytes = memory_limit_bytes;
    let assignment = Assignment {
        desired: Desired::Run,
        reason: None,
        app: app("goto-rocket"),
        proc: proc("web"),
        release: ReleaseId(1),
        rev: REV.parse().expect("valid"),
        env: "e0".parse().expect("valid"),
        slug: Slug { sha256: "0".repeat(64).parse().expect("valid"), size_bytes: 1 },
        command: "run".into(),
        index: 0,
        run,
        links: Default::default(),
        sources: Vec::new(),
        trial: false,
        extra: Extra::new(),
    };
    let instance = Instance {
        host: on.clone(),
        proc: proc("web"),
        release: ReleaseId(1),
        rev: REV.parse().expect("valid"),
        index: 0,
        placed_at: Timestamp::now(),
        reason: String::new(),
        extra: Extra::new(),
    };
    rig.write(&Key::Assigned(on.clone(), id), &assignment).await;
    rig.write(&Key::Instance(app("goto-rocket"), id), &instance).await;
    rig.write(&Key::Status(on, id), &Status::new(State::Running, Timestamp::now())).await;
}

async fn ends(rig: &Rig, id: u64, on: &str) {
    let (id, on) = (InstanceId(id), host(on));
    let instance: Versioned<Instance> =
        rig.visor.get(&Key::Instance(app("goto-rocket"), id)).await.expect("readable").expect("it is there");
    let assigned = rig.visor.get(&Key::Assigned(on.clone(), id)).await.expect("readable");
    let status = rig.visor.get(&Key::Status(on, id)).await.expect("readable");
    let away = archiving(
        &app("goto-rocket"),
        id,
        &instance,
        assigned.as_ref(),
        status.as_ref(),
        &[],
        Timestamp::now(),
    );
    rig.visor.commit(away).await.expect("the coordinator answers");
}

fn leader(frozen: &[&str]) -> Leader {
    let now = Timestamp::now();
    let hosts = frozen.iter().map(|name| host(name)).collect();
    Leader {
        name: "converger1".into(),
        since: now,
        url: String::new(),
        frozen: (!frozen.is_empty()).then_some(Frozen { since: now, hosts, extra: Extra::new() }),
        extra: Extra::new(),
    }
}

#[tokio::test]
async fn hosts_are_listed_with_how_they_stand_and_what_is_free() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    registered(&rig, &["host1", "host2", "host3"]).await;
    runs(&rig, 1, "host1", Some(256 << 20)).await;
    runs(&rig, 2, "host1", None).await;
    runs(&rig, 3, "host3", None).await;
    runs(&rig, 4, "host4", None).await;
    runs(&rig, 5, "host5", None).await;
    rig.write(&Key::Leader, &leader(&["host5"])).await;
    assert_eq!(
        rig.bazooka(&["hosts", "cordon", "host2"]).await.ok().stdout,
        "host2 is cordoned: nothing new is placed there\n"
    );
    rig.bazooka(&["hosts", "drain", "host3", "--no-wait"]).await.ok();
    let ran = rig.bazooka(&["hosts"]).await.exits(0);
    assert_eq!(
        words(&ran.stdout),
        [
            "HOST ZONE STATE VERSION ADDRESS INSTANCES FREE-SLOTS MEMORY FREE-MEMORY ISOLATION",
            "host1 default up 0 1.2.3.4 2 9998 272M 752M none",
            "host2 default cordoned 0 1.2.3.4 0 10000 0B 1G none",
            "host3 default draining 0 1.2.3.4 1 9999 16M 1008M none",
            "host4 - gone - - 1 - 16M - -",
            "host5 - frozen - - 1 - 16M - -",
        ]
    );
    assert!(ran.stderr.contains("host5; hint: `bazooka hosts unfreeze`"), "{ran:?}");
    ends(&rig, 3, "host3").await;
    let json = rig.bazooka(&["hosts", "--json"]).await.ok().stdout;
    let rows: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(rows[0]["memory_used_bytes"], 272 << 20);
    assert_eq!((&rows[2]["state"], &rows[2]["draining"]), (&"drained".into(), &true.into()));
    for name in ["host2", "host3"] {
        assert_eq!(rig.bazooka(&["hosts", "uncordon", name]).await.ok().stdout, format!("{name} is open\n"));
    }
    let states: Vec<String> = words(&rig.bazooka(&["hosts"]).await.exits(0).stdout);
    assert!(states[2].contains(" up ") && states[3].contains(" up "), "{states:?}");
}

#[tokio::test]
async fn a_drain_has_a_dot_for_each_instance_that_has_ended_and_returns_when_none_is_left() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    registered(&rig, &["host1", "host2"]).await;
    rig.write(&Key::Leader, &leader(&[])).await;
    runs(&rig, 1, "host1", None).await;
    runs(&rig, 2, "host2", None).await;
    runs(&rig, 3, "host2", None).await;
    let mut drain = rig.start(&["hosts", "drain", "host2"]);
    let mut out = BufReader::new(drain.stdout.take().expect("it is piped"));
    let mut read = async |wanted: &str| {
        let mut seen = vec![0; wanted.len()];
        let read = tokio::time::timeout(std::time::Duration::from_secs(10), out.read_exact(&mut seen)).await;
        read.expect("it is said in ten seconds").expect("it goes on");
        assert_eq!(String::from_utf8_lossy(&seen), wanted);
    };
    read("host2 2 -> 0").await;
    ends(&rig, 2, "host2").await;
    read(" .").await;
    ends(&rig, 3, "host2").await;
    read(".").await;
    let mut rest = String::new();
    out.read_line(&mut rest).await.expect("it ends");
    assert_eq!(rest, "\n");
    end(drain).await.ok();
}

#[tokio::test]
async fn a_drain_that_finds_no_room_elsewhere_says_so_with_each_hosts_refusal() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    registered(&rig, &["host1", "host2"]).await;
    rig.write(&Key::Leader, &leader(&[])).await;
    runs(&rig, 1, "host2", None).await;
    let pending = Pending {
        release: ReleaseId(1),
        short: 1,
        reason: "none of 2 hosts can take it".into(),
        refusals: [(host("host1"), "is full: 1 of 1 instances".to_owned())].into(),
        reasons: Default::default(),
        since: Timestamp::now(),
        extra: Extra::new(),
    };
    rig.write(&Key::Pending(app("goto-rocket"), proc("web")), &pending).await;
    let ran = rig.bazooka(&["hosts", "drain", "host2"]).await.exits(1);
    assert_eq!(
        ran.stderr,
        "error: host2 can't be emptied\n\
         cause: web of goto-rocket: none of 2 hosts can take it\n\
         cause: host1: is full: 1 of 1 instances\n\
         hint: it stays draining; `bazooka hosts uncordon host2` calls it off\n"
    );
}

#[tokio::test]
async fn a_host_that_is_not_there_is_told_with_the_nearest_name_and_marks_nobody() {
    let rig = Rig::new().await;
    registered(&rig, &["host1"]).await;
    for action in ["cordon", "uncordon", "drain"] {
        let ran = rig.bazooka(&["hosts", action, "hots1"]).await.exits(3);
        assert_eq!(ran.stderr, "error: there is no host 'hots1'\nhint: did you mean 'host1'?\n");
    }
    assert_eq!(words(&rig.bazooka(&["hosts"]).await.ok().stdout).len(), 2);
}

#[tokio::test]
async fn frozen_hosts_are_given_up_when_an_operator_says_so() {
    let rig = Rig::new().await;
    let ran = rig.bazooka(&["hosts", "unfreeze"]).await.exits(4);
    assert!(ran.stderr.starts_with("error: no host is frozen"), "{ran:?}");
    rig.write(&Key::Leader, &leader(&["host1", "host2"])).await;
    assert_eq!(rig.bazooka(&["hosts", "unfreeze"]).await.ok().stdout, "given up: host1, host2\n");
    let word = rig.visor.get::<visor::schema::Unfreeze>(&Key::Unfreeze).await.expect("readable");
    assert_eq!(word.map(|word| (word.hosts.len(), word.by.clone())), Some((2, "tester".to_owned())));
}

#[tokio::test]
async fn a_host_that_has_gone_is_forgotten_and_one_that_is_in_use_isnt() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    registered(&rig, &["host1"]).await;
    runs(&rig, 1, "host2", None).await;
    let ran = rig.bazooka(&["hosts", "forget", "host1"]).await.exits(4);
    assert!(ran.took < std::time::Duration::from_secs(10) && ran.stderr.contains("hosts drain"), "{ran:?}");
    let ran = rig.bazooka(&["hosts", "forget", "host2"]).await.exits(4);
    assert!(ran.stderr.contains("aren't replaced yet"), "{ran:?}");
    let ran = rig.bazooka(&["hosts", "forget", "host9"]).await.exits(3);
    assert!(ran.stderr.contains("there is no host 'host9'"), "{ran:?}");
    rig.write(&Key::HostMeta(host("host3")), &serde_json::json!({"draining": true})).await;
    assert!(rig.bazooka(&["hosts"]).await.ok().stdout.contains("host3"));
    assert_eq!(rig.bazooka(&["hosts", "forget", "host3"]).await.ok().stdout, "host3 is forgotten\n");
    assert!(!rig.bazooka(&["hosts"]).await.ok().stdout.contains("host3"));
}
