//! Each change of the cluster's state, as one transaction guarded on what it was decided from.
//!
//! Owns the rules of change. What a user or rm asks for is read, decided and committed here, anew when a
//! rival gets in first. What the converger and the pms plan from their own images are [`Change`]s
//! made here and committed in batches. Whatever dies when, no half state is left.
//!
//! [`Change`]: crate::visor::Change

pub mod access;
pub mod apps;
pub mod envs;
pub mod formation;
pub mod placement;
pub mod presence;
pub mod releases;
pub mod repos;
pub mod rollouts;
pub mod settings;
