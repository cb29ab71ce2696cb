//! bazooka-pm: runs the instances of one host, and holds the elected converger.
//!
//! ```text
//! host      the host's part: claims what is assigned here, runs it, says what became of it
//! converge  the converger: formations into placed instances
//! ```

pub mod converge;
pub mod host;
#[cfg(test)]
mod simulation;
