//! Two rms behind one name: who pushes doesn't notice which of them serves.

use bazooka_tests::{Cluster, ClusterOptions, Endpoint};

use crate::versioned_app::{settles_on, version};

#[test]
fn pushes_go_on_by_the_same_name_whichever_rm_is_killed() {
    let mut cluster = Cluster::with(ClusterOptions { two_rms: true, ..ClusterOptions::default() });
    let repo = cluster.repo("pages");
    version(&repo, "one");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    settles_on(&cluster, "one -\n");

    cluster.part("rm").kill();
    version(&repo, "two");
    repo.git(&["push", "bazooka", "master"]).ok();
    settles_on(&cluster, "two -\n");

    cluster.start_rm();
    cluster.ready(Endpoint::Rm);
    cluster.part("rm2").kill();
    let last = version(&repo, "three");
    repo.git(&["push", "bazooka", "master"]).ok();
    settles_on(&cluster, "three -\n");
    assert!(repo.git(&["ls-remote", "bazooka", "master"]).ok().stdout.starts_with(&last));
}
