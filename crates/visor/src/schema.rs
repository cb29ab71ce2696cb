//! What each key of the coordinator holds.
//!
//! Owns the stored shapes and nothing else: no key, no transition. Everything is JSON with names
//! that carry their units. A field that a binary doesn't know survives its read and write
//! (`extra`), so that two versions can run side by side; a field is only ever added, with a default.

mod app;
mod cluster;
mod env;
mod host;
mod instance;
mod people;
mod proxy;
mod release;
mod repo;
mod service;
mod stats;

pub use app::{App, DomainRecord, Rev, Slug};
pub use cluster::{Era, Frozen, Leader, SCHEMA_VERSION, Schema, Unfreeze};
pub use env::{Env, Handed, Wraps};
pub use host::{Capacity, Host, HostMeta};
pub use instance::{Assignment, Desired, Ended, Exit, Fault, Instance, Moment, Pending, State, Status};
pub use people::{Access, Admission, AuditEntry, Granted, SshKey, SshKeys};
pub use proxy::Proxy;
pub use release::{Head, Pause, Promoter, Release, ReleaseStatus, Trial};
pub use repo::{Ask, Branch, Repo, Rm, Stored, Turn};
pub use service::{Check, Formation, Limits, OnPartition, Proc, RunSettings};
pub use stats::{AppDay, DayStats, DayTotals};

/// Fields written by a newer version, kept as they are.
pub type Extra = serde_json::Map<String, serde_json::Value>;
