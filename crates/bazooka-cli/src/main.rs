//! `bazooka`: deploys apps on the machines of a cluster, and shows what runs.
//!
//! Owns the frame of each invocation: parse the command line, run one command, and turn the result into an exit code.
//! Each command has its own file below `command`.

mod cli;
mod command;
mod context;
mod env;
mod failure;
mod invocation;
mod release;
mod rm;
mod settings;
mod settle;
mod show;
mod target;
mod wait;
mod watch;

use std::{error::Error, io::Write, process::ExitCode};

use bazooka_daemon::documents;
use clap::{CommandFactory, FromArgMatches};
use visor::settings::InvalidValue;

use cli::Cli;
use failure::{Failure, Kind, Result};
use invocation::{COORDINATOR_OPTIONS, Invocation};

fn main() -> ExitCode {
    let mut command = Cli::command();
    for arg in COORDINATOR_OPTIONS {
        command = command.mut_arg(arg, |arg| arg.global(true).help_heading("Coordinator"));
    }
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == documents::WORD) {
        return ExitCode::from(documents::run(command, &words[1..]));
    }
    let parsed = command.try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((cli.command, Invocation::new(cli.global, &matches)))
    });
    let (command, invocation) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    match run(command, &invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ended_with(&failure),
    }
}

fn run(command: command::Command, invocation: &Invocation) -> Result<()> {
    if invocation.json && !command.kind().prints_json() {
        return Err(Failure::new(
            Kind::Usage,
            "this command prints no JSON: --json is for commands that list or show",
        )
        .hint("make the change without it, then ask: bazooka ps --json, bazooka releases --json"));
    }
    command.run(invocation)
}

/// Prints a failure, unless it is silent, and returns its exit code.
fn ended_with(failure: &Failure) -> ExitCode {
    // The failure's parts are already cleaned; newlines separate them.
    if !failure.is_silent() {
        // One write, so that no other output comes in between. A closed standard error can't be reported.
        let _ = std::io::stderr().write_all(format!("{failure}\n").as_bytes());
    }
    ExitCode::from(failure.kind as u8)
}

/// Prints help or a usage error, and returns the exit code. A usage error may repeat words of the command line, so
/// [`show::say`] cleans it.
fn usage(error: &clap::Error) -> ExitCode {
    let invalid = error.source().and_then(|source| source.downcast_ref::<InvalidValue>());
    if let Some(invalid) = invalid {
        let failure = Failure::new(Kind::Usage, invalid.to_string()).hint(invalid.hint());
        return ended_with(&failure);
    }
    if error.use_stderr() {
        let text = error.render().to_string();
        for line in text.trim_end().lines() {
            show::say(line);
        }
        return ExitCode::from(Kind::Usage as u8);
    }
    let text = error.render();
    if show::Sink::stdout().has_colours() {
        show::put(&text.ansi().to_string());
    } else {
        show::put(&text.to_string());
    }
    ExitCode::SUCCESS
}
