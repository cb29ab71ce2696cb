//! Settings of a proc: each is obeyed by the daemons as `bazooka procs set` sets it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use bazooka_tests::{Cluster, Repo, SOON, until};

const APP: &str = "slow";

/// An app that is as slow as its config vars say, in seconds: BOOT until it listens, STOP from SIGTERM until it ends. It
/// is well, for who asks at /healthz, if HEALTHY is set.
const SERVER: &str = "import http.server, os, signal, sys, time
def number(name):
    return float(os.environ.get(name, '0'))
def stop(*_):
    time.sleep(number('STOP'))
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
time.sleep(number('BOOT'))
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        well = self.path != '/healthz' or 'HEALTHY' in os.environ
        self.send_response(200 if well else 503)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *_):
        print(self.path, flush=True)
http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ['PORT'])), Page).serve_forever()
";

/// The app, registered and pushed, with one instance.
fn pushed(cluster: &Cluster) -> Repo {
    let repo = cluster.repo(APP);
    repo.write("server.py", SERVER).write("Procfile", "web: exec python3 server.py\n");
    repo.commit("slow");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    repo
}

fn set(repo: &Repo, words: &[&str]) {
    repo.bazooka(&[&["procs", "set", "web"][..], words].concat()).ok();
}

#[test]
fn a_slow_boot_passes_with_a_longer_boot_timeout() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster);
    set(&repo, &["--boot-timeout", "2s"]);
    let failed = repo.bazooka(&["config", "set", "BOOT=6"]).exits(1);
    assert!(failed.stderr.contains("v2 can't run"), "{failed:?}");
    set(&repo, &["--boot-timeout", "30s"]);
    repo.bazooka(&["config", "set", "BOOT=6"]).ok();
}

#[test]
fn an_instance_that_does_not_end_is_killed_after_its_stop_timeout() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster);
    set(&repo, &["--stop-timeout", "1s"]);
    repo.bazooka(&["config", "set", "STOP=25"]).ok();
    let begin = Instant::now();
    repo.bazooka(&["scale", "-n", "0", "web"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}, as long as it wants", begin.elapsed());
    // Taken back, it has the usual 30 s.
    set(&repo, &["--stop-timeout", "default"]);
    repo.bazooka(&["config", "set", "STOP=5"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let begin = Instant::now();
    repo.bazooka(&["scale", "-n", "0", "web"]).ok();
    assert!(begin.elapsed() > Duration::from_secs(5), "it was killed after {:?}", begin.elapsed());
}

#[test]
fn a_check_by_http_is_asked_for_and_decides() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster);
    set(&repo, &["--check", "http:/healthz", "--boot-timeout", "3s"]);
    let failed = repo.bazooka(&["config", "set", "MOOD=bad"]).exits(1);
    assert!(failed.stderr.contains("v2 can't run"), "{failed:?}");
    repo.bazooka(&["config", "set", "HEALTHY=yes"]).ok();
    until("the path was asked for", SOON, || {
        let logs = repo.bazooka(&["logs"]).ok().stdout;
        if logs.contains("/healthz") { Ok(()) } else { Err(logs) }
    });
    // Anything that listens is good enough again.
    set(&repo, &["--check", "default"]);
    repo.bazooka(&["config", "unset", "HEALTHY"]).ok();
}

/// The most instances that were there at one time while a release was rolled out.
fn most_in_rollout(cluster: &Cluster, repo: &Repo, words: &[&str]) -> usize {
    let done = AtomicBool::new(false);
    let app = APP.parse().expect("a name");
    thread::scope(|scope| {
        let rollout = scope.spawn(|| {
            let ran = repo.bazooka(words);
            done.store(true, Ordering::SeqCst);
            ran
        });
        let mut most = 0;
        while !done.load(Ordering::SeqCst) {
            let snapshot = cluster.snapshot();
            most = most.max(snapshot.apps.get(&app).map_or(0, |view| view.instances.len()));
        }
        rollout.join().expect("it doesn't panic").ok();
        most
    })
}

#[test]
#[ignore = "three rollouts, counted from outside: two minutes"]
fn a_batch_is_as_large_as_it_is_set_and_may_stop_old_ones_first() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster);
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    set(&repo, &["--batch", "1", "--min-ready", "2s"]);
    let begin = Instant::now();
    // One new instance at a time, beside an old one that drains.
    let most = most_in_rollout(&cluster, &repo, &["config", "set", "ROUND=1"]);
    assert!(most <= 6, "one is replaced at a time, and there were {most}");
    // The trial's instance is counted on after 2 s, and three more after it, each by itself.
    assert!(
        begin.elapsed() >= Duration::from_secs(8),
        "no batch waits for the one before: {:?}",
        begin.elapsed()
    );
    set(&repo, &["--batch", "4", "--min-ready", "0"]);
    let most = most_in_rollout(&cluster, &repo, &["config", "set", "ROUND=2"]);
    assert!(most > 6, "four are replaced at a time, and there were {most}");
    // Of what may be unavailable, no instance is replaced before it stops.
    set(&repo, &["--batch", "default", "--max-unavailable", "4", "--min-ready", "default"]);
    most_in_rollout(&cluster, &repo, &["config", "set", "ROUND=3"]);
    let listed = repo.bazooka(&["procs", "-l"]).ok().stdout;
    let row: Vec<&str> = listed.lines().nth(1).unwrap_or_default().split('\t').collect();
    assert_eq!(row[6..13], ["listening", "60s", "30s", "1s", "a quarter", "4", "keep"], "{listed}");
}
