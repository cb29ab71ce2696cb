//! Services by name, as `dig` finds them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::process::Command;
use visor::{
    schema::{Desired, State},
    testing::{free_port, until},
};

use crate::rig::{Options, Rig};

/// How long what has left routing may be named at most.
const SOON: Duration = Duration::from_secs(1);

async fn rig() -> (Rig, SocketAddr) {
    let address = SocketAddr::new([127, 0, 0, 1].into(), free_port());
    let mut rig = Rig::prepare(Options { dns: Some(address), ..Default::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    (rig, address)
}

/// All that dig says.
async fn dig(server: SocketAddr, words: &str) -> String {
    let mut command = Command::new("dig");
    command.arg(format!("@{}", server.ip())).args(["-p", &server.port().to_string()]);
    let said = command.args(words.split(' ')).output().await.expect("dig runs: apt install bind9-dnsutils");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// The records' data, in order.
async fn short(server: SocketAddr, words: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        dig(server, &format!("+short {words}")).await.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn until_named(server: SocketAddr, words: &str, wanted: &[&str]) {
    until("the instances are named", SOON, async || {
        let told = short(server, words).await;
        if told == wanted { Ok(()) } else { Err(format!("{told:?}, wanted {wanted:?}")) }
    })
    .await;
}

fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new([127, 0, 9, last].into(), port)
}

#[tokio::test]
async fn a_service_is_found_by_name_while_it_runs() {
    let (rig, dns) = rig().await;
    rig.service("rocket", "web").await;
    rig.running(("rocket", "web"), &[(1, at(1, 21000)), (2, at(2, 21001))]).await;
    let name = "web.rocket.localhost";
    until_named(dns, name, &["127.0.9.1", "127.0.9.2"]).await;
    until_named(dns, &format!("+tcp {name}"), &["127.0.9.1", "127.0.9.2"]).await;
    let srv = [format!("0 1 21000 1.{name}."), format!("0 1 21001 2.{name}.")];
    assert_eq!(short(dns, &format!("{name} SRV")).await, srv);
    assert_eq!(short(dns, &format!("2.{name}")).await, ["127.0.9.2"]);
    let said = dig(dns, name).await;
    assert!(said.contains("status: NOERROR") && said.contains(" aa "), "{said}");
    assert!(said.contains("EDNS: version: 0") && said.contains("udp: 1232"), "{said}");
    assert!(said.contains(&format!("{name}.\t1\tIN\tA")), "for a second: {said}");
    for (name, status) in
        [("job.rocket.localhost", "NXDOMAIN"), ("rocket.localhost", "NOERROR"), ("a.org", "REFUSED")]
    {
        let said = dig(dns, name).await;
        assert!(said.contains(&format!("status: {status}")) && said.contains("ANSWER: 0"), "{said}");
    }
    let found = rig.endpoint("/services/rocket/web").await.expect("it answers");
    let found: serde_json::Value = serde_json::from_str(&found.body).expect("JSON");
    assert_eq!(found["service"], "rocket/web");
    let places: Vec<_> =
        found["instances"].as_array().expect("a list").iter().map(|one| &one["port"]).collect();
    assert_eq!(places, [21000, 21001], "the same by HTTP: {found}");
    for nothing in ["/services/rocket/job", "/services/Rocket/web"] {
        assert_eq!(rig.endpoint(nothing).await.expect("it answers").status, 404, "{nothing}");
    }
    rig.desire(("rocket", "web"), &[1], Desired::Drain).await;
    until_named(dns, name, &["127.0.9.2"]).await;
    let found = rig.endpoint("/services/rocket/web").await.expect("it answers");
    assert!(!found.body.contains("21000"), "what drains takes no requests: {found:?}");
    rig.state(&[2], State::Exited).await;
    until_named(dns, name, &[]).await;
    assert!(dig(dns, name).await.contains("status: NOERROR"), "there is the service still");
    assert!(rig.metric("bazooka_proxy_dns_answers_total").await > 0.0);
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_a_packet_is_asked_for_again_by_tcp() {
    let (rig, dns) = rig().await;
    rig.service("rocket", "web").await;
    let many: Vec<(u64, SocketAddr)> = (1..=60).map(|n| (u64::from(n), at(n, 21000))).collect();
    rig.running(("rocket", "web"), &many).await;
    until("all are named", SOON, async || {
        let told = short(dns, "+noedns web.rocket.localhost").await;
        if told.len() == 60 { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    let cut = dig(dns, "+noedns +ignore web.rocket.localhost").await;
    assert!(cut.contains(" tc ") && cut.contains("ANSWER: 0"), "{cut}");
}

#[tokio::test]
async fn nothing_that_left_routing_is_named_a_second_later_whatever_haproxy_does() {
    let (rig, dns) = rig().await;
    rig.service("rocket", "web").await;
    // The reload is over: HAProxy's master takes no questions while it starts again.
    rig.applied(rig.running(("rocket", "web"), &[(1, at(1, 21000))]).await).await;
    until_named(dns, "web.rocket.localhost", &["127.0.9.1"]).await;
    // HAProxy hangs: whatever is asked of it takes as long as that.
    let processes = rig.processes().await;
    let pids: Vec<nix::unistd::Pid> = [Some(processes.master), processes.worker]
        .into_iter()
        .flatten()
        .map(|pid| nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid")))
        .collect();
    let signal =
        |signal| pids.iter().for_each(|pid| nix::sys::signal::kill(*pid, signal).expect("signalled"));
    signal(nix::sys::signal::Signal::SIGSTOP);
    let left = Instant::now();
    rig.desire(("rocket", "web"), &[1], Desired::Drain).await;
    until_named(dns, "web.rocket.localhost", &[]).await;
    assert!(left.elapsed() < SOON + Duration::from_millis(500), "{:?}", left.elapsed());
    signal(nix::sys::signal::Signal::SIGCONT);
}
