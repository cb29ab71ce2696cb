//! The figures of docs/benchmarks.md, measured on this machine, printed as a table or written into the page.
//!
//! `cargo run --profile dist -p bazooka-tests --bin bench` (first build what docs/benchmarks.md says), or with the names of single
//! benches. Each figure is the median of `--runs`; what it is compared with is measured in the same run. `readme` is the
//! benches whose figures README quotes. `hosts` is many machines as network namespaces: it takes root, and a quarter of an
//! hour. So is `seed`, which is as big as a company was. `takeover1m` takes gigabytes of memory.
//!
//! With `--write docs/benchmarks.md` the rows go into the page's tables; without names, the benches that the page has.
//! With `--programs DIR`, given twice or more, the programs of the folders take turns, run by run on the same machine, and
//! the medians stand side by side. This program waits for other runs of the tests to end, and lets none begin.

mod abuse;
mod churn;
mod compare;
mod converge;
mod discovery;
mod floor;
mod followers;
mod hosts;
mod isolation;
mod measure;
mod table;
mod takeover;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bazooka_tests::{Kind, Turn, use_programs};
use clap::Parser;
use table::{Page, Row, Value, origin, thousands};

/// The benchmarks of Bazooka.
#[derive(Parser)]
struct Arguments {
    /// How often each is measured; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Requests a second in the rollouts of `hosts` (1000 unless told), and in `seed` (5000).
    #[arg(long)]
    rate: Option<u32>,
    /// Only these kinds in `abuse`, such as bomb or walk.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<String>,
    /// Rounds of changes in `churn`.
    #[arg(long, default_value_t = 90)]
    rounds: usize,
    /// In `seed` over kept connections only, as from a proxy or an app; else half of them over new ones.
    #[arg(long)]
    kept: bool,
    /// A page whose tables get the rows.
    #[arg(long, value_name = "FILE", conflicts_with = "compared")]
    write: Option<PathBuf>,
    /// A folder with the programs to measure, such as target/dist of another checkout; those beside this one unless
    /// given. Given twice, two builds are compared.
    #[arg(long, value_name = "DIR", group = "compared")]
    programs: Vec<PathBuf>,
    /// Only these: push, scale10, scale100, sleep100, kill, ps, memory, churn, followers, isolation, abuse, discovery, converge, takeover; rollouts,
    /// killed, host, pm, leader, quorum, member, crash, workers, rollback, which all are `hosts`; seed; takeover1m; `readme`.
    benches: Vec<String>,
}

/// How much is measured.
#[derive(Clone, Debug)]
struct Size {
    /// How often each figure is taken; the median counts.
    runs: usize,
    /// How many rollouts are counted over.
    rollouts: usize,
    /// Kinds of abuse; all if there are none.
    abuse: Vec<String>,
    /// Rounds of changes.
    rounds: usize,
    /// Requests a second, if told.
    rate: Option<u32>,
    /// Kinds of requests.
    kinds: Vec<Kind>,
}

/// What is measured together.
struct Bench {
    name: &'static str,
    measure: fn(&Size) -> Vec<Row>,
}

/// Those of one machine.
const ALONE: [Bench; 14] = [
    Bench { name: "push", measure: |size| vec![measure::push(size.runs)] },
    Bench { name: "scale10", measure: |size| vec![measure::scale_to_ten(size.runs)] },
    Bench { name: "scale100", measure: |size| vec![measure::scale_to_hundred(size.runs)] },
    Bench { name: "sleep100", measure: |size| vec![measure::sleepers(size.runs)] },
    Bench { name: "kill", measure: |size| vec![measure::kill(size.runs)] },
    Bench { name: "ps", measure: |size| vec![measure::ps(size.runs)] },
    Bench { name: "memory", measure: |_| measure::memory() },
    Bench { name: "churn", measure: |size| churn::churn(size.rounds) },
    Bench { name: "followers", measure: |size| followers::followers(size.runs) },
    Bench { name: "isolation", measure: |size| isolation::isolation(size.runs) },
    Bench { name: "abuse", measure: |size| abuse::abuse(size.runs, &size.abuse) },
    Bench { name: "discovery", measure: |size| discovery::discovery(size.runs) },
    Bench { name: "converge", measure: |_| converge::converge() },
    Bench {
        name: "takeover",
        measure: |_| takeover::takeover(takeover::Large { instances: 300_000, hosts: 1_500 }),
    },
];

/// Those of many machines.
const HOSTS: [Bench; 10] = [
    Bench {
        name: "rollouts",
        measure: |size| vec![hosts::rollouts(size.rollouts, size.rate.unwrap_or(1000))],
    },
    Bench { name: "killed", measure: |_| vec![hosts::instance_killed(9)] },
    Bench { name: "host", measure: |size| vec![hosts::host_lost(size.runs)] },
    Bench { name: "pm", measure: |size| vec![hosts::pm_killed(size.runs)] },
    Bench { name: "leader", measure: |size| vec![hosts::leader_killed(size.runs)] },
    Bench { name: "quorum", measure: |_| vec![hosts::quorum_gone(Duration::from_secs(120))] },
    Bench { name: "member", measure: |_| vec![hosts::member_paused(Duration::from_secs(20))] },
    Bench { name: "crash", measure: |_| vec![hosts::crash_loop(Duration::from_secs(60))] },
    Bench { name: "workers", measure: |_| vec![hosts::routing_changes(1000)] },
    Bench { name: "rollback", measure: |size| vec![hosts::rollback(size.runs)] },
];

/// The whole company.
const SEED: Bench =
    Bench { name: "seed", measure: |size| vec![hosts::seed(size.rate.unwrap_or(5000), &size.kinds)] };

/// A cluster beyond what is promised. It takes gigabytes of memory.
const HUGE: Bench = Bench {
    name: "takeover1m",
    measure: |_| takeover::takeover(takeover::Large { instances: 999_900, hosts: 5_000 }),
};

/// Those whose figures README quotes.
const README: [&str; 7] = ["push", "scale10", "scale100", "kill", "memory", "converge", "rollouts"];

/// All there are.
fn all() -> impl Iterator<Item = Bench> {
    ALONE.into_iter().chain(HOSTS).chain([SEED, HUGE])
}

/// The benches that are asked for, in their order.
fn chosen(arguments: &Arguments, page: Option<&Page>) -> anyhow::Result<Vec<Bench>> {
    let asked: Vec<&str> = arguments.benches.iter().map(String::as_str).collect();
    let of_hosts = |name: &str| HOSTS.iter().any(|bench| bench.name == name);
    let is_known = |name: &str| ["hosts", "readme"].contains(&name) || all().any(|bench| bench.name == name);
    if let Some(name) = asked.iter().find(|name| !is_known(name)) {
        anyhow::bail!("there is no bench {name}; hint: bench --help names them");
    }
    let is_asked = |bench: &Bench| match (asked.as_slice(), page) {
        ([], Some(page)) => page.has(bench.name),
        ([], None) => ALONE.iter().any(|alone| alone.name == bench.name),
        (asked, _) => {
            asked.contains(&bench.name)
                || asked.contains(&"readme") && README.contains(&bench.name)
                || asked.contains(&"hosts") && of_hosts(bench.name)
        }
    };
    let benches: Vec<Bench> = all().filter(is_asked).collect();
    if let Some(page) = page {
        let missing: Vec<&str> =
            benches.iter().map(|bench| bench.name).filter(|name| !page.has(name)).collect();
        ensure!(
            missing.is_empty(),
            "no table of the page has a row of {missing:?}; hint: add one that begins with | `{}` |",
            missing.first().unwrap_or(&"")
        );
    }
    Ok(benches)
}

impl Bench {
    /// Measures in a thread of its own: a fleet puts its thread into a network namespace for good, and what is measured
    /// next needs this machine's own network.
    fn measure(&self, size: &Size) -> Vec<Row> {
        let measured = std::thread::scope(|scope| scope.spawn(|| (self.measure)(size)).join());
        measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.runs > 0, "nothing is measured in no runs");
    let page = arguments.write.as_deref().map(Page::read).transpose()?;
    let benches = chosen(&arguments, page.as_ref())?;
    let size = Size {
        runs: arguments.runs,
        rollouts: 10,
        abuse: arguments.kinds.clone(),
        rounds: arguments.rounds,
        rate: arguments.rate,
        kinds: Kind::ALL.into_iter().filter(|kind| !(arguments.kept && kind.new)).collect(),
    };
    let folders: Vec<PathBuf> = arguments
        .programs
        .iter()
        .map(|folder| folder.canonicalize().with_context(|| folder.display().to_string()))
        .collect::<anyhow::Result<_>>()?;
    let _turn = Turn::whole();
    if folders.len() > 1 {
        let compared = compare::compare(&benches, &folders, &size);
        print(&format!("{}\n\n{compared}", origin(size.runs)));
        return Ok(());
    }
    use_programs(folders.first().map(PathBuf::as_path));
    let mut measured = Vec::new();
    for bench in &benches {
        let rows = bench.measure(&size);
        // They take a while: each figure is told as it comes.
        for row in &rows {
            eprintln!("{}: {}: {}; {}", bench.name, row.what, row.figure, row.floor);
        }
        measured.push((bench.name, rows));
        if let Some(file) = &arguments.write {
            write(file, &measured[measured.len() - 1..], size.runs)?;
        }
    }
    print(&table::text(&measured, &origin(size.runs)));
    Ok(())
}

/// Writes what was just measured: what comes later may fail.
fn write(file: &Path, measured: &[(&str, Vec<Row>)], runs: usize) -> anyhow::Result<()> {
    let text = Page::read(file)?.with(measured, &origin(runs))?;
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

#[allow(clippy::print_stdout, reason = "the tables are what this program is for")]
fn print(text: &str) {
    println!("{text}");
}
