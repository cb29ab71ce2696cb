//! The isolation of a host's instances: control groups and sandboxes, as far as this machine can give them.
//!
//! Owns the choice of the isolation, and its set-up before the first instance. Each error says how to go on with less.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use bazooka_daemon::in_words;
use bazooka_sandbox::{
    cgroups::{Cgroups, CgroupsError},
    fences::Keeper,
    isolation::{Isolation, Part},
    loopback,
    sandboxes::{SandboxError, SandboxParts, Sandboxes},
    scopes_abstract_sockets,
    surroundings::{Named, UnresolvedError},
    targets::{Target, TargetError},
};

use super::{folders::Folders, options::HostOptions};

/// The reason why instances can't be kept apart as demanded.
///
/// The advice stands after the cause, so a message holds the whole chain of its cause.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// Only root can keep instances apart.
    #[error("isolation {} takes root; run as root or with --isolation none", .0.as_str())]
    NotRoot(Isolation),
    /// Memory and processor time can't be limited.
    #[error(
        "isolation sandbox can't be had here: {}; go on with --without {} (hosts will show it), or with the weaker \
         --isolation uid",
        in_words(.0), Part::Limits.as_str()
    )]
    Limits(CgroupsError),
    /// Sockets can't be fenced.
    #[error(
        "isolation sandbox can't be had here: control groups version 2, by which sockets are fenced, aren't mounted (not \
         even beside version 1); go on with --without {} (hosts will show it), or with the weaker --isolation uid",
        Part::Fence.as_str()
    )]
    Fence,
    /// A URL of the coordinator has no address in it.
    #[error("the coordinator's URL {url} can't be read, so sockets can't be fenced from it")]
    Url {
        /// The URL.
        url: String,
        /// The kind of an address.
        source: TargetError,
    },
    /// A name has no address.
    #[error(
        "isolation sandbox can't be had here: {}; name an address instead, or go on with --without {} (hosts will show \
         it)",
        in_words(.0), Part::Fence.as_str()
    )]
    Unresolved(UnresolvedError),
    /// The folders of sandboxes can't be set up.
    #[error(
        "isolation sandbox can't be had here: {}; where it is about a loopback, go on with --without {} (hosts will \
         show it)",
        in_words(.0), Part::Fence.as_str()
    )]
    SetUp(SandboxError),
    /// Nothing can be started in a sandbox.
    #[error(
        "isolation sandbox can't be had here: {}; it takes Linux 5.12 or later, and root in the machine's own \
         namespaces; go on with the weaker --isolation uid, or, where it is about limits or the fence, with \
         --without limits or --without fence",
        in_words(.0)
    )]
    Trial(SandboxError),
}

/// Chooses the isolation of this host's instances.
///
/// # Errors
/// [`IsolationError::NotRoot`].
pub fn chosen(wanted: Option<Isolation>) -> Result<Isolation, IsolationError> {
    let root = nix::unistd::geteuid().is_root();
    match wanted {
        Some(kind @ (Isolation::Sandbox | Isolation::Uid)) if !root => Err(IsolationError::NotRoot(kind)),
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
///
/// `has_disks` tells whether instances may have layers of their own over `/app`.
pub fn in_force(isolation: Isolation, without: &[Part], has_disks: bool) -> String {
    let mut words = isolation.as_str().to_owned();
    let left_out: BTreeSet<Part> = without.iter().copied().collect();
    if isolation == Isolation::Sandbox && !left_out.is_empty() {
        let left_out: Vec<&str> = left_out.into_iter().map(Part::as_str).collect();
        words.push_str(&format!(" without {}", left_out.join(" and ")));
    }
    // A kernel that can't tell the abstract sockets of instances from others'.
    if isolation == Isolation::Sandbox && !without.contains(&Part::Fence) && !scopes_abstract_sockets() {
        words.push_str(", abstract sockets open");
    }
    if isolation == Isolation::Sandbox && !has_disks {
        words.push_str(", /app read-only");
    }
    words
}

/// The means that keep instances apart, beside their users.
pub struct Apart {
    /// The control groups that limit memory and processor time, if the machine has them.
    pub cgroups: Option<Cgroups>,
    /// The parts of sandboxes, if instances have one.
    pub sandboxes: Option<Sandboxes>,
    /// The keeper of their fences, if they have them.
    pub keeper: Option<Keeper>,
}

/// Returns the targets that a host's fences know from its settings. `own` is the daemon's endpoint.
///
/// # Errors
/// [`IsolationError::Url`].
pub fn named(
    coordinator: &[String],
    own: SocketAddr,
    address: IpAddr,
    options: &HostOptions,
) -> Result<Named, IsolationError> {
    let mut named = Named::default();
    for url in coordinator {
        let target = Target::of_url(url);
        named.closed.insert(target.map_err(|source| IsolationError::Url { url: url.clone(), source })?);
    }
    named.closed.insert(Target::at(own.ip(), own.port()));
    named.closed.extend(options.closed.iter().cloned());
    let (first, last) = (options.ports.0, options.ports.1);
    named.open.insert(Target::ports(address, first, last));
    named.open.extend(options.open.iter().cloned());
    named.services = options.services.as_ref().map(|services| Target::of_host(&services.to_string()));
    named.reserved.push((first, last));
    Ok(named)
}

impl Apart {
    /// Sets up the means that keep instances apart on this machine. Blocks for some ten milliseconds, before any other
    /// work starts.
    ///
    /// # Errors
    /// The demanded part that this machine can't give, and how to go on.
    pub fn set_up(
        isolation: Isolation,
        options: &HostOptions,
        folders: &Folders,
        token: &str,
        shim: &Path,
        address: IpAddr,
        named: Named,
    ) -> Result<Apart, IsolationError> {
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
            return Ok(Apart { cgroups, sandboxes: None, keeper: None });
        }
        let does_without = |part: Part| options.without.contains(&part);
        let cgroups = match cgroups {
            Some(Ok(cgroups)) => Some(cgroups),
            Some(Err(cause)) if !does_without(Part::Limits) => return Err(IsolationError::Limits(cause)),
            _ => None,
        };
        let made = if !does_without(Part::Fence) && !cgroups.as_ref().is_some_and(Cgroups::can_fence) {
            Err(IsolationError::Fence)
        } else {
            let keeper = (!does_without(Part::Fence)).then(|| Keeper::begin(address, named)).transpose();
            keeper.map_err(IsolationError::Unresolved).and_then(|keeper| {
                let made = sandboxes(options, folders, shim, cgroups.as_ref(), keeper.as_ref());
                made.map(|sandboxes| (sandboxes, keeper))
            })
        };
        match made {
            Ok((sandboxes, keeper)) => Ok(Apart { cgroups, sandboxes: Some(sandboxes), keeper }),
            Err(error) => {
                if cgroups.is_some_and(|groups| groups.leave()) {
                    loopback::leave();
                }
                Err(error)
            }
        }
    }
}

/// Sets up sandboxes and tries one out.
fn sandboxes(
    options: &HostOptions,
    folders: &Folders,
    shim: &Path,
    cgroups: Option<&Cgroups>,
    keeper: Option<&Keeper>,
) -> Result<Sandboxes, IsolationError> {
    let sandboxes = Sandboxes::new(SandboxParts {
        state: folders.root(),
        stack: options.stack.as_deref(),
        more_of_etc: &[],
        tmp_bytes: options.tmp,
        has_disks: true,
        fences: keeper.map(Keeper::fences),
    })
    .map_err(IsolationError::SetUp)?;
    let uid = *options.uids.inclusive().start();
    let Err(error) = sandboxes.try_out(shim, folders.root(), cgroups, uid) else { return Ok(sandboxes) };
    // A machine without loop devices, or whose file system can't map users, has sandboxes all the same.
    let sandboxes = sandboxes.without_disks();
    sandboxes.try_out(shim, folders.root(), cgroups, uid).map_err(IsolationError::Trial)?;
    tracing::warn!(
        error = in_words(&error),
        "INSTANCES CAN'T WRITE IN /app AND /tmp IS MEMORY: disks of their own can't be made here"
    );
    Ok(sandboxes)
}
