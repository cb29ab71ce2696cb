//! The workflow of the original, word for word.

use bazooka_tests::{Cluster, SOON, until};

/// Lines with runs of spaces and tabs made one space.
fn words(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn an_app_goes_from_init_to_a_page_through_haproxy() {
    let cluster = Cluster::start();
    let repo = cluster.repo("goto-rocket");
    repo.copy(&bazooka_tests::example("goto-rocket"));
    let commit = repo.commit("go to rocket");
    let rev = &commit[..7];

    let init = repo.bazooka(&["init"]).ok();
    assert_eq!(
        init.stdout.lines().collect::<Vec<_>>(),
        [
            "app 'goto-rocket' registered",
            "[bazooka-rm] remote repository created",
            "[bazooka-rm] git config updated",
            "[bazooka-rm] hooks setup",
            "remote entry created",
        ]
    );

    // Behind a web proxy, which couldn't reach this machine's loopback.
    let push = repo.git_with(&[("http_proxy", "http://127.0.0.1:1")], &["push", "bazooka", "master"]).ok();
    let lines = push.remote_lines();
    let place = |line: &str| {
        lines.iter().position(|l| l == line).unwrap_or_else(|| panic!("no {line:?} in {lines:#?}"))
    };
    let order = [
        "change-set accepted",
        "uploading container to file storage",
        "registering revisions in coordinator",
        "pty registered: web",
        "build finished",
    ]
    .map(place);
    assert!(order.is_sorted(), "{lines:#?}");
    assert_eq!(order[0], 0, "{lines:#?}");

    let procs = words(&repo.bazooka(&["procs"]).ok().stdout);
    assert_eq!(procs[0], "APP PROC PORT MEMLIMIT INSTANCES");
    let ports: Vec<u16> = procs[1..]
        .iter()
        .zip(["fail", "job", "web"])
        .map(|(line, proc)| {
            let port = line.split(' ').nth(2).and_then(|port| port.parse().ok());
            let port = port.unwrap_or_else(|| panic!("no port in {line:?}"));
            assert_eq!(*line, format!("goto-rocket {proc} {port} - 0"));
            port
        })
        .collect();
    assert!(ports.is_sorted(), "ports are given in the procs' order: {ports:?}");

    let scale = repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    assert_eq!(scale.stdout.trim_end(), format!("web@{rev} 0 -> 1 ."));
    // What scale said holds at once: no waiting here.
    let page = cluster.ask("goto-rocket").expect("HAProxy answers");
    assert_eq!((page.status, page.body.lines().next()), (200, Some("go to rocket")));

    let ps = words(&repo.bazooka(&["ps"]).ok().stdout);
    assert_eq!(ps[0], "ID APP PROC REV IP PORT");
    let row: Vec<&str> = ps[1].split(' ').collect();
    assert_eq!(row[1..5], ["goto-rocket", "web", rev, &cluster.ip(11)]);
    let direct = bazooka_tests::get(&format!("http://{}:{}/", row[4], row[5]), None);
    assert_eq!(direct.status, 200);
    let by_port = bazooka_tests::get(&format!("http://{}/", cluster.address(1, ports[2])), None);
    assert_eq!(by_port.status, 200);

    let again = repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    assert!(again.stdout.contains("already") && again.stderr.is_empty(), "{again:?}");
    let three = repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    assert_eq!(three.stdout.trim_end(), format!("web@{rev} 1 -> 3 .."));
    let procs = words(&repo.bazooka(&["procs"]).ok().stdout);
    assert_eq!(procs[3], format!("goto-rocket web {} - 3", ports[2]));
    let none = repo.bazooka(&["scale", "-n", "0", "web"]).ok();
    assert_eq!(none.stdout.trim_end(), format!("web@{rev} 3 -> 0 ..."));
    let gone = cluster.ask("goto-rocket").expect("HAProxy answers");
    assert_eq!(gone.status, 503);
}

#[test]
fn a_proc_that_exits_at_once_shows_as_failing_while_the_others_do_not_care() {
    let cluster = Cluster::start();
    let repo = cluster.rocket();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    repo.bazooka(&["scale", "-n", "1", "job"]).ok();
    let before = pids(&cluster);

    // Where starting Python takes longer than a job must live to count as running, the first word is that it runs.
    let scale = until("fail is told to fail", SOON, || {
        let scale = repo.bazooka(&["scale", "-n", "1", "fail"]);
        if scale.code == 1 { Ok(scale) } else { Err(format!("{scale:?}")) }
    });
    assert!(scale.stderr.contains("exited with status 1"), "the cause is told: {scale:?}");

    let ps = repo.bazooka(&["ps", "-l"]).ok().stdout;
    let row = ps.lines().find(|line| line.contains("fail")).unwrap_or_else(|| panic!("fail is listed: {ps}"));
    assert!(row.contains("backoff"), "{row}");
    let why = repo.bazooka(&["why", "fail"]).ok().stdout;
    assert!(why.contains("exited with status 1") && why.contains("next start in"), "{why}");
    assert!(why.contains("the engine is not there"), "its last output is told: {why}");

    let after = pids(&cluster);
    for (proc, pid) in before {
        assert_eq!(after.iter().find(|(p, _)| *p == proc), Some(&(proc, pid)), "the others run on");
    }
    let logs = until("job's output", SOON, || {
        let logs = repo.bazooka(&["logs", "-p", "job", "-n", "5"]).ok().stdout;
        if logs.contains("T plus 1") { Ok(logs) } else { Err(logs) }
    });
    assert!(logs.lines().all(|line| line.contains("job.")), "each line has its instance's prefix: {logs}");

    // What crashes anyway is in nobody's way: not a push's, not a config change's.
    repo.write("again", "x").commit("again");
    let push = repo.git(&["push", "bazooka", "master"]).ok().remote_lines();
    let told = push.iter().skip_while(|line| *line != "v2 released").skip(1).cloned().collect::<Vec<_>>();
    assert_eq!(told[0], "fail failed before and isn't waited for: bazooka why fail", "{push:#?}");
    for proc in ["job", "web"] {
        for change in ["0 -> 1", "1 -> 0"] {
            let told =
                told.iter().filter(|line| line.starts_with(&format!("{proc}@")) && line.contains(change));
            assert_eq!(told.count(), 1, "{proc} {change}: {push:#?}");
        }
    }
    assert_eq!(told.len(), 5, "{push:#?}");
    let set = repo.bazooka(&["config", "set", "A=1"]).exits(0);
    assert!(set.stdout.ends_with("job v2 -> v3 .\nweb v2 -> v3 .\n"), "{set:?}");
    let releases = repo.bazooka(&["releases"]).ok().stdout;
    let by = |line: &str| line.split('\t').nth(5).unwrap_or_default().to_owned();
    assert!(releases.lines().skip(1).all(|line| by(line) != "-"), "who made each is known: {releases}");
}

/// Each running instance's proc and process.
fn pids(cluster: &Cluster) -> Vec<(String, u32)> {
    let snapshot = cluster.snapshot();
    let rows = snapshot.hosts.values().flat_map(|host| {
        host.status.iter().filter_map(|(id, status)| {
            let assigned = host.assigned.get(id)?;
            Some((assigned.proc.to_string(), status.pid?))
        })
    });
    rows.collect()
}
