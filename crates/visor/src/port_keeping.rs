//! The loop in which an rm keeps the rows of service ports: rows that earlier releases left out, and ports of gone apps.
//!
//! Owns the time of each look; [`PortBook::steps`] decides. Several rms may run the loop at once: each write is guarded on
//! the rows that it was decided from.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    clock::WallClock,
    keys,
    mirror::Mirror,
    pause::until,
    ports::{PortBook, PortImage, Step},
    transitions::ports::change,
    visor::{Committed, Refusal, Visor, VisorError},
};

/// The pause before a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest time between two looks while a port rests, because the wall clock may jump.
const LOOK: Duration = Duration::from_secs(60);

/// The inputs of the loop.
pub struct PortKeeping {
    /// The cluster's state.
    pub visor: Visor,
    /// The clock of a port's rest.
    pub clock: WallClock,
}

impl PortKeeping {
    /// Runs the loop for ever.
    pub async fn run(self) {
        let scopes = vec![keys::schema(), keys::apps(), keys::ports()];
        let mut mirror = Mirror::new(self.visor.store().clone(), scopes, PortImage::default());
        let (mut again, mut failed): (Option<Instant>, bool) = (None, false);
        loop {
            tokio::select! {
                biased;
                changes = mirror.next() => if !changes.relisted && changes.keys.is_empty() { continue },
                () = until(again) => (again, failed) = (None, false),
            }
            if !mirror.is_synced() || failed {
                continue;
            }
            let image = mirror.image();
            match self.keep(image).await {
                Ok(()) => {
                    let rests = PortBook::of(image.snapshot()).next_end_of_rest().is_some();
                    again = rests.then(|| Instant::now() + LOOK);
                }
                Err(error) => {
                    tracing::warn!(error = %error, "can't keep the rows of service ports; trying again");
                    (again, failed) = (Some(Instant::now() + AGAIN), true);
                }
            }
        }
    }

    /// Takes the steps that the image asks for. A step that another rm took first arrives in the image.
    async fn keep(&self, image: &PortImage) -> Result<(), VisorError> {
        let now = self.clock.now();
        for step in PortBook::of(image.snapshot()).steps(now) {
            if let Step::GiveAnother(service) = &step {
                match self.visor.give_another_port(service, now).await {
                    Err(error @ VisorError::Refused(Refusal::NoPortLeft)) => {
                        tracing::error!(app = %service.0, proc = %service.1, error = %error, "a service has no port");
                        continue;
                    }
                    other => other?,
                }
            } else {
                let Some(change) = change(image.snapshot(), &step, now) else { continue };
                if self.visor.commit(change).await? == Committed::Conflict {
                    continue;
                }
            }
            match &step {
                Step::Give((app, proc), port) => {
                    tracing::info!(%app, %proc, %port, action = "give_port", "wrote the row of a service's port");
                }
                Step::GiveAnother((app, proc)) => tracing::warn!(
                    %app, %proc, action = "give_port",
                    "gave a service another port: an older registration has the one that it named",
                ),
                Step::Free(port) | Step::Forget(port) => {
                    tracing::info!(%port, action = "free_port", "a service port of a destroyed app");
                }
            }
        }
        Ok(())
    }
}
