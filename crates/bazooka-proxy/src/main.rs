//! Reads the arguments and runs bazooka-proxy.

mod faults;
mod start;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use anyhow::Context;
use bazooka_daemon::{
    self as daemon, Cluster, CoordinatorArgs, Door, Loops, Readiness, Serving,
    supervisor::{Pulse, announce},
};
use bazooka_proxy::{
    directory::Board,
    dns::server::{Answers, Sockets},
    endpoint::{self, Endpoint},
    metrics::ProxyMetrics,
    proxy::{self, Parts},
};
use clap::{Parser, ValueEnum};
use tokio_util::sync::CancellationToken;
use visor::{
    names::{HostName, ZoneName},
    store::wait_until_ready,
};

use start::Start;

/// Routes requests to running instances: writes HAProxy's configuration and drives its Runtime API
#[derive(Debug, Parser)]
#[command(name = "bazooka-proxy", version)]
struct Args {
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    /// This proxy's name in the cluster; the machine's unless given
    #[arg(long, env = "BAZOOKA_NAME", value_name = "NAME")]
    name: Option<HostName>,
    /// Where this proxy stands
    #[arg(long, env = "BAZOOKA_ZONE", value_name = "ZONE", default_value = "default")]
    zone: ZoneName,
    /// The folder of HAProxy's files and sockets
    #[arg(long, env = "BAZOOKA_STATE", default_value = "/var/lib/bazooka-proxy", value_name = "DIR")]
    state: PathBuf,
    /// Where requests for <app>.<domain> are taken
    #[arg(long, env = "BAZOOKA_PUBLIC", default_value = "0.0.0.0:8080", value_name = "ADDR:PORT")]
    public: SocketAddr,
    /// Where pushes and fetches are taken, and led to whichever bazooka-rm serves; who reaches this may push
    #[arg(long, env = "BAZOOKA_GIT", value_name = "ADDR:PORT")]
    git: Option<SocketAddr>,
    /// Where services' own ports are opened
    #[arg(long, env = "BAZOOKA_BIND", default_value = "0.0.0.0", value_name = "ADDR")]
    bind: IpAddr,
    /// The domain below which each app has its name
    #[arg(long, env = "BAZOOKA_DOMAIN", default_value = "localhost", value_name = "DOMAIN")]
    domain: HostName,
    /// Where services are found by name, by DNS: <proc>.<app>.<domain> and <proc>.<app>.<zone>.<domain>
    #[arg(long, env = "BAZOOKA_DNS", value_name = "ADDR:PORT")]
    dns: Option<SocketAddr>,
    /// The domain below which services have their names by DNS; that of apps unless given
    #[arg(long, env = "BAZOOKA_DNS_DOMAIN", value_name = "DOMAIN", requires = "dns")]
    dns_domain: Option<HostName>,
    /// Where metrics and health are served
    #[arg(long, env = "BAZOOKA_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Run HAProxy, and find it again after a restart
    #[arg(
        long,
        env = "BAZOOKA_RUN_HAPROXY",
        conflicts_with = "haproxy_socket",
        required_unless_present = "haproxy_socket"
    )]
    run_haproxy: bool,
    /// The master socket of an HAProxy that a unit of its own runs with <state>/haproxy.cfg
    #[arg(long, env = "BAZOOKA_HAPROXY_SOCKET", value_name = "PATH")]
    haproxy_socket: Option<PathBuf>,
    /// The HAProxy program; looked for in $PATH and /usr/sbin unless it is a path
    #[arg(long, env = "BAZOOKA_HAPROXY", default_value = "haproxy", value_name = "PATH")]
    haproxy: PathBuf,
    /// Whom HAProxy's workers run as when it is started as root; haproxy unless given, if there is such a user
    #[arg(long, env = "BAZOOKA_HAPROXY_USER", value_name = "USER")]
    haproxy_user: Option<String>,
    /// What becomes of HAProxy when this process is told to end
    #[arg(long, env = "BAZOOKA_ON_EXIT", default_value = "keep", value_name = "WHAT")]
    on_exit: OnExit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnExit {
    /// It goes on, and is found again
    Keep,
    /// It ends too
    Stop,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Args = daemon::settings::read();
    daemon::init_logs();
    daemon::raise_open_files();
    daemon::spare_memory();
    let signals = daemon::shutdown().context("can't take signals")?;
    run(args, signals.token()).await
}

async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let cluster = args.coordinator.cluster()?;
    let (start, _only_one) = Start::open(&args, &cluster).await?;

    let registry = Arc::new(Mutex::new(prometheus_client::registry::Registry::default()));
    let metrics = ProxyMetrics::register(&registry);
    let readiness = Readiness::default();
    let not_ready = readiness.hold();
    let _announcing = announce(readiness.clone(), shutdown.clone());
    let (listener, address) = daemon::listen(args.listen).await?;
    if address.ip().is_unspecified() {
        tracing::warn!(%address, "others are told this address, and can't reach it: name this machine's own with --listen");
    }
    let mut loops = Loops::default();
    let directory = Board::default();
    let asked = Endpoint {
        cluster: cluster.clone(),
        directory: directory.shown(),
        zone: args.zone.clone(),
        exporter: start.settings.exporter.then(|| start.settings.exporter_socket()),
    };
    if let Some(address) = args.dns {
        let sockets =
            Sockets::open(address).with_context(|| format!("can't answer about names on {address}"))?;
        let answers =
            Answers { directory: directory.shown(), zone: start::names(&args), metrics: metrics.clone() };
        let serving = sockets.serve(answers, shutdown.clone()).context("can't answer about names")?;
        loops.spawn("the answers about names", serving);
    }
    loops.spawn_once("the wait for the coordinator", wait_for(cluster.clone()));
    let routes = daemon::common_routes(readiness, registry.clone(), &cluster).merge(endpoint::routes(asked));
    let door = Door::new(routes, registry);
    let mut serving = Serving::start(listener, door, &cluster, shutdown.child_token());

    let parts = Parts {
        balancer: Box::new(start.driver(&args, metrics.clone(), &mut loops)),
        identity: start.identity(&args, format!("{}://{address}", cluster.scheme())),
        settings: start.settings,
        visor: cluster.visor,
        directory,
        metrics,
        not_ready,
        pulse: Pulse::asked_for(),
    };
    let ran = tokio::select! {
        ran = proxy::run(parts, &mut loops, args.on_exit == OnExit::Stop, shutdown) => ran,
        ended = serving.ended() => Err(ended),
    };
    let drained = serving.drain().await;
    Ok(ran.and(drained)?)
}

/// Waits for the coordinator, and warns while it isn't there and if it is old. Routing doesn't wait for this.
async fn wait_for(cluster: Cluster) {
    let say = |error: &visor::store::StoreError| {
        tracing::warn!(error = %error, "waiting for the coordinator; what is routed stays as it is");
    };
    if let Err(error) = wait_until_ready(&**cluster.visor.store(), say).await {
        tracing::error!(error = %error, "the coordinator refuses");
    }
    cluster.warn_of_old_coordinator().await;
}
