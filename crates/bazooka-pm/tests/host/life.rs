//! An instance's life: started, running, crashing, ended.

use std::{net::TcpListener, time::Instant};

use nix::sys::signal::Signal;
use visor::{
    schema::{Desired, Fault, Limits, State},
    testing::until,
};

use crate::{
    neighbour::Neighbour,
    world::{SERVER, SOON, World, ask, http_check, is_alive, shelve, signal},
};

#[tokio::test]
async fn an_instance_is_started_answers_and_ends_when_told() {
    let world = World::start().await;
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("GREETING", "hello"), ("PORT", "1")]).await;
    let id = world.place(web).await;
    let status = world.until_state(id, State::Running).await;
    let port = status.port.expect("it has a port");
    assert_eq!(ask(port).expect("it answers"), "HTTP/1.1 200 OK");
    assert_eq!(world.processes(id), [status.pid.expect("it has a process") as i32]);

    world.want(id, Desired::Drain).await;
    assert_eq!(ask(port).expect("it answers"), "HTTP/1.1 200 OK");
    world.want(id, Desired::Stop).await;
    let status = world.until_state(id, State::Exited).await;
    assert_eq!((status.pid, status.cause.as_deref()), (None, Some("the test wants it")));
    world.until_no_process(id).await;
    assert!(world.shims().is_empty());
}

#[tokio::test]
async fn one_that_exits_at_once_never_runs_and_backs_off() {
    let world = World::start().await;
    let id = world.place(world.job("echo ignition; echo sorry >&2; exit 3")).await;
    let status = world.until_state(id, State::Backoff).await;
    assert_eq!(status.cause.as_deref(), Some("exited with status 3, 4 times; next start in 30 s"));
    assert_eq!((status.restarts, status.exits.len()), (3, 4));
    assert_eq!(status.last_output, ["ignition", "sorry"]);
    assert!(status.next_start_at.is_some());
    assert!(!status.story.iter().any(|moment| moment.what.contains("runs")), "{:#?}", status.story);

    world.want(id, Desired::Stop).await;
    world.until_state(id, State::Exited).await;
}

#[tokio::test]
async fn one_on_trial_fails_when_its_quick_restarts_are_spent() {
    let world = World::start().await;
    let mut web = world.web("echo no; exit 1");
    web.trial = true;
    let id = world.place(web).await;
    let status = world.until_state(id, State::Failed).await;
    assert_eq!(status.fault, Some(Fault::App));
    assert_eq!(status.cause.as_deref(), Some("exited with status 1, 4 times"));
    assert_eq!(status.last_output, ["no"]);
}

#[tokio::test]
async fn a_killed_instance_is_back_at_once_on_its_port() {
    let world = World::start().await;
    let id = world.place(world.web(SERVER)).await;
    let before = world.until_state(id, State::Running).await;
    signal(before.pid.expect("it runs") as i32, Signal::SIGKILL);
    let after = world
        .until_status(id, "runs again", |status| status.state == State::Running && status.restarts == 1)
        .await;
    assert_eq!(after.port, before.port);
    assert_ne!(after.pid, before.pid);
    assert_eq!(after.exits[0].signal, Some(9));
}

#[tokio::test]
async fn one_that_ignores_its_end_is_killed_with_all_that_it_started() {
    let world = World::start().await;
    let command =
        "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 1000\" & sleep 1000 & while :; do sleep 1; done";
    let mut job = world.job(command);
    job.run.stop_timeout_ms = Some(700);
    let id = world.place(job).await;
    world.until_state(id, State::Running).await;
    until("all of it runs", SOON, || async {
        let processes = world.processes(id);
        if processes.len() >= 4 { Ok(()) } else { Err(format!("{processes:?}")) }
    })
    .await;
    let begun = Instant::now();
    world.want(id, Desired::Stop).await;
    world.until_state(id, State::Exited).await;
    let took = begun.elapsed().as_millis();
    assert!((700..1_700).contains(&took), "it took {took} ms");
    assert_eq!(world.processes(id), [0_i32; 0]);
}

#[tokio::test]
async fn a_daemon_that_forked_away_ends_with_its_instance() {
    let world = World::start().await;
    let id = world.place(world.job("(setsid sleep 1000 &) ; sleep 1; exec sleep 1000")).await;
    world
        .until_status(id, "runs with both", |status| {
            status.state == State::Running && world.processes(id).len() == 2
        })
        .await;
    // The instance crashes: what it left behind is no instance.
    let status = world.status(id).await.expect("it was said");
    let before = world.processes(id);
    signal(status.pid.expect("it runs") as i32, Signal::SIGKILL);
    world.until_status(id, "was started again", |status| status.restarts == 1).await;
    assert!(before.iter().all(|pid| !is_alive(*pid as u32)), "{before:?}");
}

#[tokio::test]
async fn one_that_ends_in_order_has_its_grace() {
    let world = World::start().await;
    // The shell dies at once; its child takes half a second to say good-bye.
    let child = "trap 'sleep 0.5; echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let id = world.place(world.job(&format!("sh -c \"{child}\" & wait"))).await;
    world.until_state(id, State::Running).await;
    until("it is ready for its end", SOON, || async {
        let logs = world.logs("app=rocket").await;
        if logs.iter().any(|line| line["line"] == "ready") { Ok(()) } else { Err(format!("{logs:#?}")) }
    })
    .await;
    world.want(id, Desired::Stop).await;
    world.until_state(id, State::Exited).await;
    let logs = world.logs("app=rocket").await;
    assert!(logs.iter().any(|line| line["line"] == "bye"), "{logs:#?}");
}

#[tokio::test]
async fn one_that_listens_elsewhere_is_told_so() {
    // A fence wouldn't let it.
    let mut world = World::without_pm().await;
    world.pm_args = vec!["--without".into(), "fence".into()];
    world.start_pm();
    let elsewhere = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let port = elsewhere.local_addr().expect("it listens").port();
    drop(elsewhere);
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("OTHER_PORT", &port.to_string())]).await;
    web.run.boot_timeout_ms = Some(3_000);
    let id = world.place(web).await;
    let status = world.until_status(id, "has crashed", |status| !status.exits.is_empty()).await;
    let own = status.port.expect("it has a port");
    let cause = status.cause.expect("it is said");
    assert!(
        cause
            .starts_with(&format!("not healthy within 3 s: it listens on port {port}, not on $PORT ({own})")),
        "{cause}"
    );
}

#[tokio::test]
async fn one_that_listens_where_nobody_reaches_it_is_not_healthy() {
    let world = World::start().await;
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("BIND", "127.0.0.77")]).await;
    web.run.boot_timeout_ms = Some(3_000);
    let id = world.place(web).await;
    let status = world.until_status(id, "has crashed", |status| !status.exits.is_empty()).await;
    let cause = status.cause.expect("it is said");
    assert!(cause.contains("it listens on 127.0.0.1 alone; proxies come to 127.0.0.1:"), "{cause}");
}

#[tokio::test]
async fn an_http_check_passes_when_the_answer_is_good() {
    let world = World::start().await;
    let mut good = world.web(SERVER);
    good.run.check = http_check("/up");
    let mut bad = good.clone();
    bad.env = world.env(1, &[("ANSWER", "503 Not Yet")]).await;
    bad.run.boot_timeout_ms = Some(3_000);
    let ids = world.place_all(vec![good, bad]).await;
    let status = world.until_state(ids[0], State::Running).await;
    assert!(status.story.last().expect("it has one").what.starts_with("answers GET /up with status 200"));
    let status = world.until_status(ids[1], "has crashed", |status| !status.exits.is_empty()).await;
    let cause = status.cause.expect("it is said");
    assert!(cause.contains("GET /up is answered with status 503"), "{cause}");
}

#[tokio::test]
async fn a_port_that_an_outsider_has_is_passed_over() {
    let mut world = World::without_pm().await;
    let (first, last) = (world.range.0, world.range.0 + 1);
    world.range = (first, last);
    let _outsider = TcpListener::bind(("127.0.0.3", first)).expect("the range is the test's own");
    world.start_pm();
    let id = world.place(world.web(SERVER)).await;
    let status = world.until_state(id, State::Running).await;
    assert_eq!(status.port, Some(last));
    let second = world.place(world.web(SERVER)).await;
    let status = world.until_state(second, State::Failed).await;
    assert_eq!(status.fault, Some(Fault::NoPort));
}

#[tokio::test]
async fn one_whose_port_is_taken_while_it_boots_moves_to_another() {
    let world = World::start().await;
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("SLOW", "0.7")]).await;
    let id = world.place(web).await;
    let before = world.until_status(id, "boots", |status| status.pid.is_some()).await;
    let port = before.port.expect("it has a port");
    let _outsider = TcpListener::bind(("0.0.0.0", port)).expect("nobody listens there yet");
    let after = world.until_state(id, State::Running).await;
    assert_ne!(after.port, Some(port));
    assert_eq!(after.restarts, 0, "it is none of its faults: {after:#?}");
}

#[tokio::test]
async fn one_that_takes_too_much_memory_dies_alone_and_is_told_so() {
    let world = World::start().await;
    let hog = "python3 -c 'import time; x = bytearray(200 << 20); time.sleep(1000)'";
    let mut greedy = world.job(hog);
    greedy.run.limits = Limits { memory_limit_bytes: Some(64 << 20), ..Limits::default() };
    greedy.trial = true;
    let neighbour = Neighbour::of(&world).await;
    let id = world.place(greedy).await;
    let status = world.until_state(id, State::Failed).await;
    assert_eq!(status.fault, Some(Fault::OutOfMemory));
    assert!(status.exits.iter().all(|exit| exit.out_of_memory), "{:?}", status.exits);
    let cause = status.cause.expect("it is said");
    assert!(cause.contains("out of memory: limit 64 MiB, peak 64 MiB"), "{cause}");
    neighbour.stays_well(&world).await;
}

#[tokio::test]
async fn without_a_sandbox_each_instance_has_a_user_of_its_own_and_a_private_home() {
    let mut world = World::without_pm().await;
    world.pm_args = vec!["--isolation".into(), "uid".into()];
    world.start_pm();
    assert_eq!(world.registered().await.isolation, "uid");
    let command = "id -u; stat -c %a:%u \"$HOME\"; touch \"$HOME/x\" && echo written; \
                   touch ./x 2>/dev/null && echo SLUG; grep NoNewPrivs /proc/self/status; ls /proc/self/fd; exec sleep 1000";
    let ids = world.place_all(vec![world.job(command), world.job(command)]).await;
    let mut users = Vec::new();
    for id in ids {
        world.until_state(id, State::Running).await;
        let logs = world.logs(&format!("app=rocket&instance={id}")).await;
        let lines: Vec<&str> = logs
            .iter()
            .filter(|line| line["stream"] == "out")
            .filter_map(|line| line["line"].as_str())
            .collect();
        let user = lines[0].to_owned();
        assert_eq!(lines[1..4], [format!("700:{user}"), "written".into(), "NoNewPrivs:\t1".into()]);
        // Input, output, errors, and the folder that is being listed.
        assert_eq!(lines[4..], ["0", "1", "2", "3"]);
        users.push(user);
    }
    assert_ne!(users[0], users[1]);
    assert_ne!(users[0], "0");
}

#[tokio::test]
async fn the_scripts_of_a_slugs_profile_are_read_in_their_order_before_the_command() {
    let world = World::start().await;
    // Only bash has `[[`.
    let mut job = world.job("[[ -n $LANG ]] && echo \"$GREETING, $LANG\"; exec sleep 1000");
    job.slug = shelve(
        &world.shelf,
        &[
            (".profile.d/b.sh", "export GREETING=\"hello $WHOM\"\n"),
            (".profile.d/a.sh", "export WHOM=rocket\n"),
            (".profile.d/notes", "exit 1\n"),
        ],
    );
    let id = world.place(job).await;
    world.until_logged(&format!("app=rocket&instance={id}"), "hello rocket, C.UTF-8").await;
}

#[tokio::test]
async fn output_is_read_merged_and_followed() {
    let world = World::start().await;
    let ids = world
        .place_all(vec![world.job("echo one; sleep 0.3; echo two >&2; exec sleep 1000"), world.web(SERVER)])
        .await;
    for id in &ids {
        world.until_state(*id, State::Running).await;
    }
    let logs = world.until_logged("app=rocket", "two").await;
    let own: Vec<_> = logs.iter().filter(|line| line["proc"] == "job").collect();
    let shown: Vec<_> = own.iter().map(|line| (line["stream"].as_str(), line["line"].as_str())).collect();
    assert_eq!(
        shown,
        [(Some("sys"), Some("started")), (Some("out"), Some("one")), (Some("err"), Some("two"))]
    );
    let times: Vec<&str> = logs.iter().filter_map(|line| line["at"].as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(world.logs("app=rocket&n=1").await.len(), 1);
    assert!(world.logs("app=other").await.is_empty());
    // An ended one's output is still there, and says how it ended.
    world.want(ids[0], Desired::Stop).await;
    world.until_state(ids[0], State::Exited).await;
    world.unassign(ids[0]).await;
    world.until_logged(&format!("app=rocket&instance={}", ids[0]), "ended by signal 15 (SIGTERM)").await;
}
