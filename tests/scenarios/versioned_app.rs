//! An app whose pages tell their version, and visitors who count what they get.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, spawn},
};

use bazooka_tests::{Cluster, Endpoint, Repo, SOON, try_get, until};

const SERVER: &str = r#"
import http.server, os, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("VERSION " + os.environ.get("GREETING", "-") + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

/// Commits a version, and returns its rev.
pub fn version(repo: &Repo, version: &str) -> String {
    repo.write("Procfile", "web: python3 server.py\n")
        .write("server.py", &SERVER.replace("VERSION", version));
    repo.commit(version)
}

/// The app `pages` at version one, with so many instances.
pub fn pushed(cluster: &Cluster, count: u32) -> Repo {
    let repo = cluster.repo("pages");
    version(&repo, "one");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", &count.to_string(), "web"]).ok();
    assert_eq!(cluster.answers("pages"), "one -\n");
    repo
}

/// Waits until every answer in a row of ten is this.
pub fn settles_on(cluster: &Cluster, wanted: &str) {
    until(&format!("every answer is {wanted:?}"), SOON, || {
        for _ in 0..10 {
            let answer = cluster.ask("pages")?;
            if answer.status != 200 || answer.body != wanted {
                return Err(format!("{answer:?}"));
            }
        }
        Ok(())
    });
}

/// Visitors who ask for a page, one request after the other, until they are told to leave.
pub struct Visitors {
    leave: Arc<AtomicBool>,
    each: Vec<JoinHandle<(u32, Vec<String>)>>,
}

impl Visitors {
    /// So many of them come.
    pub fn come(cluster: &Cluster, n: usize) -> Self {
        Visitors::come_to(cluster, "pages", n)
    }

    /// So many of them come to an app.
    pub fn come_to(cluster: &Cluster, app: &str, n: usize) -> Self {
        let leave = Arc::new(AtomicBool::new(false));
        let url = format!("http://{}/", cluster.at(Endpoint::Public));
        let visit = || {
            let (leave, url, host) = (leave.clone(), url.clone(), cluster.name_of(app));
            spawn(move || {
                let (mut asked, mut lost) = (0, Vec::new());
                while !leave.load(Ordering::Relaxed) {
                    asked += 1;
                    match try_get(&url, Some(&host)) {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => lost.push(format!("{answer:?}")),
                        Err(error) => lost.push(error),
                    }
                }
                (asked, lost)
            })
        };
        let each = (0..n).map(|_| visit()).collect();
        Visitors { leave, each }
    }

    /// They leave. How often they asked, and each request that was lost.
    pub fn leave(self) -> (u32, Vec<String>) {
        self.leave.store(true, Ordering::Relaxed);
        let counts = self.each.into_iter().map(|visitor| visitor.join().expect("a visitor doesn't panic"));
        counts.fold((0, Vec::new()), |(asked, mut lost), (more, others)| {
            lost.extend(others);
            (asked + more, lost)
        })
    }
}
