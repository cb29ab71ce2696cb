//! bazooka-pm: runs the instances of one host, and holds the elected converger.
//!
//! ```text
//! host      the host's part: claims what is assigned here, runs it, says what became of it
//! shim      the small process that stands between bazooka-pm and an instance, and outlives it
//! protocol  the files by which the two speak
//! converge  the converger: formations into placed instances
//! ```

pub mod converge;
pub mod host;
pub mod protocol;
pub mod shim;
#[cfg(test)]
mod simulation;
