//! `bazooka completions`: what a shell needs in order to complete `bazooka`'s words.

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
    /// What kind of command it is.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Local { prints_json: false }
    }
}

/// Prints a shell's completions.
///
/// # Errors
/// None.
pub fn run(_: &Invocation, args: Args) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bazooka", &mut text);
    put(&String::from_utf8_lossy(&text));
    Ok(())
}
