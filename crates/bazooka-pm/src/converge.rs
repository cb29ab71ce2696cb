//! The converger: turns what users want to run into placed instances.
//!
//! Any number of processes take part in the election, on any machine; the elected one converges. It owns `assigned/`,
//! `apps/A/instances/`, `apps/A/pending/`, `history/` and the verdict on a release on trial. It runs no instance, and
//! reads only the coordinator.
//!
//! ```text
//! facts     one instance, put together from its rows
//! memory    how long each condition has lasted
//! hosts     which hosts are gone, and whether to give them up
//! step      the vocabulary of a plan; draft: the vocabulary of one app's planners
//! attempts  how often a release may be started, and where
//! trial ─┐
//! service ├▶ plan ─▶ apply
//! drain ─┤    ▲
//! envs ──┤ visor::rules   lead: the election and the loop around it; agenda: which apps a plan looks at
//! sources ┘
//! ```

mod agenda;
pub mod apply;
mod attempts;
#[cfg(test)]
mod chaos;
mod draft;
mod drain;
mod envs;
mod facts;
#[cfg(test)]
mod fixture;
mod hosts;
mod lead;
#[cfg(test)]
mod link_cases;
pub mod memory;
mod metrics;
pub mod plan;
mod service;
mod settings;
mod sources;
pub mod step;
mod tally;
mod trial;

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use axum::Router;
use bazooka_daemon::{
    Cluster, ClusterError, CoordinatorArgs, Door, ListenError, LoopEnded, Metrics, Readiness, Serving,
    common_routes, listen,
    supervisor::{Pulse, announce},
};
use tokio_util::sync::CancellationToken;
use visor::{
    clock::WallClock,
    identity::Kind,
    lease::{KeeperPanicked, LeaseKeeper, LeaseTiming},
    schema::{Extra, Leader},
    store::{SharedStore, wait_until_ready},
    visor::{Visor, VisorError},
};

use lead::Lead;
use metrics::ConvergerMetrics;

/// `bazooka-pm converge`: place instances on hosts, as one elected process of any number
#[derive(Clone, Debug, clap::Args)]
pub struct ConvergeArgs {
    /// This process, for people; the machine's name unless given
    #[arg(long, env = "BAZOOKA_NAME")]
    pub name: Option<String>,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "BAZOOKA_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where the coordinator is
    #[command(flatten)]
    pub coordinator: CoordinatorArgs,
}

/// The options of a running converger.
#[derive(Clone)]
pub struct ConvergeOptions {
    /// This process's name, for people.
    pub name: String,
    /// The base URL of its endpoint; empty if it has none.
    pub url: String,
    /// A client of the coordinator for the lease alone, kept on a thread of its own: reading or planning a large cluster
    /// takes longer than a renewal may wait. None: the lease is kept by a task beside the others.
    pub lease_store: Option<SharedStore>,
    /// The timing of the lease that its election depends on. A dead converger is replaced once the lease ends.
    pub timing: LeaseTiming,
    /// Becomes ready once the process has seen the whole cluster, elected or not.
    pub readiness: Readiness,
    /// The registry of its metrics.
    pub metrics: Metrics,
    /// The clock of the times that it writes down.
    pub wall: WallClock,
    /// The loop's life sign to systemd.
    pub pulse: Pulse,
}

impl ConvergeOptions {
    /// Returns the default options, under this name.
    pub fn named(name: impl Into<String>) -> Self {
        ConvergeOptions {
            name: name.into(),
            url: String::new(),
            lease_store: None,
            timing: LeaseTiming::default(),
            readiness: Readiness::default(),
            metrics: Metrics::default(),
            wall: WallClock::default(),
            pulse: Pulse::default(),
        }
    }
}

/// The pause between two attempts to find or write the schema.
const SET_UP_PAUSE: Duration = Duration::from_millis(200);

/// Reasons for which a converger stops.
#[derive(Debug, thiserror::Error)]
pub enum ConvergeError {
    /// An argument is invalid.
    #[error(transparent)]
    Arguments(#[from] ClusterError),
    /// The endpoint can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The coordinator rejects this process.
    #[error("the coordinator can't be used")]
    Coordinator(#[source] VisorError),
    /// The system gives no thread for the lease.
    #[error("can't start the thread that keeps the lease")]
    Thread(#[source] io::Error),
    /// The election depends on a lease that is kept no longer.
    #[error("this process can't be elected any more")]
    Lease(#[from] KeeperPanicked),
    /// The endpoint ended.
    #[error(transparent)]
    Endpoint(#[from] LoopEnded),
}

/// Runs the whole daemon: its endpoint, and [`run`].
///
/// # Errors
/// As [`run`]; invalid arguments; an endpoint that can't be opened, or that ended.
pub async fn daemon(args: ConvergeArgs, shutdown: CancellationToken) -> Result<(), ConvergeError> {
    let cluster = args.coordinator.cluster()?;
    let own = cluster.own_name(Kind::Converger, None).map_err(ClusterError::from)?;
    let (listener, address) = listen(args.listen).await?;
    let name =
        args.name.or_else(|| own.map(String::from)).or_else(machine).unwrap_or_else(|| "converger".into());
    let url = format!("{}://{address}", cluster.scheme());
    let lease_store: SharedStore = args.coordinator.cluster()?.etcd;
    let options = ConvergeOptions {
        url,
        lease_store: Some(lease_store),
        pulse: Pulse::asked_for(),
        ..ConvergeOptions::named(name)
    };
    let _announcing = announce(options.readiness.clone(), shutdown.clone());
    // A token of its own, so that the end of one part also ends the other one.
    let ending = shutdown.child_token();
    let door = Door::new(routes(&options, &cluster), options.metrics.clone());
    let mut serving = Serving::start(listener, door, &cluster, ending.clone());
    let mut working = pin!(run(cluster.visor, options, ending.clone()));
    let ran = tokio::select! {
        ran = &mut working => ran,
        ended = serving.ended() => {
            // The converger hands over, so that another process is elected at once.
            ending.cancel();
            working.await.and(Err(ended.into()))
        }
    };
    let drained = serving.drain().await;
    ran.and(drained.map_err(ConvergeError::from))
}

fn machine() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

/// Returns the routes `/healthz`, `/readyz` and `/metrics`.
pub fn routes(options: &ConvergeOptions, cluster: &Cluster) -> Router {
    common_routes(options.readiness.clone(), options.metrics.clone(), cluster)
}

/// Waits for the election and converges the cluster until shutdown; then hands over at once.
///
/// At start it waits for a coordinator that can't be reached; a coordinator that goes away later stops nothing.
///
/// # Errors
/// If the coordinator rejects this process, or its schema is of a later version; if its lease can't be kept any more.
pub async fn run(
    visor: Visor,
    options: ConvergeOptions,
    shutdown: CancellationToken,
) -> Result<(), ConvergeError> {
    let not_ready = options.readiness.hold();
    let metrics = ConvergerMetrics::register(&options.metrics);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => return Ok(()),
        up = set_up(&visor) => up.map_err(ConvergeError::Coordinator)?,
    }
    let leader = Leader {
        name: options.name.clone(),
        since: options.wall.now(),
        url: options.url.clone(),
        frozen: None,
        extra: Extra::new(),
    };
    let keeper = match options.lease_store {
        Some(store) => LeaseKeeper::start_on_thread(store, options.timing).map_err(ConvergeError::Thread)?,
        None => LeaseKeeper::start(visor.store().clone(), options.timing),
    };
    tracing::info!(name = %options.name, url = %options.url, "ready");
    Lead::new(visor, keeper, metrics, leader, options.wall, not_ready, options.pulse).run(shutdown).await?;
    Ok(())
}

/// Waits for the coordinator, and ensures that it holds a cluster.
async fn set_up(visor: &Visor) -> Result<(), VisorError> {
    loop {
        wait_until_ready(visor.store().as_ref(), |error| {
            tracing::warn!(error = %error, "waiting for the coordinator");
        })
        .await?;
        match visor.set_up().await {
            Err(VisorError::Store(visor::store::StoreError::Unreachable { .. }) | VisorError::NotSetUp) => {
                tokio::time::sleep(SET_UP_PAUSE).await;
            }
            other => return other,
        }
    }
}
