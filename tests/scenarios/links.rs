//! Links: an app's instances call another app's service at an address that stays, whatever becomes of that
//! service's instances.

use bazooka_tests::{Cluster, ClusterOptions, Repo, SOON, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::versioned_app::{self, Visitors};

/// Answers with what `api` says.
const FRONT: &str = r#"
import http.server, os, urllib.request
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        address = os.environ.get("BAZOOKA_SERVICE_API_WEB")
        status, body = 200, b"nobody\n"
        if address:
            try:
                body = urllib.request.urlopen(f"http://{address}/", timeout=30).read()
            except Exception as error:
                status, body = 500, f"{address}: {error}\n".encode()
        body = b"api says " + body
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

/// An app with two instances, at its first version.
fn deployed(cluster: &Cluster, name: &str, commit: impl FnOnce(&Repo)) -> Repo {
    let repo = cluster.repo(name);
    commit(&repo);
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();
    repo
}

fn api(cluster: &Cluster) -> Repo {
    deployed(cluster, "api", |repo| drop(versioned_app::version(repo, "one")))
}

fn front(cluster: &Cluster) -> Repo {
    deployed(cluster, "front", |repo| {
        repo.write("Procfile", "web: python3 server.py\n").write("server.py", FRONT);
        repo.commit("front");
    })
}

/// Waits until every answer of `front` in a row of ten is this.
fn front_says(cluster: &Cluster, wanted: &str) {
    until(&format!("front says {wanted:?}"), SOON, || {
        for _ in 0..10 {
            let answer = cluster.ask("front")?;
            if answer.status != 200 || answer.body != wanted {
                return Err(format!("{answer:?}"));
            }
        }
        Ok(())
    });
}

/// Kills the process of an instance of `api` that runs.
fn kill_one_of_api(cluster: &Cluster) {
    let snapshot = cluster.snapshot();
    let app = "api".parse().expect("valid");
    let ids = snapshot.apps[&app].instances.keys();
    let pid = ids.filter_map(|id| snapshot.status(&app, *id)?.pid).next().expect("one runs");
    kill(Pid::from_raw(i32::try_from(pid).expect("it is a process id")), Signal::SIGKILL).expect("it runs");
}

#[test]
fn what_links_a_service_reaches_it_through_rollouts_and_crashes_and_a_rollback_takes_the_link() {
    let cluster = Cluster::with(ClusterOptions { hosts: 2, ..ClusterOptions::default() });
    let (api, front) = (api(&cluster), front(&cluster));
    front_says(&cluster, "api says nobody\n");
    let added = front.bazooka(&["link", "add", "api:web"]).ok();
    assert!(added.stdout.starts_with("v2 released (e1)\nweb v1 -> v2"), "{added:?}");
    front_says(&cluster, "api says one -\n");
    let port =
        cluster.snapshot().apps[&"api".parse().expect("valid")].procs[&"web".parse().expect("valid")].port;
    let list = front.bazooka(&["link"]).ok().stdout;
    assert_eq!(list, format!("LINK\tPORT\tVARIABLE\napi:web\t{port}\tBAZOOKA_SERVICE_API_WEB\n"));

    let visitors = Visitors::come_to(&cluster, "front", 3);
    versioned_app::version(&api, "two");
    api.git(&["push", "bazooka", "master"]).ok();
    front_says(&cluster, "api says two -\n");
    kill_one_of_api(&cluster);
    front_says(&cluster, "api says two -\n");
    api.bazooka(&["restart", "web"]).ok();
    let (asked, lost) = visitors.leave();
    assert_eq!(lost, Vec::<String>::new(), "of {asked}");
    assert!(asked > 50, "{asked}");

    // A change of vars keeps it, and so does the way back from that; the way back from the link takes it.
    api.bazooka(&["config", "set", "GREETING=hello"]).ok();
    front.bazooka(&["config", "set", "A=1"]).ok();
    front_says(&cluster, "api says two hello\n");
    front.bazooka(&["rollback"]).ok();
    front_says(&cluster, "api says two hello\n");
    front.bazooka(&["rollback", "v1"]).ok();
    front_says(&cluster, "api says nobody\n");
    let list = front.bazooka(&["link", "--json"]).ok();
    assert_eq!(list.stdout.trim(), "[]");
}

#[test]
fn a_link_whose_service_has_gone_is_told_and_what_runs_goes_on() {
    let cluster = Cluster::start();
    let (api, front) = (api(&cluster), front(&cluster));
    front.bazooka(&["link", "add", "api:web"]).ok();
    api.bazooka(&["destroy", "--confirm", "api"]).ok();
    let list = front.bazooka(&["link"]).ok().stdout;
    assert!(list.contains("api:web\tgone\t"), "{list}");
    let scaled = front.bazooka(&["scale", "-n", "3", "web"]).exits(1);
    assert!(scaled.stderr.contains("v2 links api:web, but there is no such service"), "{scaled:?}");
    assert_eq!(cluster.ask("front").map(|answer| answer.status), Ok(500), "two run on, and call nobody");

    // Without the link all three have a place.
    front.bazooka(&["link", "remove", "api:web"]).ok();
    front_says(&cluster, "api says nobody\n");
    until("three run", SOON, || {
        let ps = front.bazooka(&["ps"]).ok().stdout;
        if ps.lines().count() == 4 { Ok(()) } else { Err(ps) }
    });
    let gone = front.bazooka(&["link", "add", "api:web"]).exits(3);
    assert!(gone.stderr.contains("there is no app 'api'"), "{gone:?}");
}
