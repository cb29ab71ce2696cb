//! The rules: what is wanted, what fails, which instance goes first, and which host takes the next one.
//!
//! Owns each rule once. The converger plans with these functions, and `capacity`, `why`, `ps`, the page and a push ask
//! the same ones. Everything here is pure: the same image gives the same answer. Facts that only a converger remembers
//! (recent failures, the time since when an instance is healthy) are passed in.
//!
//! ```text
//! wanted ─────▶ how many of which release          failing ──▶ which procs were failing anyway
//! zones ──────▶ in which zone                      replacing ─▶ which instances to replace
//! host_fit ───▶ which hosts may run an env ─┐      order ────▶ which of too many stay
//! usage ──────▶ what is taken of a host ────┴──▶ placement ──▶ where
//! ```

pub mod failing;
#[cfg(test)]
pub(crate) mod fixture;
pub mod host_fit;
pub mod order;
pub mod placement;
pub mod pruning;
pub mod replacing;
pub mod usage;
pub mod wanted;
pub mod zones;
