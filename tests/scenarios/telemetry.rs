//! Telemetry: the Prometheus that Debian has, with the configuration, the rules and the dashboard that are shipped.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bazooka_daemon::http_client;
use bazooka_tests::{Cluster, ClusterOptions, Endpoint, OPERATOR, Part, Ran, Repo, SOON, try_get, until};
use serde_json::Value;

/// An app that answers, and tells how often.
const APP: &str = r##"
import http.server, os
asked = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        body = b"hello\n" * 1000
        if self.path == "/metrics":
            body = b"# HELP v2_requests_total Requests.\n# TYPE v2_requests_total counter\nv2_requests_total %d\n" % asked
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"##;

fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(shipped(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// A running Prometheus. It ends with the value.
struct Prometheus {
    part: Part,
    address: String,
}

impl Prometheus {
    /// Starts one with the shipped configuration, in which nothing differs but addresses and how often it looks.
    fn start(cluster: &Cluster, identity: Option<&Path>) -> Prometheus {
        let (folder, address) = (cluster.folder("prometheus"), cluster.at(Endpoint::Prometheus));
        fs::create_dir_all(&folder).expect("a folder");
        let scheme = if identity.is_some() { "https" } else { "http" };
        let mut text = read("prometheus/prometheus.yml");
        for proxy in ["http://10.0.0.9:8083", "http://10.0.0.10:8083"] {
            // The same one twice: what two proxies tell alike is one target.
            text = text.replace(proxy, &format!("{scheme}://{}", cluster.at(Endpoint::Proxy)));
        }
        text = text.replace("localhost:9090", &address).replace("15s", "1s").replace("10s", "1s");
        if let Some(identity) = identity {
            let identity = identity.display().to_string();
            text = text.replace("# tls_config", "tls_config").replace("/etc/prometheus/bazooka", &identity);
            text = ["ca", "cert", "key"].iter().fold(text, |text, file| {
                text.replace(&format!("#   {file}_file"), &format!("  {file}_file"))
            });
        }
        fs::write(folder.join("prometheus.yml"), text).expect("written");
        fs::write(folder.join("alerts.yml"), read("prometheus/alerts.yml")).expect("written");
        let mut command = Command::new("prometheus");
        command.arg("--config.file").arg(folder.join("prometheus.yml"));
        command.arg("--storage.tsdb.path").arg(folder.join("data"));
        command.arg(format!("--web.listen-address={address}"));
        let part = Part::start("prometheus", &folder.join("prometheus.log"), &mut command);
        let prometheus = Prometheus { part, address };
        until("Prometheus is ready", SOON, || prometheus.get("/-/ready").map(drop));
        prometheus
    }

    fn get(&self, path: &str) -> Result<String, String> {
        let answer = try_get(&format!("http://{}{path}", self.address), None)?;
        if answer.status == 200 { Ok(answer.body) } else { Err(format!("{answer:?}\n{}", self.part.log())) }
    }

    fn api(&self, path: &str) -> Result<Value, String> {
        let answer: Value = serde_json::from_str(&self.get(&format!("/api/v1/{path}"))?)
            .map_err(|error| error.to_string())?;
        Ok(answer["data"].clone())
    }

    /// The targets of a job, by what each is called, with their health.
    fn targets(&self, job: &str) -> Result<BTreeSet<(String, String)>, String> {
        let told = self.api("targets?state=active")?;
        let word = |target: &Value, path: &str| {
            target.pointer(path).and_then(Value::as_str).unwrap_or("-").to_owned()
        };
        let targets = told["activeTargets"].as_array().ok_or("no targets")?.iter();
        Ok(targets
            .filter(|target| target["scrapePool"] == job)
            .map(|target| (word(target, "/labels/instance"), word(target, "/health")))
            .collect())
    }

    /// Waits until a job has these targets, and all are up.
    fn until_up(&self, job: &str, names: &[&str]) {
        let wanted = names.iter().map(|name| ((*name).to_owned(), "up".to_owned())).collect();
        until(&format!("{job} has its targets"), SOON, || {
            let targets = self.targets(job)?;
            if targets == wanted { Ok(()) } else { Err(format!("{targets:?}, wanted {wanted:?}")) }
        });
    }

    /// The series that an expression gives.
    fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let told = self.api(&format!("query?query={encoded}"))?;
        told["result"].as_array().cloned().ok_or_else(|| told.to_string())
    }
}

/// An app `v2` with two instances of web, and their ids.
fn app(cluster: &Cluster, repo: &Repo) -> Vec<String> {
    repo.write("app.py", APP);
    repo.write("Procfile", "web: python3 app.py\n");
    repo.commit("one");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();
    instances(cluster)
}

fn instances(cluster: &Cluster) -> Vec<String> {
    let snapshot = cluster.snapshot();
    let app = &snapshot.apps[&"v2".parse().expect("valid")];
    app.instances.keys().map(ToString::to_string).collect()
}

/// The names of metrics that expressions ask for.
fn names<'a>(expressions: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let ours =
        |word: &&str| ["bazooka_", "haproxy_", "prometheus_"].iter().any(|start| word.starts_with(start));
    let words = expressions.into_iter().flat_map(|text| text.split(move |c| !is_part(c)));
    words.filter(ours).map(str::to_owned).collect()
}

/// Every expression of the dashboard.
fn dashboard() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&read("grafana/bazooka.json")).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
}

fn promtool(words: &[&str], input: &str) -> Ran {
    let mut command = Command::new("promtool");
    command.args(words).current_dir(shipped("prometheus"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool runs: apt install prometheus");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: std::time::Duration::ZERO,
    }
}

#[test]
fn promtool_finds_nothing_amiss_in_what_is_shipped() {
    promtool(&["check", "config", "prometheus.yml"], "").ok();
    promtool(&["check", "rules", "alerts.yml"], "").ok();
    promtool(&["test", "rules", "alerts.test.yml"], "").ok();
    // Each alert is shown to fire, and not to.
    let (rules, tests) = (read("prometheus/alerts.yml"), read("prometheus/alerts.test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert_eq!(tests.matches(&format!("alertname: {alert}")).count(), 2, "{alert}");
    }
}

#[test]
fn prometheus_draws_a_services_traffic_by_instance_and_follows_what_runs() {
    let cluster = Cluster::with(ClusterOptions { hosts: 2, ..Default::default() });
    let repo = cluster.repo("v2");
    let ids = app(&cluster, &repo);
    let [one, two] = &ids[..] else { panic!("two instances: {ids:?}") };
    let prometheus = Prometheus::start(&cluster, None);
    let daemons = ["converger:converger1", "pm:host1", "pm:host2", "proxy:proxy1", "rm:rm1"];
    prometheus.until_up("bazooka", &daemons);
    prometheus.until_up("haproxy", &["haproxy:proxy1"]);
    prometheus.until_up("apps", &[one, two]);

    // The graph that it is all for.
    let graph = r#"sum by (instance) (rate(haproxy_server_bytes_out_total{service="v2/web"}[30s])) > 0"#;
    until("the graph has a line for each instance", SOON, || {
        cluster.ask("v2")?;
        let series = prometheus.query(graph)?;
        let lines: BTreeSet<&str> =
            series.iter().filter_map(|one| one["metric"]["instance"].as_str()).collect();
        if lines == BTreeSet::from([one.as_str(), two.as_str()]) {
            Ok(())
        } else {
            Err(format!("{series:?}"))
        }
    });
    // What the app tells of itself, with what is known of the instance.
    let own = until("the app's own metrics are there", SOON, || {
        let series = prometheus.query("v2_requests_total")?;
        if series.len() == 2 { Ok(series) } else { Err(format!("{series:?}")) }
    });
    for series in own {
        let label = |name: &str| series["metric"][name].as_str().unwrap_or_default().to_owned();
        assert_eq!([label("app"), label("proc"), label("service")], ["v2", "web", "v2/web"], "{series}");
        assert_eq!([label("release"), label("zone")], ["v1", "default"], "{series}");
        assert!(label("host").starts_with("host") && label("rev").len() == 7, "{series}");
    }

    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let left = instances(&cluster);
    until("the target leaves", SOON, || {
        let targets = prometheus.targets("apps")?;
        let names: Vec<&String> = targets.iter().map(|(name, _)| name).collect();
        if names == left.iter().collect::<Vec<_>>() {
            Ok(())
        } else {
            Err(format!("{names:?}, {left:?} left"))
        }
    });

    let alerts = read("prometheus/alerts.yml");
    // Rules alone: what they say to people names commands.
    let rules: Vec<&str> =
        alerts.lines().filter(|line| !line.contains("summary") && !line.contains("description")).collect();
    let asked = names(dashboard().iter().map(String::as_str).chain(rules));
    assert!(asked.len() > 30, "{asked:?}");
    until("each metric that is asked for is there", SOON, || {
        let told = prometheus.api("label/__name__/values")?;
        let there: BTreeSet<&str> =
            told.as_array().ok_or("no names")?.iter().filter_map(Value::as_str).collect();
        let missing: Vec<&String> = asked.iter().filter(|name| !there.contains(name.as_str())).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("missing: {missing:?}")) }
    });
    for expression in dashboard() {
        // Grafana's own words.
        let expression = expression.replace("$__rate_interval", "1m").replace("$service", ".+");
        prometheus.query(&expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    }
    let rules = prometheus.api("rules").expect("it answers");
    let unwell: Vec<&Value> = rules["groups"][0]["rules"]
        .as_array()
        .expect("there are rules")
        .iter()
        .filter(|rule| rule["health"] != "ok" && rule["health"] != "unknown")
        .collect();
    assert!(unwell.is_empty(), "{unwell:?}");

    for (what, address) in [
        ("rm", cluster.at(Endpoint::Rm)),
        ("converger", cluster.at(Endpoint::Converger)),
        ("proxy", cluster.at(Endpoint::Proxy)),
        ("pm", cluster.at(Endpoint::Host(1))),
    ] {
        let metrics = try_get(&format!("http://{address}/metrics"), None).expect("it answers").body;
        assert!(metrics.contains("# HELP bazooka_"), "{what}: {metrics}");
        let found = promtool(&["check", "metrics"], &metrics);
        assert_eq!((found.code, found.stderr.as_str()), (0, ""), "{what}: {found:?}\n{metrics}");
    }
}

#[test]
fn where_parts_are_told_apart_prometheus_reads_as_a_monitor_and_a_stranger_nothing() {
    let cluster = Cluster::with(ClusterOptions { identities: true, ..Default::default() });
    cluster.person("ada");
    cluster.repo_of("operating", OPERATOR).bazooka(&["access", "grant", "ada"]).ok();
    let ids = app(&cluster, &cluster.repo_of("v2", "ada"));
    let monitor = cluster.person("monitor:prometheus");
    let prometheus = Prometheus::start(&cluster, Some(&monitor));
    // A certificate alone lets nobody in.
    let client =
        http_client(Some(&cluster.credentials("monitor:prometheus"))).build().expect("its TLS is made");
    let sd = format!("https://{}/sd", cluster.at(Endpoint::Proxy));
    let (_, runtime) = cluster.visor();
    assert_eq!(runtime.block_on(client.get(&sd).send()).expect("it answers").status(), 403);
    cluster.repo_of("operating", OPERATOR).bazooka(&["access", "grant", "monitor:prometheus"]).ok();
    prometheus.until_up("bazooka", &["converger:converger1", "pm:host1", "proxy:proxy1", "rm:rm1"]);
    prometheus.until_up("haproxy", &["haproxy:proxy1"]);
    prometheus.until_up("apps", &[&ids[0], &ids[1]]);
}
