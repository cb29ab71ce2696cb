//! The C library's allocator, as a daemon of months sets it.
//!
//! Owns its settings. By itself it gives each thread an arena of its own, and never returns most of what a burst took:
//! after the first large piece that is freed, it keeps pieces of that size on the heap, and as much free memory again at
//! the heap's end.

use nix::libc;

/// The arenas of all threads together.
const ARENAS: i32 = 1;

/// The size in bytes from which a piece of memory is mapped by itself, so that it goes back once it is freed.
const MAPPED_BYTES: i32 = 64 << 10;

/// The free bytes at the heap's end that are kept.
const KEPT_BYTES: i32 = 128 << 10;

/// Keeps the memory of a daemon small over time. Call it before the first thread is started.
pub fn spare_memory() {
    for (setting, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
    ] {
        // SAFETY: the call only sets numbers of the allocator, under its own lock.
        #[allow(unsafe_code, reason = "no library of ours has this call")]
        let is_set = unsafe { libc::mallopt(setting, value) };
        debug_assert_eq!(is_set, 1, "glibc knows setting {setting}");
    }
}
