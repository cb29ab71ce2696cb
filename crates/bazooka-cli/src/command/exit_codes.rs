//! `bazooka exit-codes`: the meaning of each exit status.

use crate::{
    command::CommandKind,
    failure::{EXIT_CODES, Result},
    invocation::Invocation,
    show::put_line,
};

/// Print the meaning of each exit code
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Local { prints_json: false }
    }
}

/// Prints the exit codes.
///
/// # Errors
/// None.
pub fn run(_: &Invocation, _: Args) -> Result<()> {
    put_line(EXIT_CODES);
    Ok(())
}
