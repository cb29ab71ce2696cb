//! The instance's processes: all descendants of the shim, which is their subreaper.
//!
//! Owns finding and signalling them. The ids of the shim's children can't be reused, because only the shim reaps them.
//! Other descendants are held by a pidfd and verified again before they get a signal.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::{machine::proc_stat, protocol::ProcessId};

/// Returns the children of a process.
pub fn children_of(pid: i32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let words = listed.unwrap_or_default();
    words.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn own_children() -> Vec<i32> {
    children_of(i32::try_from(std::process::id()).expect("Linux process ids fit"))
}

/// Sends a signal to the whole instance: each child, and each of their descendants.
///
/// All are found before the first is signalled: if a parent ended at once (the shell around a command), the way to its
/// children would be lost.
pub fn signal_all(signal: Signal) {
    let children = own_children();
    let mut descendants: Vec<(i32, i32)> = Vec::new();
    let mut parents = children.clone();
    while let Some(parent) = parents.pop() {
        for pid in children_of(parent) {
            if !children.contains(&pid) && !descendants.iter().any(|(known, _)| *known == pid) {
                descendants.push((pid, parent));
                parents.push(pid);
            }
        }
    }
    for child in &children {
        // Only the shim reaps this child, so its id can't be another process's.
        let _ = kill(Pid::from_raw(*child), signal);
    }
    for (pid, parent) in descendants {
        signal_descendant(pid, parent, &children, signal);
    }
}

/// Signals a process if it is still the one that was found below `parent`.
fn signal_descendant(pid: i32, parent: i32, children: &[i32], signal: Signal) {
    let Some(before) = ProcessId::of(pid) else { return };
    let Some(raw) = rustix::process::Pid::from_raw(pid) else { return };
    let Ok(held) = pidfd_open(raw, PidfdFlags::empty()) else { return };
    let own = i32::try_from(std::process::id()).expect("Linux process ids fit");
    // If its parent ended meanwhile, the process is now the shim's child, or a child of the sandbox's process 1, which
    // is the shim's child.
    let is_ours = proc_stat(pid).is_some_and(|now| {
        let is_heir = now.parent == own || children.contains(&now.parent);
        now.start_time == before.start_time && (now.parent == parent || is_heir)
    });
    if is_ours {
        if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
            let _ = pidfd_send_signal(&held, signal);
        }
    }
}

/// Kills the current children. Their own children become the shim's, for the next round.
///
/// `stubborn` is true if many rounds haven't helped, because processes multiply faster than they are killed.
pub fn kill_children(stubborn: bool) {
    let children = own_children();
    if stubborn {
        // A stopped process can't fork.
        signal_all(Signal::SIGSTOP);
        signal_all(Signal::SIGKILL);
    }
    for child in children {
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
    }
}
