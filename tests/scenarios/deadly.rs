//! A request that kills its instance, sent again and again, and everybody else's requests beside it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use bazooka_tests::{Cluster, Endpoint, SOON, try_get, until};
use jiff::SignedDuration;
use visor::{
    names::InstanceId,
    schema::{State, Status},
    snapshot::Snapshot,
};

/// Answers, and dies of `/die`.
const SERVER: &str = r#"
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/die":
            os._exit(1)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"#;

const APP: &str = "mortal";

/// How long the requests that kill are sent, ten a second.
const FOR: Duration = Duration::from_secs(15);

/// The time that an instance must have served to count as proven.
const SERVED: Duration = Duration::from_secs(10);

fn statuses(snapshot: &Snapshot) -> BTreeMap<InstanceId, Status> {
    let all = snapshot.hosts.values().flat_map(|host| &host.status);
    all.map(|(id, status)| (*id, status.value.clone())).collect()
}

/// Asks every 20 ms until it is told to stop. Returns how often, and how often that was answered.
fn ask_others(url: &str, host: &str, stop: &AtomicBool) -> (u32, u32) {
    let (mut asked, mut answered) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        asked += 1;
        answered += u32::from(try_get(url, Some(host)).is_ok_and(|answer| answer.status == 200));
        sleep(Duration::from_millis(20));
    }
    (asked, answered)
}

#[test]
fn a_request_that_kills_ends_two_instances_at_most_and_the_service_is_back_within_a_second() {
    let cluster = Cluster::start();
    let repo = cluster.repo(APP);
    repo.write("Procfile", "web: exec python3 server.py\n").write("server.py", SERVER).commit("v1");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    let (url, host) = (format!("http://{}", cluster.at(Endpoint::Public)), cluster.name_of(APP));
    until("it answers", SOON, || match try_get(&url, Some(&host))?.status {
        200 => Ok(()),
        other => Err(other.to_string()),
    });
    // What counts is the time that the instances have served, which nothing shows.
    sleep(SERVED + Duration::from_secs(1));

    let stop = Arc::new(AtomicBool::new(false));
    let others = std::thread::spawn({
        let (url, host, stop) = (url.clone(), host.clone(), stop.clone());
        move || ask_others(&url, &host, &stop)
    });
    let (begin, mut deadly, mut longest) = (Instant::now(), 0, SignedDuration::ZERO);
    while begin.elapsed() < FOR {
        let next = Instant::now() + Duration::from_millis(100);
        deadly += 1;
        // 502 or, while no instance is up, 503.
        let _ = try_get(&format!("{url}/die"), Some(&host));
        for status in statuses(&cluster.snapshot()).values() {
            if let (State::Backoff, Some(at)) = (status.state, status.next_start_at) {
                longest = longest.max(at.duration_since(status.since));
            }
        }
        sleep(next.saturating_duration_since(Instant::now()));
    }
    stop.store(true, Ordering::Relaxed);
    let (asked, answered) = others.join().expect("it doesn't panic");
    let after = until("all run again", SOON, || {
        let now = statuses(&cluster.snapshot());
        let run = now.values().filter(|status| status.state == State::Running).count();
        if run == 4 { Ok(now) } else { Err(format!("{now:?}")) }
    });
    let ended: u32 = after.values().map(|status| status.restarts).sum();
    eprintln!(
        "{deadly} requests ended {ended} instances; {answered} of {asked} others were answered; {longest:#}"
    );
    assert!(ended > 0 && ended <= 2 * deadly, "{deadly} requests ended {ended} instances");
    assert!(longest <= SignedDuration::from_secs(1), "an instance waited for {longest:#}");
    assert!(answered > 0, "none of {asked} others was answered");
}
