//! bazooka-rm, the repository manager: registers apps, keeps their git repositories, builds pushed commits, stores
//! slugs, and requests the release of what it built. It never places or starts an instance.
//!
//! ```text
//! git push ─HTTP─▶ endpoint ─▶ git receive-pack ─▶ hook ─socket─▶ push: check, build, store, register, try
//!                                                                   │                          │
//! coordinator ◀──── repos: plan and converge ◀── apps (watch) ◀─────┴──────────────────────────┘
//! ```

pub mod access;
pub mod apps;
pub mod audit;
pub mod build;
pub mod changes;
pub mod daemon;
pub mod endpoint;
mod faults;
mod front;
pub mod git;
pub mod hook;
pub mod hooks;
pub mod layout;
pub mod metrics;
mod page;
pub mod pki;
mod presence;
pub mod procfile;
pub mod pruning;
pub mod push;
pub mod queue;
pub mod refs;
pub mod registrations;
pub mod repos;
pub mod slug;
pub mod slugs;
pub mod sources;
pub mod ssh;
pub mod storage;
pub mod sweeping;
pub mod tasks;
pub mod tree;
pub mod turns;
pub mod voice;
