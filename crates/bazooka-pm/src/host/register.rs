//! The host's registration: a lease, and the row that depends on it.
//!
//! Owns that the host is registered whenever it can be, and reports when it is and when it no longer is. It has no
//! effect on instances: they run on.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use visor::{
    deadlines::LEASE_NOTE,
    lease::{LeaseKeeper, LeaseState, LeaseTiming},
    names::HostName,
    pause::Doubling,
    planted::{Bug, planted},
    schema::Host,
    store::{Revision, wait_until_ready},
    visor::{Refusal, Visor, VisorError},
};

/// The pause after a failed registration. A name that another bazooka-pm holds becomes free when its lease ends.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_secs(2));

/// The host's registration: its create revision; none while the host isn't registered.
pub type Registered = Option<Revision>;

/// Keeps the host registered, for ever. A message on `again` makes it verify the registration. While the lease is
/// held, `note_lease` receives the time for which it surely is.
pub async fn run(
    visor: Visor,
    name: HostName,
    host: Host,
    mut again: mpsc::Receiver<()>,
    says: watch::Sender<Registered>,
    note_lease: impl Fn(Duration),
) {
    let warn = |error: &visor::store::StoreError| {
        tracing::warn!(error = %error, "the coordinator isn't there; waiting for it");
    };
    if let Err(error) = wait_until_ready(visor.store().as_ref(), warn).await {
        tracing::error!(error = %error, "the coordinator refuses us");
    }
    // The lease is never released: a restarted bazooka-pm takes the registration over.
    let keeper =
        std::mem::ManuallyDrop::new(LeaseKeeper::start(visor.store().clone(), LeaseTiming::default()));
    let mut state = keeper.state();
    let mut pauses = PAUSE.begin();
    let mut complained = None;
    loop {
        let lease = keeper.wait_held().await;
        match register(&visor, &name, &host, lease).await {
            Ok(created_at) => {
                pauses.reset();
                complained = None;
                if says.send(Some(created_at)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let words = error.to_string();
                if complained.as_ref() != Some(&words) {
                    match error {
                        VisorError::Refused(Refusal::HostTaken(_)) => {
                            tracing::error!(host = %name, error = %words, "waiting until the other one has gone");
                        }
                        _ => tracing::warn!(host = %name, error = %words, "can't register; trying again"),
                    }
                    complained = Some(words);
                }
                sleep(pauses.next()).await;
                continue;
            }
        }
        // Ends when the lease is another one, or a message on `again` doubts the registration.
        let lost = async {
            // A keeper that panicked has lost the lease as well.
            let _ = state.wait_for(|now| *now != LeaseState::Held { id: lease }).await;
        };
        let noting = async {
            loop {
                if let Some(until) = keeper.held_until() {
                    note_lease(until.saturating_duration_since(Instant::now()));
                }
                sleep(LEASE_NOTE).await;
            }
        };
        tokio::select! {
            biased;
            () = lost, if !planted(Bug::LostRegistrationIsNotRenewed) => {
                let _ = says.send(None);
            }
            _ = again.recv() => {}
            () = noting => {}
        }
    }
}

async fn register(visor: &Visor, name: &HostName, host: &Host, lease: i64) -> Result<Revision, VisorError> {
    match visor.register_host(name, host, lease).await {
        Err(VisorError::NotSetUp) => {
            visor.set_up().await?;
            visor.register_host(name, host, lease).await
        }
        other => other,
    }
}
