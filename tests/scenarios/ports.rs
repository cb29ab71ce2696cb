//! Rows with absurd values, by somebody who may write them: other apps keep their ports and traffic, and are served on.

use std::sync::Arc;

use bazooka_tests::{Cluster, ClusterOptions, OPERATOR, Repo, SOON, try_get, until};
use serde_json::{Value, json};
use visor::{
    keys::Key,
    names::{AppName, ProcName, ServicePort},
    store::{
        MAX_TXN_OPS, Op, Txn,
        etcd::{EtcdConfig, EtcdStore},
    },
    visor::{Change, Visor, VisorError},
};

/// Answers with its own name, and with what the linked service says.
const SERVER: &str = r#"
import http.server, os, urllib.request
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"NAME\n"
        address = os.environ.get("BAZOOKA_SERVICE_SHOP_WEB")
        if address:
            body = b"by " + address.encode() + b": " + urllib.request.urlopen(f"http://{address}/").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
"#;

fn app(name: &str) -> AppName {
    name.parse().expect("valid")
}

fn proc(name: &str) -> ProcName {
    name.parse().expect("valid")
}

fn deployed(cluster: &Cluster, name: &str, who: &str) -> Repo {
    let repo = cluster.repo_of(name, who);
    repo.write("Procfile", "web: python3 server.py\n").write("server.py", &SERVER.replace("NAME", name));
    repo.commit(name);
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    repo
}

/// Returns the port that the row of a proc names.
fn named(cluster: &Cluster, name: &str) -> u16 {
    cluster.snapshot().apps[&app(name)].procs[&proc("web")].port
}

/// Asks a service's own port.
fn says(cluster: &Cluster, port: u16, wanted: &str) {
    until(&format!("port {port} says {wanted:?}"), SOON, || {
        let answer = try_get(&format!("http://{}/", cluster.address(1, port)), None)?;
        if answer.body == wanted { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

/// A cluster with identities, in which ada has the apps shop and front, and eve the elder app aaa.
fn town() -> Cluster {
    let cluster = Cluster::with(ClusterOptions { identities: true, hosts: 1, ..ClusterOptions::default() });
    let operator = cluster.repo_of("operating", OPERATOR);
    for who in ["ada", "eve"] {
        cluster.person(who);
        operator.bazooka(&["access", "grant", who]).ok();
    }
    deployed(&cluster, "aaa", "eve");
    deployed(&cluster, "shop", "ada");
    cluster
}

/// Returns the coordinator as somebody reaches it without `bazooka`.
fn as_person(cluster: &Cluster, who: &str) -> Visor {
    let prefix = cluster.client_envs()["BAZOOKA_PREFIX"].clone();
    let config = EtcdConfig::new(vec![cluster.coordinator().to_owned()], prefix);
    let (_, runtime) = cluster.visor();
    let _entered = runtime.enter();
    let credentials = Some(cluster.credentials(who));
    Visor::new(Arc::new(EtcdStore::new(EtcdConfig { credentials, ..config })))
}

/// Writes rows as they are.
fn write(cluster: &Cluster, as_whom: &Visor, rows: impl IntoIterator<Item = (String, Value)>) {
    let put = |(key, value): (String, Value)| Op::Put { key, value: value.to_string().into(), lease: None };
    let ops: Vec<Op> = rows.into_iter().map(put).collect();
    for piece in ops.chunks(MAX_TXN_OPS) {
        let txn = Txn { then: piece.to_vec(), ..Txn::default() };
        cluster.visor().1.block_on(as_whom.store().txn(txn)).expect("these are rows of her app");
    }
}

#[test]
fn whoever_names_another_apps_port_gets_neither_the_port_nor_its_traffic() {
    let cluster = town();
    let front = deployed(&cluster, "front", "ada");
    let (stolen, own) = (named(&cluster, "shop"), named(&cluster, "aaa"));
    front.bazooka(&["link", "add", "shop:web"]).ok();
    let linked = format!("by {}: shop\n", cluster.address(1, stolen));
    // Settings that were changed since the registration make the row of the proc no less its own.
    cluster.repo_of("shop", "ada").bazooka(&["procs", "set", "-a", "shop", "web", "--memory", "256M"]).ok();
    says(&cluster, stolen, "shop\n");

    let eve = as_person(&cluster, "eve");
    let named_so = || json!({"port": stolen});
    write(&cluster, &eve, ["web", "evil"].map(|name| (format!("apps/aaa/procs/{name}"), named_so())));
    let row = Change::new().delete(&Key::Port(ServicePort(stolen)));
    let denied = cluster.visor().1.block_on(eve.commit(row));
    assert!(matches!(&denied, Err(VisorError::Store(error)) if error.is_denied()), "{denied:?}");

    // A scale and a restart make everybody look at the rows again.
    let aaa = cluster.repo_of("aaa", "eve");
    aaa.bazooka(&["scale", "-a", "aaa", "-n", "2", "web"]).ok();
    front.bazooka(&["restart", "web"]).ok();
    for _ in 0..10 {
        says(&cluster, stolen, "shop\n");
        says(&cluster, own, "aaa\n");
        says(&cluster, named(&cluster, "front"), &linked);
    }
    assert_eq!(cluster.answers("aaa"), "aaa\n", "by its name too");
    let procs = aaa.bazooka(&["procs", "-a", "aaa"]).ok().stdout;
    assert!(procs.contains(&format!("aaa\tweb\t{own}\t")), "{procs}");
    assert!(procs.contains("aaa\tevil\tnone\t"), "{procs}");
    let operator = cluster.repo_of("operating", OPERATOR);
    let found = operator.bazooka(&["check"]).exits(1).stdout;
    assert!(found.contains("port-otherwise") && found.contains("port-missing"), "{found}");
    operator.bazooka(&["check", "--repair"]).exits(1);
    assert_eq!(named(&cluster, "aaa"), own);
}

#[test]
fn whatever_one_apps_people_write_others_are_scaled_and_answer_meanwhile() {
    let cluster = town();
    let (shop, port) = (cluster.repo_of("shop", "ada"), named(&cluster, "shop"));
    let eve = as_person(&cluster, "eve");
    let elected = || {
        let leader = cluster.snapshot().leader.expect("a converger is elected");
        (leader.value.name, leader.create_revision)
    };
    let before = elected();
    // No host has so much memory, so what is wanted of aaa takes no place that shop needs.
    let proc = |mut run: Value| {
        run["limits"] = json!({"memory_limit_bytes": u64::MAX, "pids": u32::MAX});
        vec![("apps/aaa/procs/web".to_owned(), json!({"port": port, "run": run}))]
    };
    let formation = |count: u32| vec![("apps/aaa/formation/web".to_owned(), json!({"count": count}))];
    let absurd: [Vec<(String, Value)>; 6] = [
        proc(json!({})),
        formation(u32::MAX),
        formation(10_001),
        proc(json!({"stop_timeout_ms": u64::MAX, "boot_timeout_ms": 1_u64 << 63})),
        proc(json!({"check": {"http": {"path": "@169.254.169.254/"}}})),
        (0..10_000).map(|n| (format!("apps/aaa/procs/p{n}"), json!({"port": port}))).collect(),
    ];
    for (n, rows) in absurd.into_iter().enumerate() {
        write(&cluster, &eve, rows);
        let count = ["2", "1"][n % 2];
        shop.bazooka(&["scale", "-a", "shop", "-n", count, "web"]).ok();
        for _ in 0..10 {
            says(&cluster, port, "shop\n");
        }
    }
    assert_eq!(elected(), before, "no converger ended");
}
