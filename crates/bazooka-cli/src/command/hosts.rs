//! `bazooka hosts`: the hosts with their resources, and taking a host out of service.
//!
//! An operator's override of a host is a row beside its registration, so it stays while the host is away. `drain`
//! waits until the host is empty; the other actions end once the row is written.

mod bound;
mod drain;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::Serialize;
use visor::{
    deadlines::HOST_DISAPPEARS,
    keys::{self, Key},
    names::{HostName, ZoneName},
    progress::frozen_words,
    rules::usage::Used,
    schema::HostMeta,
    snapshot::{HostView, Snapshot},
    store::Keys,
    visor::{Refusal, VisorError},
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::Context,
    failure::{Result, unknown},
    show::{Table, bytes, put_json, put_line, say},
};

/// List the hosts with their capacity; take a host out of service, and back
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do [default: list]
    #[command(subcommand)]
    pub action: Option<Action>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(self.action.is_some(), Audited::WordsOfNoApp)
    }
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Place no new instances on a host
    Cordon {
        /// The host
        host: HostName,
    },
    /// Place instances on a cordoned or drained host again
    Uncordon {
        /// The host
        host: HostName,
    },
    /// Replace a host's instances on other hosts, then stop them; no new instances are placed there
    Drain {
        /// The host
        host: HostName,
        /// Return without waiting until the change is in force
        #[arg(long)]
        no_wait: bool,
    },
    /// Name what counts of a host, whatever it says itself; `own` takes a word back
    Bound {
        /// The host
        host: HostName,
        /// What is named
        #[command(flatten)]
        bounds: bound::Bounds,
    },
    /// Remove a host that is gone from the list, with its overrides; waits until its lease has ended
    Forget {
        /// The host
        host: HostName,
    },
    /// Give up hosts that vanished at the same time: their instances are replaced on other hosts
    Unfreeze,
}

/// Lists the hosts, or carries out an action on one.
///
/// # Errors
/// Unknown hosts; nothing to unfreeze; a host that can't be drained.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let (host, words, mark): (HostName, &str, fn(&mut HostMeta)) = match args.action {
        None => return list(context).await,
        Some(Action::Unfreeze) => return unfreeze(context).await,
        Some(Action::Forget { host }) => {
            known(context, &host).await?;
            return forget(context, &host).await;
        }
        Some(Action::Bound { host, bounds }) => {
            known(context, &host).await?;
            return bound::run(context, &host, &bounds).await;
        }
        Some(Action::Drain { host, no_wait }) => {
            known(context, &host).await?;
            return drain::run(context, &host, no_wait).await;
        }
        Some(Action::Cordon { host }) => {
            (host, "cordoned: nothing new is placed there", |meta| meta.cordoned = true)
        }
        Some(Action::Uncordon { host }) => {
            (host, "open", |meta| (meta.cordoned, meta.draining) = (false, false))
        }
    };
    known(context, &host).await?;
    context.visor.mark_host(&host, mark).await?;
    put_line(&format!("{host} is {words}"));
    Ok(())
}

/// Checks that a host is or was registered, so that a typing error isn't written as an override.
async fn known(context: &Context, host: &HostName) -> Result<()> {
    let snapshot = context.visor.read(keys::host(host)).await?;
    let mut unreadable = snapshot.unreadable.keys();
    if snapshot.hosts.contains_key(host) || unreadable.any(|key| *key == Key::Host(host.clone()).to_string())
    {
        return Ok(());
    }
    let all = context.visor.read(vec![keys::hosts(), keys::host_metas()]).await?;
    let names = all.hosts.keys().map(HostName::as_str);
    Err(unknown(format!("there is no host '{host}'"), host.as_str(), names, "hosts"))
}

async fn forget(context: &Context, host: &HostName) -> Result<()> {
    let deadline = Instant::now() + HOST_DISAPPEARS;
    let mut told = false;
    loop {
        match context.visor.forget_host(host).await {
            Ok(()) => break,
            // Wait only for a drained host: if instances run there, the host hasn't been stopped to be removed.
            Err(VisorError::Refused(Refusal::HostThere(_)))
                if Instant::now() < deadline && is_empty(context, host).await? =>
            {
                if !told {
                    say(&format!("waiting until {host} has gone"));
                }
                told = true;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    put_line(&format!("{host} is forgotten"));
    Ok(())
}

/// Reports whether a host is drained and empty.
async fn is_empty(context: &Context, host: &HostName) -> Result<bool> {
    let snapshot = context.visor.read(keys::host(host)).await?;
    Ok(snapshot.hosts.get(host).is_none_or(|view| {
        view.assigned.is_empty() && view.meta.as_ref().is_some_and(|meta| meta.draining || meta.cordoned)
    }))
}

async fn unfreeze(context: &Context) -> Result<()> {
    let hosts = context.visor.unfreeze(&context.who, context.now()).await?;
    let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
    put_line(&format!("given up: {}", hosts.join(", ")));
    Ok(())
}

/// The state of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    /// The host takes instances.
    Up,
    /// The host takes no new instances.
    Cordoned,
    /// The host's instances are being replaced elsewhere.
    Draining,
    /// The host is empty, and takes no new instances.
    Drained,
    /// The host's registration can't be read.
    Unreadable,
    /// The host's lease has ended.
    Gone,
    /// The host's lease has ended, together with so many others that none of their instances is replaced.
    Frozen,
}

impl Standing {
    fn word(self) -> &'static str {
        match self {
            Standing::Up => "up",
            Standing::Cordoned => "cordoned",
            Standing::Draining => "draining",
            Standing::Drained => "drained",
            Standing::Unreadable => "unreadable",
            Standing::Gone => "gone",
            Standing::Frozen => "frozen",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    host: HostName,
    state: Standing,
    zone: Option<ZoneName>,
    version: Option<String>,
    address: Option<IpAddr>,
    isolation: Option<String>,
    cordoned: bool,
    draining: bool,
    instances: u32,
    instances_capacity: Option<u32>,
    memory_used_bytes: u64,
    memory_capacity_bytes: Option<u64>,
}

async fn list(context: &Context) -> Result<()> {
    let leader = Keys::One(Key::Leader.to_string());
    let scopes = vec![keys::hosts(), keys::host_metas(), keys::all_assigned(), keys::all_statuses(), leader];
    let snapshot = context.visor.read(scopes).await?;
    let rows = rows(&snapshot);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    table(&rows).put();
    if let Some(frozen) = snapshot.leader.as_ref().and_then(|leader| leader.frozen.as_ref()) {
        say(&format!("{}; hint: `bazooka hosts unfreeze` gives them up", frozen_words(frozen)));
    }
    Ok(())
}

/// Returns each host that is registered or of which rows remain.
fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let unreadable = |name: &HostName| snapshot.unreadable.contains_key(&Key::Host(name.clone()).to_string());
    let is_told = |name: &HostName, view: &HostView| {
        let marked = view.meta.as_ref().is_some_and(|meta| meta.cordoned || meta.draining);
        view.host.is_some()
            || unreadable(name)
            || marked
            || !view.assigned.is_empty()
            || !view.status.is_empty()
    };
    let frozen = snapshot.leader.as_ref().and_then(|leader| leader.frozen.as_ref());
    let row = |(name, view): (&HostName, &HostView)| {
        let meta = view.meta.as_ref().map(|meta| meta.value.clone()).unwrap_or_default();
        let used = Used::of(view);
        let host = view.host.as_ref();
        let state = match host {
            None if unreadable(name) => Standing::Unreadable,
            None if frozen.is_some_and(|frozen| frozen.hosts.contains(name)) => Standing::Frozen,
            None => Standing::Gone,
            Some(_) if meta.draining && used.instances == 0 => Standing::Drained,
            Some(_) if meta.draining => Standing::Draining,
            Some(_) if meta.cordoned => Standing::Cordoned,
            Some(_) => Standing::Up,
        };
        Row {
            host: name.clone(),
            state,
            zone: host.map(|host| host.zone.clone()),
            version: host.map(|host| host.version.clone()),
            address: host.map(|host| host.address),
            isolation: host.map(|host| host.isolation.clone()),
            cordoned: meta.cordoned,
            draining: meta.draining,
            instances: used.instances,
            instances_capacity: host.map(|host| host.capacity.instances),
            memory_used_bytes: used.memory_bytes,
            memory_capacity_bytes: host.map(|host| host.capacity.memory_bytes),
        }
    };
    snapshot.hosts.iter().filter(|(name, view)| is_told(name, view)).map(row).collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "HOST",
        "ZONE",
        "STATE",
        "VERSION",
        "ADDRESS",
        "INSTANCES",
        "FREE-SLOTS",
        "MEMORY",
        "FREE-MEMORY",
        "ISOLATION",
    ]);
    for row in rows {
        let free_slots = row.instances_capacity.map(|capacity| capacity.saturating_sub(row.instances));
        let free_memory =
            row.memory_capacity_bytes.map(|capacity| capacity.saturating_sub(row.memory_used_bytes));
        table.row([
            row.host.to_string(),
            row.zone.as_ref().map(ZoneName::to_string).unwrap_or_default(),
            row.state.word().to_owned(),
            row.version.clone().unwrap_or_default(),
            row.address.map(|address| address.to_string()).unwrap_or_default(),
            row.instances.to_string(),
            free_slots.map(|free| free.to_string()).unwrap_or_default(),
            bytes(row.memory_used_bytes),
            free_memory.map(bytes).unwrap_or_default(),
            row.isolation.clone().unwrap_or_default(),
        ]);
    }
    table
}
