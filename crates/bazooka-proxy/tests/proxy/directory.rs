//! Who asks what runs where is told at once, and of what has stopped no more.

use std::time::{Duration, Instant};

use serde_json::Value;
use visor::{
    schema::{Desired, State},
    testing::{free_port, until},
};

use crate::rig::Rig;

/// How soon a change must be told.
const SOON: Duration = Duration::from_secs(1);

/// The instances that `/sd` lists.
async fn listed(rig: &Rig) -> Result<Vec<String>, String> {
    let answer = rig.endpoint("/sd").await?;
    let groups: Vec<Value> =
        serde_json::from_str(&answer.body).map_err(|error| format!("{error}: {answer:?}"))?;
    let instances = groups.iter().filter(|group| group["labels"]["__meta_bazooka_role"] == "instance");
    Ok(instances.map(|group| group["labels"]["instance"].as_str().unwrap_or_default().to_owned()).collect())
}

async fn until_listed(rig: &Rig, wanted: &[&str]) {
    until("the instances are listed", SOON, async || {
        let listed = listed(rig).await?;
        if listed == wanted { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await;
}

#[tokio::test]
async fn an_instance_is_listed_while_it_runs() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let at = |port| ([127, 0, 0, 1], port).into();
    rig.running(("rocket", "web"), &[(1, at(21_009)), (2, at(21_010))]).await;
    until_listed(&rig, &["1", "2"]).await;
    // What drains runs still.
    rig.desire(("rocket", "web"), &[1], Desired::Drain).await;
    rig.state(&[2], State::Exited).await;
    until_listed(&rig, &["1"]).await;
    rig.forget(&[1, 2]).await;
    until_listed(&rig, &[]).await;
    let answer = rig.endpoint("/sd").await.expect("it answers");
    assert!(answer.head.contains("content-type: application/json\r\n"), "{answer:?}");
    assert!(answer.body.contains(r#""instance":"proxy:proxy1""#), "the daemons are there too: {answer:?}");
}

#[tokio::test]
async fn a_reload_that_takes_its_time_keeps_nobody_from_hearing_what_has_stopped() {
    // HAProxy's own check of a file takes two seconds here.
    let folder = tempfile::tempdir().expect("a folder");
    let slow = folder.path().join("haproxy");
    let script =
        "#!/bin/sh\nfor word in \"$@\"; do [ \"$word\" = -c ] && sleep 2; done\nexec haproxy \"$@\"\n";
    std::fs::write(&slow, script).expect("it can be written");
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    let mut rig = Rig::prepare(crate::rig::Options { haproxy: slow, ..Default::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    rig.service("rocket", "web").await;
    rig.running(("rocket", "web"), &[(1, ([127, 0, 0, 1], 21_009).into())]).await;
    until_listed(&rig, &["1"]).await;
    let reloading = Instant::now();
    let other = rig.service_at("rocket", "web-admin", free_port()).await;
    rig.state(&[1], State::Exited).await;
    until_listed(&rig, &[]).await;
    assert!(reloading.elapsed() < Duration::from_secs(2), "the reload was still under way");
    rig.applied(other).await;
}
