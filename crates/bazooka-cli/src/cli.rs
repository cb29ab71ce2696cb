//! The whole command line: the options of every command, and the command.
//!
//! Owns no command: each has its arguments in its own file below [`crate::command`]. Everything is parsed before
//! anything is read or written, so an invalid name costs no request and exits with 2.

use bazooka_daemon::CoordinatorArgs;
use clap::{Args, Parser};
use visor::names::AppName;

use crate::{command::Command, failure::EXIT_CODES};

/// Deploys apps on the machines of a cluster, and shows what runs.
#[derive(Debug, Parser)]
#[command(name = "bazooka", version, after_help = EXIT_CODES)]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// The options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// The app [default: the one of the git remote `bazooka`]
    #[arg(short, long, global = true, value_name = "APP")]
    pub app: Option<AppName>,
    /// Print JSON, for commands that list or show something
    #[arg(long, global = true)]
    pub json: bool,
    /// The coordinator's options.
    #[command(flatten)]
    pub coordinator: CoordinatorArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
