//! The readers of output: how many there may be, and for how long each may read.
//!
//! Owns the count, by caller and in all, and the repeated question whether a follower may still see what it follows.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bazooka_daemon::{CallsFrom, Cluster};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use visor::{access::Act, identity::Caller, names::AppName};

use crate::host::metrics::Metrics;

/// The most readers of one caller: a person with many terminals, or a program that follows everything.
pub const MOST_OF_ONE: usize = 50;

/// The most readers of a host.
pub const MOST: usize = 200;

/// The pause between two checks that a follower may still see the output.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// The readers of a host. Cheap to clone.
#[derive(Clone)]
pub struct Readers {
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    metrics: Metrics,
}

/// A reader that was admitted. Its place is free once this is dropped.
pub struct Admitted {
    who: String,
    readers: Readers,
}

/// The reason why a reader isn't admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// The caller has enough.
    #[error(
        "you read output of this host {MOST_OF_ONE} times already; end a `bazooka logs -f`, then try again"
    )]
    OfOne,
    /// The host has enough.
    #[error("{MOST} others read output of this host already; try again later")]
    OfAll,
}

impl IntoResponse for TooMany {
    fn into_response(self) -> Response {
        let later = [(header::RETRY_AFTER, "5")];
        (StatusCode::TOO_MANY_REQUESTS, later, format!("{self}\n")).into_response()
    }
}

impl Readers {
    /// Creates the count, which the metrics show.
    pub fn new(metrics: Metrics) -> Readers {
        Readers { counts: Arc::default(), metrics }
    }

    /// Admits a reader, by the caller's identity or, where it has none, by its address.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn admit(&self, caller: &Caller, from: CallsFrom) -> Result<Admitted, TooMany> {
        let who = match (caller, from) {
            (Caller::Known(who), _) => who.to_string(),
            (_, CallsFrom(Some(address))) => address.ip().to_string(),
            (_, CallsFrom(None)) => String::new(),
        };
        let mut counts = self.counts.lock().expect("no holder of this lock panics");
        let all: usize = counts.values().sum();
        let own = counts.get(&who).copied().unwrap_or(0);
        let refused = match (own >= MOST_OF_ONE, all >= MOST) {
            (true, _) => Some(TooMany::OfOne),
            (_, true) => Some(TooMany::OfAll),
            _ => None,
        };
        if let Some(refused) = refused {
            self.metrics.reader_refused();
            return Err(refused);
        }
        counts.insert(who.clone(), own + 1);
        self.metrics.readers(all + 1);
        Ok(Admitted { who, readers: self.clone() })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.readers.counts.lock().expect("no holder of this lock panics");
        if let Some(count) = counts.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.who);
            }
        }
        self.readers.metrics.readers(counts.values().sum());
    }
}

/// The rights that followers hold, by caller and app.
type Held = BTreeMap<(String, AppName), Weak<Right>>;

/// The rights of followers. All followers of one caller and app share one question. Cheap to clone.
#[derive(Clone)]
pub struct Rights {
    cluster: Cluster,
    held: Arc<Mutex<Held>>,
}

/// A follower's right to go on.
pub struct Right {
    gone: CancellationToken,
    _asking: AbortOnDropHandle<()>,
}

impl Rights {
    /// Creates the rights, which the cluster knows.
    pub fn new(cluster: Cluster) -> Rights {
        Rights { cluster, held: Arc::default() }
    }

    /// Returns the right of a caller to follow an app's output, as long as that holds. While the coordinator doesn't
    /// answer, the last answer holds.
    pub fn of(&self, caller: &Caller, app: &AppName) -> Arc<Right> {
        let mut held = self.held.lock().expect("no holder of this lock panics");
        held.retain(|_, right| right.strong_count() > 0);
        let key = (caller.to_string(), app.clone());
        if let Some(right) = held.get(&key).and_then(Weak::upgrade) {
            return right;
        }
        let gone = CancellationToken::new();
        let asking = ask(self.cluster.clone(), caller.clone(), app.clone(), gone.clone());
        let right = Arc::new(Right { gone, _asking: AbortOnDropHandle::new(tokio::spawn(asking)) });
        held.insert(key, Arc::downgrade(&right));
        right
    }
}

impl Right {
    /// Waits until the right has gone.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

async fn ask(cluster: Cluster, caller: Caller, app: AppName, gone: CancellationToken) {
    if caller == Caller::Anyone {
        return std::future::pending().await;
    }
    loop {
        sleep(ASK_EVERY).await;
        if let Ok(false) = cluster.may(&caller, Act::App, Some(&app)).await {
            gone.cancel();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn readers_are_bounded_by_caller_and_in_all_and_their_places_come_back() {
        let readers = Readers::new(Metrics::register(&mut Registry::default()));
        let known = |name: &str| Caller::Known(name.parse().expect("valid"));
        let from = |n: u8| CallsFrom(Some(([10, 0, 0, n], 4_000).into()));
        let mut held: Vec<Admitted> = Vec::new();
        for _ in 0..MOST_OF_ONE {
            held.push(readers.admit(&known("ann"), from(1)).expect("there is room"));
        }
        assert_eq!(readers.admit(&known("ann"), from(2)).err(), Some(TooMany::OfOne), "wherever she is");
        for n in 1..=3 {
            for _ in 0..MOST_OF_ONE {
                held.push(readers.admit(&Caller::Anyone, from(n)).expect("there is room"));
            }
            assert_eq!(readers.admit(&Caller::Anyone, from(n)).err(), Some(TooMany::OfOne));
        }
        assert_eq!(held.len(), MOST);
        assert_eq!(readers.admit(&known("bob"), from(9)).err(), Some(TooMany::OfAll));
        held.truncate(MOST - 1);
        held.push(readers.admit(&known("bob"), from(9)).expect("one has gone"));
        held.clear();
        assert!(readers.counts.lock().expect("nobody panics with it").is_empty());
    }
}
