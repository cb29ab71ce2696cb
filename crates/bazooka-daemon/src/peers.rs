//! The coordinator's members among each other: where they are, for those that keep others away from them.
//!
//! Owns asking, again and again. What a daemon does with the answer is its own.

use std::time::Duration;

use tokio::time::sleep;

use crate::Cluster;

/// The time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The time between two looks while the members can't be asked for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Lets `look` act every minute, with the URLs at which the coordinator's members reach each other, or none if these
/// can't be asked for now. `look` may block. Returns only if it panics.
pub async fn look_at_peers<K: Send + 'static>(
    cluster: Cluster,
    mut keeper: K,
    look: fn(&mut K, Option<Vec<String>>),
) {
    loop {
        let peers = cluster.etcd.peer_urls().await.ok();
        let pause = if peers.is_some() { LOOK_EVERY } else { LOOK_AGAIN };
        let looked = tokio::task::spawn_blocking(move || {
            look(&mut keeper, peers);
            keeper
        });
        let Ok(again) = looked.await else { return };
        keeper = again;
        sleep(pause).await;
    }
}
