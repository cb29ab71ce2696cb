//! The converger: turns what should run into placed instances.
//!
//! One elected process of any number does it, on any machine. It owns `assigned/`, `apps/A/instances/`,
//! `apps/A/pending/`, `history/` and the verdict on a release that is being tried; it runs nothing itself,
//! and reads nothing but the coordinator.
//!
//! ```text
//! facts     one instance, put together from its rows
//! memory    since when things are as they are
//! hosts     which hosts have gone, and whether to give them up
//! step      what a plan is made of; draft: what an app's own plan is made from
//! attempts  how often a release may be started, and where
//! trial ─┐
//! service ├▶ plan ─▶ apply
//! drain ─┤    ▲
//! envs ──┘ visor::rules   lead: the election and the loop around all of it; agenda: what it looks at
//! ```

mod agenda;
pub mod apply;
mod attempts;
#[cfg(test)]
mod cases;
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
pub mod step;
mod tally;
mod trial;

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use bazooka_daemon::{
    Cluster, ClusterError, CoordinatorArgs, ListenError, Metrics, Readiness, common_routes, listen, serve,
    supervisor::{Pulse, announce},
};
use tokio_util::sync::CancellationToken;
use visor::{
    clock::WallClock,
    identity::Kind,
    lease::{LeaseKeeper, LeaseTiming},
    schema::{Extra, Leader},
    store::wait_until_ready,
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

/// How a converger runs.
#[derive(Clone, Debug)]
pub struct ConvergeOptions {
    /// This process, for people.
    pub name: String,
    /// The base of its endpoint; empty if it has none.
    pub url: String,
    /// The lease that its election hangs on: a dead converger is replaced after this time.
    pub timing: LeaseTiming,
    /// Ready once it has seen the whole cluster, elected or not.
    pub readiness: Readiness,
    /// Where its metrics go.
    pub metrics: Metrics,
    /// What time it writes down.
    pub wall: WallClock,
    /// The loop's life sign.
    pub pulse: Pulse,
}

impl ConvergeOptions {
    /// The usual, under this name.
    pub fn named(name: impl Into<String>) -> Self {
        ConvergeOptions {
            name: name.into(),
            url: String::new(),
            timing: LeaseTiming::default(),
            readiness: Readiness::default(),
            metrics: Metrics::default(),
            wall: WallClock::default(),
            pulse: Pulse::default(),
        }
    }
}

/// Between two tries to find or write the schema.
const SET_UP_PAUSE: Duration = Duration::from_millis(200);

/// A converger that can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ConvergeError {
    /// An argument is wrong.
    #[error(transparent)]
    Arguments(#[from] ClusterError),
    /// Its endpoint can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The coordinator refuses it.
    #[error("the coordinator can't be used")]
    Coordinator(#[source] VisorError),
}

/// The whole daemon: its endpoint, and [`run`].
///
/// # Errors
/// As [`run`]; wrong arguments; an endpoint that can't be opened.
pub async fn daemon(args: ConvergeArgs, shutdown: CancellationToken) -> Result<(), ConvergeError> {
    let cluster = args.coordinator.cluster()?;
    let own = cluster.own_name(Kind::Converger, None).map_err(ClusterError::from)?;
    let (listener, address) = listen(args.listen).await?;
    let name =
        args.name.or_else(|| own.map(String::from)).or_else(machine).unwrap_or_else(|| "converger".into());
    let url = format!("{}://{address}", cluster.scheme());
    let options = ConvergeOptions { url, pulse: Pulse::asked_for(), ..ConvergeOptions::named(name) };
    let _announcing = announce(options.readiness.clone(), shutdown.clone());
    let routes = routes(&options, &cluster);
    let serving = tokio::spawn({
        let (cluster, shutdown) = (cluster.clone(), shutdown.clone());
        async move { serve(listener, routes, &cluster, shutdown).await }
    });
    let ran = run(cluster.visor, options, shutdown.clone()).await;
    shutdown.cancel();
    // A panic there has been reported; what matters has been done.
    let _ = serving.await;
    ran
}

fn machine() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn routes(options: &ConvergeOptions, cluster: &Cluster) -> Router {
    common_routes(options.readiness.clone(), options.metrics.clone(), cluster)
}

/// Waits for the election and converges the cluster, until shutdown; then hands over at once.
///
/// A coordinator that isn't there is waited for; one that goes away later stops nothing.
///
/// # Errors
/// If the coordinator refuses it, or its schema is of a later version.
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
    let keeper = LeaseKeeper::start(visor.store().clone(), options.timing);
    tracing::info!(name = %options.name, url = %options.url, "ready");
    Lead::new(visor, keeper, metrics, leader, options.wall, not_ready, options.pulse).run(shutdown).await;
    Ok(())
}

/// Waits for the coordinator, and sees to it that it holds a cluster.
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
