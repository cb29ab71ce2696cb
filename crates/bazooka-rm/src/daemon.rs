//! Start and end of bazooka-rm: its arguments, its tasks, and their order.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use bazooka_daemon::{
    self as daemon, Cluster, CoordinatorArgs, NotReady, Readiness,
    supervisor::{Pulse, announce},
};
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use visor::{
    identity::Kind,
    lease::{LeaseKeeper, LeaseState, LeaseTiming},
    names::HostName,
    schema::{Ask, Extra, Rm as Row},
    seal::{Os, file::KeyFile},
    store::{StoreError, wait_until_ready},
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
    tasks::{Errands, Loops},
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

/// The pause before a failed write of this rm's row is retried.
const PRESENCE_AGAIN: Duration = Duration::from_millis(500);

/// The time that requests under way have at shutdown; the endpoint has the same bound.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs bazooka-rm until `shutdown`, or until one of its tasks ends.
///
/// # Errors
/// If it can't start, because of its state folder, its address or its arguments. If one of its tasks ends: the task's
/// name and the cause.
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
            Some(Storage::open(url).context("the file storage can't be used")?)
        }
        None => None,
    };
    let program = std::env::current_exe().context("bazooka-rm doesn't find its own program")?;
    // The kernel releases the lock when the process ends.
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
    let mut closed = bazooka_sandbox::sandboxes::resolved(&args.coordinator.coordinator);
    closed.push(address);
    // The git URL leads to the same daemon through the proxy, so builds must not reach it either.
    closed.extend(bazooka_sandbox::sandboxes::resolved(args.git_url.as_slice()));
    let builds = Builds::find(args.builds, &layout, &program, closed).await?;
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
        errands: Errands::default(),
    });
    let keeper = LeaseKeeper::start(visor.store().clone(), LeaseTiming::default());
    let mut loops = Loops::default();
    let hooks = hooks::listen(&rm).context("the hooks' socket can't be opened")?;
    loops.spawn("the hooks' listener", hooks::serve(rm.clone(), hooks));
    if let Some(file) = args.ssh.ssh_keys.clone() {
        let listener = ssh::listen(&rm, &args.ssh)?;
        loops.spawn("the SSH listener", ssh::serve(rm.clone(), listener));
        loops.spawn_endless("the writer of authorized_keys", ssh::keep(rm.clone(), apps.clone(), file));
    }
    let routes = endpoint::routes(rm.clone(), readiness.clone(), Arc::new(Mutex::new(registry)));
    // A token of its own, so that the end of a loop also ends the endpoint.
    let ending = shutdown.child_token();
    let mut serving = tokio::spawn({
        let (cluster, ending) = (cluster.clone(), ending.clone());
        async move { daemon::serve(listener, routes, &cluster, ending).await }
    });

    let working = async {
        let mut pulse = Pulse::asked_for();
        pulse.status(|| "waiting for the coordinator".to_owned());
        tokio::select! {
            prepared = prepare(&cluster, &prefix) => prepared?,
            ended = loops.first_end() => return Err(ended.into()),
        }
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
        let (settle, is_settled) = oneshot::channel();
        let repairing = rm.clone();
        loops.spawn_endless("the repair of what pushes left", async move {
            if is_settled.await.is_ok() {
                drop(settled);
                mend::run(&repairing).await;
            }
        });
        loops.spawn_endless("the watch of the apps", following.run());
        loops.spawn_endless("the trimming of the audit", audit::keep(visor.clone()));
        if cluster.credentials.is_some() {
            let granting = access::run(cluster.clone(), prefix.clone(), apps.clone(), says);
            loops.spawn_endless("the keeper of etcd's users", granting);
        }
        loops.spawn_endless("the keeper of the repositories", repositories.run(settle));
        let present = be_present(rm.clone(), keeper.state(), present, args.ssh.ssh_url);
        loops.spawn_endless("the keeper of this rm's row", present);
        loops.spawn_endless("the wrapping of config vars", wrapping.run());
        tokio::select! {
            ended = loops.first_end() => Err(anyhow::Error::from(ended)),
            () = pulse.keep() => Ok(()),
        }
    };
    let ran = tokio::select! {
        ended = working => ended,
        ended = &mut serving => Err(match ended {
            Ok(()) => anyhow::anyhow!("the endpoint ended by itself"),
            Err(error) => anyhow::Error::from(error).context("the endpoint failed"),
        }),
        () = shutdown.cancelled() => Ok(()),
    };
    ending.cancel();
    keeper.release().await;
    let drained = async {
        match serving.is_finished() {
            true => Ok(()),
            false => serving.await,
        }
    };
    let (served, ()) = tokio::join!(drained, rm.errands.end_within(DRAIN));
    rm.builds.leave();
    ran.and(served.context("the endpoint failed"))
}

/// Waits for the coordinator, and prepares it for this rm's work.
async fn prepare(cluster: &Cluster, prefix: &str) -> anyhow::Result<()> {
    let say = |error: &StoreError| tracing::warn!(error = %error, "waiting for the coordinator");
    wait_until_ready(&**cluster.visor.store(), say).await?;
    access::prepare(cluster, prefix).await?;
    cluster.visor.set_up().await?;
    access::admit_itself(cluster).await?;
    Ok(())
}

/// Keeps this rm's row in the coordinator. Never returns while the lease keeper lives.
async fn be_present(
    rm: SharedRm,
    mut state: watch::Receiver<LeaseState>,
    present: NotReady,
    ssh_url: Option<String>,
) {
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

/// Locks the state folder, so that no second bazooka-rm works on it.
fn alone(layout: &Layout) -> anyhow::Result<nix::fcntl::Flock<std::fs::File>> {
    let path = layout.root().join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("{} can't be made", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!("another bazooka-rm works on {} ({error})", layout.root().display())
    })
}
