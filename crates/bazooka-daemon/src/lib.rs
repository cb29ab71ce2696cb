//! The outside of a program of the cluster: its settings, its log, its readiness, and its endpoint.
//!
//! Owns everything that the four programs share and that visor must not know: options and their files, systemd, HTTP.
//! It decides nothing about apps or hosts. A daemon's start fits one screen:
//!
//! ```text
//! settings::read ─▶ init_logs ─▶ shutdown ─▶ CoordinatorArgs::cluster ─▶ listen ─▶ announce ─▶ the daemon's own loop
//!  options, file     stderr or    SIGTERM      visor, as this identity     │         systemd        │ Pulse::beat
//!  and their faults  the journal  SIGINT                                   └─▶ Serving: routes     │ NotReady dropped
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `settings` | a program's settings: command line, environment, file |
//! | `documents` | manual pages and completions |
//! | `cluster` | the connection to the coordinator, and this part's identity |
//! | `logs`, `journal` | log lines |
//! | `signals`, `readiness`, `supervisor` | a daemon's life from start to end, and what systemd learns of it |
//! | `open_files` | the limit of open files |
//! | `loops` | a daemon's tasks, and what their ends mean |
//! | `peers` | the coordinator's members, asked for again and again |
//! | `allocator` | the settings of the C library's allocator |
//! | `folder` | the token that names a state folder |
//! | `git_token` | tokens for git's HTTP |
//! | `client` (feature `client`) | HTTP to other daemons |
//! | `endpoint`, `callers`, `exposition` (feature `endpoint`) | an HTTP endpoint, its callers, `/metrics` |
//! | `server`, `places`, `connection`, `tls`, `paced` (feature `endpoint`) | its connections, their bounds and times |
//! | `foreign` (feature `endpoint`) | the refusal of what web pages send |

mod allocator;
#[cfg(feature = "endpoint")]
mod callers;
#[cfg(feature = "client")]
mod client;
mod cluster;
#[cfg(feature = "endpoint")]
mod connection;
pub mod documents;
#[cfg(feature = "endpoint")]
mod endpoint;
#[cfg(feature = "endpoint")]
mod exposition;
mod folder;
#[cfg(feature = "endpoint")]
mod foreign;
pub mod git_token;
mod hosts;
mod journal;
mod logs;
mod loops;
mod open_files;
#[cfg(feature = "endpoint")]
mod paced;
mod peers;
#[cfg(feature = "endpoint")]
mod places;
mod readiness;
#[cfg(feature = "endpoint")]
mod server;
pub mod settings;
mod signals;
pub mod supervisor;
#[cfg(feature = "endpoint")]
mod tls;

use std::error::Error;

pub use allocator::spare_memory;
#[cfg(feature = "endpoint")]
pub use callers::{Callers, CallsFrom, GitFronts};
#[cfg(feature = "client")]
pub use client::{http_client, probing_client, shown_by};
pub use cluster::{Cluster, ClusterError, CoordinatorArgs, IdentityArgs, OtherIdentity};
#[cfg(feature = "endpoint")]
pub use endpoint::{Door, ListenError, Metrics, Serving, common_routes, listen, refused};
pub use folder::{FolderError, folder_token};
pub use hosts::host_of_url;
pub use logs::init_logs;
pub use loops::{LoopEnded, Loops, panic_message};
pub use open_files::raise_open_files;
pub use peers::look_at_peers;
#[cfg(feature = "endpoint")]
pub use places::{Bounds, Full, Party, Place, Places, network};
pub use readiness::{NotReady, Readiness};
pub use signals::{Shutdown, shutdown};

/// Formats an error with its chain of sources in one line.
pub fn in_words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    words
}
