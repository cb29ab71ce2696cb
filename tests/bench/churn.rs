//! Memory of the daemons over many changes.

use std::process::{Child, Stdio};

use bazooka_tests::{Cluster, Repo, SOON, until};

use crate::{
    Row, Value,
    measure::{daemons, kib, node_app, running},
};

/// Instances that stay, beside those that change.
const STAYING: usize = 100;

/// The thirds of a run: the daemons' first, second and third hour.
const THIRDS: usize = 3;

/// What a round changes: one line a kind, as the row says it.
const ROUND: &str = "a push, a config set, a scale from 100 to 90 and back, 3 instances killed, 1,000 lines of logs \
                     and a follower";

fn follow(repo: &Repo) -> Child {
    let mut command = repo.command(&bazooka_tests::program("bazooka").display().to_string(), &["logs", "-f"]);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("bazooka is there")
}

/// Changes everything once.
fn round(cluster: &Cluster, stays: &Repo, shop: &Repo, number: usize) {
    let mut follower = follow(stays);
    shop.write("server.js", &crate::measure::SERVER.replace("VERSION", &format!("v{number}")));
    shop.commit(&format!("v{number}"));
    shop.git(&["push", "bazooka", "master"]).ok();
    shop.bazooka(&["config", "set", &format!("ROUND={number}")]).ok();
    stays.bazooka(&["scale", "-n", &(STAYING - 10).to_string(), "sleep"]).ok();
    stays.bazooka(&["scale", "-n", &STAYING.to_string(), "sleep"]).ok();
    for (_, pid) in running(cluster).into_iter().take(3) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a process id fits"));
        // It may have been replaced meanwhile.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    shop.bazooka(&["logs", "-n", "1000"]).ok();
    stays.bazooka(&["ps"]).ok();
    // It is a child that isn't reaped yet.
    let _ = follower.kill();
    let _ = follower.wait();
}

/// Memory of each daemon after each third of so many rounds of changes, with 100 instances.
pub fn churn(rounds: usize) -> Vec<Row> {
    let mut cluster = Cluster::start();
    let stays = node_app(&cluster);
    let shop = cluster.repo("shop");
    shop.write("Procfile", "web: node server.js\n").write("server.js", crate::measure::SERVER);
    shop.commit("v");
    shop.bazooka(&["init"]).ok();
    shop.git(&["push", "bazooka", "master"]).ok();
    shop.bazooka(&["scale", "-n", "2", "web"]).ok();
    stays.bazooka(&["scale", "-n", &STAYING.to_string(), "sleep"]).ok();
    until("all run", SOON, || match running(&cluster).len() {
        n if n == STAYING + 2 => Ok(()),
        other => Err(other.to_string()),
    });
    let daemons = daemons(&mut cluster);
    let look = |when: &str| {
        let figures = daemons.map(|(_, pid)| [kib(pid, "status", "VmRSS:"), kib(pid, "status", "RssAnon:")]);
        let told: Vec<String> = daemons
            .iter()
            .zip(figures)
            .map(|((name, _), [resident, own])| {
                format!("{name} {:.1} MiB (its own {:.1})", resident / 1024.0, own / 1024.0)
            })
            .collect();
        eprintln!("churn: {when}: {}", told.join(", "));
        figures
    };
    let mut seen = vec![look("before the changes")];
    for third in 1..=THIRDS {
        let each = rounds.div_ceil(THIRDS);
        for number in 1..=each {
            round(&cluster, &stays, &shop, third * 10_000 + number);
            if number % 10 == 0 {
                look(&format!("{third}/{number}"));
            }
        }
        seen.push(look(&format!("after {} rounds", third * each)));
    }
    let last = |at: usize, which: usize| {
        let figures = seen.last().expect("it was measured");
        let before = &seen[THIRDS - 1];
        (figures[at][which] / 1024.0, (figures[at][which] - before[at][which]) / 1024.0)
    };
    let row = |(at, (name, pid)): (usize, &(&str, u32))| {
        let ((resident, more), (own, own_more)) = (last(at, 0), last(at, 1));
        let most = if *name == "bazooka-rm" { 20 } else { 16 };
        Row {
            value: Some(Value::Mebibytes(resident)),
            what: format!(
                "resident memory of {name} with {STAYING} instances after {rounds} rounds ({ROUND})"
            ),
            target: format!("under {most} MiB; at most 1 MiB more in the last third"),
            figure: format!(
                "{resident:.1} MiB, {own:.1} of it its own; {more:+.1} MiB ({own_more:+.1}) in the last third"
            ),
            floor: format!(
                "before the changes: {:.1} MiB, {:.1} its own; peak {:.1} MiB",
                seen[0][at][0] / 1024.0,
                seen[0][at][1] / 1024.0,
                kib(*pid, "status", "VmHWM:") / 1024.0
            ),
        }
    };
    daemons.iter().enumerate().map(row).collect()
}
