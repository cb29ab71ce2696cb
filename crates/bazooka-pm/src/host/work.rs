//! The host's loop without its machine: what it takes, and how its parts are joined.
//!
//! Owns the registration, the mirror and the engine of a running host.

use std::time::Duration;

use bazooka_daemon::{LoopEnded, Loops, NotReady, supervisor::Pulse};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use visor::{keys, mirror::Mirror, names::HostName, schema::Host, snapshot::Snapshot, visor::Visor};

use super::{
    archives, engine,
    metrics::Metrics,
    model::Locals,
    ports::Ports,
    register, reports,
    runtime::{Answers, Message, Runtime},
    vault::Vault,
    wrapping,
};

/// The host's work, once the machine's abilities are known.
pub struct Work {
    /// The coordinator.
    pub visor: Visor,
    /// The host's name.
    pub name: HostName,
    /// The row that registers the host.
    pub host: Host,
    /// The daemon's loops; the end of one ends this work.
    pub loops: Loops,
    /// The machine below the loop.
    pub runtime: Box<dyn Runtime>,
    /// The host's keys, which open the envs that it is handed.
    pub vault: Vault,
    /// The channel on which the runtime answers.
    pub answers: Answers,
    /// The receiving end of that channel.
    pub messages: mpsc::Receiver<Message>,
    /// The ports that instances get.
    pub ports: Ports,
    /// The state found at start.
    pub locals: Locals,
    /// The figures of the endpoint.
    pub metrics: Metrics,
    /// Dropped once the host works.
    pub not_ready: NotReady,
    /// The loop's life sign to systemd.
    pub pulse: Pulse,
    /// Receives, while the lease is held, the time for which it surely is.
    pub note_lease: Box<dyn Fn(Duration) + Send + Sync>,
    /// True if the end of this process ends the instances.
    pub stop_all_at_exit: bool,
}

impl Work {
    /// Registers the host, mirrors its assignments and runs them, until `shutdown`.
    ///
    /// # Errors
    /// If a loop ended. The instances run on.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), LoopEnded> {
        let Work { visor, name, host, mut loops, answers, .. } = self;
        let address = host.address;
        let (says, registered) = watch::channel(None);
        let (doubt, again) = mpsc::channel(1);
        let row = host.clone();
        let registration = register::run(visor.clone(), name.clone(), host, again, says, self.note_lease);
        loops.spawn_endless("the registration", registration);
        let (archives, offers) = watch::channel(archives::Offer::default());
        let reporting = archives::report(visor.clone(), name.clone(), offers);
        loops.spawn_endless("the report of archives", reporting);
        let wrapping = wrapping::run(visor.clone(), name.clone(), self.vault.clone());
        loops.spawn_endless("the wrapping of config vars for other hosts", wrapping);
        let scopes = vec![keys::assigned_to(&name), keys::handed_to(&name), keys::schema(), keys::rms()];
        let mirror = Mirror::new(visor.store().clone(), scopes, Snapshot::default());
        let reports = reports::Reports::new(visor.clone(), name.clone(), address, answers.clone());
        let engine = engine::Engine::new(engine::Parts {
            visor,
            host: name,
            row,
            runtime: self.runtime,
            vault: self.vault,
            answers,
            messages: self.messages,
            reports,
            ports: self.ports,
            locals: self.locals,
            metrics: self.metrics,
            mirror,
            registered,
            doubt,
            archives,
            not_ready: self.not_ready,
            pulse: self.pulse,
            stop_all_at_exit: self.stop_all_at_exit,
        });
        tokio::select! {
            biased;
            () = engine.run(shutdown) => Ok(()),
            ended = loops.first_end() => Err(ended),
        }
    }
}
