//! The host's part of bazooka-pm: claims what is assigned to this host, runs it, and reports each instance's state.
//!
//! Owns the start-up, which connects the parts. Running instances go on whatever happens to the coordinator; only a
//! fresh, complete list of assignments ends an instance.
//!
//! ```text
//! mirror (assigned/H/) ─▶┐  engine            ┌─▶ reports (status/H/)
//! register (hosts/H) ───▶│  observe─plan─enact├─▶ runtime: shims ─▶ process (shims) ─▶ instances
//! answers of effects ───▶┘                    │     checks, slugs, records (state folder)
//! ```

mod checks;
mod engine;
mod environment;
mod envs;
mod faults;
mod folders;
mod found;
mod held;
mod listeners;
mod logs;
mod metrics;
mod model;
mod observe;
mod options;
mod plan;
mod policy;
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
mod status;
mod touch;
mod trace;
mod vault;
mod work;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bazooka_daemon::{
    Cluster, Loops, Readiness, Serving, common_routes, in_words, listen,
    supervisor::{Pulse, announce},
};
use bazooka_sandbox::{
    cgroups::Cgroups,
    files::write_file,
    isolation::{Isolation, Part},
    machine::{boot_clock_ms, boot_id, memory_for_instances},
    sandboxes::{SandboxParts, Sandboxes, resolved},
    uids::{MARKS, Uids},
};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use visor::{
    identity::Kind,
    names::{Digest, HostName},
    schema::{Capacity, Extra, Host},
    seal::{Os, file::KeyFile},
};

pub use faults::faults;
pub use options::{HostOptions, OnExit};

use runtime::Answers;
use work::Work;

/// The host's loop, and the interface to the machine below it, which the simulation implements.
#[cfg(feature = "testing")]
pub mod testing {
    pub use super::{
        metrics::Metrics,
        model::{Ending, EnvState, Local, Locals, Now, SlugState, Tick},
        observe::Event,
        ports::Ports,
        records::{Note, Traces},
        runtime::{Answers, Booting, Given, Message, Runtime},
        vault::Vault,
        work::Work,
    };
}

/// The time for which this bazooka-pm waits for an earlier one to release the state folder.
const LOCK_WITHIN: Duration = Duration::from_secs(10);

/// Runs the host's part until `shutdown`.
///
/// # Errors
/// In words for the user: which option this machine can't meet, that effects no longer reach the engine, or the loop that
/// ended.
pub async fn run(
    cluster: Cluster,
    coordinator: &[String],
    options: HostOptions,
    shutdown: CancellationToken,
) -> Result<(), String> {
    let name = match cluster.own_name(Kind::Pm, options.host.clone()).map_err(|error| error.to_string())? {
        Some(name) => name,
        None => machine_name()?,
    };
    let address = options.address.unwrap_or_else(options::own_address);
    let isolation = isolation(options.isolation)?;
    let shim = shim_program(options.shim.clone())?;
    let folders = folders::Folders::create(&options.state)?;
    let _lock = take(&folders).await?;
    let token = folders.token()?;
    let file = KeyFile::of(folders.root());
    let vault = vault::Vault::new(file.load(&mut Os)?, Os, move |ring| file.retire(ring));
    let uids = match isolation {
        Isolation::Sandbox | Isolation::Uid => Some(
            Uids::new(options.uids.inclusive(), Path::new(MARKS), folders.root())
                .map_err(|error| in_words(&error))?,
        ),
        Isolation::None => None,
    };
    let listen_on = options.listen.unwrap_or_else(|| SocketAddr::new(address, 0));
    let (listener, own) = listen(listen_on).await.map_err(|error| in_words(&error))?;
    let Kept { cgroups, sandboxes } = kept_apart(isolation, &options, &folders, &token, &shim, {
        let mut closed = resolved(coordinator);
        closed.push(own);
        closed.extend(&options.closed);
        closed
    })?;

    let slugs = slugs::Slugs::new(folders.clone(), cluster.credentials.as_ref());
    let (place, known) = (folders.clone(), slugs.clone());
    let found = tokio::task::spawn_blocking(move || (records::recover(&place), known.present()));
    let (recovered, present) =
        found.await.map_err(|error| format!("can't read the state folder: {error}"))?;
    let locals = taken_over(recovered, present, &vault, &folders);
    if let Some(groups) = &cgroups {
        let wanted: BTreeSet<String> = locals.instances.keys().map(ToString::to_string).collect();
        groups.sweep(|name| wanted.contains(name));
    }
    if !locals.instances.is_empty() {
        tracing::info!(instances = locals.instances.len(), "taking over");
    }

    let url = format!("{}://{}", cluster.scheme(), reachable(own, address));
    let range = options.ports;
    let host = Host {
        address,
        url: url.clone(),
        zone: options.zone,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schema: Some(visor::schema::SCHEMA_VERSION),
        capacity: Capacity {
            memory_bytes: options.memory.unwrap_or_else(memory_for_instances),
            instances: options.slots.unwrap_or_else(|| u32::from(range.1 - range.0) + 1),
            extra: Extra::new(),
        },
        isolation: in_force(isolation, &options.without),
        boot_id: boot_id(),
        seal_key: Some(vault.public()),
        services: options.services,
        since: Timestamp::now(),
        token,
        extra: Extra::new(),
    };

    let readiness = Readiness::default();
    let not_ready = readiness.hold();
    let registry = Arc::new(Mutex::new(Registry::default()));
    let metrics = metrics::Metrics::register(&mut registry.lock().expect("nobody else has it yet"));
    let endpoint_end = CancellationToken::new();
    let (answers, messages) = Answers::channel();
    let routes = common_routes(readiness.clone(), registry, &cluster)
        .merge(logs::routes(folders.clone(), cluster.clone(), endpoint_end.clone()))
        .merge(found::routes(answers.clone()));
    let mut serving = Serving::start(listener, routes, &cluster, endpoint_end);

    let lease_file = folders.lease_file();
    let note_lease = move |left: Duration| {
        let at = boot_clock_ms() + u64::try_from(left.as_millis()).unwrap_or(0);
        if let Err(error) = write_file(&lease_file, &at) {
            tracing::warn!(error = %error, "can't write down until when the lease is held");
        }
    };
    let own_groups = cgroups.clone();
    let machine =
        shims::Machine { host: name.clone(), address, folders, shim, slugs, uids, cgroups, sandboxes };
    let seed = u16::try_from(std::process::id() % 65_521).expect("it is below 65,536");
    let mut loops = Loops::default();
    let warning = cluster.clone();
    loops.spawn_once("the look at the coordinator's version", async move {
        warning.warn_of_old_coordinator().await;
    });
    let announced = readiness.clone();
    loops.spawn_once("the report of readiness", async move {
        announced.reached().await;
        tracing::info!(host = %ready, url, "ready");
    });
    let (effects, ready) = (answers.clone(), name.clone());
    let work = Work {
        visor: cluster.visor,
        name,
        host,
        loops,
        runtime: Box::new(shims::Shims::new(machine, answers.clone())),
        vault,
        answers,
        messages,
        ports: ports::Ports::new(range.inclusive(), seed),
        locals,
        metrics,
        not_ready,
        pulse: Pulse::asked_for(),
        note_lease: Box::new(note_lease),
        stop_all_at_exit: options.on_exit == OnExit::Stop,
    };
    let _announcing = announce(readiness, shutdown.clone());
    let ran = tokio::select! {
        ran = work.run(shutdown) => ran,
        ended = serving.ended() => Err(ended),
    };
    if let Some(groups) = own_groups {
        if options.on_exit == OnExit::Stop {
            groups.sweep(|_| false);
        }
        groups.leave();
    }
    let drained = serving.drain().await;
    effects.fault().map_or(Ok(()), |fault| Err(fault.to_string()))?;
    ran.and(drained).map_err(|ended| in_words(&ended))
}

/// Finds out whether instances can have a sandbox on this machine. Blocks.
///
/// # Errors
/// Why they can't, and how to go on.
pub fn probe() -> Result<(), String> {
    use clap::Parser;
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        options: HostOptions,
    }
    isolation(Some(Isolation::Sandbox))?;
    let dir = tempfile::tempdir().map_err(|error| format!("can't make a folder: {error}"))?;
    let folders = folders::Folders::create(dir.path())?;
    let options = Defaults::parse_from(["probe"]).options;
    let shim = shim_program(options.shim.clone())?;
    let kept = kept_apart(Isolation::Sandbox, &options, &folders, "probe0000000", &shim, Vec::new())?;
    if let Some(groups) = kept.cgroups {
        groups.leave();
    }
    Ok(())
}

/// Builds the engine's first state from what an earlier bazooka-pm left. Envs sealed to an earlier key are sealed to
/// the current one, on disk too; that blocks.
fn taken_over(
    recovered: records::Recovered,
    slugs: impl IntoIterator<Item = Digest>,
    vault: &vault::Vault,
    folders: &folders::Folders,
) -> model::Locals {
    let slugs = slugs.into_iter().map(|digest| (digest, model::SlugState::Ready));
    let plain = recovered.plain_envs.into_iter();
    let kept = plain.map(|((app, env), vars)| {
        let handed = vault.keep(&app, env, &vars);
        ((app, env), None, Ok(handed))
    });
    let sealed = recovered.envs.into_iter().map(|(key, handed)| {
        let renewed = vault.renewed(&handed);
        (key, Some(handed), renewed)
    });
    let mut envs = std::collections::BTreeMap::new();
    for ((app, env), before, now) in kept.chain(sealed) {
        match now {
            Ok(handed) => {
                if before.as_ref() != Some(&handed)
                    && let Err(error) = records::keep_env(folders, &app, env, &handed)
                {
                    tracing::warn!(%app, %env, error = %error, "can't write an env down under the current key");
                }
                envs.insert((app, env), model::EnvState::Ready(handed));
            }
            // The env is read again when an instance needs it.
            Err(error) => {
                tracing::warn!(%app, %env, error = %error, "can't open an env that was written down")
            }
        }
    }
    model::Locals { instances: recovered.instances, slugs: slugs.collect(), envs }
}

fn machine_name() -> Result<HostName, String> {
    let name =
        nix::unistd::gethostname().map_err(|error| format!("can't read this machine's name: {error}"))?;
    let name = name.to_string_lossy().to_lowercase();
    name.parse().map_err(|error| format!("{error}; give another with --host"))
}

fn isolation(wanted: Option<Isolation>) -> Result<Isolation, String> {
    let root = nix::unistd::geteuid().is_root();
    match wanted {
        Some(kind @ (Isolation::Sandbox | Isolation::Uid)) if !root => {
            let kind = kind.as_str();
            Err(format!("isolation {kind} takes root; run as root or with --isolation none"))
        }
        Some(kind @ (Isolation::Sandbox | Isolation::Uid)) => Ok(kind),
        None if root => Ok(Isolation::Sandbox),
        None | Some(Isolation::None) => {
            tracing::warn!(
                "INSTANCES ARE NOT KEPT APART: they run as the user of bazooka-pm and can read and end each other"
            );
            Ok(Isolation::None)
        }
    }
}

/// Describes the isolation in force, as the host's registration shows it.
fn in_force(isolation: Isolation, without: &[Part]) -> String {
    let mut words = isolation.as_str().to_owned();
    let left_out: BTreeSet<Part> = without.iter().copied().collect();
    if isolation == Isolation::Sandbox && !left_out.is_empty() {
        let left_out: Vec<&str> = left_out.into_iter().map(Part::as_str).collect();
        words.push_str(&format!(" without {}", left_out.join(" and ")));
    }
    words
}

/// The means that keep instances apart, beside their users.
struct Kept {
    cgroups: Option<Cgroups>,
    sandboxes: Option<Sandboxes>,
}

/// Sets up the means that keep instances apart on this machine. Blocks for some ten milliseconds, before any other
/// work starts.
///
/// # Errors
/// The demanded part that this machine can't give, and how to go on.
fn kept_apart(
    isolation: Isolation,
    options: &HostOptions,
    folders: &folders::Folders,
    token: &str,
    shim: &Path,
    closed: Vec<SocketAddr>,
) -> Result<Kept, String> {
    let is_root = nix::unistd::geteuid().is_root();
    let cgroups = is_root.then(|| Cgroups::find(&token[..12]));
    if isolation != Isolation::Sandbox {
        let cgroups = cgroups.and_then(|found| {
            found
                .inspect_err(|error| {
                    tracing::warn!(error = in_words(error), "memory and processor can't be limited here");
                })
                .ok()
        });
        return Ok(Kept { cgroups, sandboxes: None });
    }
    let lacking = |part: Part, cause: &str| {
        format!(
            "isolation sandbox can't be had here: {cause}; go on with --without {} (hosts will show it), or with the weaker --isolation uid",
            part.as_str()
        )
    };
    let does_without = |part: Part| options.without.contains(&part);
    let cgroups = match cgroups {
        Some(Ok(cgroups)) => Some(cgroups),
        Some(Err(cause)) if !does_without(Part::Limits) => {
            return Err(lacking(Part::Limits, &in_words(&cause)));
        }
        _ => None,
    };
    if !does_without(Part::Fence) && !cgroups.as_ref().is_some_and(Cgroups::can_fence) {
        let cause = "control groups version 2, by which sockets are fenced, aren't mounted (not even beside version 1)";
        if let Some(groups) = cgroups {
            groups.leave();
        }
        return Err(lacking(Part::Fence, cause));
    }
    let closed = (!does_without(Part::Fence)).then_some(closed.as_slice());
    match sandboxes(options, folders, shim, cgroups.as_ref(), closed) {
        Ok(sandboxes) => Ok(Kept { cgroups, sandboxes: Some(sandboxes) }),
        Err(cause) => {
            if let Some(groups) = cgroups {
                groups.leave();
            }
            Err(cause)
        }
    }
}

/// Sets up sandboxes and tries one out.
fn sandboxes(
    options: &HostOptions,
    folders: &folders::Folders,
    shim: &Path,
    cgroups: Option<&Cgroups>,
    closed: Option<&[SocketAddr]>,
) -> Result<Sandboxes, String> {
    let sandboxes = Sandboxes::new(SandboxParts {
        state: folders.root(),
        stack: options.stack.as_deref(),
        more_of_etc: &[],
        tmp_bytes: options.tmp,
        closed,
    })
    .map_err(|error| in_words(&error))?;
    let tried = sandboxes.try_out(shim, folders.root(), cgroups, *options.uids.inclusive().start());
    tried.map_err(|error| {
        let cause = in_words(&error);
        format!(
            "isolation sandbox can't be had here: {cause}; it takes Linux 5.12 or later, and root in the machine's own \
             namespaces; go on with the weaker --isolation uid, or, where it is about limits or the fence, with \
             --without limits or --without fence"
        )
    })?;
    Ok(sandboxes)
}

fn shim_program(given: Option<PathBuf>) -> Result<PathBuf, String> {
    let path = match given {
        Some(path) => path,
        None => {
            let own =
                std::env::current_exe().map_err(|error| format!("can't find bazooka-pm itself: {error}"))?;
            own.with_file_name("bazooka-shim")
        }
    };
    if path.is_file() {
        return path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
    }
    Err(format!("there is no {}; it belongs beside bazooka-pm, or name it with --shim", path.display()))
}

async fn take(folders: &folders::Folders) -> Result<folders::StateLock, String> {
    let begun = tokio::time::Instant::now();
    loop {
        match folders.lock() {
            Ok(lock) => return Ok(lock),
            Err(error) if begun.elapsed() >= LOCK_WITHIN => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Returns the address at which others reach an endpoint that may listen on every address.
fn reachable(own: SocketAddr, address: IpAddr) -> SocketAddr {
    if own.ip().is_unspecified() { SocketAddr::new(address, own.port()) } else { own }
}
