//! The figures that README quotes, measured on this machine and printed as one table.
//!
//! `cargo run --release -p bazooka-tests --bin bench` (build the workspace in release first), or with the
//! names of single rows. Each figure is the median of `--runs`; what it is compared with is measured in
//! the same run. The row `hosts` is a table of its own, with many machines as network namespaces: it takes root, and a
//! quarter of an hour. So is `seed`, which is as big as a company was.

mod abuse;
mod converge;
mod discovery;
mod floor;
mod hosts;
mod isolation;
mod measure;

use std::{collections::BTreeSet, time::Duration};

use bazooka_tests::Kind;
use clap::Parser;

/// The benchmarks of Bazooka.
#[derive(Parser)]
struct Arguments {
    /// How often each is measured; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Requests a second in the rollouts of `hosts` (2000 unless told), and in `seed` (5000).
    #[arg(long)]
    rate: Option<u32>,
    /// In `seed` over kept connections only, as from a proxy or an app; else half of them over new ones.
    #[arg(long)]
    kept: bool,
    /// Only these rows: push, scale10, scale100, sleep100, kill, ps, memory, isolation, abuse, discovery, converge; hosts,
    /// which is all of rollouts, killed, host, pm, leader, quorum, member, crash, workers and rollback; seed.
    rows: Vec<String>,
}

/// A row of the table.
struct Row {
    what: String,
    target: String,
    figure: String,
    floor: String,
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

fn main() {
    let arguments = Arguments::parse();
    let wanted: BTreeSet<&str> = arguments.rows.iter().map(String::as_str).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.contains(name);
    let runs = arguments.runs;
    let mut rows = Vec::new();
    if is_wanted("push") {
        rows.push(measure::push(runs));
    }
    if is_wanted("scale10") {
        rows.push(measure::scale_to_ten(runs));
    }
    if is_wanted("scale100") {
        rows.push(measure::scale_to_hundred(runs));
    }
    if is_wanted("sleep100") {
        rows.push(measure::sleepers(runs));
    }
    if is_wanted("kill") {
        rows.push(measure::kill(runs));
    }
    if is_wanted("ps") {
        rows.push(measure::ps(runs));
    }
    if is_wanted("memory") {
        rows.extend(measure::memory());
    }
    if is_wanted("isolation") {
        rows.extend(isolation::isolation(runs));
    }
    if is_wanted("abuse") {
        rows.extend(abuse::abuse(runs));
    }
    if is_wanted("discovery") {
        rows.extend(discovery::discovery(runs));
    }
    if is_wanted("converge") {
        rows.extend(converge::converge());
    }
    rows.extend(with_many_hosts(&arguments, &wanted));
    print(&rows, runs);
}

/// The rows of many machines: only where they are asked for.
fn with_many_hosts(arguments: &Arguments, wanted: &BTreeSet<&str>) -> Vec<Row> {
    let (runs, rate) = (arguments.runs, arguments.rate);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| !(arguments.kept && kind.new)).collect();
    let all: [(&str, &dyn Fn() -> Row); 11] = [
        ("rollouts", &|| hosts::rollouts(10, rate.unwrap_or(2000))),
        ("killed", &|| hosts::instance_killed(9)),
        ("host", &|| hosts::host_lost(runs)),
        ("pm", &|| hosts::pm_killed(runs)),
        ("leader", &|| hosts::leader_killed(runs)),
        ("quorum", &|| hosts::quorum_gone(Duration::from_secs(120))),
        ("member", &|| hosts::member_paused(Duration::from_secs(20))),
        ("crash", &|| hosts::crash_loop(Duration::from_secs(60))),
        ("workers", &|| hosts::routing_changes(1000)),
        ("rollback", &|| hosts::rollback(runs)),
        ("seed", &|| hosts::seed(rate.unwrap_or(5000), &kinds)),
    ];
    let of_hosts = |name: &str| wanted.contains("hosts") && name != "seed";
    let asked = all.iter().filter(|(name, _)| wanted.contains(name) || of_hosts(name));
    asked
        .map(|(name, measure)| {
            let row = measure();
            // It takes a while: each figure is told as it comes.
            eprintln!("{name}: {}; {}", row.figure, row.floor);
            row
        })
        .collect()
}

#[allow(clippy::print_stdout, reason = "the table is what this program is for")]
fn print(rows: &[Row], runs: usize) {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("machine{model}, {cores} cores; medians of {runs}\n");
    println!("| what | target | measured | beside it, same run |\n|---|---|---|---|");
    for Row { what, target, figure, floor } in rows {
        println!("| {what} | {target} | {figure} | {floor} |");
    }
}
