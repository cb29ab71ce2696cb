//! Tells the coordinator how far this proxy has come.
//!
//! Owns the row `proxies/X` and its lease. It writes the newest word only, again until it stands, and never
//! holds the routing up: an unreachable coordinator costs nothing but the word.

use std::time::Duration;

use bazooka_daemon::LoopEnded;
use tokio::{sync::watch, time::sleep};
use visor::{
    lease::{LeaseKeeper, LeaseTiming},
    names::HostName,
    schema::Proxy,
    visor::{Refusal, Visor, VisorError},
};

/// The pause after a failed write; the store's own deadline comes on top.
const PAUSE: Duration = Duration::from_millis(200);

/// The pause while another proxy has this one's name.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// Publishes rows in the background.
pub struct Publisher {
    row: watch::Sender<Option<Proxy>>,
    heard: watch::Receiver<bool>,
    /// The owner is the proxy's loop, by [`Publisher::ended`].
    task: tokio::task::JoinHandle<LeaseKeeper>,
    stop: tokio_util::sync::CancellationToken,
}

impl Publisher {
    /// Starts to keep a lease; nothing is written before the first row.
    pub fn start(visor: Visor, name: HostName) -> Self {
        let (row, rows) = watch::channel(None);
        let (hears, heard) = watch::channel(false);
        let stop = tokio_util::sync::CancellationToken::new();
        let keeper = LeaseKeeper::start(visor.store().clone(), LeaseTiming::default());
        let task = tokio::spawn(keep(visor, name, keeper, (rows, hears), stop.clone()));
        Publisher { row, heard, task, stop }
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

    /// Waits until a row has stood in the coordinator.
    pub fn heard(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut heard = self.heard.clone();
        async move {
            // Whoever ends is not heard any more.
            let _ = heard.wait_for(|heard| *heard).await;
        }
    }

    /// Waits until publishing ends without having been asked to.
    ///
    /// # Cancel safety
    /// If this is dropped, no end is lost.
    pub async fn ended(&mut self) -> LoopEnded {
        let ended = (&mut self.task).await;
        LoopEnded::of("the keeper of this proxy's row", ended.map(|_| Ok::<_, LoopEnded>(())))
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
    (mut rows, hears): (watch::Receiver<Option<Proxy>>, watch::Sender<bool>),
    stop: tokio_util::sync::CancellationToken,
) -> LeaseKeeper {
    let work = async {
        let mut lease_state = keeper.state();
        let mut warned = None;
        // The lease under which the row is this one's.
        let mut own = None;
        loop {
            // Before the lease is asked for, so that no change of it is missed.
            lease_state.mark_unchanged();
            let lease = keeper.wait_held().await;
            let row = rows.borrow_and_update().clone();
            if let Some(row) = row {
                match write(&visor, &name, &row, lease, own == Some(lease)).await {
                    Ok(()) => {
                        (own, warned) = (Some(lease), None);
                        hears.send_replace(true);
                    }
                    Err(error) => {
                        let words = error.to_string();
                        let taken = matches!(error, VisorError::Refused(Refusal::NameTaken { .. }));
                        if warned.as_ref() != Some(&words) {
                            match taken {
                                true => tracing::error!(
                                    error = %words,
                                    "nobody hears of this proxy until the other one has gone; give one of them another name"
                                ),
                                false => tracing::warn!(
                                    error = &error as &dyn std::error::Error,
                                    "the coordinator doesn't take this proxy's word; will say it again"
                                ),
                            }
                            warned = Some(words);
                        }
                        sleep(if taken { LONG_PAUSE } else { PAUSE }).await;
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

async fn write(
    visor: &Visor,
    name: &HostName,
    row: &Proxy,
    lease: i64,
    is_own: bool,
) -> Result<(), VisorError> {
    if is_own {
        return visor.publish_proxy(name, row, lease).await;
    }
    match visor.register_proxy(name, row, lease).await {
        Err(VisorError::NotSetUp) => {
            visor.set_up().await?;
            visor.register_proxy(name, row, lease).await
        }
        other => other,
    }
}
