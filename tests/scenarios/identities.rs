//! A cluster whose parts and people have identities: who is let in does everything as before, and nobody else anything.

use std::{fs, time::Duration};

use bazooka_tests::{Cluster, ClusterOptions, Endpoint, OPERATOR, SOON, example, until};
use jiff::{SignedDuration, Timestamp};

fn guarded() -> Cluster {
    Cluster::with(ClusterOptions { identities: true, ..ClusterOptions::default() })
}

#[test]
fn a_developer_goes_from_init_to_rollback_and_is_asked_for_nothing() {
    let cluster = guarded();
    cluster.person("ada");
    let repo = cluster.repo_of("goto-rocket", "ada");
    repo.copy(&example("goto-rocket"));
    repo.commit("go to rocket");
    let refused = repo.bazooka(&["init"]).exits(4);
    assert!(refused.stderr.contains("access grant"), "{}", refused.stderr);
    cluster.repo_of("operating", OPERATOR).bazooka(&["access", "grant", "ada"]).ok();
    let init = repo.bazooka(&["init"]).ok();
    assert!(init.stdout.contains("git set up to push as you"), "{}", init.stdout);
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();
    cluster.answers("goto-rocket");
    repo.bazooka(&["config", "set", "MOOD=good"]).ok();
    repo.bazooka(&["config"]).ok();
    repo.bazooka(&["restart", "web"]).ok();
    repo.bazooka(&["procs", "set", "web", "--memory", "256M"]).ok();
    assert!(repo.bazooka(&["logs"]).ok().stdout.contains("web"), "its output is shown");
    repo.bazooka(&["rollback"]).ok();
    for listing in [&["ps", "-l"][..], &["releases"], &["hosts"], &["events", "--json"], &["why", "web"]] {
        if listing[0] != "events" {
            repo.bazooka(listing).ok();
        }
    }
    let fetched = repo.git(&["fetch", "bazooka"]).ok();
    assert!(!fetched.stderr.contains("Username"), "{}", fetched.stderr);
    let releases = repo.bazooka(&["releases", "--json"]).ok().stdout;
    assert!(releases.contains(r#""by":"ada""#) || releases.contains(r#""by": "ada""#), "{releases}");
    let audit = repo.bazooka(&["audit", "--json"]).ok().stdout;
    let entries: Vec<serde_json::Value> = serde_json::from_str(&audit).expect("JSON");
    let has = |who: &str, written_by: &str, what: &str| {
        let is = |entry: &&serde_json::Value| {
            entry["who"] == who
                && entry["written_by"] == written_by
                && entry["what"].as_str().is_some_and(|said| said.starts_with(what))
                && entry["from"].as_str().is_some_and(|from| !from.is_empty())
        };
        assert!(entries.iter().any(|entry| is(&entry)), "{who} {what}: {audit}");
    };
    has(OPERATOR, "rm:rm1", "access grant ada: the cluster");
    has("ada", "rm:rm1", "init");
    has("ada", "rm:rm1", "push ");
    has("ada", "ada", "scale -n 2 web");
    has("ada", "ada", "config set MOOD");
    has("ada", "ada", "rollback");
    // A look at config vars stands there as well.
    has("ada", "rm:rm1", "config read e");
    assert!(!audit.contains("good"), "a value stands in the audit: {audit}");
    assert!(!entries.iter().any(|entry| entry["what"] == "ps -l"), "{audit}");
    let whoami = repo.bazooka(&["whoami"]).ok().stdout;
    assert!(whoami.starts_with("ada\ntakes part\napps: goto-rocket\n"), "{whoami}");
    // What is taken away is gone at once, and what is given back is there at once.
    let operator = cluster.repo_of("operating", OPERATOR);
    operator.bazooka(&["access", "revoke", "ada", "goto-rocket"]).ok();
    let refused = repo.bazooka(&["scale", "-n", "1", "web"]).exits(4);
    assert!(refused.stderr.contains("denies you"), "{}", refused.stderr);
    let refused = repo.git(&["fetch", "bazooka"]).exits(128);
    assert!(refused.stderr.contains("ada may not push to or fetch 'goto-rocket'"), "{}", refused.stderr);
    let refused = repo.bazooka(&["logs"]).exits(4);
    assert!(refused.stderr.contains("access grant"), "{}", refused.stderr);
    repo.bazooka(&["config"]).exits(4);
    // Whoever is refused stands in the audit too, and the rm's own journal has all of it.
    until("the refusal stands in the audit", SOON, || {
        let audit = operator.bazooka(&["audit", "--json", "-a", "goto-rocket"]).ok().stdout;
        if audit.contains("refused: GET /goto-rocket.git/info/refs") { Ok(()) } else { Err(audit) }
    });
    until("the journal has all of it", SOON, || {
        let journal = cluster.folder("rm/audit/000000000001.jsonl");
        let journal = fs::read_to_string(journal).map_err(|error| error.to_string())?;
        let has = ["\"init\"", "scale -n 2 web", "config read e", "refused: GET"]
            .map(|said| journal.contains(said));
        if has == [true; 4] { Ok(()) } else { Err(format!("{has:?}: {journal}")) }
    });
    operator.bazooka(&["access", "grant", "ada", "goto-rocket"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    repo.bazooka(&["destroy", "--confirm", "goto-rocket"]).ok();
}

/// How long a certificate lives that is to run out: long enough for a busy machine to start its part with it.
const LIFE: Duration = Duration::from_secs(20);

/// Puts a certificate with so much life left in the place of a part's own.
fn renew(cluster: &Cluster, who: &str, last: u16, left: Duration) -> Timestamp {
    let (folder, made) = (cluster.folder("id").join(who), cluster.folder(&format!("renewed-{who}")));
    let end = Timestamp::now() + SignedDuration::try_from(left).expect("it is short");
    let begin = end - SignedDuration::from_hours(24);
    cluster.issue(who, &[cluster.ip(last)], &made, begin, 1);
    for file in ["ca.pem", "key.pem", "cert.pem"] {
        fs::rename(made.join(file), folder.join(file)).expect("both are there");
    }
    end
}

#[test]
fn a_certificate_that_runs_out_under_open_streams_leaves_no_part_deaf() {
    let mut cluster =
        Cluster::with(ClusterOptions { identities: true, hosts: 1, ..ClusterOptions::default() });
    cluster.person("ada");
    cluster.repo_of("operating", OPERATOR).bazooka(&["access", "grant", "ada"]).ok();
    let repo = cluster.repo_of("goto-rocket", "ada");
    repo.copy(&example("goto-rocket"));
    repo.commit("go to rocket");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    cluster.answers("goto-rocket");
    let first = cluster.snapshot().apps.values().flat_map(|view| view.instances.keys().copied()).next();

    // Each part starts with a certificate that hasn't long to live, and opens its streams with it.
    let parts = [("pm:host1", 11), ("converger:converger1", 1), ("proxy:proxy1", 1)];
    let ends = parts.map(|(who, last)| renew(&cluster, who, last, LIFE));
    cluster.host(1).kill();
    cluster.part("converger").kill();
    cluster.start_converger();
    cluster.start_host(1);
    cluster.part("proxy").stop();
    cluster.start_proxy();
    cluster.ready(Endpoint::Host(1));
    cluster.ready(Endpoint::Converger);
    cluster.ready(Endpoint::Proxy);
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();

    // It runs out, and the streams go on.
    until("the certificates have run out", LIFE * 2, || {
        let left = ends.iter().max().expect("there are three").duration_since(Timestamp::now());
        if left.is_negative() { Ok(()) } else { Err(format!("{left:#} are left")) }
    });
    repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    // They break, and can't be opened again: nothing of what runs is stopped.
    cluster.own_etcd().kill();
    let (_, runtime) = cluster.visor();
    let handle = runtime.handle().clone();
    handle.block_on(cluster.own_etcd().restart());
    repo.bazooka(&["scale", "-n", "4", "--no-wait", "web"]).ok();
    cluster.answers("goto-rocket");

    // They are renewed under the running parts, which find their way back.
    for (who, last) in parts {
        renew(&cluster, who, last, Duration::from_secs(3600));
    }
    let view = |cluster: &Cluster| cluster.snapshot().apps.values().next().expect("there is one").clone();
    until("what was asked for meanwhile runs", SOON, || {
        let snapshot = cluster.snapshot();
        let running = snapshot.hosts.values().flat_map(|host| host.status.values());
        match running.filter(|status| status.state == visor::schema::State::Running).count() {
            4 => Ok(()),
            n => Err(format!("{n} run")),
        }
    });
    assert!(view(&cluster).instances.contains_key(&first.expect("one ran")), "the first one is there still");
    cluster.answers("goto-rocket");
    repo.write("web.txt", "new");
    repo.commit("another");
    repo.git(&["push", "bazooka", "master"]).ok();
}

#[test]
fn a_push_goes_through_a_proxys_address_to_whichever_rm_serves() {
    let options = ClusterOptions { identities: true, two_rms: true, ..ClusterOptions::default() };
    let mut cluster = Cluster::with(options);
    for who in ["ada", "eve"] {
        cluster.person(who);
        cluster.repo_of("operating", OPERATOR).bazooka(&["access", "grant", who]).ok();
    }
    let repo = cluster.repo_of("goto-rocket", "ada");
    repo.copy(&example("goto-rocket"));
    repo.commit("go to rocket");
    repo.bazooka(&["init"]).ok();
    let url = repo.git(&["remote", "get-url", "bazooka"]).ok().stdout;
    assert!(url.starts_with("https://") && url.contains(&cluster.at(Endpoint::Git)), "{url}");
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    cluster.answers("goto-rocket");
    // One of the two goes; the address stays.
    cluster.part("rm").kill();
    repo.write("more", "more");
    repo.commit("once more");
    repo.git(&["push", "bazooka", "master"]).ok();
    let eves = cluster.repo_of("goto-rocket", "eve");
    eves.commit("mine now");
    eves.git(&["remote", "add", "bazooka", url.trim()]).ok();
    // Without the helper git has nothing to show; with it, eve has no right.
    let authority = cluster.folder("id/eve/ca.pem").display().to_string();
    let asked = eves.git_with(
        &[("GIT_TERMINAL_PROMPT", "0")],
        &["-c", &format!("http.sslCAInfo={authority}"), "fetch", "bazooka"],
    );
    assert!(asked.code == 128 && asked.stderr.contains("could not read Username"), "{asked:?}");
    let refused = eves.bazooka(&["init", "goto-rocket"]).exits(4);
    assert!(refused.stderr.contains("owned by ada"), "{}", refused.stderr);
    let helper = repo.git(&["config", "--get-regexp", "credential.*helper"]).ok().stdout;
    let helper = helper.lines().find_map(|line| line.split_once(" !")).expect("init named one").1.to_owned();
    let eves_helper = format!("!{}", helper.replace("/id/ada", "/id/eve"));
    let base = url.trim().rsplit_once('/').expect("it has a path").0;
    let refused = eves.git(&[
        "-c",
        &format!("http.sslCAInfo={authority}"),
        "-c",
        &format!("credential.{base}.useHttpPath=true"),
        "-c",
        &format!("credential.{base}.helper={eves_helper}"),
        "push",
        "bazooka",
        "master",
    ]);
    assert!(refused.code != 0 && refused.stderr.contains("403"), "{refused:?}");
    assert!(refused.stderr.contains("eve may not push"), "{refused:?}");
}
