//! The start of a host: its options checked against this machine, its state folder taken, and what an earlier
//! bazooka-pm left there.
//!
//! Owns everything that a host has before its loop runs, and each reason why it can't run here. It starts nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use bazooka_daemon::{Cluster, FolderError, ListenError, LoopEnded, OtherIdentity, listen};
use bazooka_sandbox::{
    isolation::Isolation,
    loopback,
    machine::{boot_id, memory_for_instances},
    sandboxes::Sandboxes,
    uids::{MARKS, Uids, UidsError},
};
use jiff::Timestamp;
use nix::errno::Errno;
use tokio::{
    net::TcpListener,
    task::JoinError,
    time::{Instant, sleep},
};
use visor::{
    identity::Kind,
    names::{HostName, InvalidName},
    rules::usage::default_slots,
    schema::{Capacity, Extra, Host},
    seal::{
        Os,
        file::{KeyFile, KeyFileError},
    },
};

use super::{
    folders::{Folders, FoldersError, StateLock},
    isolation::{self, Apart, IsolationError},
    logs::Outputs,
    model,
    options::{self, HostOptions},
    records,
    runtime::EffectsBroken,
    slugs::{Present, Slugs},
    vault::Vault,
};

/// The time for which this bazooka-pm waits for an earlier one to release the state folder.
const LOCK_WITHIN: Duration = Duration::from_secs(10);

/// The pause between two attempts to lock the state folder.
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// The reason why a host's bazooka-pm can't start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The identity is that of another part.
    #[error(transparent)]
    Identity(#[from] OtherIdentity),
    /// The machine's name can't be the host's.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Instances can't be kept apart as demanded.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// The shim program isn't there.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The state folder can't be used.
    #[error(transparent)]
    Folders(#[from] FoldersError),
    /// The state folder has no token.
    #[error(transparent)]
    Token(#[from] FolderError),
    /// The host's keys can't be used.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// Users can't be marked as this host's.
    #[error(transparent)]
    Uids(#[from] UidsError),
    /// The endpoint can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There is no room for threads.
    #[error("can't prepare the threads of work that blocks")]
    Threads(#[source] io::Error),
    /// The starts that an earlier bazooka-pm left can't be read.
    #[error("can't read the state folder")]
    Recover(#[source] JoinError),
    /// The leftovers of an earlier bazooka-pm can't be looked at.
    #[error("can't look at what runs here already, so nothing is started")]
    Unseen(#[source] io::Error),
    /// There is no folder for a probe.
    #[error("can't make a folder")]
    Probe(#[source] io::Error),
    /// Effects no longer reach the engine.
    #[error(transparent)]
    Effects(#[from] EffectsBroken),
    /// A loop ended.
    #[error(transparent)]
    Loop(#[from] LoopEnded),
}

/// A machine's name that can't be the host's.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The name can't be read.
    #[error("can't read this machine's name")]
    Read(#[source] Errno),
    /// The name is no valid host name. The advice stands after the cause, so the message holds both.
    #[error("{0}; give another with --host")]
    Invalid(InvalidName),
}

/// A shim program that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The folder of bazooka-pm isn't known.
    #[error("can't find bazooka-pm itself")]
    Own(#[source] io::Error),
    /// The path can't be resolved.
    #[error("{}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no such file.
    #[error("there is no {}; it belongs beside bazooka-pm, or name it with --shim", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
}

/// A host that is configured, and runs nothing yet.
pub(super) struct Start {
    pub name: HostName,
    /// The address at which its instances are reached.
    pub address: IpAddr,
    pub isolation: Isolation,
    pub folders: Folders,
    pub token: String,
    pub vault: Vault,
    pub shim: PathBuf,
    pub uids: Option<Uids>,
    pub listener: TcpListener,
    /// The address that the endpoint listens on.
    pub own: SocketAddr,
    pub apart: Apart,
    /// Held for as long as this bazooka-pm uses the state folder.
    pub lock: StateLock,
}

impl Start {
    /// Checks the options against this machine, takes the state folder, and opens the endpoint.
    ///
    /// # Errors
    /// [`HostError`]: the option that this machine can't meet.
    pub async fn open(
        cluster: &Cluster,
        coordinator: &[String],
        options: &HostOptions,
    ) -> Result<Start, HostError> {
        let name = match cluster.own_name(Kind::Pm, options.host.clone())? {
            Some(name) => name,
            None => machine_name()?,
        };
        let address = options.address.unwrap_or_else(options::own_address);
        let isolation = isolation::chosen(options.isolation)?;
        let shim = shim_program(options.shim.clone())?;
        let folders = Folders::create(&options.state)?;
        let lock = take(&folders).await?;
        let token = folders.token()?;
        let file = KeyFile::of(folders.root());
        let vault = Vault::new(file.load(&mut Os)?, Os, move |ring| file.retire(ring));
        let uids = match isolation {
            Isolation::Sandbox | Isolation::Uid => {
                Some(Uids::new(options.uids.inclusive(), Path::new(MARKS), folders.root())?)
            }
            Isolation::None => None,
        };
        let (listener, own) = listen(options.listen.unwrap_or_else(|| SocketAddr::new(address, 0))).await?;
        let named = isolation::named(coordinator, own, address, options)?;
        let apart = Apart::set_up(isolation, options, &folders, &token, &shim, address, named)?;
        Ok(Start { name, address, isolation, folders, token, vault, shim, uids, listener, own, apart, lock })
    }

    /// Reads what an earlier bazooka-pm left, and removes the control groups that no instance of it needs.
    ///
    /// # Errors
    /// [`HostError::Recover`], [`HostError::Unseen`].
    pub async fn take_over(&self, slugs: &Slugs) -> Result<(model::Locals, Outputs), HostError> {
        let (place, known) = (self.folders.clone(), slugs.clone());
        let found = tokio::task::spawn_blocking(move || (records::recover(&place), known.present()));
        let (recovered, present) = found.await.map_err(HostError::Recover)?;
        let mut recovered = recovered.map_err(HostError::Unseen)?;
        let outputs = Outputs::new(std::mem::take(&mut recovered.outputs));
        let locals = taken_over(recovered, present, &self.vault, &self.folders);
        if let Some(groups) = &self.apart.cgroups {
            let wanted: BTreeSet<String> = locals.instances.keys().map(ToString::to_string).collect();
            groups.sweep(|name| wanted.contains(name));
        }
        if let Some(uids) = &self.uids {
            let used: BTreeSet<u32> = locals.instances.values().filter_map(|local| local.uid).collect();
            loopback::sweep(|uid| uids.owns(uid) && !used.contains(&uid));
        }
        if !locals.instances.is_empty() {
            tracing::info!(instances = locals.instances.len(), "taking over");
        }
        Ok((locals, outputs))
    }

    /// Returns the row that registers this host.
    pub fn row(&self, cluster: &Cluster, options: &HostOptions) -> Host {
        let ports = u32::from(options.ports.1 - options.ports.0) + 1;
        let memory_bytes = options.memory.unwrap_or_else(memory_for_instances);
        // A machine that does not tell has one.
        let processors =
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let has_disks = self.apart.sandboxes.as_ref().is_some_and(Sandboxes::has_disks);
        Host {
            address: self.address,
            url: format!("{}://{}", cluster.scheme(), reachable(self.own, self.address)),
            zone: options.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema: Some(visor::schema::SCHEMA_VERSION),
            capacity: Capacity {
                memory_bytes,
                instances: options.slots.unwrap_or_else(|| default_slots(ports, memory_bytes, processors)),
                extra: Extra::new(),
            },
            isolation: isolation::in_force(self.isolation, &options.without, has_disks),
            boot_id: boot_id(),
            seal_key: Some(self.vault.public()),
            services: options.services.clone(),
            since: Timestamp::now(),
            token: self.token.clone(),
            extra: Extra::new(),
        }
    }
}

/// Builds the engine's first state from what an earlier bazooka-pm left. Envs sealed to an earlier key are sealed to
/// the current one, on disk too; that blocks.
fn taken_over(
    recovered: records::Recovered,
    present: Present,
    vault: &Vault,
    folders: &Folders,
) -> model::Locals {
    let Present { slugs, archives } = present;
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
    let mut envs = BTreeMap::new();
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
    model::Locals { instances: recovered.instances, slugs: slugs.collect(), archives, envs }
}

/// Returns the machine's name as this host's.
///
/// # Errors
/// [`NameError`].
pub(super) fn machine_name() -> Result<HostName, NameError> {
    let name = nix::unistd::gethostname().map_err(NameError::Read)?;
    name.to_string_lossy().to_lowercase().parse().map_err(NameError::Invalid)
}

/// Returns the resolved path of the shim program: the given one, else the one beside bazooka-pm.
///
/// # Errors
/// [`ShimError`].
pub(super) fn shim_program(given: Option<PathBuf>) -> Result<PathBuf, ShimError> {
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe().map_err(ShimError::Own)?.with_file_name("bazooka-shim"),
    };
    if !path.is_file() {
        return Err(ShimError::Missing { path });
    }
    path.canonicalize().map_err(|source| ShimError::Path { path, source })
}

async fn take(folders: &Folders) -> Result<StateLock, FoldersError> {
    let begun = Instant::now();
    loop {
        match folders.lock() {
            Ok(lock) => return Ok(lock),
            Err(error) if begun.elapsed() >= LOCK_WITHIN => return Err(error),
            Err(_) => sleep(LOCK_AGAIN).await,
        }
    }
}

/// Returns the address at which others reach an endpoint that may listen on every address.
fn reachable(own: SocketAddr, address: IpAddr) -> SocketAddr {
    if own.ip().is_unspecified() { SocketAddr::new(address, own.port()) } else { own }
}
