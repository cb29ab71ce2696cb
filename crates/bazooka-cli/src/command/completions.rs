//! `bazooka completions`: what a shell needs in order to complete `bazooka`'s words.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Cli, failure::Result, show::put};

/// Prints a shell's completions.
///
/// # Errors
/// None.
pub fn run(shell: Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bazooka", &mut text);
    put(&String::from_utf8_lossy(&text));
    Ok(())
}
