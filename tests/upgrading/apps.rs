//! The apps of the cluster that is upgraded, and what is done to them meanwhile.

use bazooka_tests::{Fleet, Repo};

/// The app that changes: its releases, scales and rollbacks.
pub const SHOP: &str = "shop";

/// The app that must stay as it is, with a worker: its processes are the same from the first to the last moment.
pub const STEADY: &str = "steady";

/// The app that asks [`STEADY`] over a link. It stays as it is, too.
pub const FRONT: &str = "front";

/// Answers with its version and a config var, after a moment in which its request is under way.
const SERVER: &str = r#"
const server = require("http").createServer((request, response) => {
  request.resume();
  setTimeout(() => response.end(`VERSION ${process.env.MOOD || "-"}\n`), 20);
});
server.listen(process.env.PORT);
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"#;

/// Hands each request on to the service that it links.
const HANDS_ON: &str = r#"
const http = require("http");
const [host, port] = (process.env.BAZOOKA_SERVICE_STEADY_WEB || ":").split(":");
const server = http.createServer((request, response) => {
  const asked = http.request({ host, port, method: request.method, path: request.url }, (answer) => {
    response.writeHead(answer.statusCode);
    answer.pipe(response);
  });
  asked.on("error", (error) => { response.writeHead(502); response.end(`${error}\n`); });
  request.pipe(asked);
});
server.listen(process.env.PORT);
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"#;

/// Numbered lines, to see whether any is missing.
const TICKER: &str =
    "import time\nn = 0\nwhile True:\n    print(n, flush=True)\n    n += 1\n    time.sleep(0.1)\n";

/// What is done to [`SHOP`] while the cluster is upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new version is pushed.
    Push,
    /// It gets one instance more, or one less.
    Scale,
    /// A config var is set.
    Config,
    /// The release before the current one is released again.
    Rollback,
}

impl Change {
    /// Each of them.
    pub const ALL: [Change; 4] = [Change::Push, Change::Scale, Change::Config, Change::Rollback];
}

/// Writes and commits a version of [`SHOP`].
pub fn version(repo: &Repo, version: &str) {
    repo.write("Procfile", "web: node server.js\n").write("server.js", &SERVER.replace("VERSION", version));
    repo.commit(version);
}

/// Registers, pushes and scales an app with the build's own command line.
fn deploy(repo: &Repo, procs: &[(&str, usize)]) {
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    for (proc, count) in procs {
        repo.bazooka(&["scale", "-n", &count.to_string(), proc]).ok();
    }
}

/// [`SHOP`] at version v1, with four instances.
pub fn shop(fleet: &Fleet) -> Repo {
    let repo = fleet.repo(SHOP);
    version(&repo, "v1");
    deploy(&repo, &[("web", 4)]);
    repo
}

/// [`STEADY`] with three instances that answer and two that count.
pub fn steady(fleet: &Fleet) -> Repo {
    let repo = fleet.repo(STEADY);
    repo.write("Procfile", "web: node server.js\nticker: python3 ticker.py\n");
    repo.write("server.js", &SERVER.replace("VERSION", STEADY)).write("ticker.py", TICKER);
    repo.commit("steady");
    deploy(&repo, &[("web", 3), ("ticker", 2)]);
    repo
}

/// [`FRONT`] with two instances, linked to [`STEADY`].
pub fn front(fleet: &Fleet) -> Repo {
    let repo = fleet.repo(FRONT);
    repo.write("Procfile", "web: node server.js\n").write("server.js", HANDS_ON);
    repo.commit("front");
    deploy(&repo, &[("web", 2)]);
    repo.bazooka(&["link", "add", "steady:web"]).ok();
    repo
}
