//! The rules: what is wanted, what fails, which instance goes first, and which host takes the next one.
//!
//! Owns each rule once. The converger plans by it, and `capacity`, `why`, `ps`, the page and a push ask the same
//! function. Everything here is pure: the same image gives the same answer. What only a converger remembers
//! (failures of late, since when an instance is healthy) is passed in.
//!
//! ```text
//! wanted ─────▶ how many of which release          failing ──▶ whether a proc fails anyway
//! zones ──────▶ in which zone                      replacing ─▶ whether an instance is to be replaced
//! host_fit ───▶ which hosts may run an env ─┐      order ────▶ which of too many stay
//! usage ──────▶ what is taken of a host ────┴──▶ placement ──▶ where
//! ```

pub mod failing;
#[cfg(test)]
pub(crate) mod fixture;
pub mod host_fit;
pub mod order;
pub mod placement;
pub mod replacing;
pub mod usage;
pub mod wanted;
pub mod zones;
