//! What a neighbour notices of an instance that means ill: its p99 beside that one and beside an idle one, in turns.

use std::time::Duration;

use bazooka_tests::{Cluster, Endpoint, Kind, Load, LoadOptions, Repo};

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

const HOG: &str = "import time\nkept = []\nwhile True: kept.append(bytearray(1 << 20))\n";

const FILES: &str = "import os, time\ntry:\n    while True: os.open('/dev/null', os.O_RDONLY)\nexcept OSError: pass\n\
    while True:\n    try: os.open('/dev/null', os.O_RDONLY)\n    except OSError: time.sleep(0.001)\n";

const DISK: &str = "import os\nwhile True:\n    try:\n        with open('/tmp/x', 'wb') as file:\n            \
    while True: file.write(bytes(1 << 16))\n    except OSError: pass\n";

const ZOMBIES: &str = "import os, time\nwhile True:\n    try:\n        if os.fork() == 0: os._exit(0)\n    \
    except OSError: time.sleep(0.001)\n";

const DAEMONS: &str = "import os, time\nwhile True:\n    if os.fork() == 0:\n        os.setsid()\n        \
    if os.fork() == 0:\n            time.sleep(0.05)\n        os._exit(0)\n    os.wait()\n    time.sleep(0.001)\n";

const WALK: &str = "import os\nwhile True:\n    for folder, _, names in os.walk('/proc'):\n        for name in names:\n            \
    try: open(os.path.join(folder, name), 'rb').read(4096)\n            except OSError: pass\n";

const KNOCK: &str = "import socket\nwhile True:\n    for port in range(1, 65536):\n        with socket.socket() as own:\n            \
    own.setblocking(False)\n            own.connect_ex(('127.0.0.1', port))\n";

const FLOOD: &str = "text = (b'x' * 999 + b'\\n') * 64\nwhile True: os.write(1, text)\n";

/// What they are: the proc, its settings, and in words.
const KINDS: [(&str, &str, &[&str], &str); 10] = [
    ("bomb", BOMB, &["--pids", "200", "--cpu", "0.5"], "a fork bomb with `--pids 200 --cpu 0.5`"),
    ("wild", BOMB, &["--pids", "200"], "a fork bomb with `--pids 200` and all of the processor"),
    ("flood", FLOOD, &[], "a flood of output"),
    ("hog", HOG, &["--memory", "64M"], "a program that takes all memory, with `--memory 64M`"),
    ("files", FILES, &[], "a program that opens as many files as it may"),
    ("disk", DISK, &[], "a program that fills its disk, again and again"),
    ("zombies", ZOMBIES, &["--pids", "200"], "a maker of zombies with `--pids 200`"),
    ("daemons", DAEMONS, &["--pids", "200"], "a program that forks itself away, with `--pids 200`"),
    ("walk", WALK, &["--cpu", "0.5"], "a reader of all of /proc, with `--cpu 0.5`"),
    ("knock", KNOCK, &["--cpu", "0.5"], "a program that tries every port, with `--cpu 0.5`"),
];

fn p99(cluster: &Cluster) -> (f64, u64) {
    let load = Load::start(LoadOptions {
        addresses: vec![cluster.socket(Endpoint::Public)],
        hosts: vec![cluster.name_of("neighbour")],
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
    // What is killed for what it does isn't waited for.
    hostile.bazooka(&["scale", "-n", "1", "--no-wait", proc]).ok();
    let seen = p99(cluster);
    hostile.bazooka(&["scale", "-n", "0", proc]).ok();
    seen
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A row for each kind of abuse, or each of `only`. It takes root.
pub fn abuse(runs: usize, only: &[String]) -> Vec<Row> {
    let cluster = Cluster::start();
    let neighbour = cluster.repo("neighbour");
    let server =
        "require('http').createServer((request, response) => response.end('ok')).listen(process.env.PORT);\n";
    neighbour.write("Procfile", "web: node server.js\n").write("server.js", server);
    neighbour.commit("v0");
    let hostile = cluster.repo("hostile");
    let mut procs = "idle: sleep 1000000\n".to_owned();
    for (proc, script, ..) in KINDS {
        hostile.write(&format!("{proc}.py"), &format!("{HARMLESS}{script}"));
        procs += &format!("{proc}: python3 -S -E {proc}.py\n");
    }
    hostile.write("Procfile", &procs);
    hostile.commit("v0");
    for repo in [&neighbour, &hostile] {
        repo.bazooka(&["init"]).ok();
        repo.git(&["push", "bazooka", "master"]).ok();
    }
    neighbour.bazooka(&["scale", "-n", "1", "web"]).ok();
    cluster.answers("neighbour");
    for (proc, _, settings, _) in KINDS {
        if !settings.is_empty() {
            hostile.bazooka(&[&["procs", "set", proc], settings].concat()).ok();
        }
    }
    let wanted = |proc: &str| only.is_empty() || only.iter().any(|only| only == proc);
    let rows = KINDS.into_iter().filter(|(proc, ..)| wanted(proc)).map(|(proc, _, _, words)| {
        let (mut alone, mut with, mut lost) = (Vec::new(), Vec::new(), 0);
        for _ in 0..runs {
            alone.push(beside(&cluster, &hostile, "idle").0);
            let (p99_ms, gone) = beside(&cluster, &hostile, proc);
            with.push(p99_ms);
            lost += gone;
        }
        let (alone, with) = (median(alone), median(with));
        Row {
            value: None,
            what: (*words).to_owned(),
            target: "2 times the floor".into(),
            figure: format!("{with:.1} ms ({:.2} times), {lost} lost", with / alone),
            floor: format!("{alone:.1} ms"),
        }
    });
    rows.collect()
}
