//! From a write in the coordinator to HAProxy routing by it, and what bazooka-proxy's memory is.
//!
//! `cargo bench -p bazooka-proxy`: one table on stdout.

#![allow(missing_docs, clippy::print_stdout, dead_code, reason = "a bench that shares the tests' rig")]

#[path = "../tests/proxy/http.rs"]
mod http;
#[path = "../tests/proxy/rig.rs"]
mod rig;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rig::Rig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use visor::schema::Desired;

/// An instance within this process: it answers each request with its name.
async fn instance(name: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it listens");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let name = name.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{what:<64} p50 {:8.2} ms  p90 {:8.2} ms  max {:8.2} ms", at(0.5), at(0.9), at(1.0));
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Asks, each time anew, until the answer is as it should be.
async fn until_answered(rig: &Rig, is_right: impl Fn(&http::Answer) -> bool) {
    loop {
        if rig.ask("rocket.localhost").await.is_ok_and(|answer| is_right(&answer)) {
            return;
        }
    }
}

#[tokio::main]
async fn main() {
    let rig = Rig::start().await;
    let at = instance("bench".into()).await;

    let mut times = Vec::new();
    for n in 0..10 {
        let begun = Instant::now();
        let revision = rig.service(&format!("app{n}"), "web").await;
        rig.running((&format!("app{n}"), "web"), &[(1000 + n, at)]).await;
        let host = format!("app{n}.localhost");
        while !rig.ask(&host).await.is_ok_and(|answer| answer.status == 200) {}
        times.push(begun.elapsed());
        let _ = revision;
    }
    show("a new service and its first instance, until answered (a reload)", times);

    rig.service("rocket", "web").await;
    until_answered(&rig, |answer| answer.status == 503).await;
    let (mut come, mut go) = (Vec::new(), Vec::new());
    for id in 1..=40 {
        let begun = Instant::now();
        rig.running(("rocket", "web"), &[(id, at)]).await;
        until_answered(&rig, |answer| answer.status == 200).await;
        come.push(begun.elapsed());
        let begun = Instant::now();
        let revision = rig.desire(("rocket", "web"), &[id], Desired::Drain).await;
        loop {
            let row = rig.row().await.expect("the row is there");
            if row.applied >= revision && row.busy.is_empty() {
                break;
            }
        }
        go.push(begun.elapsed());
        rig.forget(&[id]).await;
    }
    show("an instance's status written, until its first answer", come);
    show("a drain written, until the proxy says that it is done", go);

    let many: Vec<(u64, SocketAddr)> = (1..=100).map(|n| (10_000 + n, at)).collect();
    let ids: Vec<u64> = many.iter().map(|(id, _)| *id).collect();
    let (mut come, mut go) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let begun = Instant::now();
        let mut revision = 0;
        for half in many.chunks(50) {
            revision = rig.running(("rocket", "web"), half).await;
        }
        rig.applied(revision).await;
        come.push(begun.elapsed());
        let begun = Instant::now();
        let revision = rig.desire(("rocket", "web"), &ids, Desired::Drain).await;
        rig.applied(revision).await;
        go.push(begun.elapsed());
    }
    show("100 instances come, until the proxy says so", come);
    show("100 instances drained, until the proxy says so", go);
    for half in many.chunks(50) {
        rig.applied(rig.running(("rocket", "web"), half).await).await;
    }
    let mut times = Vec::new();
    for _ in 0..5 {
        let master = rig.processes().await.master;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(master).expect("a pid"));
        let begun = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it can be killed");
        while !rig.cli().processes().await.is_ok_and(|now| now.master != master) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        until_answered(&rig, |answer| answer.status == 200).await;
        times.push(begun.elapsed());
        // Ends that follow each other closely are held to be no accident.
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    show("HAProxy killed with 100 instances, until it answers again", times);
    println!("resident memory with 100 instances: bazooka-proxy {} KiB", resident_kib(rig.proxy_pid()));
    let processes = rig.processes().await;
    let worker = processes.worker.expect("there is a worker");
    println!(
        "                                    HAProxy master {} KiB, worker {} KiB",
        resident_kib(processes.master),
        resident_kib(worker)
    );
}
