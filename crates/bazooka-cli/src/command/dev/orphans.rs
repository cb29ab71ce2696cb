//! Orphans: processes that a part leaves behind when it dies (HAProxy, instances). They become children of this
//! process.
//!
//! Owns reaping and ending them. While the cluster runs they continue, because the restarted part adopts them; when
//! the cluster stops, all must end.

use std::{collections::BTreeSet, fs, time::Duration};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use crate::failure::{Failure, Kind, Result};

/// The time from SIGTERM to SIGKILL for the remaining processes.
const GRACE: Duration = Duration::from_secs(5);

/// The time that a process may take to end after SIGKILL. A process that still runs then can't be ended.
const KILLED_FOR: Duration = Duration::from_secs(5);

/// The interval at which the remaining processes are checked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Makes this process adopt its orphaned descendants from now on. The returned future reaps them, and never ends.
///
/// # Errors
/// If the kernel refuses.
pub fn adopt() -> Result<impl Future<Output = ()> + Send + 'static> {
    let failed = |error: &dyn std::error::Error| {
        Failure::from_error(Kind::Failed, "what parts leave behind can't be looked after", error)
    };
    prctl::set_child_subreaper(true).map_err(|error| failed(&error))?;
    let mut ended = signal(SignalKind::child()).map_err(|error| failed(&error))?;
    Ok(async move {
        while ended.recv().await.is_some() {
            reap();
        }
    })
}

/// Reaps the orphans that have ended. It leaves the parts to the tasks that started them: `supervise` makes each part
/// the head of a process group, and lists it in `parts` until it is reaped.
fn reap() {
    for pid in children().into_iter().filter(|pid| is_orphan(*pid)) {
        // The orphan may still run.
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Ends all remaining processes, once every part has ended.
///
/// Returns the names of processes that couldn't be ended.
pub async fn end_all() -> Vec<String> {
    let begin = Instant::now();
    let mut told: BTreeSet<Pid> = BTreeSet::new();
    loop {
        let mut left = children();
        left.retain(
            |pid| !matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some()),
        );
        if left.is_empty() {
            return Vec::new();
        }
        if begin.elapsed() > GRACE + KILLED_FOR {
            return left.iter().map(|pid| format!("{} ({pid})", name(*pid))).collect();
        }
        for pid in left {
            // These are children that haven't been reaped, so their process ids can't have been reused. The children
            // of a child that ends become ours, and get their signal in the next round.
            if begin.elapsed() > GRACE {
                let _ = kill(pid, Signal::SIGKILL);
            } else if told.insert(pid) {
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Returns the children of this process, of all its threads.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(Result::ok);
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let mut pids = Vec::new();
    for list in lists {
        pids.extend(list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
    }
    pids
}

fn name(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn is_orphan(pid: Pid) -> bool {
    !super::supervise::is_a_part(pid)
}
