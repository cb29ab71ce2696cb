//! Shows the day of one seed, searches many seeds for a day that breaks a rule, or shows that each planted fault is
//! found.

use std::process::ExitCode;

use bazooka_simulation::{
    Live, live, live_pushes, live_rmless, live_zones,
    planted::{NoSwitches, Planting, find, plantings},
    search_for,
};
use clap::{Parser, Subcommand};

/// A whole Bazooka cluster in simulated time, one seed a day
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Live through the day of one seed and print it
    Run {
        /// The seed, which makes every choice of the day
        #[arg(long)]
        seed: u64,
        /// A day of pushes to two bazooka-rms
        #[arg(long)]
        pushes: bool,
        /// A day on which a host and a proxy are cut off together
        #[arg(long, conflicts_with = "pushes")]
        zones: bool,
        /// A day on which the rm is gone for good
        #[arg(long, conflicts_with_all = ["pushes", "zones"])]
        rmless: bool,
    },
    /// Search seeds for the lowest whose day breaks a rule
    Explore {
        /// How many seeds
        #[arg(long)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Days of pushes to two bazooka-rms
        #[arg(long)]
        pushes: bool,
        /// Days on which a host and a proxy are cut off together
        #[arg(long, conflicts_with = "pushes")]
        zones: bool,
        /// Days on which the rm is gone for good
        #[arg(long, conflicts_with_all = ["pushes", "zones"])]
        rmless: bool,
    },
    /// Plant each fault, and say which seed finds it
    Planted {
        /// How many seeds; as many as must suffice, unless given
        #[arg(long)]
        seeds: Option<u64>,
        /// Only the faults whose names contain one of these words; all unless given
        words: Vec<String>,
    },
}

#[allow(clippy::print_stdout, reason = "days are what this program is for")]
fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { seed, pushes, zones, rmless } => {
            let day = kind(pushes, zones, rmless)(seed, true);
            println!("{}", day.lines.join("\n"));
            verdict(day.broken.map(|broken| (seed, broken)))
        }
        Command::Explore { seeds, from, pushes, zones, rmless } => {
            verdict(search_for(kind(pushes, zones, rmless), from..from.saturating_add(seeds)))
        }
        Command::Planted { seeds, words } => match plant_each(seeds, &words) {
            Ok(0) => ExitCode::SUCCESS,
            Ok(missed) => {
                eprintln!("{missed} faults were not found");
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Plants the faults one after the other and prints what finds each. Returns how many were not found.
#[allow(clippy::print_stdout, reason = "the table is what the command is for")]
fn plant_each(asked: Option<u64>, words: &[String]) -> Result<u32, NoSwitches> {
    let mut missed = 0;
    for Planting { bugs, seeds, live } in plantings() {
        let seeds = asked.unwrap_or(seeds);
        let name = format!("{:?}", bugs[0]);
        if !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
            continue;
        }
        let beside: Vec<String> = bugs[1..].iter().map(|bug| format!(" beside {bug:?}")).collect();
        match find(live, &bugs, 0..seeds)? {
            Some((seed, broken)) => println!("{name}{}\tseed {seed}: {broken}", beside.concat()),
            None => {
                println!("{name}{}\tNOT FOUND within {seeds} seeds: {}", beside.concat(), bugs[0].words());
                missed += 1;
            }
        }
    }
    Ok(missed)
}

/// The kind of day that was asked for.
fn kind(pushes: bool, zones: bool, rmless: bool) -> Live {
    match (pushes, zones, rmless) {
        (true, ..) => live_pushes,
        (_, true, _) => live_zones,
        (.., true) => live_rmless,
        _ => live,
    }
}

/// Says which seed broke which rule, if one did.
fn verdict(found: Option<(u64, String)>) -> ExitCode {
    match found {
        Some((seed, broken)) => {
            eprintln!("seed {seed}: {broken}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("every rule held");
            ExitCode::SUCCESS
        }
    }
}
