//! The isolation of a host's instances: control groups and sandboxes, as far as this machine can give them.
//!
//! Owns the choice of the isolation, and its set-up before the first instance. Each error says how to go on with less.

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use bazooka_daemon::in_words;
use bazooka_sandbox::{
    cgroups::{Cgroups, CgroupsError},
    isolation::{Isolation, Part},
    sandboxes::{SandboxError, SandboxParts, Sandboxes},
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
    /// The folders of sandboxes can't be set up.
    #[error(transparent)]
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
pub fn in_force(isolation: Isolation, without: &[Part]) -> String {
    let mut words = isolation.as_str().to_owned();
    let left_out: BTreeSet<Part> = without.iter().copied().collect();
    if isolation == Isolation::Sandbox && !left_out.is_empty() {
        let left_out: Vec<&str> = left_out.into_iter().map(Part::as_str).collect();
        words.push_str(&format!(" without {}", left_out.join(" and ")));
    }
    words
}

/// The means that keep instances apart, beside their users.
pub struct Apart {
    /// The control groups that limit memory and processor time, if the machine has them.
    pub cgroups: Option<Cgroups>,
    /// The parts of sandboxes, if instances have one.
    pub sandboxes: Option<Sandboxes>,
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
        closed: Vec<SocketAddr>,
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
            return Ok(Apart { cgroups, sandboxes: None });
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
            let closed = (!does_without(Part::Fence)).then_some(closed.as_slice());
            sandboxes(options, folders, shim, cgroups.as_ref(), closed)
        };
        match made {
            Ok(sandboxes) => Ok(Apart { cgroups, sandboxes: Some(sandboxes) }),
            Err(error) => {
                if let Some(groups) = cgroups {
                    groups.leave();
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
    closed: Option<&[SocketAddr]>,
) -> Result<Sandboxes, IsolationError> {
    let sandboxes = Sandboxes::new(SandboxParts {
        state: folders.root(),
        stack: options.stack.as_deref(),
        more_of_etc: &[],
        tmp_bytes: options.tmp,
        closed,
    })
    .map_err(IsolationError::SetUp)?;
    let uid = *options.uids.inclusive().start();
    sandboxes.try_out(shim, folders.root(), cgroups, uid).map_err(IsolationError::Trial)?;
    Ok(sandboxes)
}
