//! What a neighbour notices of an instance that means ill: its p99 beside that one and beside an idle one, in turns.

use std::time::Duration;

use bazooka_tests::{Cluster, Kind, Load, LoadOptions, Repo};

use crate::Row;

/// Requests a second: a third of what the neighbour can do on two cores, so that a queue is nobody's own doing.
const RATE: u32 = 300;

/// How long each turn is.
const TURN: Duration = Duration::from_secs(4);

/// When an answer counts as lost.
const DEADLINE: Duration = Duration::from_secs(5);

/// Outside of a sandbox it does nothing.
const HARMLESS: &str = "import os, time\nassert os.getuid() != 0 and os.getcwd() == '/app'\n";

const BOMB: &str = "while True:\n    try: os.fork()\n    except OSError: pass\n";

const FLOOD: &str = "text = (b'x' * 999 + b'\\n') * 64\nwhile True: os.write(1, text)\n";

/// What they are: the proc, its settings, and in words.
const KINDS: [(&str, &[&str], &str); 3] = [
    ("bomb", &["--pids", "200", "--cpu", "0.5"], "a fork bomb with `--pids 200 --cpu 0.5`"),
    ("wild", &["--pids", "200"], "a fork bomb with `--pids 200` and all of the processor"),
    ("flood", &[], "a flood of output"),
];

fn p99(cluster: &Cluster) -> (f64, u64) {
    let load = Load::start(LoadOptions {
        addresses: vec![cluster.address(1, 8080).parse().expect("an address")],
        host: "neighbour.localhost:8080".into(),
        rate: RATE,
        connections: 8,
        kinds: vec![Kind { post: false, new: false }],
        deadline: DEADLINE,
    });
    std::thread::sleep(TURN);
    let report = load.stop();
    let p99_ms = report.kinds.values().map(|count| count.p99_ms).fold(0.0, f64::max);
    (p99_ms, report.lost())
}

fn beside(cluster: &Cluster, hostile: &Repo, proc: &str) -> (f64, u64) {
    hostile.bazooka(&["scale", "-n", "1", proc]).ok();
    let seen = p99(cluster);
    hostile.bazooka(&["scale", "-n", "0", proc]).ok();
    seen
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A row for each kind of abuse. It takes root.
pub fn abuse(runs: usize) -> Vec<Row> {
    let cluster = Cluster::start();
    let neighbour = cluster.repo("neighbour");
    let server =
        "require('http').createServer((request, response) => response.end('ok')).listen(process.env.PORT);\n";
    neighbour.write("Procfile", "web: node server.js\n").write("server.js", server);
    neighbour.commit("v0");
    let hostile = cluster.repo("hostile");
    hostile.write("bomb.py", &format!("{HARMLESS}{BOMB}")).write("flood.py", &format!("{HARMLESS}{FLOOD}"));
    let procs = "idle: sleep 1000000\nbomb: python3 -S -E bomb.py\nwild: python3 -S -E bomb.py\nflood: python3 -S -E flood.py\n";
    hostile.write("Procfile", procs);
    hostile.commit("v0");
    for repo in [&neighbour, &hostile] {
        repo.bazooka(&["init"]).ok();
        repo.git(&["push", "bazooka", "master"]).ok();
    }
    neighbour.bazooka(&["scale", "-n", "1", "web"]).ok();
    cluster.answers("neighbour");
    for (proc, settings, _) in KINDS {
        if !settings.is_empty() {
            hostile.bazooka(&[&["procs", "set", proc], settings].concat()).ok();
        }
    }
    let rows = KINDS.into_iter().map(|(proc, _, words)| {
        let (mut alone, mut with, mut lost) = (Vec::new(), Vec::new(), 0);
        for _ in 0..runs {
            alone.push(beside(&cluster, &hostile, "idle").0);
            let (p99_ms, gone) = beside(&cluster, &hostile, proc);
            with.push(p99_ms);
            lost += gone;
        }
        let (alone, with) = (median(alone), median(with));
        Row {
            what: format!("p99 of a neighbour beside {words}, {RATE} requests a second"),
            target: "1.2 times that beside an idle one".into(),
            figure: format!("{with:.1} ms ({:.2} times), {lost} lost", with / alone),
            floor: format!("beside an idle one: {alone:.1} ms"),
        }
    });
    rows.collect()
}
