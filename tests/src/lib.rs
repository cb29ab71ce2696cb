//! A whole cluster of the real programs, for scenarios and benchmarks.
//!
//! Owns starting and ending them: each cluster has addresses (127.77.K.x) and ports of its own on loopback, a
//! prefix of its own in the run's etcd, and a temporary folder: any number of runs stand beside each other and beside a
//! cluster that the machine has anyway. Only processes that were started here
//! are ever ended.

mod browser;
mod cluster;
mod fleet;
mod http;
mod load;
mod nets;
mod part;
mod repo;
pub mod shop;
mod systemd;
mod turn;

pub use browser::Browser;
pub use cluster::{Cluster, ClusterOptions, Endpoint, OPERATOR, example};
pub use fleet::{Fleet, Machine, PATIENT, Setting, etcdctl};
pub use http::{Answer, get, try_get};
pub use load::{Count, Kind, Load, LoadOptions, Report};
pub use nets::Nets;
pub use part::{Part, program, use_programs};
pub use repo::{Ran, Repo};
pub use systemd::Systemd;
pub use turn::Turn;

use std::time::{Duration, Instant};

/// Waits until `condition` gives a value, looking every 20 ms; panics with what it last saw after `deadline`.
///
/// # Panics
/// When the deadline has passed.
pub fn until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(saw) if begin.elapsed() > deadline => {
                panic!("{what}: not after {deadline:?}; last seen: {saw}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// How long anything that should take a moment may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
