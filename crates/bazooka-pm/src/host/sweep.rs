//! The remains of a dead shim.
//!
//! Owns the killing of every process that it has left behind, and the removal of its control groups. The caller holds
//! the lock of the start, so that nothing of a living one is taken for remains.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use bazooka_sandbox::{
    files::load,
    machine::{listed_processes, look_at, of_process},
    protocol::{Group, ProcessId},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The longest time for which the remains of a dead shim are killed again and again.
const SWEEP_FOR: Duration = Duration::from_secs(10);

/// Kills what a dead shim has left behind: processes in the instance's control groups, processes of its user or, if it
/// has no user of its own, processes whose HOME is the instance's. Blocks.
pub fn sweep(home: &Path, uid: Option<u32>, groups: &[Group]) {
    let begun = Instant::now();
    let mut complained = false;
    while begun.elapsed() < SWEEP_FOR {
        let left = match left_behind(home, uid, groups) {
            Ok(left) if left.is_empty() => break,
            Ok(left) => left,
            Err(error) => {
                // Processes that can't be looked at aren't gone.
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(home = %home.display(), error = %error, "can't look for what a dead shim left");
                }
                Vec::new()
            }
        };
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

fn left_behind(home: &Path, uid: Option<u32>, groups: &[Group]) -> io::Result<Vec<ProcessId>> {
    let mut grouped: Vec<i32> = Vec::new();
    for group in groups {
        let list = load(&group.folder.join("cgroup.procs"))?.unwrap_or_default();
        grouped.extend(String::from_utf8_lossy(&list).lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    let mark = format!("HOME={}", home.display()).into_bytes();
    let belongs = |pid: i32| -> io::Result<bool> {
        if grouped.contains(&pid) {
            return Ok(true);
        }
        match uid {
            Some(uid) => Ok(user_of(pid)? == Some(uid)),
            None => match of_process(fs::read(format!("/proc/{pid}/environ"))) {
                Ok(environ) => {
                    Ok(environ.unwrap_or_default().split(|byte| *byte == 0).any(|var| var == mark))
                }
                // Another user's process: an instance without a user of its own has this process's.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
                Err(error) => Err(error),
            },
        }
    };
    let mut left = Vec::new();
    for pid in listed_processes()? {
        if !belongs(pid)? {
            continue;
        }
        // A zombie needs no killing, even if its parent doesn't reap it.
        let stat = look_at(pid)?.filter(|stat| stat.state != 'Z');
        left.extend(stat.map(|stat| ProcessId { pid, start_time: stat.start_time }));
    }
    Ok(left)
}

fn user_of(pid: i32) -> io::Result<Option<u32>> {
    use std::os::unix::fs::MetadataExt;
    Ok(of_process(fs::metadata(format!("/proc/{pid}")))?.map(|meta| meta.uid()))
}
