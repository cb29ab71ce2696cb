//! A cluster whose parts and people have identities: who is let in does everything as before, and nobody else anything.

use bazooka_tests::{Cluster, ClusterOptions, OPERATOR, example};

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
    let whoami = repo.bazooka(&["whoami"]).ok().stdout;
    assert!(whoami.starts_with("ada\ntakes part\napps: goto-rocket\n"), "{whoami}");
    repo.bazooka(&["destroy", "--confirm", "goto-rocket"]).ok();
}
