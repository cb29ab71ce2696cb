//! What is shown as it happens: events, and lines of output from several hosts.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    routing::get,
};
use futures::{StreamExt, stream};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    sync::broadcast,
    time::timeout,
};
use tokio_stream::wrappers::BroadcastStream;

use crate::{
    player::{Player, register},
    rig::Rig,
};

/// A command whose lines are read as they come.
struct Live {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Live {
    fn start(rig: &Rig, args: &[&str]) -> Live {
        let mut command = rig.command(env!("CARGO_BIN_EXE_bazooka"), args);
        let mut child = command.stderr(Stdio::inherit()).spawn().expect("it can be started");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Live { lines, _child: child }
    }

    async fn line(&mut self) -> String {
        let line = timeout(Duration::from_secs(10), self.lines.next_line()).await;
        line.expect("a line comes within ten seconds").expect("it can be read").expect("it goes on")
    }

    /// Reads until a line has this in it; returns what came.
    async fn until(&mut self, wanted: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            seen.push(self.line().await);
            if seen.last().is_some_and(|line| line.contains(wanted)) {
                return seen;
            }
        }
    }
}

#[tokio::test]
async fn events_tell_what_happens_to_the_app_as_it_happens() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.rm().await;
    let _player = Player::start(&rig.visor).await;
    let mut events = Live::start(&rig, &["-a", "goto-rocket", "events"]);
    let mut json = Live::start(&rig, &["-a", "goto-rocket", "events", "--json"]);
    // They show what comes after they have begun; a first change tells that they have.
    let begun = async {
        for n in 1.. {
            let name = format!("N={n}");
            rig.bazooka(&["-a", "goto-rocket", "config", "set", &name]).await.ok();
            if timeout(Duration::from_millis(200), events.until("is current")).await.is_ok() {
                break;
            }
        }
    };
    timeout(Duration::from_secs(20), begun).await.expect("they begin");
    rig.bazooka(&["-a", "goto-rocket", "scale", "-n", "1", "web"]).await.ok();
    let seen = events.until("runs at 1.2.3.4:21880").await;
    let told = seen.join("\n");
    assert!(told.contains("web  0 -> 1 wanted"), "{told}");
    rig.bazooka(&["-a", "goto-rocket", "scale", "-n", "0", "web"]).await.ok();
    events.until("is archived").await;
    let seen = json.until("is archived").await;
    let last: serde_json::Value =
        serde_json::from_str(seen.last().expect("it was seen")).expect("it is JSON");
    assert_eq!(
        (&last["of"], &last["instance"], &last["proc"]),
        (&"instance".into(), &"1".into(), &"web".into())
    );
}

/// The log endpoint of a host: what it has, and what comes.
#[derive(Clone)]
struct Host {
    before: Arc<Vec<String>>,
    live: broadcast::Sender<String>,
}

async fn logs(State(host): State<Host>, Query(asked): Query<BTreeMap<String, String>>) -> Body {
    let n: usize = asked["n"].parse().expect("a number");
    let skip = host.before.len().saturating_sub(n);
    let before = stream::iter(host.before.iter().skip(skip).cloned().collect::<Vec<_>>());
    let lines: stream::BoxStream<'static, String> = if asked["follow"] == "true" {
        let live = BroadcastStream::new(host.live.subscribe());
        before.chain(live.filter_map(|line| async move { line.ok() })).boxed()
    } else {
        before.boxed()
    };
    Body::from_stream(lines.map(|line| Ok::<_, std::convert::Infallible>(line + "\n")))
}

fn line(second: u32, id: u32, text: &str) -> String {
    let at = format!("2026-01-01T00:00:{second:02}.000000Z");
    serde_json::json!({"at": at, "app": "goto-rocket", "proc": "web", "instance": id.to_string(),
        "stream": "out", "line": text})
    .to_string()
}

async fn host(rig: &Rig, name: &str, before: Vec<String>) -> Host {
    let host = Host { before: Arc::new(before), live: broadcast::channel(100).0 };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has an address"));
    let routes = Router::new().route("/logs", get(logs)).with_state(host.clone());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let lease = rig.visor.store().grant(Duration::from_secs(300)).await.expect("it is granted");
    register(&rig.visor, &name.parse().expect("valid"), lease, &url).await;
    host
}

#[tokio::test]
async fn lines_of_all_hosts_come_in_the_order_of_time_and_go_on() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let one = host(&rig, "host1", vec![line(1, 1, "a"), line(3, 1, "c")]).await;
    let two = host(&rig, "host2", vec![line(2, 2, "b"), line(4, 2, "d")]).await;
    let all = rig.bazooka(&["-a", "goto-rocket", "logs"]).await.ok().stdout;
    assert_eq!(all, "web.1 | a\nweb.2 | b\nweb.1 | c\nweb.2 | d\n");
    let last = rig.bazooka(&["-a", "goto-rocket", "logs", "-n", "1"]).await.ok().stdout;
    assert_eq!(last, "web.2 | d\n");
    let json = rig.bazooka(&["-a", "goto-rocket", "logs", "-n", "1", "--json"]).await.ok().stdout;
    assert_eq!(json.trim_end(), line(4, 2, "d"));

    let mut follow = Live::start(&rig, &["-a", "goto-rocket", "logs", "-f", "-n", "2"]);
    assert_eq!([follow.line().await, follow.line().await], ["web.1 | c", "web.2 | d"]);
    one.live.send(line(5, 1, "e")).expect("it is followed");
    assert_eq!(follow.line().await, "web.1 | e");
    two.live.send(line(6, 2, "f")).expect("it is followed");
    assert_eq!(follow.line().await, "web.2 | f");
    // A host that comes later is followed from then on.
    let three = host(&rig, "host3", Vec::new()).await;
    let followed = async {
        while three.live.send(line(7, 3, "g")).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), followed).await.expect("the new host is followed");
    assert_eq!(follow.line().await, "web.3 | g");
}

#[tokio::test]
async fn what_a_host_says_when_it_refuses_is_told() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has an address"));
    let refuse = || async { (axum::http::StatusCode::TOO_MANY_REQUESTS, "there are enough; end one\n") };
    let routes = Router::new().route("/logs", get(refuse));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let lease = rig.visor.store().grant(Duration::from_secs(300)).await.expect("it is granted");
    register(&rig.visor, &"host1".parse().expect("valid"), lease, &url).await;
    let ran = rig.bazooka(&["-a", "goto-rocket", "logs"]).await.exits(5);
    assert!(ran.stderr.contains("host1: there are enough; end one"), "{ran:?}");
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_told_of_and_the_others_are_shown() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    host(&rig, "host1", vec![line(1, 1, "a")]).await;
    let lease = rig.visor.store().grant(Duration::from_secs(300)).await.expect("it is granted");
    register(&rig.visor, &"host2".parse().expect("valid"), lease, "http://127.0.0.1:1").await;
    let ran = rig.bazooka(&["-a", "goto-rocket", "logs"]).await.exits(5);
    assert_eq!(ran.stdout, "web.1 | a\n");
    assert!(ran.stderr.contains("host2"), "{ran:?}");
}

#[tokio::test]
async fn the_audit_goes_on_with_a_line_an_entry() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    for count in ["1", "2", "3"] {
        rig.bazooka(&["-a", "goto-rocket", "scale", "-n", count, "--no-wait", "web"]).await.ok();
    }
    let mut json = Live::start(&rig, &["audit", "-f", "--json", "-n", "2"]);
    let mut lines = Live::start(&rig, &["audit", "-f", "-n", "1"]);
    let what = async |live: &mut Live| {
        let line: serde_json::Value = serde_json::from_str(&live.line().await).expect("a line is JSON");
        line["what"].as_str().expect("a text").to_owned()
    };
    assert_eq!(what(&mut json).await, "scale -n 2 --no-wait web");
    assert_eq!(what(&mut json).await, "scale -n 3 --no-wait web");
    assert!(lines.line().await.ends_with("goto-rocket  scale -n 3 --no-wait web"));
    rig.bazooka(&["-a", "goto-rocket", "scale", "-n", "4", "--no-wait", "web"]).await.ok();
    assert_eq!(what(&mut json).await, "scale -n 4 --no-wait web");
    assert!(lines.line().await.ends_with("goto-rocket  scale -n 4 --no-wait web"));
}
