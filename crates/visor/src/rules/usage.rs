//! The part of a host's capacity that its instances take, and how many it takes unless its operator says otherwise.
//!
//! Owns these sums alone. Nothing is measured: an instance counts with its memory limit.

use crate::{
    schema::{Assignment, Limits, State, Status},
    snapshot::HostView,
};

/// The memory that an instance without a memory limit counts as.
///
/// It is only a guess for packing, and small, so that it never keeps a hundred idle processes from a small machine; a
/// proc that needs more should set a limit. What keeps instances without limits from overloading a host is its number
/// of slots.
pub const UNLIMITED_BYTES: u64 = 16 << 20;

/// The memory for which a host has one slot, unless its operator names a number of slots.
pub const SLOT_BYTES: u64 = 64 << 20;

/// The slots that a host has for each processor, unless its operator names a number.
pub const SLOTS_PER_PROCESSOR: u32 = 100;

/// The fewest slots of a host whose operator names no number, however small it is.
pub const FEWEST_SLOTS: u32 = 16;

/// Returns how many instances a host takes whose operator names no number: no more than it has ports, memory and
/// processors for.
///
/// Most instances have no memory limit, and a server in an interpreted language takes 50 to 100 MiB.
pub fn default_slots(ports: u32, memory_bytes: u64, processors: u32) -> u32 {
    let by_memory = u32::try_from(memory_bytes / SLOT_BYTES).unwrap_or(u32::MAX);
    let by_processors = processors.saturating_mul(SLOTS_PER_PROCESSOR);
    by_memory.min(by_processors).max(FEWEST_SLOTS).min(ports)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_takes_what_its_memory_and_its_processors_are_enough_for() {
        for (memory_gib, processors, slots) in
            [(8, 2, 128), (8, 1, 100), (23, 2, 200), (64, 16, 1_000), (1, 1, 16), (0, 0, 16)]
        {
            let is = default_slots(1_000, memory_gib << 30, processors);
            assert_eq!(is, slots, "{memory_gib} GiB, {processors} processors");
        }
        assert_eq!(default_slots(4, 64 << 30, 16), 4, "no more than it has ports");
        assert_eq!(default_slots(65_000, u64::MAX, u32::MAX), 65_000);
    }
}
