//! The host's part of bazooka-pm: claims what is assigned to this host, runs it, and reports each instance's state.
//!
//! Owns the order of start and end: configure (`start`), build, announce, run, drain. Running instances go on whatever happens to the coordinator; only a
//! fresh, complete list of assignments ends an instance.
//!
//! ```text
//! mirror (assigned/H/) ─▶┐  engine            ┌─▶ reports (status/H/)
//! register (hosts/H) ───▶│  observe─plan─enact├─▶ runtime: shims ─▶ process (shims) ─▶ instances
//! answers of effects ───▶┘                    │     checks, slugs, records (state folder)
//! ```

mod adopt;
mod archives;
mod checks;
mod descriptor;
mod engine;
mod environment;
mod envs;
mod faults;
mod folders;
mod found;
mod grace;
mod held;
mod isolation;
mod listeners;
mod logs;
mod metrics;
mod model;
mod observe;
mod options;
mod plan;
mod policy;
mod pools;
mod ports;
mod process;
mod records;
mod register;
mod reports;
mod runtime;
mod shims;
#[cfg(test)]
mod simulation;
mod slugs;
mod start;
mod status;
mod sweep;
mod trace;
mod vault;
mod work;
mod wrapping;

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bazooka_daemon::{
    Cluster, Door, Loops, Readiness, Serving, common_routes, look_at_peers,
    supervisor::{Pulse, announce},
};
use bazooka_sandbox::{
    fences::Keeper, files::write_file, isolation::Isolation, loopback, machine::boot_clock_ms,
    surroundings::Named,
};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use visor::names::HostName;

pub use faults::faults;
pub use options::{HostOptions, OnExit};
pub use start::HostError;

use archives::Archives;
use isolation::Apart;
use logs::Logs;
use pools::Pools;
use runtime::Answers;
use start::Start;
use work::Work;

/// The host's loop, and the interface to the machine below it, which the simulation implements.
#[cfg(feature = "testing")]
pub mod testing {
    pub use super::{
        archives::may_have,
        metrics::Metrics,
        model::{Ending, EnvState, Local, Locals, Now, SlugState, Tick},
        observe::Event,
        ports::Ports,
        records::{Note, Traces},
        runtime::{Answers, Booting, Given, Message, NoFreeUser, Runtime},
        slugs::{Fetched, Source, SourceKind, whereabouts},
        vault::Vault,
        work::Work,
    };
}

/// Runs the host's part until `shutdown`.
///
/// # Errors
/// If this machine can't meet an option. If effects no longer reach the engine, or a loop ended: the instances run on.
pub async fn run(
    cluster: Cluster,
    coordinator: &[String],
    options: HostOptions,
    shutdown: CancellationToken,
) -> Result<(), HostError> {
    let start = Start::open(&cluster, coordinator, &options).await?;
    let pools = Pools::create().map_err(HostError::Threads)?;
    let (folders, pool) = (start.folders.clone(), pools.slugs.clone());
    let slugs = slugs::Slugs::new(start.name.clone(), folders, pool, cluster.credentials.as_ref());
    let (locals, outputs) = start.take_over(&slugs).await?;
    let host = start.row(&cluster, &options);
    let Start { name, address, folders, vault, shim, uids, listener, apart, lock: _lock, .. } = start;

    let readiness = Readiness::default();
    let not_ready = readiness.hold();
    let registry = Arc::new(Mutex::new(Registry::default()));
    let metrics = metrics::Metrics::register(&mut registry.lock().expect("nobody else has it yet"));
    let endpoint_end = CancellationToken::new();
    let (answers, messages) = Answers::channel();
    let effects = answers.clone();
    let (logs, feeder) = Logs::create(
        folders.clone(),
        pools.clone(),
        outputs.clone(),
        metrics.clone(),
        cluster.clone(),
        endpoint_end.clone(),
    );
    let archives = Archives::new(&cluster, &name, &slugs, &pools.slugs, &metrics);
    let routes = common_routes(readiness.clone(), registry.clone(), &cluster)
        .merge(logs.routes())
        .merge(archives.routes())
        .merge(found::routes(answers.clone()));
    let groups = apart.cgroups.clone();
    let note_lease = note_in(folders.lease_file());
    let Apart { cgroups, sandboxes, keeper } = apart;
    let machine = shims::Machine {
        host: name.clone(),
        address,
        folders,
        shim,
        slugs,
        pools,
        outputs,
        uids,
        cgroups,
        sandboxes,
    };
    let seed = u16::try_from(std::process::id() % 65_521).expect("it is below 65,536");
    let mut loops = notices(&cluster, &readiness, &name, &host.url);
    loops.spawn_endless("the reader of output", feeder.run());
    if let Some(keeper) = keeper {
        loops.spawn_endless("the keeper of the fences", look_at_peers(cluster.clone(), keeper, Keeper::look));
    }
    let work = Work {
        loops,
        visor: cluster.visor.clone(),
        name,
        host,
        runtime: Box::new(shims::Shims::new(machine, answers.clone())),
        vault,
        answers,
        messages,
        ports: ports::Ports::new(options.ports.inclusive(), seed),
        locals,
        metrics,
        not_ready,
        pulse: Pulse::asked_for(),
        note_lease: Box::new(note_lease),
        stop_all_at_exit: options.on_exit == OnExit::Stop,
    };

    let door = Door::new(routes, registry);
    let mut serving = Serving::start(listener, door, &cluster, endpoint_end);
    let _announcing = announce(readiness, shutdown.clone());
    let ran = tokio::select! {
        ran = work.run(shutdown) => ran,
        ended = serving.ended() => Err(ended),
    };

    if let Some(groups) = groups {
        if options.on_exit == OnExit::Stop {
            groups.sweep(|_| false);
        }
        if groups.leave() {
            loopback::leave();
        }
    }
    let drained = serving.drain().await;
    match effects.fault() {
        Some(fault) => Err(fault.into()),
        None => Ok(ran.and(drained)?),
    }
}

/// Starts the tasks that only tell something once: that the host is ready, and that the coordinator is old.
fn notices(cluster: &Cluster, readiness: &Readiness, name: &HostName, url: &str) -> Loops {
    let mut loops = Loops::default();
    let cluster = cluster.clone();
    loops.spawn_once("the look at the coordinator's version", async move {
        cluster.warn_of_old_coordinator().await;
    });
    let (readiness, name, url) = (readiness.clone(), name.clone(), url.to_owned());
    loops.spawn_once("the report of readiness", async move {
        readiness.reached().await;
        tracing::info!(host = %name, url, "ready");
    });
    loops
}

/// Returns the function that writes down, for shims, until when the lease is held.
fn note_in(lease_file: PathBuf) -> impl Fn(Duration) + Send + Sync {
    move |left| {
        let at = boot_clock_ms() + u64::try_from(left.as_millis()).unwrap_or(0);
        if let Err(error) = write_file(&lease_file, &at) {
            tracing::warn!(error = %error, "can't write down until when the lease is held");
        }
    }
}

/// Finds out whether instances can have a sandbox on this machine. Blocks.
///
/// # Errors
/// Why they can't, and how to go on.
pub fn probe() -> Result<(), HostError> {
    use clap::Parser;
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        options: HostOptions,
    }
    let isolation = isolation::chosen(Some(Isolation::Sandbox))?;
    let dir = tempfile::tempdir().map_err(HostError::Probe)?;
    let folders = folders::Folders::create(dir.path())?;
    let options = Defaults::parse_from(["probe"]).options;
    let shim = start::shim_program(options.shim.clone())?;
    let nowhere = Ipv4Addr::UNSPECIFIED.into();
    let apart =
        Apart::set_up(isolation, &options, &folders, "probe0000000", &shim, nowhere, Named::default())?;
    if apart.cgroups.is_some_and(|groups| groups.leave()) {
        loopback::leave();
    }
    Ok(())
}
