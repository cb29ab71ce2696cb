//! The interface between the loop and the load balancer below it.
//!
//! Owns the seam alone: the loop decides, and what it decided on comes about through this. On a machine it is
//! [`crate::driver::Driver`] over HAProxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use async_trait::async_trait;
use bazooka_daemon::Loops;
use tokio::sync::watch;
use visor::names::InstanceId;

use crate::{
    config::Settings,
    files::FilesError,
    haproxy::{
        CliError,
        process::{Presence, ProcessError},
    },
    plan::{InForce, Step, Wanted},
    ports::PortRefused,
};

/// A reload that didn't come about. What was in force is so still.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The files could not be put in place, or HAProxy refuses them.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// HAProxy took the files and could not start with them.
    #[error("HAProxy could not start with the new configuration")]
    Refused,
    /// HAProxy didn't say in time what became of it.
    #[error("HAProxy did not finish a reload in {0} s")]
    Unfinished(u64),
    /// HAProxy could not be asked.
    #[error("HAProxy's state can't be read")]
    Cli(#[from] CliError),
}

/// The connections that a reload would cut for want of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InTheWay {
    /// Nothing: there is room, or what has to end is idle.
    Nothing,
    /// Kept connections without a request. Each is told with its next answer to close.
    Connections,
    /// Requests under way.
    Requests,
}

/// HAProxy, its files and its process.
#[async_trait]
pub trait Balancer: Send {
    /// Returns what the current worker runs, in its own words.
    ///
    /// # Errors
    /// If it can't be asked, or there is none.
    async fn observe(&self) -> Result<InForce, CliError>;

    /// Carries out steps in one exchange, and notes in `in_force` what came about.
    ///
    /// Returns the steps that HAProxy refused, with its words.
    ///
    /// # Errors
    /// If the worker can't be asked: any of the steps may have been carried out.
    async fn carry_out(
        &self,
        in_force: &mut InForce,
        steps: &[Step],
    ) -> Result<Vec<(Step, String)>, CliError>;

    /// Has HAProxy take another shape; returns what is in force then.
    ///
    /// When it returns, no worker but the new one takes new requests: the old ones have stopped and hand
    /// over what still reaches them.
    ///
    /// # Errors
    /// The configuration is invalid, or HAProxy didn't take it; what was in force is so still.
    async fn reload(&self, wanted: &Wanted) -> Result<InForce, ReloadError>;

    /// Returns what is open on the old workers that another reload would end.
    ///
    /// # Errors
    /// If the master can't be asked.
    async fn in_the_way(&self) -> Result<InTheWay, CliError>;

    /// Returns what is under way for instances on these backends, over all workers.
    ///
    /// # Errors
    /// If a worker that is there can't be asked.
    async fn sessions(&self, backends: &BTreeSet<String>) -> Result<BTreeMap<InstanceId, u32>, CliError>;

    /// Starts the watch of HAProxy's master. Its number grows each time that the master comes, starts again or goes,
    /// and repeatedly while there is none.
    fn masters(&self, loops: &mut Loops) -> watch::Receiver<u64>;

    /// Reports whether a port can be opened now.
    ///
    /// # Errors
    /// [`PortRefused`].
    fn is_free(&self, address: SocketAddr) -> Result<(), PortRefused>;

    /// Has the files hold this some time soon. HAProxy has it in force, or the same shape.
    fn write(&self, wanted: &Wanted);

    /// Sees to it that a valid configuration stands where HAProxy reads it: what is wanted, or what is
    /// there, or the last good one, or one without any service. Returns whether one does.
    async fn lay_out(&self, wanted: Option<&Wanted>, settings: &Settings) -> bool;

    /// Keeps a copy of the configuration that HAProxy took.
    async fn keep_as_good(&self);

    /// Reports whether bazooka-proxy runs HAProxy itself, and not a unit of its own.
    fn runs_here(&self) -> bool;

    /// Reports whether this master is there, whether it answers or not; where none is known, whether anything of it is.
    fn presence(&mut self, master: Option<u32>) -> Presence;

    /// Remembers its processes, so that their end can be awaited.
    fn remember(&mut self, pids: [u32; 2]);

    /// Ends what is left of it: workers without a master serve nothing and hold its ports.
    ///
    /// # Errors
    /// If it can't be looked at; nothing of it was ended then.
    async fn clear(&mut self) -> Result<(), ProcessError>;

    /// Starts it with what is laid out.
    ///
    /// # Errors
    /// If it doesn't come up; nothing of it is left then.
    async fn start(&mut self) -> Result<(), ProcessError>;

    /// Ends it with all its workers.
    async fn stop(&mut self);

    /// The last that it said.
    fn last_words(&self) -> String;

    /// Keeps its own output within its limit.
    fn bound_log(&self);
}
