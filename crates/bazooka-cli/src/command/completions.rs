//! `bazooka completions`: completion scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{cli::Cli, command::CommandKind, failure::Result, invocation::Invocation, show::put};

/// Print a shell's completions
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Local { prints_json: false }
    }
}

/// Prints the completion script of a shell.
///
/// # Errors
/// None.
pub fn run(_: &Invocation, args: Args) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bazooka", &mut text);
    put(&String::from_utf8_lossy(&text));
    Ok(())
}
