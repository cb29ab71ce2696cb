//! Shows the day of one seed, or searches many seeds for a day that breaks a rule.

use std::process::ExitCode;

use bazooka_simulation::{live, search};
use clap::{Args, Parser, Subcommand};

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
    },
    /// Search seeds for the lowest whose day breaks a rule
    Explore(Seeds),
}

#[derive(Args)]
struct Seeds {
    /// How many seeds
    #[arg(long)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
}

#[allow(clippy::print_stdout, reason = "days are what this program is for")]
fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { seed } => {
            let day = live(seed, true);
            println!("{}", day.lines.join("\n"));
            verdict(day.broken.map(|broken| (seed, broken)))
        }
        Command::Explore(Seeds { seeds, from }) => verdict(search(from..from.saturating_add(seeds))),
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
