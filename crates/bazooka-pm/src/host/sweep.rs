//! The remains of a dead shim.
//!
//! Owns the killing of every process that it has left behind, and the removal of its control groups. The caller holds
//! the lock of the start, so that nothing of a living one is taken for remains.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use bazooka_sandbox::{
    machine::{proc_stat, processes},
    protocol::{Group, ProcessId},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The longest time for which the remains of a dead shim are killed again and again.
const SWEEP_FOR: Duration = Duration::from_secs(10);

/// Kills what a dead shim has left behind: processes in the instance's control groups, processes of its user or, if it
/// has no user of its own, processes whose HOME is the instance's. Blocks.
pub fn sweep(home: &Path, uid: Option<u32>, groups: &[Group]) {
    let begun = Instant::now();
    while begun.elapsed() < SWEEP_FOR {
        let left = left_behind(home, uid, groups);
        if left.is_empty() {
            break;
        }
        for process in left {
            let Some(pid) = Pid::from_raw(process.pid) else { continue };
            let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if process.is_there() {
                let _ = pidfd_send_signal(&held, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for group in groups {
        let _ = fs::remove_dir(&group.folder);
    }
}

fn left_behind(home: &Path, uid: Option<u32>, groups: &[Group]) -> Vec<ProcessId> {
    let grouped =
        groups.iter().filter_map(|group| fs::read_to_string(group.folder.join("cgroup.procs")).ok());
    let grouped: Vec<i32> = grouped
        .flat_map(|list| list.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    let mark = format!("HOME={}", home.display()).into_bytes();
    let belongs = |pid: i32| {
        grouped.contains(&pid)
            || match uid {
                Some(uid) => user_of(pid) == Some(uid),
                None => {
                    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                    environ.split(|byte| *byte == 0).any(|var| var == mark)
                }
            }
    };
    processes()
        .filter(|pid| belongs(*pid))
        .filter_map(|pid| {
            let stat = proc_stat(pid)?;
            // A zombie needs no killing, even if its parent doesn't reap it.
            (stat.state != 'Z').then_some(ProcessId { pid, start_time: stat.start_time })
        })
        .collect()
}

fn user_of(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}
