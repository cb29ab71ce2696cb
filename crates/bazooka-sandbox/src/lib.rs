//! The sandbox that instances and builds run in, and the small process that supervises each of them.
//!
//! Owns the way from a shell command to processes with exactly the rights that they should have on the machine, and
//! the end of all these processes. It never decides what runs, and knows nothing of apps, hosts or the coordinator.
//!
//! Who calls whom, and across which process:
//!
//! ```text
//! bazooka-pm                                     bazooka-rm
//!   isolation, cgroups, uids, sandboxes            the same, for builds
//!   unpack (a slug)                                │
//!   │ LaunchSpec (with a SandboxSpec and Groups)   │ LaunchSpec
//!   ▼ start: SpawnedShim                           ▼ a process of its own program (build::supervisor)
//! ══ process boundary: the file of `protocol`, a socket ═══════ stdin, a pipe ══════════════════════════
//! bazooka-shim (shim, shim::output)              the supervisor
//!   │      groups: made here, removed here         │
//!   └──────────────▶ launch ◀──────────────────────┘
//!                      │ plain: fork, own user, exec
//!                      │ sandboxed: clone into new namespaces, born in its group, fenced (fence)
//! ══ process boundary: namespaces, a socket ════════════════════════════════════════════════════════════
//! init (process 1): root (with disks) ─▶ no rights ─▶ seccomp ─▶ exec; reaps, and reports how the command ended
//! ══ process boundary ══════════════════════════════════════════════════════════════════════════════════
//! the command, as a user of its own; family: all that descends from it, for signals
//! ```
//!
//! | question | asked of | answer |
//! |---|---|---|
//! | which isolation does this machine have? | [`isolation`], [`cgroups::Cgroups::find`], [`sandboxes::Sandboxes::new`] | a choice, tried at start |
//! | which user, groups and root for an instance? | [`uids::Uids::choose`], [`cgroups::Cgroups::of`], [`sandboxes::Sandboxes::of`] | parts of a [`protocol::LaunchSpec`] |
//! | which addresses are closed, which open? | [`surroundings`], [`fences::Fences`] | [`protocol::Rules`], renewed while it runs |
//! | start it | [`start::SpawnedShim`] or [`launch::launch`] | [`protocol::Answer`] or [`launch::Launched`] |
//! | how did it end? | [`protocol::Start::read`] or [`init::InitSocket::ended`] | [`protocol::ExitRecord`] |

pub mod cgroups;
pub mod disks;
mod etc;
pub mod family;
mod fence;
pub mod fences;
pub mod files;
pub mod groups;
pub mod init;
pub mod ipc;
pub mod isolation;
mod landlock;
pub mod launch;
pub mod loopback;
pub mod machine;
mod netlink;
pub mod protocol;
mod root;
pub mod sandboxes;
mod seccomp;
pub mod shim;
pub mod start;
pub mod surroundings;
pub mod targets;
pub mod uids;
pub mod unpack;

use std::error::Error;

pub use etc::EtcError;
pub use fence::{EncloseError, FenceError};
pub use landlock::scopes_abstract_sockets;
pub use root::RootError;

/// Formats an error with its chain of sources in one line, for a socket or a log.
fn in_one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    line
}
