//! Each change of the cluster's state, as one transaction guarded on what it was decided from.
//!
//! Owns the rules of change. A request of a user or an rm is read, decided and committed here, and decided again when a
//! rival writes first. The converger and the pms plan from their own images; their plans become [`Change`]s that are
//! made here and committed in batches. No half state is left, whichever program dies.
//!
//! [`Change`]: crate::visor::Change

pub mod access;
pub mod apps;
pub mod audit;
pub mod envs;
pub mod formation;
pub mod placement;
pub mod ports;
pub mod presence;
pub mod pruning;
pub mod releases;
pub mod repos;
pub mod rollouts;
pub mod settings;
