//! The helpers that the tests of every crate share: a real etcd, a proxy that loses messages, waiting for a condition.
//!
//! An etcd that was started here ends with the process that started it, however that process ends.

mod envs;
mod etcd;
mod lossy;
mod ports;

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

pub use envs::new_env;
pub use etcd::{Etcd, EtcdCluster, fresh_prefix, observer, observer_as};
pub use lossy::LossyProxy;
pub use ports::{Claim, free_port, is_free, listeners};

/// The interval at which a condition is checked.
const EVERY: Duration = Duration::from_millis(10);

/// Waits until a condition holds, and returns what it found.
///
/// `condition` returns either the awaited value or what it saw instead.
///
/// # Panics
/// After `within`, with the last thing that it saw.
pub async fn until<T, F>(what: &str, within: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + within;
    loop {
        match condition().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() >= deadline => {
                panic!("waited {} s in vain until {what}; last seen: {seen}", within.as_secs_f32());
            }
            Err(_) => sleep(EVERY).await,
        }
    }
}

/// Stops a process (SIGSTOP) and waits until each of its threads has stopped.
///
/// The threads stop one by one, some time after the signal was sent, and answer until then.
///
/// # Panics
/// If there is no such process, or it does not stop within 10 s.
pub fn stand_still(pid: Pid) {
    kill(pid, Signal::SIGSTOP).expect("it is there");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !stands_still(pid).expect("it is there") {
        assert!(std::time::Instant::now() < deadline, "process {pid} doesn't stop");
        std::thread::yield_now();
    }
}

fn stands_still(pid: Pid) -> std::io::Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has ended meanwhile does not answer either.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("stat")) else { continue };
        // The state follows the name, which may contain anything; proc(5).
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, Some('T' | 'Z')) {
            return Ok(false);
        }
    }
    Ok(true)
}
