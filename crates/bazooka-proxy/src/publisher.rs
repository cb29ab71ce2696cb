//! Tells the coordinator how far this proxy has come.
//!
//! Owns the row `proxies/X` and its lease. It writes the newest word only, again until it stands, and never
//! holds the routing up: an unreachable coordinator costs nothing but the word.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};
use visor::{
    lease::{LeaseKeeper, LeaseTiming},
    names::HostName,
    schema::Proxy,
    visor::{Visor, VisorError},
};

/// The pause after a failed write; the store's own deadline comes on top.
const PAUSE: Duration = Duration::from_millis(200);

/// Publishes rows in the background.
pub struct Publisher {
    row: watch::Sender<Option<Proxy>>,
    task: tokio::task::JoinHandle<LeaseKeeper>,
    stop: tokio_util::sync::CancellationToken,
}

impl Publisher {
    /// Starts to keep a lease; nothing is written before the first row.
    pub fn start(visor: Visor, name: HostName) -> Self {
        let (row, rows) = watch::channel(None);
        let stop = tokio_util::sync::CancellationToken::new();
        let keeper = LeaseKeeper::start(visor.store().clone(), LeaseTiming::default());
        let task = tokio::spawn(keep(visor, name, keeper, rows, stop.clone()));
        Publisher { row, task, stop }
    }

    /// Has a row written, if it says anything new. Returns whether it does.
    pub fn say(&self, row: Proxy) -> bool {
        self.row.send_if_modified(|said| {
            let news = said.as_ref() != Some(&row);
            if news {
                *said = Some(row);
            }
            news
        })
    }

    /// Ends. With `leave`, the row goes at once; else it stays until its lease runs out, so that a
    /// proxy that is started again in time never seems to have gone.
    pub async fn end(self, leave: bool) {
        self.stop.cancel();
        if let Ok(keeper) = self.task.await {
            if leave {
                keeper.release().await;
            } else {
                std::mem::forget(keeper);
            }
        }
    }
}

async fn keep(
    visor: Visor,
    name: HostName,
    keeper: LeaseKeeper,
    mut rows: watch::Receiver<Option<Proxy>>,
    stop: tokio_util::sync::CancellationToken,
) -> LeaseKeeper {
    let work = async {
        let mut lease_state = keeper.state();
        let mut warned = false;
        loop {
            // Before the lease is asked for, so that no change of it is missed.
            lease_state.mark_unchanged();
            let lease = keeper.wait_held().await;
            let row = rows.borrow_and_update().clone();
            if let Some(row) = row {
                match write(&visor, &name, &row, lease).await {
                    Ok(()) => warned = false,
                    Err(error) => {
                        if !warned {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "the coordinator doesn't take this proxy's word; will say it again"
                            );
                        }
                        warned = true;
                        sleep(PAUSE).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                biased;
                changed = rows.changed() => if changed.is_err() { return },
                changed = lease_state.changed() => if changed.is_err() { return },
            }
        }
    };
    tokio::select! {
        biased;
        () = work => {}
        () = stop.cancelled() => {}
    }
    keeper
}

async fn write(visor: &Visor, name: &HostName, row: &Proxy, lease: i64) -> Result<(), VisorError> {
    match visor.publish_proxy(name, row, lease).await {
        Err(VisorError::NotSetUp) => {
            visor.set_up().await?;
            visor.publish_proxy(name, row, lease).await
        }
        other => other,
    }
}
