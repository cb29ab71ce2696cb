//! `bazooka dev`: a whole cluster on this machine, in the foreground.
//!
//! Owns the checks before anything starts, and the order in which the parts start and stop. It does nothing in the
//! cluster itself: every part is the real program, as a child with its own state folder, log and ports.
//!
//! ```text
//! start  etcd ─▶ bazooka-rm ─▶ converger ─▶ bazooka-pm of each host ─▶ bazooka-proxy with HAProxy
//! stop   converger ─▶ bazooka-pm of each host, with its instances ─▶ proxy, HAProxy ─▶ rm ─▶ etcd
//! ```
//! The converger stops first, so that it doesn't replace the instances that are being stopped.

mod isolation;
mod orphans;
mod parts;
mod ports;
mod state;
mod supervise;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    pin::pin,
    time::Duration,
};

use futures::{FutureExt, future::select_all};
use nix::sys::stat::{Mode, umask};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use visor::{
    names::HostName,
    store::{
        etcd::{EtcdConfig, EtcdStore},
        wait_until_ready,
    },
};

use crate::{
    command::CommandKind,
    failure::{Failure, Kind, Result},
    invocation::{Invocation, runtime},
    show::{put_line, say},
};
use isolation::Apart;
use parts::{Kind as PartKind, Part, Programs};
use state::State;
use supervise::{Notice, Running, StartError};

/// Run a whole cluster on this machine, in the foreground
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The folder of the cluster's state [default: /var/lib/bazooka/dev as root, else ~/.local/share/bazooka/dev]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How many hosts, each with an address (127.0.0.2, ...) and ports (21000-21999, ...) of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=11))]
    pub hosts: u16,
    /// The coordinator's port
    #[arg(long, value_name = "PORT", default_value_t = 2379)]
    pub coordinator_port: u16,
    /// The port at which HAProxy takes requests for <app>.<domain>
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub public_port: u16,
    /// The address of that port and of the services' own ports; 0.0.0.0 opens them to other machines
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub public_address: IpAddr,
    /// The port at which bazooka-rm takes pushes
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    pub rm_port: u16,
    /// The domain below which each app has its name
    #[arg(long, value_name = "DOMAIN", default_value = "localhost")]
    pub domain: String,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Local { prints_json: false }
    }
}

/// The time that a part may take to become ready, on a busy machine with a cold disk.
const READY_FOR: Duration = Duration::from_secs(60);

/// The number of notices that may queue for printing; beyond it, the supervision of the parts waits too.
const WAITING_NOTICES: usize = 64;

/// The interval at which `dev` prints what it waits for while it stops.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Runs the cluster until Ctrl-C or SIGTERM.
///
/// # Errors
/// If a program is missing, a port is taken, or a part doesn't become ready. All started parts have ended by then.
pub fn run(invocation: &Invocation, args: Args) -> Result<()> {
    if let Some(flag) = invocation.coordinator_flag() {
        let what = format!("--{flag} is not for dev: its cluster has a coordinator of its own");
        return Err(Failure::new(Kind::Usage, what).hint("--coordinator-port says where that listens"));
    }
    runtime()?.block_on(run_cluster(&args))
}

async fn run_cluster(args: &Args) -> Result<()> {
    let _: HostName = args
        .domain
        .parse()
        .map_err(|error| Failure::from_error(Kind::Usage, "--domain is not valid", &error))?;
    // Each instance has its own user, who must be able to read its slug below the state folder, whatever this user's
    // umask. Secret files have a mode of their own.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let state = State::open(args.state.as_deref())?;
    let programs = Programs::find()?;
    ports::check(args, state.dir()).await?;
    let is_root = nix::unistd::geteuid().is_root();
    let (apart, cause) = match is_root {
        true => Apart::tried(programs.pm()).await?,
        false => (Apart::No, String::new()),
    };
    if let Some(warning) = apart.warning(&cause) {
        say(&warning);
    }
    let parts = parts::of(args, state.dir(), &programs, apart);
    let mut cluster = Cluster::default();
    cluster.tasks.spawn(orphans::adopt()?);
    let signals = bazooka_daemon::shutdown()
        .map_err(|error| Failure::from_error(Kind::Failed, "signals can't be taken", &error))?;
    let shutdown = signals.token();
    let started = cluster.start(args, &state, parts, &shutdown).await;
    let ended = match started {
        Ok(true) => {
            welcome(args);
            tokio::select! {
                () = shutdown.cancelled() => Ok(()),
                failure = cluster.broken() => Err(failure),
            }
        }
        Ok(false) => Ok(()),
        Err(failure) => Err(failure),
    };
    cluster.stop().await;
    ended
}

/// Prints how to use the cluster. `deploy/up` waits for the first line and reads it.
fn welcome(args: &Args) {
    let port = if args.public_port == 80 { String::new() } else { format!(":{}", args.public_port) };
    put_line(&format!("ready: each app's web proc answers at http://<app>.{}{port}/", args.domain));
    put_line(&reach(args.public_address));
    if args.coordinator_port != 2379 {
        put_line(&format!("first:  export BAZOOKA_COORDINATOR=http://127.0.0.1:{}", args.coordinator_port));
    }
    put_line("then, in a git repository with a Procfile:");
    put_line("  bazooka init && git push bazooka master && bazooka scale -n 1 web");
    put_line("Ctrl-C stops all of it");
}

/// Returns who can reach the apps.
fn reach(public: IpAddr) -> String {
    if public.is_loopback() {
        return "        to this machine alone; --public-address 0.0.0.0 opens apps and services to others"
            .to_owned();
    }
    let at =
        if public.is_unspecified() { "every address of this machine".to_owned() } else { public.to_string() };
    format!("        apps and services are open to other machines, on {at}")
}

/// The running parts, in the order in which they were started.
#[derive(Default)]
struct Cluster {
    running: Vec<Running>,
    /// The tasks that print notices and reap orphans. They end with this.
    tasks: JoinSet<()>,
}

impl Cluster {
    /// Starts each part and waits until it is ready; returns false if the user interrupts that.
    async fn start(
        &mut self,
        args: &Args,
        state: &State,
        parts: Vec<Part>,
        shutdown: &CancellationToken,
    ) -> Result<bool> {
        let (notices, mut told) = mpsc::channel(WAITING_NOTICES);
        self.tasks.spawn(async move {
            while let Some(Notice { part, words }) = told.recv().await {
                say(&format!("{part}: {words}"));
            }
        });
        // The hosts don't depend on each other, so they start at the same time.
        let mut waiting: Vec<usize> = Vec::new();
        for part in parts {
            let kind = part.kind;
            if kind != PartKind::Host && !self.all_ready(&mut waiting, args, shutdown).await? {
                return Ok(false);
            }
            let log = state.log(&part.name)?;
            self.running.push(Running::start(part, log, notices.clone()));
            waiting.push(self.running.len() - 1);
        }
        self.all_ready(&mut waiting, args, shutdown).await
    }

    /// Waits until these parts are ready, and prints a line for each; returns false if the user interrupts that.
    async fn all_ready(
        &mut self,
        waiting: &mut Vec<usize>,
        args: &Args,
        shutdown: &CancellationToken,
    ) -> Result<bool> {
        for at in waiting.drain(..) {
            let part = &mut self.running[at];
            let ready = async {
                match part.kind() {
                    PartKind::Etcd => etcd_answers(args.coordinator_port, part).await,
                    _ => part.answers_ready().await,
                }
            };
            let ready = tokio::select! {
                ready = timeout(READY_FOR, ready) => ready,
                () = shutdown.cancelled() => return Ok(false),
            };
            match ready {
                Ok(Ok(words)) => put_line(&format!("{:<10} {words}", part.name())),
                Ok(Err(error)) => return Err(part.failure(&error.to_string())),
                Err(_) => {
                    return Err(part.failure(&format!("is not ready after {} s", READY_FOR.as_secs())));
                }
            }
        }
        Ok(true)
    }

    /// Waits until one of the supervising tasks ends, which should never happen: parts would then die unnoticed.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn broken(&mut self) -> Failure {
        let Cluster { running, tasks } = self;
        let names: Vec<String> = running.iter().map(|part| part.name().to_owned()).collect();
        let kept = running.iter_mut().map(|part| part.unattended().boxed_local());
        let what = tokio::select! {
            ((), at, _) = select_all(kept) => format!("nobody looks after {} any more", names[at]),
            _ = tasks.join_next() => "bazooka dev can't look after its parts any more".to_owned(),
        };
        Failure::new(Kind::Failed, what).hint("start it again")
    }

    /// Ends all parts, each kind after the kinds that need it.
    async fn stop(&mut self) {
        if self.running.is_empty() {
            return;
        }
        say("stopping");
        for kind in [PartKind::Converger, PartKind::Host, PartKind::Proxy, PartKind::Rm, PartKind::Etcd] {
            let (those, rest): (Vec<Running>, Vec<Running>) =
                std::mem::take(&mut self.running).into_iter().partition(|part| part.kind() == kind);
            self.running = rest;
            for part in &those {
                part.ask_to_stop();
            }
            let stopping = Instant::now();
            let mut those: Vec<Running> = those;
            while let Some(part) = those.pop() {
                let name = part.name().to_owned();
                let mut stopped = pin!(part.stopped());
                while timeout(SAY_EVERY, &mut stopped).await.is_err() {
                    say(&format!("waiting for {name} to end, for {} s so far", stopping.elapsed().as_secs()));
                }
            }
        }
        let left = orphans::end_all().await;
        if left.is_empty() {
            say("stopped");
        } else {
            say(&format!("stopped, but these can't be ended: {}", left.join(", ")));
        }
    }
}

/// Waits until etcd answers, or its process has died too often.
async fn etcd_answers(port: u16, part: &mut Running) -> Result<String, StartError> {
    let url = format!("http://127.0.0.1:{port}");
    let store = EtcdStore::new(EtcdConfig::new(vec![url.clone()], "/bazooka"));
    tokio::select! {
        ready = wait_until_ready(&store, |_| {}) => match ready {
            Ok(()) => Ok(format!("takes the cluster's state at {url}")),
            Err(error) => Err(error.into()),
        },
        gave_up = part.gave_up() => Err(gave_up),
    }
}
