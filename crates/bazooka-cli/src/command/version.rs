//! `bazooka version`: the versions of this program and its schema.

use serde::Serialize;

use crate::{
    command::CommandKind,
    failure::Result,
    invocation::Invocation,
    show::{put_json, put_line},
};

/// Print the version
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Local { prints_json: true }
    }
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    schema: u32,
}

/// Prints the version of this program, and of the schema that it writes.
///
/// # Errors
/// None.
pub fn run(invocation: &Invocation, _: Args) -> Result<()> {
    let version = Version { version: env!("CARGO_PKG_VERSION"), schema: visor::schema::SCHEMA_VERSION };
    if invocation.json {
        put_json(&version);
    } else {
        put_line(&format!("bazooka {} (schema {})", version.version, version.schema));
    }
    Ok(())
}
