//! Followers of output beside a host's own work: what they cost, and what they delay.

use std::process::{Child, Command, Stdio};

use bazooka_tests::{Cluster, Endpoint, Repo, SOON, until};

use crate::{
    Row, Value,
    measure::{first_of_many, kill_web, node_app, running},
    median, seconds,
};

/// Followers at once.
const FOLLOWERS: usize = 40;

/// Instances on the host, beside the one that is killed.
const BESIDE: usize = 100;

/// Followers of all output of the app, as processes. They end with this.
struct Following(Vec<Child>);

impl Following {
    fn begin(cluster: &Cluster) -> Following {
        let url = format!("{}/logs?app=bench&n=100&follow=true", cluster.at(Endpoint::Host(1)));
        let follow = || {
            let mut curl = Command::new("curl");
            curl.args(["-sN", &url]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            curl.spawn().expect("curl is there")
        };
        let following = Following((0..FOLLOWERS).map(|_| follow()).collect());
        until("all follow", SOON, || match readers(cluster) {
            FOLLOWERS => Ok(()),
            other => Err(other.to_string()),
        });
        following
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It is a child that isn't reaped yet.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The readers that bazooka-pm counts. Builds before the bound count none.
fn readers(cluster: &Cluster) -> usize {
    let page = cluster.at(Endpoint::Host(1)) + "/metrics";
    let text = bazooka_tests::try_get(&page, None).map(|answer| answer.body).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("bazooka_pm_log_readers "));
    count.map_or(FOLLOWERS, |count| count.trim().parse().unwrap_or(0))
}

/// Milliseconds of processor time of a process.
fn cpu_ms(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10
}

/// Kills the server once, and returns the time until the first answer of its replacement.
fn kill_once(cluster: &Cluster, repo: &Repo) -> std::time::Duration {
    // A fresh instance for each: quick restarts are bounded.
    repo.bazooka(&["scale", "-n", "0", "web"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let begin = kill_web(cluster);
    first_of_many(cluster, begin).0
}

/// A killed instance beside 100 others, until its replacement answers: without followers and with 40, in turns.
pub fn followers(runs: usize) -> Vec<Row> {
    let mut cluster = Cluster::start();
    let repo = node_app(&cluster);
    repo.bazooka(&["scale", "-n", &BESIDE.to_string(), "sleep"]).ok();
    until("all run", SOON, || match running(&cluster).len() {
        BESIDE => Ok(()),
        other => Err(other.to_string()),
    });
    let pm = cluster.host(1).pid();
    let (mut without, mut with, mut idle) = (Vec::new(), Vec::new(), [0, 0]);
    for _ in 0..runs {
        without.push(kill_once(&cluster, &repo));
        idle[0] += idle_ms(pm);
        let following = Following::begin(&cluster);
        with.push(kill_once(&cluster, &repo));
        idle[1] += idle_ms(pm);
        drop(following);
    }
    let (without, with) = (median(without), median(with));
    let per_second = idle.map(|ms| ms as f64 / 2.0 / runs as f64);
    vec![
        Row {
            value: Some(Value::Time(with)),
            what: format!(
                "an instance killed beside {BESIDE} others, with {FOLLOWERS} followers of their output, until \
                 its replacement's first answer"
            ),
            target: "1.5 times that without".into(),
            figure: format!("{} ({:.2} times)", seconds(with), with.as_secs_f64() / without.as_secs_f64()),
            floor: format!("without followers: {}", seconds(without)),
        },
        Row {
            value: None,
            what: format!("processor time of bazooka-pm while {FOLLOWERS} follow and nothing is written"),
            target: "that without".into(),
            figure: format!("{:.1} ms a second", per_second[1]),
            floor: format!("without followers: {:.1} ms a second", per_second[0]),
        },
    ]
}

/// Processor time of two quiet seconds.
fn idle_ms(pid: u32) -> u64 {
    let before = cpu_ms(pid);
    std::thread::sleep(std::time::Duration::from_secs(2));
    cpu_ms(pid) - before
}
