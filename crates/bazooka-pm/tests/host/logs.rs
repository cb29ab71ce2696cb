//! Many followers of output: what each is told, and how many there may be.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use nix::sys::signal::Signal;
use tokio::{sync::mpsc, task::JoinSet};
use visor::{names::InstanceId, schema::State};

use crate::world::{SOON, World, signal};

/// A line of the answer: its instance and its words.
type Line = (String, String);

/// Follows all output of the app, until the receiver has gone.
async fn follow(url: String, lines: mpsc::UnboundedSender<Line>) {
    let client = bazooka_daemon::http_client(None).build().expect("it can be made");
    let answer = client.get(&url).send().await.expect("it answers");
    assert_eq!(answer.status(), 200);
    let (mut body, mut text) = (answer.bytes_stream(), Vec::new());
    while let Some(piece) = body.next().await {
        text.extend_from_slice(&piece.expect("it goes on"));
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let line: serde_json::Value = serde_json::from_slice(&line).expect("each line is JSON");
            let words = |field: &str| line[field].as_str().expect("it has one").to_owned();
            if lines.send((words("instance"), words("line"))).is_err() {
                return;
            }
        }
    }
}

/// Waits until an instance is told to have said this so often, and counts all that is told.
async fn until_told(
    lines: &mut mpsc::UnboundedReceiver<Line>,
    seen: &mut BTreeMap<Line, usize>,
    id: InstanceId,
    (wanted, times): (&str, usize),
) {
    let wanted = (id.to_string(), wanted.to_owned());
    while seen.get(&wanted).is_none_or(|seen| *seen < times) {
        let line = tokio::time::timeout(2 * SOON, lines.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("{wanted:?} is not told; {seen:#?}"));
        *seen.entry(line.expect("it follows")).or_insert(0) += 1;
    }
}

#[tokio::test]
async fn forty_followers_beside_a_hundred_instances_are_told_of_a_replacement_once() {
    let world = World::start().await;
    let script = "echo begun in $BAZOOKA_INSTANCE; while :; do sleep 1000; done";
    let mut jobs = vec![world.job(script); 99];
    jobs.push(world.job("echo started; exec sleep 1000"));
    let ids = world.place_all(jobs).await;
    for id in &ids {
        world.until_state(*id, State::Running).await;
    }
    let last = *ids.last().expect("it was placed");
    let url = world.registered().await.url.clone();
    let (mut following, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..40 {
        let (send, lines) = mpsc::unbounded_channel();
        tasks.spawn(follow(format!("{url}/logs?app=rocket&n=1000&follow=true"), send));
        following.push((lines, BTreeMap::new()));
    }
    for (lines, seen) in &mut following {
        until_told(lines, seen, last, ("started", 1)).await;
    }
    let before = world.status(last).await.expect("it runs");
    signal(before.pid.expect("it runs").cast_signed(), Signal::SIGKILL);
    world.until_status(last, "runs again", |now| now.state == State::Running && now.pid != before.pid).await;
    for (lines, seen) in &mut following {
        until_told(lines, seen, last, ("started", 2)).await;
        for id in &ids[..99] {
            // On a busy machine one may run before its shell has said anything.
            let words = format!("begun in {id}");
            until_told(lines, seen, *id, (&words, 1)).await;
            assert_eq!(seen[&(id.to_string(), words.clone())], 1, "{words}");
        }
        assert_eq!(seen[&(last.to_string(), "started".to_owned())], 2, "once for each start");
    }
    // An ended instance's last words are told, too.
    let farewell = "trap 'echo farewell; exit 0' TERM; echo here; while :; do sleep 0.1; done";
    let ended = world.place(world.job(farewell)).await;
    world.until_state(ended, State::Running).await;
    for (lines, seen) in &mut following {
        until_told(lines, seen, ended, ("here", 1)).await;
    }
    world.want(ended, visor::schema::Desired::Stop).await;
    world.until_state(ended, State::Exited).await;
    for (lines, seen) in &mut following {
        until_told(lines, seen, ended, ("farewell", 1)).await;
    }
}

#[tokio::test]
async fn one_reader_too_many_is_told_so_and_gets_the_place_of_one_that_has_gone() {
    let world = World::start().await;
    let id = world.place(world.job("echo here; exec sleep 1000")).await;
    world.until_state(id, State::Running).await;
    let url = format!("{}/logs?app=rocket&follow=true", world.registered().await.url);
    let (mut following, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..50 {
        let (send, lines) = mpsc::unbounded_channel();
        tasks.spawn(follow(url.clone(), send));
        following.push((lines, BTreeMap::new()));
    }
    for (lines, seen) in &mut following {
        until_told(lines, seen, id, ("here", 1)).await;
    }
    let client = bazooka_daemon::http_client(None).build().expect("it can be made");
    let ask = || async { client.get(&url).send().await.expect("it answers") };
    let refused = ask().await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].as_bytes()), (429, &b"5"[..]));
    let words = refused.text().await.expect("it is text");
    assert!(words.contains("50 times already") && words.contains("logs -f"), "{words}");
    tasks.abort_all();
    visor::testing::until("there is room again", SOON, || async {
        let answer = ask().await;
        if answer.status() == 200 { Ok(()) } else { Err(answer.status().to_string()) }
    })
    .await;
    tokio::time::timeout(Duration::from_secs(1), async { while tasks.join_next().await.is_some() {} })
        .await
        .expect("they have been ended");
}
