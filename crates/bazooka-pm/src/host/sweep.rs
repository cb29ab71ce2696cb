//! The remains of a dead shim.
//!
//! Owns the killing of every process that it has left behind, and the removal of its control groups. The caller holds
//! the lock of the start, so that nothing of a living one is taken for remains.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bazooka_sandbox::{
    files::load,
    groups, ipc, loopback,
    machine::{listed_processes, look_at, of_process},
    protocol::{Group, ProcessId},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use visor::pause::Doubling;

use super::pools::Pool;

/// The longest time for which the remains of a dead shim are killed again and again.
const SWEEP_FOR: Duration = Duration::from_secs(10);

/// The pause before what still dies is looked at again. It is spent outside of the pool, whose threads others need.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(5), Duration::from_millis(100));

/// The remains that a dead shim may have left: processes in the instance's control groups, processes of its user or, if
/// it has no user of its own, processes whose HOME is the instance's.
#[derive(Clone, Debug)]
pub struct Remains {
    /// The instance's home.
    pub home: PathBuf,
    /// The user, if the instance has its own.
    pub uid: Option<u32>,
    /// The control groups.
    pub groups: Vec<Group>,
}

/// Kills all remains, and removes the control groups and what the user has on the machine besides: shared memory,
/// semaphores, queues, private addresses.
pub async fn sweep(pool: &Pool, remains: Remains) {
    let begun = Instant::now();
    let mut pauses = PAUSE.begin();
    let mut complained = false;
    loop {
        let (own, is_last) = (remains.clone(), begun.elapsed() >= SWEEP_FOR);
        let is_first = pauses == PAUSE.begin();
        let looked = pool.run(move || {
            if is_first {
                groups::kill(&own.groups);
            }
            let left = own.kill();
            let is_clear = matches!(left, Ok(0));
            if is_clear || is_last {
                own.remove_rest();
            }
            left.map(|_| is_clear || is_last)
        });
        match looked.await {
            Ok(Ok(true)) => return,
            Ok(Ok(false)) => {}
            // Processes that can't be looked at aren't gone.
            Ok(Err(error)) => {
                if !std::mem::replace(&mut complained, true) {
                    let home = remains.home.display();
                    tracing::warn!(%home, error = %error, "can't look for what a dead shim left");
                }
                if is_last {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(error = %error, "can't clean up after an instance");
                return;
            }
        }
        tokio::time::sleep(pauses.next()).await;
    }
}

impl Remains {
    /// Kills each process once, and returns how many there were. Blocks.
    fn kill(&self) -> io::Result<usize> {
        let left = left_behind(&self.home, self.uid, &self.groups)?;
        for process in &left {
            let Some(pid) = Pid::from_raw(process.pid) else { continue };
            let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if process.is_there() {
                let _ = pidfd_send_signal(&held, Signal::KILL);
            }
        }
        Ok(left.len())
    }

    fn remove_rest(&self) {
        if let Some(uid) = self.uid {
            ipc::remove_of(uid);
            loopback::remove_of(uid);
        }
        for group in &self.groups {
            let _ = fs::remove_dir(&group.folder);
        }
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

/// Returns the real user of a process.
///
/// The owner of the process's folder isn't its user: a process that isn't dumpable has root's there.
fn user_of(pid: i32) -> io::Result<Option<u32>> {
    let status = of_process(fs::read_to_string(format!("/proc/{pid}/status")))?.unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(line.and_then(|line| line.split_whitespace().next()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_process_that_hides_its_owner_is_swept_with_its_user() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not tried: it takes root");
            return;
        }
        // No test has these users; each run has its own.
        let uid = 1_620_000_000 + std::process::id() % 1_000_000;
        let hide =
            "import ctypes, time\nctypes.CDLL(None).prctl(4, 0)\nprint(1, flush=True)\ntime.sleep(600)";
        let mut hidden = Command::new("setpriv")
            .args(["--reuid", &uid.to_string(), "--clear-groups", "/usr/bin/python3", "-c", hide])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("setpriv is there");
        let mut said = [0];
        let out = hidden.stdout.as_mut().expect("it is piped");
        std::io::Read::read_exact(out, &mut said).expect("it hides itself and says so");
        let pid = i32::try_from(hidden.id()).expect("it fits");
        assert_eq!(user_of(pid).expect("/proc is there"), Some(uid));
        let pool = Pool::new("test", 1).expect("there is room");
        sweep(&pool, Remains { home: "/nowhere".into(), uid: Some(uid), groups: Vec::new() }).await;
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(hidden.wait().expect("it is ours").signal(), Some(9));
    }
}
