//! Several hosts, operated while visitors come.

use bazooka_tests::{Cluster, ClusterOptions, Repo, SOON, until};

use crate::versioned_app::{Visitors, pushed, settles_on, version};

fn three_hosts() -> Cluster {
    Cluster::with(ClusterOptions { hosts: 3, ..ClusterOptions::default() })
}

/// Cells of a listing's lines, without its head.
fn cells(listing: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| line.split('\t').map(str::to_owned).collect();
    listing.lines().skip(1).map(cells).collect()
}

fn status(repo: &Repo) -> Vec<String> {
    cells(&repo.bazooka(&["rollout", "status"]).ok().stdout)[0][2..6].to_vec()
}

fn ids(repo: &Repo) -> Vec<String> {
    cells(&repo.bazooka(&["ps"]).ok().stdout).into_iter().map(|cells| cells[0].clone()).collect()
}

#[test]
fn a_host_is_drained_without_a_lost_request() {
    let cluster = three_hosts();
    let repo = pushed(&cluster, 3);
    let by_host = |repo: &Repo| -> Vec<(String, String, String)> {
        let hosts = repo.bazooka(&["hosts"]).ok().stdout;
        cells(&hosts).into_iter().map(|row| (row[0].clone(), row[2].clone(), row[5].clone())).collect()
    };
    let standing = |rows: &[(&str, &str, &str)]| -> Vec<(String, String, String)> {
        rows.iter().map(|(a, b, c)| ((*a).into(), (*b).into(), (*c).into())).collect()
    };
    let spread = standing(&[("host1", "up", "1"), ("host2", "up", "1"), ("host3", "up", "1")]);
    assert_eq!(by_host(&repo), spread, "one on each");

    let visitors = Visitors::come(&cluster, 3);
    let drain = repo.bazooka(&["hosts", "drain", "host2"]).ok();
    assert_eq!(drain.stdout, "host2 1 -> 0 .\n");
    let (asked, lost) = visitors.leave();
    assert!(lost.is_empty() && asked > 100, "{} of {asked} were lost: {:?}", lost.len(), lost.first());
    let drained = by_host(&repo);
    assert_eq!(drained[1], ("host2".into(), "drained".into(), "0".into()));
    assert_eq!(ids(&repo).len(), 3);

    // What is new goes elsewhere, until it is open again.
    repo.bazooka(&["scale", "-n", "5", "web"]).ok();
    assert_eq!(by_host(&repo)[1].2, "0");
    repo.bazooka(&["hosts", "uncordon", "host2"]).ok();
    repo.bazooka(&["scale", "-n", "6", "web"]).ok();
    assert_eq!(by_host(&repo)[1], ("host2".into(), "up".into(), "1".into()));

    // With nowhere to go it stays, and who drains is told why.
    for host in ["host1", "host3"] {
        repo.bazooka(&["hosts", "cordon", host]).ok();
    }
    let stuck = repo.bazooka(&["hosts", "drain", "host2"]).exits(1);
    for said in [
        "host2 can't be emptied",
        "none of 3 hosts can take it",
        "host1, host3: each is cordoned",
        "uncordon host2",
    ] {
        assert!(stuck.stderr.contains(said), "{said}: {stuck:?}");
    }
    assert_eq!(by_host(&repo)[1], ("host2".into(), "draining".into(), "1".into()));
    settles_on(&cluster, "one -\n");
}

#[test]
fn a_rollout_is_paused_resumed_and_aborted_without_a_lost_request() {
    let cluster = three_hosts();
    let repo = pushed(&cluster, 4);
    let visitors = Visitors::come(&cluster, 3);

    repo.bazooka(&["rollout", "pause"]).ok();
    version(&repo, "two");
    let push = repo.git(&["push", "bazooka", "master"]).ok().remote_lines();
    assert!(push.iter().any(|line| line.contains("the rollout is paused by tester")), "{push:#?}");
    until("one of four is new", SOON, || {
        let status = status(&repo);
        if status == ["4", "1", "3 of v1", "paused"] { Ok(()) } else { Err(format!("{status:?}")) }
    });
    let mut seen = std::collections::BTreeSet::new();
    until("both versions answer", SOON, || {
        seen.insert(cluster.ask("pages")?.body);
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    // A scale is served meanwhile, and says that the rollout isn't over.
    let up = repo.bazooka(&["scale", "-n", "5", "web"]).ok();
    assert!(up.stderr.contains("paused by tester, with 3 instances of an earlier release"), "{up:?}");
    assert_eq!(status(&repo), ["5", "2", "3 of v1", "paused"]);

    let resume = repo.bazooka(&["rollout", "resume"]).ok();
    assert!(resume.stdout.starts_with("resumed\nweb v1 -> v2 ."), "{resume:?}");
    assert_eq!(status(&repo), ["5", "5", "-", "done"]);
    settles_on(&cluster, "two -\n");

    let second = ids(&repo);
    repo.bazooka(&["rollout", "pause"]).ok();
    version(&repo, "three");
    repo.git(&["push", "bazooka", "master"]).ok();
    let abort = repo.bazooka(&["rollout", "abort"]).ok();
    assert!(abort.stdout.starts_with("v3 aborted; v2 is current again\nweb v3 -> v2 ."), "{abort:?}");
    settles_on(&cluster, "two -\n");
    let after = ids(&repo);
    let kept = second.iter().filter(|id| after.contains(id)).count();
    assert!(after.len() == 5 && kept >= 4, "{second:?} {after:?}");
    let (asked, lost) = visitors.leave();
    assert!(lost.is_empty() && asked > 100, "{} of {asked} were lost: {:?}", lost.len(), lost.first());
}

#[test]
fn a_formation_larger_than_the_cluster_runs_as_far_as_there_is_room_and_the_rest_says_why_not() {
    let cluster = Cluster::with(ClusterOptions { hosts: 2, slots: Some(3), ..ClusterOptions::default() });
    let repo = pushed(&cluster, 2);
    let large = repo.bazooka(&["scale", "-n", "9", "web"]).exits(1);
    let why = repo.bazooka(&["why", "web"]).ok().stdout;
    let ps = repo.bazooka(&["ps", "-l"]).ok();
    for said in [&large.stderr, &why] {
        for word in ["none of 2 hosts can take it", "host1", "host2"] {
            assert!(said.contains(word), "{word}: {large:?}\n{why}\n{ps:?}");
        }
    }
    assert_eq!(ids(&repo).len(), 6, "as many as there is room for: {ps:?}");
    settles_on(&cluster, "one -\n");
    // A smaller one leaves what runs, and nothing to say.
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    assert_eq!(ids(&repo).len(), 4);
    let why = repo.bazooka(&["why", "web"]).ok().stdout;
    assert!(!why.contains("none of"), "{why}");
}

#[test]
fn a_rollback_in_the_middle_of_a_rollout_leaves_the_old_rev_alone_without_a_lost_request() {
    let cluster = three_hosts();
    let repo = pushed(&cluster, 4);
    let visitors = Visitors::come(&cluster, 3);
    repo.bazooka(&["rollout", "pause"]).ok();
    version(&repo, "two");
    repo.git(&["push", "bazooka", "master"]).ok();
    until("one of four is new", SOON, || {
        let status = status(&repo);
        if status == ["4", "1", "3 of v1", "paused"] { Ok(()) } else { Err(format!("{status:?}")) }
    });
    repo.bazooka(&["rollout", "resume"]).ok();
    version(&repo, "three");
    repo.git(&["push", "-o", "no-wait", "bazooka", "master"]).ok();
    let back = repo.bazooka(&["rollback", "v1"]).ok();
    assert!(back.stdout.starts_with("v4 released"), "{back:?}");
    settles_on(&cluster, "one -\n");
    assert_eq!(ids(&repo).len(), 4);
    let (asked, lost) = visitors.leave();
    assert!(lost.is_empty() && asked > 100, "{} of {asked} were lost: {:?}", lost.len(), lost.first());
}
