//! The apps that people bring, each pushed as it is and asked through HAProxy.

use std::process::Command;

use bazooka_tests::{Cluster, ClusterOptions, Endpoint, Part, Repo, SOON, example, until};

fn deployed(cluster: &Cluster, name: &str) -> Repo {
    let repo = cluster.repo(name);
    repo.copy(&example(name));
    repo.commit("hello");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    repo
}

#[test]
fn a_node_app_with_a_lockfile_runs() {
    let cluster = Cluster::start();
    deployed(&cluster, "hello-node");
    assert_eq!(cluster.answers("hello-node"), "hello from node, where 42 is a number\n");
}

#[test]
fn a_python_app_with_gunicorn_runs() {
    let cluster = Cluster::start();
    deployed(&cluster, "hello-python");
    assert_eq!(cluster.answers("hello-python"), "hello from python\n");
}

#[test]
fn a_rust_app_runs() {
    let cluster = Cluster::start();
    deployed(&cluster, "hello-rust");
    assert_eq!(cluster.answers("hello-rust"), "hello from rust, 42 times over\n");
}

#[test]
fn a_folder_of_static_files_is_served() {
    let cluster = Cluster::start();
    deployed(&cluster, "hello-static");
    assert!(cluster.answers("hello-static").contains("hello from a folder of static files"));
}

/// A network namespace with a user-mode way out to the registries, which can be taken away.
struct Away {
    name: String,
    way_out: Option<Part>,
}

impl Away {
    fn new(dir: &std::path::Path) -> Away {
        let name = format!("bztest{}", std::process::id());
        let run = |words: &[&str]| {
            let done = Command::new(words[0])
                .args(&words[1..])
                .output()
                .expect("ip can be started (Debian: iproute2)");
            assert!(
                done.status.success(),
                "{words:?} (needs root): {}",
                String::from_utf8_lossy(&done.stderr)
            );
        };
        run(&["ip", "netns", "add", &name]);
        let mut away = Away { name: name.clone(), way_out: None };
        run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        let resolver = format!("/etc/netns/{name}");
        std::fs::create_dir_all(&resolver).expect("the folder can be made");
        std::fs::write(format!("{resolver}/resolv.conf"), "nameserver 10.0.2.3\n")
            .expect("the file can be written");
        let mut slirp = Command::new("slirp4netns");
        slirp.args(["--configure", "--netns-type=path", &format!("/var/run/netns/{name}"), "tap0"]);
        away.way_out = Some(Part::start("slirp4netns", &dir.join("slirp.log"), &mut slirp));
        until("the namespace has a way out", SOON, || {
            let addresses = Command::new("ip").args(["-n", &name, "-4", "addr", "show", "tap0"]).output();
            let addresses = addresses.map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&addresses.stdout).into_owned();
            if text.contains("inet ") { Ok(()) } else { Err(text) }
        });
        away
    }

    fn inside(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).into()
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.way_out = None;
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.name));
    }
}

#[test]
fn once_pushed_an_app_needs_no_registry_any_more() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let mut away = Away::new(dir.path());
    let mut etcd = Command::new("ip");
    let client = "http://127.0.0.1:2379";
    etcd.args([
        "netns",
        "exec",
        &away.name,
        "etcd",
        "--listen-client-urls",
        client,
        "--advertise-client-urls",
        client,
    ]);
    etcd.arg("--data-dir").arg(dir.path().join("etcd"));
    let _etcd = Part::start("etcd", &dir.path().join("etcd.log"), &mut etcd);
    let mut cluster = Cluster::with(ClusterOptions {
        hosts: 2,
        inside: away.inside(),
        coordinator: Some(client.into()),
        ..ClusterOptions::default()
    });
    // The second host sees its first slug only when the registries are gone.
    cluster.host(2).stop();
    let repo = deployed(&cluster, "hello-python");
    let page = |cluster: &Cluster| -> Result<String, String> {
        let url = format!("http://{}/", cluster.at(Endpoint::Public));
        let mut curl = repo.command("curl", &["-fsS", "-H", "Host: hello-python.localhost", &url]);
        let asked = curl.output().map_err(|error| error.to_string())?;
        if asked.status.success() {
            Ok(String::from_utf8_lossy(&asked.stdout).into())
        } else {
            Err(String::from_utf8_lossy(&asked.stderr).into())
        }
    };
    assert_eq!(page(&cluster).expect("it answers"), "hello from python\n");

    away.way_out = None;
    let mut lookup = Command::new("ip");
    lookup.args([
        "netns",
        "exec",
        &away.name,
        "pip",
        "download",
        "--timeout",
        "1",
        "--retries",
        "0",
        "--no-deps",
        "six",
    ]);
    let lookup = lookup.current_dir(dir.path()).output().expect("pip can be started");
    assert!(!lookup.status.success(), "the registry must be out of reach now");

    cluster.start_host(2);
    cluster.ready(Endpoint::Host(2));
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    let ps = repo.bazooka(&["ps"]).ok().stdout;
    assert!(ps.contains(&cluster.ip(11)) && ps.contains(&cluster.ip(12)), "both hosts run some: {ps}");
    repo.bazooka(&["restart", "web"]).ok();
    repo.bazooka(&["config", "set", "MOOD=fine"]).ok();
    repo.bazooka(&["rollback"]).ok();
    assert_eq!(page(&cluster).expect("it answers"), "hello from python\n");
}
