//! What the tests of every crate share: a real etcd, a proxy that loses things, waiting for a condition.
//!
//! An etcd that was started here ends with the process that started it, however that ends.

mod etcd;
mod lossy;

use std::time::Duration;

use tokio::time::{Instant, sleep};

pub use etcd::{Etcd, EtcdCluster, fresh_prefix};
pub use lossy::LossyProxy;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(10);

/// Waits until a condition holds, and returns what it found.
///
/// `condition` answers with what was waited for, or with what it saw instead.
///
/// # Panics
/// After `within`, with the last thing that was seen.
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
