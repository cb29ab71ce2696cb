//! The row by which others know that this rm serves.

use std::time::Duration;

use bazooka_daemon::NotReady;
use tokio::{sync::watch, time::Instant};
use visor::{
    lease::LeaseState,
    pause::until,
    quota::Bounds,
    schema::{Ask, Extra, Rm as Row},
    seal::Keyring,
    visor::{Refusal, Visor, VisorError},
    wrapping::SharedRing,
};

use crate::repos::Own;

/// The pause before a failed write of this rm's row is retried.
const PRESENCE_AGAIN: Duration = Duration::from_millis(500);

/// This rm's row in the coordinator.
pub(crate) struct Presence {
    pub visor: Visor,
    pub own: Own,
    pub ring: SharedRing,
    pub ask: Ask,
    pub ssh_url: Option<String>,
    pub bounds: Bounds,
}

impl Presence {
    /// Keeps the row. Returns only if the keeper of its lease has panicked.
    pub async fn keep(self, mut state: watch::Receiver<LeaseState>, present: NotReady) {
        let mut ring = self.ring.changes();
        let mut present = Some(present);
        let mut complained = None;
        loop {
            let held = *state.borrow_and_update();
            let row = self.row(&ring.borrow_and_update());
            let mut again = None;
            if let LeaseState::Held { id } = held {
                match self.visor.publish_rm(&self.own.name, &row, &self.ask, id).await {
                    Ok(()) => {
                        complained = None;
                        if present.take().is_some() {
                            tracing::info!(url = %self.own.url, "ready");
                        }
                    }
                    Err(error) => {
                        let words = error.to_string();
                        if complained.as_ref() != Some(&words) {
                            complain(&error);
                        }
                        complained = Some(words);
                        again = Some(Instant::now() + PRESENCE_AGAIN);
                    }
                }
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                _ = ring.changed() => {}
                () = until(again) => {}
            }
        }
    }

    fn row(&self, ring: &Keyring) -> Row {
        Row {
            url: self.own.url.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            schema: Some(visor::schema::SCHEMA_VERSION),
            ssh_url: self.ssh_url.clone(),
            seal_key: Some(ring.current()),
            retired_seal_keys: ring.retired(),
            keep_releases: Some(self.bounds.releases),
            app_bytes: Some(self.bounds.bytes),
            app_instances: Some(self.bounds.instances),
            extra: Extra::new(),
        }
    }
}

/// Logs why the row can't be written.
fn complain(error: &VisorError) {
    match error {
        VisorError::Refused(Refusal::NameTaken { .. }) => tracing::error!(
            error = %error,
            "nobody hears of this rm until the other one has gone; give one of them another name"
        ),
        _ => tracing::warn!(error = %error, "can't say in the coordinator that this rm serves"),
    }
}
