//! Upgrades a running cluster from one build's programs to another's, part by part in random order, under load.
//!
//! `tests/upgrade COMMIT` builds both and calls this. Shows that nobody notices: no instance restarts, no request is lost,
//! each row is readable and `bazooka check` finds nothing with either build, after each part. In the mixed cluster and after
//! it, pushes, scales, changes of config vars and rollbacks work, by either build's command line, under a converger of either
//! build. The order and whatever else is random follows from the seed, which is printed.

mod apps;
mod site;

use std::path::PathBuf;

use apps::Change;
use bazooka_tests::{
    Machine::{self, Converger, Host, Proxy, Rm},
    Turn, program,
};
use clap::Parser;
use site::Site;

/// Upgrades a running cluster, part by part.
#[derive(Parser)]
struct Arguments {
    /// The folder with the programs of the build that the cluster starts with.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The folder with the programs that it is upgraded to; those beside this one unless given.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// What the order follows from; random unless given.
    #[arg(long)]
    seed: Option<u64>,
}

/// Random numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one.
    fn below(&mut self, most: usize) -> usize {
        let most = u64::try_from(most).expect("it fits");
        usize::try_from(self.roll() % most).expect("it is below")
    }

    fn shuffled<T>(&mut self, mut all: Vec<T>) -> Vec<T> {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at + 1));
        }
        all
    }
}

fn main() {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(now.expect("the clock is past 1970").as_nanos() % 1_000_000).expect("it is small")
    });
    let from = arguments.from.canonicalize().expect("--from is a folder");
    let to = arguments
        .to
        .map(|to| to.canonicalize().expect("--to is a folder"))
        .unwrap_or_else(|| program("bazooka").parent().expect("a program has a folder").to_owned());
    eprintln!("seed {seed}: from {} to {}", from.display(), to.display());
    let mut dice = Dice(seed);
    let _turn = Turn::whole();

    let mut site = Site::start(&from, &to);
    let parts = [Rm, Converger(1), Converger(2), Host(1), Host(2), Host(3), Proxy(1), Proxy(2)];
    let order: Vec<Machine> = dice.shuffled(parts.to_vec());
    eprintln!("order: {order:?}");
    site.shows_nothing_amiss();
    // Each change is made more than once in a mixed cluster, each time beside other parts.
    let mut changes = Vec::new();
    for (nth, machine) in order.iter().enumerate() {
        site.upgrade(*machine);
        for _ in 0..2 {
            if changes.is_empty() {
                changes = dice.shuffled(Change::ALL.to_vec());
            }
            let change = changes.pop().expect("it was filled");
            site.change(change, dice.below(2) == 0);
        }
        // Half-way, with a converger of each build: the other leads too.
        let convergers = order[..=nth].iter().filter(|one| matches!(one, Converger(_))).count();
        if convergers == 1 && matches!(machine, Converger(_)) {
            site.have_the_other_lead();
            site.change(Change::Push, true);
            site.change(Change::Scale, false);
        }
        site.shows_nothing_amiss();
    }
    site.migrate();
    for change in dice.shuffled(Change::ALL.to_vec()) {
        site.change(change, true);
    }
    site.shows_nothing_amiss();
    site.end();
}
