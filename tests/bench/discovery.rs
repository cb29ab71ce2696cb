//! What it takes to be found: answers by DNS, and how soon what runs is named and what has stopped is not.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bazooka_tests::{Cluster, Endpoint, Repo, SOON, try_get};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use visor::{
    keys::Key,
    names::{HostName, InstanceId},
    schema::{Assignment, Desired, State, Status},
};

use crate::{Row, median, thousands};

/// Questions a second.
const RATE: u32 = 5_000;

/// How long they are asked.
const TURN: Duration = Duration::from_secs(10);

/// When a question counts as lost.
const DEADLINE: Duration = Duration::from_secs(2);

/// The service that is asked for.
const NAME: &str = "web.bench.localhost.";

fn question(id: u16) -> Vec<u8> {
    let mut message = Message::new();
    let name = Name::from_ascii(NAME).expect("a name");
    message.set_id(id).add_query(Query::query(name, RecordType::A));
    message.to_vec().expect("a packet")
}

/// The addresses that the service's name stands for now.
fn named(server: SocketAddr) -> Vec<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket.send_to(&question(1), server).expect("sent");
    let mut packet = [0; 2048];
    let length = socket.recv(&mut packet).expect("an answer");
    let answer = Message::from_vec(&packet[..length]).expect("an answer");
    answer.answers().iter().map(|record| record.data().to_string()).collect()
}

/// Asks at a steady rate, whatever comes back. Each time is from when the question was due, so that one which had to wait
/// for its turn counts as late. Returns the p99, and how many were never answered.
fn p99(server: SocketAddr) -> (Duration, usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let begin = Instant::now() + Duration::from_millis(50);
    let count = RATE as usize * TURN.as_secs() as usize;
    let due = move |n: usize| begin + Duration::from_secs_f64(n as f64 / f64::from(RATE));
    let sending = socket.try_clone().expect("a socket can be duplicated");
    let sender = std::thread::spawn(move || {
        let packet = question(0);
        for n in 0..count {
            let wait = due(n).saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            // By its id an answer is told from those of 13 s before and after.
            let id = u16::try_from(n % 65_536).expect("it is below that");
            let _ = sending.send_to(&[&id.to_be_bytes()[..], &packet[2..]].concat(), server);
        }
    });
    let mut times = Vec::with_capacity(count);
    let mut packet = [0; 2048];
    while times.len() < count {
        let Ok(length) = socket.recv(&mut packet) else { break };
        let now = Instant::now();
        assert!(length > 12, "an answer");
        let id = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
        // The latest question of this id that is due by now.
        let asked = (id..count).step_by(65_536).take_while(|n| due(*n) <= now).last().expect("it was asked");
        times.push(now - due(asked));
    }
    sender.join().expect("it ends");
    times.sort();
    let lost = count - times.len();
    (times[times.len() * 99 / 100], lost)
}

/// A server that sends each packet back, for what the machine itself takes.
fn echo() -> (SocketAddr, Arc<AtomicBool>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let (address, end) = (socket.local_addr().expect("it has one"), Arc::new(AtomicBool::new(false)));
    let ended = end.clone();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while !ended.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut packet) {
                let _ = socket.send_to(&packet[..length], from);
            }
        }
    });
    (address, end)
}

/// What is known of an instance in one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    routed: bool,
    by_dns: bool,
    listed: bool,
    runs: bool,
}

/// How long after its row said so the instance was seen, or not any more: by DNS, and in the list. Looked at without a pause,
/// so each is some milliseconds too long.
fn lags(cluster: &Cluster, id: InstanceId, comes: bool) -> (Duration, Duration) {
    let host: HostName = "host1".parse().expect("valid");
    let (visor, runtime) = cluster.visor();
    let (assigned, status) = (Key::Assigned(host.clone(), id), Key::Status(host, id));
    let dns: SocketAddr = cluster.socket(Endpoint::Dns);
    let sd = format!("http://{}/sd", cluster.at(Endpoint::Proxy));
    let (begin, mut address) = (Instant::now(), String::new());
    let (mut routed_at, mut ran_at, mut named_at, mut listed_at) = (None, None, None, None);
    while begin.elapsed() < SOON {
        let assignment = runtime.block_on(visor.get::<Assignment>(&assigned)).expect("etcd answers");
        let said = runtime.block_on(visor.get::<Status>(&status)).expect("etcd answers");
        if let Some(ip) = said.as_ref().and_then(|said| said.ip) {
            address = ip.to_string();
        }
        let runs = said.is_some_and(|said| said.state == State::Running);
        let routed = runs && assignment.is_some_and(|assigned| assigned.desired == Desired::Run);
        let now = Instant::now();
        let by_dns = named(dns).contains(&address);
        let by_dns_at = Instant::now();
        let list = try_get(&sd, None).expect("it answers").body;
        let seen = Seen { routed, by_dns, runs, listed: list.contains(&format!("\"instance\":\"{id}\"")) };
        for (is, at, when) in [
            (seen.routed, &mut routed_at, now),
            (seen.runs, &mut ran_at, now),
            (seen.by_dns, &mut named_at, by_dns_at),
            (seen.listed, &mut listed_at, Instant::now()),
        ] {
            if is == comes {
                at.get_or_insert(when);
            }
        }
        if let (Some(routed), Some(ran), Some(named), Some(listed)) = (routed_at, ran_at, named_at, listed_at)
        {
            return (named.saturating_duration_since(routed), listed.saturating_duration_since(ran));
        }
    }
    panic!("instance {id} was not seen to {}", if comes { "come" } else { "go" });
}

/// Three rows: answers by DNS, and how soon what runs is listed, and what has stopped isn't named.
pub fn discovery(runs: usize) -> Vec<Row> {
    let cluster = Cluster::start();
    let repo: Repo = cluster.repo("bench");
    repo.write("Procfile", "web: python3 -m http.server $PORT\n");
    repo.commit("v0");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    let (mut came, mut went) = ((Duration::ZERO, Duration::ZERO), (Duration::ZERO, Duration::ZERO));
    let last = |cluster: &Cluster| {
        let counter = cluster.snapshot().instance_counter.map_or(0, |counter| counter.value);
        InstanceId(counter)
    };
    for _ in 0..runs {
        let next = InstanceId(last(&cluster).0 + 1);
        let longer =
            |one: (Duration, Duration), other: (Duration, Duration)| (one.0.max(other.0), one.1.max(other.1));
        let scale = |count: &'static str, comes| {
            std::thread::scope(|scope| {
                scope.spawn(|| repo.bazooka(&["scale", "-n", count, "web"]).ok());
                lags(&cluster, next, comes)
            })
        };
        came = longer(came, scale("1", true));
        went = longer(went, scale("0", false));
    }
    repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    let dns = cluster.socket(Endpoint::Dns);
    let (mut answers, mut echoes, mut lost) = (Vec::new(), Vec::new(), 0);
    for _ in 0..runs {
        let (time, gone) = p99(dns);
        answers.push(time);
        lost += gone;
        let (server, end) = echo();
        echoes.push(p99(server).0);
        end.store(true, Ordering::Relaxed);
    }
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    vec![
        Row {
            value: None,
            what: format!("DNS answers, p99 at {} questions a second", thousands(RATE.into())),
            target: "under 2 ms".into(),
            figure: format!("{}, {lost} lost", ms(median(answers))),
            floor: format!("packets echoed: {}", ms(median(echoes))),
        },
        Row {
            value: None,
            what: format!("an instance runs, until Prometheus's list has it, longest of {runs}"),
            target: "1 s".into(),
            figure: ms(came.1),
            floor: format!("until DNS has it: {}", ms(came.0)),
        },
        Row {
            value: None,
            what: format!("an instance leaves routing, until DNS no longer names it, longest of {runs}"),
            target: "1 s".into(),
            figure: ms(went.0),
            floor: format!("it ends, until Prometheus's list drops it: {}", ms(went.1)),
        },
    ]
}
