//! Start and end of bazooka-rm: its arguments, its tasks, and their order.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use bazooka_daemon::{
    self as daemon, Cluster, CoordinatorArgs, Door, Loops, NotReady, Readiness, Serving, in_words,
    look_at_peers,
    supervisor::{Pulse, announce},
};
use bazooka_sandbox::{fences::Keeper, targets::Target};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use visor::{
    access::Rows,
    clock::WallClock,
    identity::Kind,
    lease::{LeaseKeeper, LeaseTiming},
    names::HostName,
    port_keeping::PortKeeping,
    quota::{
        APP_BYTES, APP_INSTANCES, Bounds, FEWEST_APP_BYTES, FEWEST_RELEASES, KEPT_RELEASES,
        MOST_KEPT_RELEASES,
    },
    schema::{Ask, Rm as Row},
    seal::{Os, file::KeyFile},
    store::{StoreError, wait_until_ready},
    wrapping::{SharedRing, Wrapping},
};

use crate::{
    access::{self, InForce},
    apps::{Apps, Following},
    audit::{self, Auditor, journal::JournalKeeper, refusals::Refusals},
    build::isolation::{BuildOptions, Builds},
    endpoint::{self, envs::Envs, git::GitService, slugs::SlugService},
    front,
    hooks::{self, HookCalls},
    layout::Layout,
    metrics::RmMetrics,
    pki::PkiCommand,
    presence::Presence,
    pruning::Pruner,
    push::{PushParts, Pushes, Times, mend::Mender, prepare::Builder},
    queue::BuildQueue,
    registrations::Registrations,
    repos::{
        Own, Repositories,
        disk::Disk,
        local::Local,
        origin::Origin,
        shared::{Shared, git::GitCopies},
    },
    slugs::Slugs,
    sources::Sources,
    ssh::{self, SshArgs},
    storage::Storage,
    sweeping::Sweeper,
    tasks::Errands,
    turns::Turns,
};

/// bazooka-rm keeps the apps' git repositories, builds what is pushed, and stores what it built.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "bazooka-rm", version, args_conflicts_with_subcommands = true)]
pub struct RmArgs {
    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<RmCommand>,
    /// The coordinator's options.
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
    /// How much of the audit this rm keeps in its state folder, in bytes; then the oldest goes
    #[arg(
        long,
        env = "BAZOOKA_AUDIT_JOURNAL",
        value_name = "BYTES",
        default_value_t = 256 << 20,
        value_parser = clap::value_parser!(u64).range(1 << 20..)
    )]
    pub audit_journal: u64,
    /// How many apps one person may have registered
    #[arg(
        long,
        env = "BAZOOKA_APPS_PER_PERSON",
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub apps_per_person: u32,
    /// How many of an app's last releases are kept, beside those that something needs
    #[arg(
        long,
        env = "BAZOOKA_KEEP_RELEASES",
        value_name = "N",
        default_value_t = KEPT_RELEASES,
        value_parser = clap::value_parser!(u32).range(i64::from(FEWEST_RELEASES)..=i64::from(MOST_KEPT_RELEASES))
    )]
    pub keep_releases: u32,
    /// How much an app may keep in the coordinator, in bytes: its releases, its revs and its config vars
    #[arg(
        long,
        env = "BAZOOKA_APP_BYTES",
        value_name = "BYTES",
        default_value_t = APP_BYTES,
        value_parser = clap::value_parser!(u64).range(FEWEST_APP_BYTES..)
    )]
    pub app_bytes: u64,
    /// How many instances an app may have, of all its procs and releases together
    #[arg(
        long,
        env = "BAZOOKA_APP_INSTANCES",
        value_name = "N",
        default_value_t = APP_INSTANCES,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub app_instances: u32,
    /// For how many days a slug is kept that no rev names any more: as old may a backup be that is restored
    #[arg(long, env = "BAZOOKA_UNNEEDED_SLUGS", value_name = "DAYS", default_value_t = 7)]
    pub unneeded_slugs: u16,
    /// How large an app's build cache may become, in bytes; then it is emptied
    #[arg(
        long,
        env = "BAZOOKA_CACHE_BYTES",
        value_name = "BYTES",
        default_value_t = 5 << 30,
        value_parser = clap::value_parser!(u64).range(1 << 20..)
    )]
    pub cache_bytes: u64,
    /// SSH.
    #[command(flatten)]
    pub ssh: SshArgs,
    /// How builds are kept apart, and their limits.
    #[command(flatten)]
    pub builds: BuildOptions,
}

impl RmArgs {
    /// Returns the bounds of what an app keeps.
    fn bounds(&self) -> Bounds {
        Bounds { releases: self.keep_releases, bytes: self.app_bytes, instances: self.app_instances }
    }
}

/// The commands beside serving.
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

/// The time that requests under way have at shutdown; the endpoint has the same bound.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs bazooka-rm until `shutdown`, or until one of its tasks ends.
///
/// # Errors
/// If it can't start, because of its state folder, its address or its arguments. If one of its tasks ends: the task's
/// name and the cause.
pub async fn run(args: RmArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (ground, listener) = Ground::prepare(&args).await?;
    let readiness = Readiness::default();
    let (present, settled) = (readiness.hold(), readiness.hold());
    let _announcing = announce(readiness.clone(), shutdown.clone());
    let registry = Arc::new(Mutex::new(Registry::default()));
    let metrics = RmMetrics::register(&mut registry.lock().expect("nobody else has it yet"));
    let (handles, following, says) = Handles::new(&ground, metrics);
    let keeper = LeaseKeeper::start(ground.cluster.visor.store().clone(), LeaseTiming::default());
    let mut loops = Loops::default();
    let (refusals, refusal_writer) = Refusals::new(handles.auditor.clone());
    listen_for_git(&args.ssh, &ground, &handles, refusals.clone(), &mut loops)?;
    let registrations = Registrations::new(handles.apps.clone(), args.apps_per_person);
    let parts = handles.endpoint(&ground, refusals, registrations);
    let routes = endpoint::routes(parts, readiness.clone(), registry.clone());
    let (looks, front) = front::front(&ground.own);
    let door = Door::new(routes, registry)
        .known_as([ground.own.url.as_str(), ground.own.git_url.as_str()])
        .with_git(front);
    // A token of its own, so that the end of a loop also ends the endpoint.
    let ending = shutdown.child_token();
    let mut serving = Serving::start(listener, door, &ground.cluster, ending.clone());

    let working = async {
        let mut pulse = Pulse::asked_for();
        pulse.status(|| "waiting for the coordinator".to_owned());
        tokio::select! {
            prepared = prepare(&ground.cluster, &ground.prefix) => prepared?,
            ended = loops.first_end() => return Err(ended.into()),
        }
        pulse.status(|| format!("serving at {}", ground.own.url));
        ground.cluster.warn_of_old_coordinator().await;
        loops.spawn_endless("the watch of the apps", following.run());
        let looking = front::keep(ground.cluster.visor.clone(), ground.own.clone(), looks);
        loops.spawn_endless("the look at git's ways here", looking);
        work(&ground, &handles, says, settled, &mut loops);
        prune(&ground, &handles, &args, &mut loops);
        keep_audit(&ground, &handles, args.audit_journal, &mut loops);
        loops.spawn_endless("the writer of refusals", refusal_writer.run());
        let presence = Presence {
            visor: ground.cluster.visor.clone(),
            own: ground.own.clone(),
            ring: ground.ring.clone(),
            ask: handles.ask.clone(),
            ssh_url: args.ssh.ssh_url.clone(),
            bounds: args.bounds(),
        };
        loops.spawn_endless("the keeper of this rm's row", presence.keep(keeper.state(), present));
        tokio::select! {
            ended = loops.first_end() => Err(anyhow::Error::from(ended)),
            () = pulse.keep() => Ok(()),
        }
    };
    let ran = tokio::select! {
        ended = working => ended,
        ended = serving.ended() => Err(ended.into()),
        () = shutdown.cancelled() => Ok(()),
    };
    ending.cancel();
    keeper.release().await;
    let (drained, ()) = tokio::join!(serving.drain(), handles.errands.end_within(DRAIN));
    ground.builds.leave();
    ran.and(drained.map_err(Into::into))
}

/// The rm's settings, its state folder, and the abilities of this machine.
struct Ground {
    cluster: Cluster,
    prefix: String,
    own: Own,
    layout: Layout,
    /// The path of this program, which also serves as hook and as build supervisor.
    program: PathBuf,
    disk: Disk,
    /// The file storage shared with other rms; `None` if this rm uses its state folder alone.
    storage: Option<Storage>,
    key_file: KeyFile,
    ring: SharedRing,
    builds: Arc<Builds>,
    /// Held until this rm ends. The kernel releases the lock when the process ends.
    _alone: nix::fcntl::Flock<std::fs::File>,
}

impl Ground {
    /// Reads the settings, takes the state folder and opens the address.
    async fn prepare(args: &RmArgs) -> anyhow::Result<(Ground, tokio::net::TcpListener)> {
        let cluster = args.coordinator.cluster()?;
        let name = match cluster.own_name(Kind::Rm, args.name.clone())? {
            Some(name) => name,
            None => own_name()?,
        };
        let layout = Layout::open(&args.state)
            .with_context(|| format!("the state folder {} can't be made", args.state.display()))?;
        let storage = match &args.storage {
            Some(url) => Some(Storage::open(url).context("the file storage can't be used")?),
            None => None,
        };
        let program = std::env::current_exe().context("bazooka-rm doesn't find its own program")?;
        let alone = alone(&layout)?;
        layout.sweep().context("what an earlier run left can't be removed")?;
        let key_file = KeyFile::of(layout.root());
        let ring = SharedRing::new(key_file.load(&mut Os)?);
        let disk = Disk::new(layout.clone(), program.clone());
        disk.sweep();
        if args.ssh.ssh_keys.is_some() && cluster.credentials.is_none() {
            anyhow::bail!("--ssh-keys takes a cluster with identities (--identity): a key says who pushes");
        }
        let (listener, address) = daemon::listen(args.listen).await?;
        let url = args.url.clone().unwrap_or_else(|| format!("{}://{address}", cluster.scheme()));
        let url = url.trim_end_matches('/').to_owned();
        let mut closed = vec![Target::at(address.ip(), address.port())];
        // The git URL leads to the same daemon through the proxy, so builds must not reach it either.
        for url in args.coordinator.coordinator.iter().chain(&args.git_url) {
            closed.push(Target::of_url(url).with_context(|| format!("{url} has no address in it"))?);
        }
        let builds = Builds::find(args.builds.clone(), &layout, &program, closed).await?;
        let git_url =
            args.git_url.as_ref().map_or_else(|| url.clone(), |url| url.trim_end_matches('/').to_owned());
        let process = format!("{:032x}", rand::random::<u128>());
        let ground = Ground {
            cluster,
            prefix: args.coordinator.prefix.clone(),
            own: Own { name, process, url, git_url },
            layout,
            program,
            disk,
            storage,
            key_file,
            ring,
            builds: Arc::new(builds),
            _alone: alone,
        };
        Ok((ground, listener))
    }
}

/// The parts of a running rm that its endpoint, its hooks and its loops share.
struct Handles {
    apps: Apps,
    in_force: InForce,
    origin: Arc<dyn Origin>,
    slugs: Slugs,
    pushes: Arc<Pushes>,
    turns: Arc<Turns>,
    auditor: Auditor,
    ask: Ask,
    metrics: RmMetrics,
    errands: Errands,
}

impl Handles {
    /// Returns the parts, the task that fills the image of all apps, and the sender of enforced rights.
    fn new(ground: &Ground, metrics: RmMetrics) -> (Handles, Following, watch::Sender<Option<Rows>>) {
        let visor = ground.cluster.visor.clone();
        let (apps, following) = Apps::new(visor.store().clone());
        let (says, in_force) = access::in_force();
        let (turns, sources) = (Arc::<Turns>::default(), Sources::default());
        let (layout, own) = (ground.layout.clone(), ground.own.clone());
        let origin: Arc<dyn Origin> = match ground.storage.clone() {
            Some(storage) => {
                let copies = GitCopies { layout: layout.clone(), disk: ground.disk.clone(), storage };
                let copies = Arc::new(copies);
                let (visor, apps) = (visor.clone(), apps.clone());
                Arc::new(Shared::new(copies, own.clone(), visor, apps, sources.clone()))
            }
            None => {
                let (apps, turns) = (apps.clone(), turns.clone());
                Arc::new(Local::new(layout.clone(), own.clone(), apps, turns, sources.clone()))
            }
        };
        let slugs = Slugs::new(layout.clone(), ground.storage.clone());
        let auditor = Auditor { visor: visor.clone(), own: own.name, sources: sources.clone() };
        let builder = Builder {
            apps: apps.clone(),
            visor: visor.clone(),
            layout,
            program: ground.program.clone(),
            builds: ground.builds.clone(),
            ring: ground.ring.clone(),
            queue: BuildQueue::new(ground.builds.at_once(), metrics.builds_waiting.clone()),
            slugs: slugs.clone(),
            metrics: metrics.clone(),
        };
        let pushes = Pushes::new(PushParts {
            apps: apps.clone(),
            visor,
            origin: origin.clone(),
            turns: turns.clone(),
            builder: Arc::new(builder),
            auditor: auditor.clone(),
            times: Times::default(),
            sources,
        });
        let handles = Handles {
            apps,
            in_force,
            origin,
            slugs,
            pushes: Arc::new(pushes),
            turns,
            auditor,
            ask: Ask::new(format!("{:032x}", rand::random::<u128>())),
            metrics,
            errands: Errands::default(),
        };
        (handles, following, says)
    }

    /// Returns the repositories for git's requests.
    fn git(&self, cluster: &Cluster) -> GitService {
        GitService {
            cluster: cluster.clone(),
            apps: self.apps.clone(),
            origin: self.origin.clone(),
            pushes: self.pushes.clone(),
            metrics: self.metrics.clone(),
            errands: self.errands.clone(),
        }
    }

    /// Returns the parts that the endpoint serves.
    fn endpoint(&self, ground: &Ground, refusals: Refusals, registrations: Registrations) -> endpoint::Parts {
        let cluster = ground.cluster.clone();
        endpoint::Parts {
            auditor: self.auditor.clone(),
            refusals,
            registrations,
            in_force: self.in_force.clone(),
            git: self.git(&cluster),
            slugs: SlugService {
                cluster: cluster.clone(),
                slugs: self.slugs.clone(),
                metrics: self.metrics.clone(),
            },
            envs: Envs {
                cluster: cluster.clone(),
                auditor: self.auditor.clone(),
                ring: ground.ring.clone(),
                ask: self.ask.clone(),
            },
            errands: self.errands.clone(),
            cluster,
        }
    }
}

/// Listens for hooks and, if it is to be used, for SSH.
fn listen_for_git(
    args: &SshArgs,
    ground: &Ground,
    handles: &Handles,
    refusals: Refusals,
    loops: &mut Loops,
) -> anyhow::Result<()> {
    let hooks = hooks::listen(&ground.layout).context("the hooks' socket can't be opened")?;
    let calls = HookCalls { pushes: handles.pushes.clone(), metrics: handles.metrics.clone() };
    loops.spawn("the hooks' listener", hooks::serve(calls, hooks));
    if let Some(file) = args.ssh_keys.clone() {
        let listener = ssh::listen(&ground.layout, args)?;
        loops.spawn("the SSH listener", ssh::serve(handles.git(&ground.cluster), refusals, listener));
        let keeping = ssh::keep(ground.program.clone(), ground.layout.clone(), handles.apps.clone(), file);
        loops.spawn_endless("the writer of authorized_keys", keeping);
    }
    Ok(())
}

/// Starts the loops that act on the coordinator's rows.
fn work(
    ground: &Ground,
    handles: &Handles,
    says: watch::Sender<Option<Rows>>,
    settled: NotReady,
    loops: &mut Loops,
) {
    let (visor, apps) = (ground.cluster.visor.clone(), handles.apps.clone());
    let repositories = Repositories {
        apps: apps.clone(),
        visor: visor.clone(),
        disk: ground.disk.clone(),
        origin: handles.origin.clone(),
        own: ground.own.clone(),
        busy: {
            let pushes = handles.pushes.clone();
            Box::new(move |app| pushes.is_busy(app))
        },
        push_ended: handles.pushes.ended(),
    };
    let mender = Mender {
        apps: apps.clone(),
        visor: visor.clone(),
        origin: handles.origin.clone(),
        push_ended: handles.pushes.ended(),
        sources: Sources::default(),
    };
    let key_file = ground.key_file.clone();
    let wrapping = Wrapping {
        visor: visor.clone(),
        own: ground.own.name.clone(),
        ring: ground.ring.clone(),
        random: Box::new(Os),
        clock: WallClock::default(),
        store: Box::new(move |left| match key_file.retire(left) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = in_words(&error), "can't let go of replaced keys");
                false
            }
        }),
    };
    let (settle, is_settled) = oneshot::channel();
    loops.spawn_endless("the repair of what pushes left", async move {
        if is_settled.await.is_ok() {
            drop(settled);
            mender.run().await;
        }
    });
    if let Some(keeper) = ground.builds.keeper() {
        loops.spawn_endless(
            "the keeper of the fences",
            look_at_peers(ground.cluster.clone(), keeper, Keeper::look),
        );
    }
    if ground.cluster.credentials.is_some() {
        let granting = access::run(ground.cluster.clone(), ground.prefix.clone(), apps, says);
        loops.spawn_endless("the keeper of etcd's users", granting);
    }
    loops.spawn_endless("the keeper of the repositories", repositories.run(settle));
    loops.spawn_endless("the wrapping of config vars", wrapping.run());
    let ports = PortKeeping { visor: ground.cluster.visor.clone(), clock: WallClock::default() };
    loops.spawn_endless("the keeper of service ports", ports.run());
}

/// Starts the loops that keep each app within its bounds, in the coordinator and on the disk.
fn prune(ground: &Ground, handles: &Handles, args: &RmArgs, loops: &mut Loops) {
    let bounds = args.bounds();
    let pushes = handles.pushes.clone();
    let pruner = Pruner {
        apps: handles.apps.clone(),
        visor: ground.cluster.visor.clone(),
        own: Row {
            keep_releases: Some(bounds.releases),
            app_bytes: Some(bounds.bytes),
            app_instances: Some(bounds.instances),
            ..Row::at(ground.own.url.clone())
        },
        busy: Box::new(move |app| pushes.is_busy(app)),
        sources: handles.auditor.sources.clone(),
        metrics: Some(handles.metrics.clone()),
    };
    loops.spawn_endless("the pruning of old releases", pruner.run());
    let sweeper = Sweeper {
        apps: handles.apps.clone(),
        slugs: handles.slugs.clone(),
        layout: ground.layout.clone(),
        turns: handles.turns.clone(),
        slugs_for: Duration::from_secs(u64::from(args.unneeded_slugs) * 86_400),
        cache_bytes: args.cache_bytes,
        metrics: handles.metrics.clone(),
        sources: handles.auditor.sources.clone(),
    };
    loops.spawn_endless("the removal of old slugs", sweeper.run());
}

/// Starts the loops that keep the audit: its journal here, and its bounds in the coordinator.
fn keep_audit(ground: &Ground, handles: &Handles, most_bytes: u64, loops: &mut Loops) {
    let (visor, many) = (ground.cluster.visor.clone(), Arc::<Notify>::default());
    let sources = handles.auditor.sources.clone();
    let journal = JournalKeeper {
        store: visor.store().clone(),
        folder: ground.layout.audit(),
        most_bytes,
        sources: sources.clone(),
        many: many.clone(),
    };
    loops.spawn_endless("the audit's journal", journal.run());
    loops.spawn_endless("the trimming of the audit", audit::keep(visor, sources, many));
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
