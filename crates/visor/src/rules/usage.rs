//! The part of a host's capacity that its instances take.
//!
//! Owns these sums alone. Nothing is measured: an instance counts with its memory limit.

use crate::{
    schema::{Assignment, Limits, State, Status},
    snapshot::HostView,
};

/// The memory that an instance without a memory limit counts as.
///
/// It is only a guess for packing, and small, so that it never keeps a hundred idle processes from a small machine; a
/// proc that needs more should set a limit.
pub const UNLIMITED_BYTES: u64 = 16 << 20;

/// Returns the memory that an instance counts as.
pub fn reckoned(limits: &Limits) -> u64 {
    limits.memory_limit_bytes.unwrap_or(UNLIMITED_BYTES)
}

/// Returns the memory that an assigned instance takes of its host; none once it has ended.
///
/// A draining or stopping instance still uses its memory, and a lost one may still be there.
pub fn taken(assigned: &Assignment, status: Option<&Status>) -> Option<u64> {
    let ended = status.is_some_and(|status| matches!(status.state, State::Exited | State::Failed));
    (!ended).then(|| reckoned(&assigned.run.limits))
}

/// The part of a host's capacity that is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// The slots taken: instances that may still be there.
    pub instances: u32,
    /// The memory that they count as.
    pub memory_bytes: u64,
}

impl Used {
    /// Returns what is taken of a host.
    pub fn of(view: &HostView) -> Self {
        let mut used = Used::default();
        for (id, assigned) in &view.assigned {
            if let Some(bytes) = taken(assigned, view.status.get(id).map(|status| &status.value)) {
                used.take(bytes);
            }
        }
        used
    }

    /// Adds one slot and this much memory.
    pub fn take(&mut self, memory_bytes: u64) {
        self.instances += 1;
        self.memory_bytes = self.memory_bytes.saturating_add(memory_bytes);
    }
}
