//! `bazooka version`.

use serde::Serialize;

use crate::{
    failure::Result,
    show::{put_json, put_line},
};

#[derive(Serialize)]
struct Version {
    version: &'static str,
    schema: u32,
}

/// Prints this program's version and the schema's that it writes.
///
/// # Errors
/// None.
pub fn run(json: bool) -> Result<()> {
    let version = Version { version: env!("CARGO_PKG_VERSION"), schema: visor::schema::SCHEMA_VERSION };
    if json {
        put_json(&version);
    } else {
        put_line(&format!("bazooka {} (schema {})", version.version, version.schema));
    }
    Ok(())
}
