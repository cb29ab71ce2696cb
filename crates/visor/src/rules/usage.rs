//! What the instances of a host take of its capacity.
//!
//! Owns the reckoning alone. Nothing is measured: an instance takes its memory limit.

use crate::{
    schema::{Assignment, Limits, State, Status},
    snapshot::HostView,
};

/// What an instance without a memory limit is reckoned at. It is a guess for packing alone, and small, so
/// that it never keeps a hundred idle processes from a small machine: who needs more sets a limit.
pub const UNLIMITED_BYTES: u64 = 16 << 20;

/// The memory that an instance is reckoned at.
pub fn reckoned(limits: &Limits) -> u64 {
    limits.memory_limit_bytes.unwrap_or(UNLIMITED_BYTES)
}

/// The memory that an assigned instance takes of its host; none once it has ended.
///
/// What drains or stops still uses what it uses, and what was lost may be there still.
pub fn taken(assigned: &Assignment, status: Option<&Status>) -> Option<u64> {
    let ended = status.is_some_and(|status| matches!(status.state, State::Exited | State::Failed));
    (!ended).then(|| reckoned(&assigned.run.limits))
}

/// What is taken of a host's capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Slots: instances that may be there still.
    pub instances: u32,
    /// Their memory, as reckoned.
    pub memory_bytes: u64,
}

impl Used {
    /// What is taken of a host.
    pub fn of(view: &HostView) -> Self {
        let mut used = Used::default();
        for (id, assigned) in &view.assigned {
            if let Some(bytes) = taken(assigned, view.status.get(id).map(|status| &status.value)) {
                used.take(bytes);
            }
        }
        used
    }

    /// Takes one slot and so much memory more.
    pub fn take(&mut self, memory_bytes: u64) {
        self.instances += 1;
        self.memory_bytes = self.memory_bytes.saturating_add(memory_bytes);
    }
}
