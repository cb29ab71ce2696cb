//! Starts and ends bazooka-rm: what runs, in which order.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use bazooka_daemon::{
    self as daemon, CoordinatorArgs, NotReady, Readiness,
    supervisor::{Pulse, announce},
};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use visor::{
    identity::Kind,
    lease::{LeaseKeeper, LeaseState, LeaseTiming},
    names::HostName,
    schema::{Ask, Extra, Rm as Row},
    seal::{Os, file::KeyFile},
    store::wait_until_ready,
    visor::{Refusal, VisorError},
    wrapping::{SharedRing, Wrapping},
};

use crate::{
    access,
    apps::Apps,
    audit,
    build::isolation::{BuildOptions, Builds},
    endpoint, hooks,
    layout::Layout,
    metrics::RmMetrics,
    pki::PkiCommand,
    push::{Pushes, Times, mend},
    repos::{Own, Repositories, disk::Disk},
    rm::{Rm, SharedRm},
    ssh::{self, SshArgs},
    storage::Storage,
    stored::Shelves,
};

/// bazooka-rm keeps the apps' git repositories, builds what is pushed, and stores what it built.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "bazooka-rm", version, args_conflicts_with_subcommands = true)]
pub struct RmArgs {
    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<RmCommand>,
    /// Where the coordinator is.
    #[command(flatten)]
    pub coordinator: CoordinatorArgs,
    /// This rm's name, one of its own among all
    #[arg(long, env = "BAZOOKA_NAME", value_name = "NAME")]
    pub name: Option<HostName>,
    /// Where repositories, slugs and caches are kept
    #[arg(long, env = "BAZOOKA_STATE", default_value = "/var/lib/bazooka-rm", value_name = "DIR")]
    pub state: PathBuf,
    /// Where to listen
    #[arg(long, env = "BAZOOKA_LISTEN", default_value = "127.0.0.1:8081", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// The endpoint's base as others reach it [default: http:// and where it listens]
    #[arg(long, env = "BAZOOKA_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Where slugs and repositories are stored, shared by several rms: s3://BUCKET/PREFIX (with the AWS_* variables) or
    /// file:///FOLDER [default: the state folder, for one rm]
    #[arg(long, env = "BAZOOKA_STORAGE", value_name = "URL")]
    pub storage: Option<String>,
    /// The base of the URL that is pushed to, where that isn't this rm's own: that of bazooka-proxy's --git
    #[arg(long, env = "BAZOOKA_GIT_URL", value_name = "URL")]
    pub git_url: Option<String>,
    /// SSH.
    #[command(flatten)]
    pub ssh: SshArgs,
    /// How builds are kept apart, and their limits.
    #[command(flatten)]
    pub builds: BuildOptions,
}

/// What bazooka-rm does beside serving.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum RmCommand {
    /// Make the cluster's certificate authority, and identities of it
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Give this rm another key for config vars; it counts from the next start on, and the one before goes by itself
    /// once nothing is sealed to it any more
    RotateKey {
        /// Where repositories, slugs and caches are kept
        #[arg(long, env = "BAZOOKA_STATE", default_value = "/var/lib/bazooka-rm", value_name = "DIR")]
        state: PathBuf,
    },
}

/// How soon a failed write of the presence is tried again.
const PRESENCE_AGAIN: Duration = Duration::from_millis(500);

/// Runs bazooka-rm until `shutdown`.
///
/// # Errors
/// If it can't start: its state folder, its address, what it was told.
pub async fn run(args: RmArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let cluster = args.coordinator.cluster()?;
    let prefix = args.coordinator.prefix.clone();
    let name = match cluster.own_name(Kind::Rm, args.name)? {
        Some(name) => name,
        None => own_name()?,
    };
    let visor = cluster.visor.clone();
    let layout = Layout::open(&args.state)
        .with_context(|| format!("the state folder {} can't be made", args.state.display()))?;
    let storage = match &args.storage {
        Some(url) => {
            Some(Storage::open(url).map_err(anyhow::Error::msg).context("the file storage can't be used")?)
        }
        None => None,
    };
    let program = std::env::current_exe().context("bazooka-rm doesn't find its own program")?;
    // The lock goes with the process.
    let _alone = alone(&layout)?;
    layout.sweep().context("what an earlier run left can't be removed")?;
    let file = KeyFile::of(layout.root());
    let ring = SharedRing::new(file.load(&mut Os).map_err(anyhow::Error::msg)?);
    let disk = Disk::new(layout.clone(), program.clone());
    disk.sweep();
    if args.ssh.ssh_keys.is_some() && cluster.credentials.is_none() {
        anyhow::bail!("--ssh-keys takes a cluster with identities (--identity): a key says who pushes");
    }
    let (listener, address) = daemon::listen(args.listen).await?;
    let url = args.url.unwrap_or_else(|| format!("{}://{address}", cluster.scheme()));
    let url = url.trim_end_matches('/').to_owned();
    let mut closed = bazooka_pm::host::resolved(&args.coordinator.coordinator);
    closed.push(address);
    // The same daemon, by another way.
    closed.extend(bazooka_pm::host::resolved(args.git_url.as_slice()));
    let builds = Builds::find(args.builds, &layout, &program, closed).await.map_err(anyhow::Error::msg)?;
    let git_url = args.git_url.map_or_else(|| url.clone(), |url| url.trim_end_matches('/').to_owned());
    let process = format!("{:032x}", rand::random::<u128>());
    let own = Own { name, process, url, git_url, shares: storage.is_some() };

    let readiness = Readiness::default();
    let (present, settled) = (readiness.hold(), readiness.hold());
    let _announcing = announce(readiness.clone(), shutdown.clone());
    let mut registry = Registry::default();
    let metrics = RmMetrics::register(&mut registry);
    let (apps, following) = Apps::new(visor.store().clone());
    let (says, in_force) = access::in_force();
    let rm: SharedRm = Arc::new(Rm {
        own: own.clone(),
        layout,
        program,
        storage,
        shelves: Shelves::default(),
        visor: visor.clone(),
        cluster: cluster.clone(),
        in_force,
        apps: apps.clone(),
        builds,
        pushes: Pushes::default(),
        times: Times::default(),
        ring: ring.clone(),
        ask: Ask::new(format!("{:032x}", rand::random::<u128>())),
        metrics,
    });
    let hooks = hooks::listen(&rm).context("the hooks' socket can't be opened")?;
    tokio::spawn(hooks::serve(rm.clone(), hooks));
    if let Some(file) = args.ssh.ssh_keys.clone() {
        let listener = ssh::listen(&rm, &args.ssh).map_err(anyhow::Error::msg)?;
        tokio::spawn(ssh::serve(rm.clone(), listener));
        tokio::spawn(ssh::keep(rm.clone(), apps.clone(), file));
    }
    let routes = endpoint::routes(rm.clone(), readiness.clone(), Arc::new(Mutex::new(registry)));
    let serving = tokio::spawn({
        let (cluster, shutdown) = (cluster.clone(), shutdown.clone());
        async move { daemon::serve(listener, routes, &cluster, shutdown).await }
    });

    let keeper = LeaseKeeper::start(visor.store().clone(), LeaseTiming::default());
    let working = async {
        let say = |error: &visor::store::StoreError| {
            tracing::warn!(error = %error, "waiting for the coordinator");
        };
        let mut pulse = Pulse::asked_for();
        pulse.status(|| "waiting for the coordinator".to_owned());
        wait_until_ready(&**visor.store(), say).await?;
        access::prepare(&cluster, &prefix).await?;
        visor.set_up().await?;
        access::admit_itself(&cluster).await?;
        pulse.status(|| format!("serving at {}", own.url));
        cluster.warn_of_old_coordinator().await;
        let repositories = Repositories {
            apps: apps.clone(),
            visor: visor.clone(),
            disk,
            storage: rm.storage.clone(),
            own: own.clone(),
            busy: {
                let rm = rm.clone();
                Box::new(move |app| rm.pushes.is_busy(app))
            },
            push_ended: rm.pushes.ended.clone(),
        };
        let mending = rm.clone();
        let settle = move || {
            drop(settled);
            if mending.storage.is_some() {
                tokio::spawn(async move {
                    mend::adopt(&mending).await;
                    mend::keep(&mending).await;
                });
                return;
            }
            // Pushes that an earlier run didn't live to end.
            for app in mending.apps.known().apps.into_keys() {
                let rm = mending.clone();
                tokio::spawn(async move { mend::mend(&rm, &app).await });
            }
        };
        let wrapping = Wrapping {
            visor: visor.clone(),
            own: own.name.clone(),
            ring,
            random: Box::new(Os),
            store: Box::new(move |left| match file.retire(left) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(error, "can't let go of replaced keys");
                    false
                }
            }),
        };
        tokio::join!(
            following.run(),
            audit::keep(visor.clone()),
            access::run(cluster.clone(), prefix.clone(), apps.clone(), says),
            repositories.run(settle),
            be_present(&rm, &keeper, present, args.ssh.ssh_url),
            wrapping.run(),
            pulse.keep()
        );
        anyhow::Ok(())
    };
    tokio::select! {
        ended = working => ended?,
        () = shutdown.cancelled() => {}
    }
    keeper.release().await;
    serving.await.context("the endpoint failed")?;
    rm.builds.leave();
    Ok(())
}

/// Keeps this rm's row in the coordinator, for ever.
async fn be_present(rm: &SharedRm, keeper: &LeaseKeeper, present: NotReady, ssh_url: Option<String>) {
    let mut state = keeper.state();
    let mut ring = rm.ring.changes();
    let mut present = Some(present);
    let mut complained = None;
    loop {
        let held = *state.borrow_and_update();
        let row = {
            let ring = ring.borrow_and_update();
            Row {
                url: rm.own.url.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                schema: Some(visor::schema::SCHEMA_VERSION),
                ssh_url: ssh_url.clone(),
                seal_key: Some(ring.current()),
                retired_seal_keys: ring.retired(),
                extra: Extra::new(),
            }
        };
        let mut again = None;
        if let LeaseState::Held { id } = held {
            match rm.visor.publish_rm(&rm.own.name, &row, &rm.ask, id).await {
                Ok(()) => {
                    complained = None;
                    if present.take().is_some() {
                        tracing::info!(url = %rm.own.url, "ready");
                    }
                }
                Err(error) => {
                    let words = error.to_string();
                    if complained.as_ref() != Some(&words) {
                        match error {
                            VisorError::Refused(Refusal::NameTaken { .. }) => tracing::error!(
                                error = %words,
                                "nobody hears of this rm until the other one has gone; give one of them another name"
                            ),
                            _ => {
                                tracing::warn!(error = %words, "can't say in the coordinator that this rm serves");
                            }
                        }
                    }
                    complained = Some(words);
                    again = Some(PRESENCE_AGAIN);
                }
            }
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            _ = ring.changed() => {}
            () = async { match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            } } => {}
        }
    }
}

pub(crate) fn own_name() -> anyhow::Result<HostName> {
    let name = nix::unistd::gethostname().context("this machine's name can't be read")?;
    let name = name.to_string_lossy().to_lowercase();
    name.parse().with_context(|| "this machine's name can't be the rm's; give it one by --name")
}

/// Sees to it that no other rm works on the same state folder.
fn alone(layout: &Layout) -> anyhow::Result<nix::fcntl::Flock<std::fs::File>> {
    let path = layout.root().join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("{} can't be made", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!("another bazooka-rm works on {} ({error})", layout.root().display())
    })
}
