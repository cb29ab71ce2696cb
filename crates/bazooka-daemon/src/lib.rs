//! The outside of a program of the cluster: what it is told, where it logs, when it is ready, and its endpoint.
//!
//! Owns what the four programs have in common and visor must not know: options and their files, systemd, HTTP. It decides nothing
//! about apps or hosts. A daemon's start fits one screen:
//!
//! ```text
//! settings::read ─▶ init_logs ─▶ shutdown ─▶ CoordinatorArgs::cluster ─▶ listen ─▶ announce ─▶ the daemon's own loop
//!  options, file     stderr or    SIGTERM      visor, as this identity     │         systemd        │ Pulse::beat
//!  and their faults  the journal  SIGINT                                   └─▶ serve: common_routes │ NotReady dropped
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `settings` | what a program is told: words, environment, file |
//! | `documents` | manual pages and completions |
//! | `cluster` | the way to the coordinator, and who this part is |
//! | `logs`, `journal` | log lines |
//! | `signals`, `readiness`, `supervisor` | from the start to the end, and what systemd hears of it |
//! | `folder` | the word that names a state folder |
//! | `git_token` | tokens for git's HTTP |
//! | `client` (feature `client`) | HTTP to other daemons |
//! | `endpoint`, `tls`, `callers`, `exposition` (feature `endpoint`) | the HTTP server, who calls it, `/metrics` |

#[cfg(feature = "endpoint")]
mod callers;
#[cfg(feature = "client")]
mod client;
mod cluster;
pub mod documents;
#[cfg(feature = "endpoint")]
mod endpoint;
#[cfg(feature = "endpoint")]
mod exposition;
mod folder;
pub mod git_token;
mod journal;
mod logs;
mod readiness;
pub mod settings;
mod signals;
pub mod supervisor;
#[cfg(feature = "endpoint")]
mod tls;

use std::error::Error;

#[cfg(feature = "endpoint")]
pub use callers::{Callers, CallsFrom};
#[cfg(feature = "client")]
pub use client::http_client;
pub use cluster::{Cluster, ClusterError, CoordinatorArgs, IdentityArgs, OtherIdentity};
#[cfg(feature = "endpoint")]
pub use endpoint::{ListenError, Metrics, common_routes, listen, refused, serve};
pub use folder::{FolderError, folder_token};
pub use logs::init_logs;
pub use readiness::{NotReady, Readiness};
pub use signals::{Shutdown, shutdown};

/// An error with all that it names as its source, in one line.
pub fn in_words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    words
}
