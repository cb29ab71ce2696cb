//! `bazooka child`: becomes a program that ends with its parent.
//!
//! `bazooka dev` starts each part through this command. The kernel sends the part SIGTERM when `dev` dies, however it
//! dies, so that no part is left behind.

use std::{ffi::OsString, os::unix::process::CommandExt, path::Path, process::Command};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::getppid,
};

use crate::{
    command::CommandKind,
    failure::{Failure, Kind, Result},
    invocation::Invocation,
};

/// Become a program that ends with its parent
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// Whose end is to end it
    #[arg(long)]
    pub of: u32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Local { prints_json: false }
    }
}

/// Replaces this process by a program, after arranging for SIGTERM at the parent's end. Returns only if that fails.
///
/// # Errors
/// If the program can't be started, or the parent has ended meanwhile.
pub fn run(_: &Invocation, args: Args) -> Result<()> {
    let Args { of: parent, command } = args;
    let [program, args @ ..] = &command[..] else {
        return Err(Failure::new(Kind::Usage, "no program is named"));
    };
    let failed = |error: &dyn std::error::Error| {
        Failure::from_error(Kind::Failed, format!("{} can't be started", Path::new(program).display()), error)
    };
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(|error| failed(&error))?;
    // If the parent died before the call, the kernel sends no signal.
    if u32::try_from(getppid().as_raw()) != Ok(parent) {
        return Err(Failure::new(Kind::Failed, "the parent has gone"));
    }
    Err(failed(&Command::new(program).args(args).exec()))
}
