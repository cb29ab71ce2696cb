//! What a part leaves behind when it dies: HAProxy, instances. It becomes a child of this process.
//!
//! Owns their end. While the cluster runs they go on, since the part that is started again takes them
//! over; at its end none may be left.

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

/// How long those that are left have from SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// After SIGKILL the kernel needs a moment; one that doesn't end then can't be ended by anyone.
const KILLED_FOR: Duration = Duration::from_secs(5);

/// How often it is looked whether they have gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Takes this process's orphaned descendants in, from now on. What it returns waits for those that end, for ever.
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

/// Waits for those that have ended. The parts themselves are waited for by who started them: they head
/// a process group each, as `supervise` makes them, and are still in `parts` until then.
fn reap() {
    for pid in children().into_iter().filter(|pid| is_orphan(*pid)) {
        // It may not have ended yet.
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Ends all that are left, once every part has ended.
///
/// Returns the names of those that couldn't be ended.
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
            // Children of this process, not waited for: their ids are theirs. Those of a child that ends
            // become ours, and are told in the next round.
            if begin.elapsed() > GRACE {
                let _ = kill(pid, Signal::SIGKILL);
            } else if told.insert(pid) {
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The children of this process, whichever thread started them.
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
