//! The rows: what each key of the coordinator holds.
//!
//! Owns the stored types and nothing else: no key and no transition. Every row is JSON, and its field names carry their
//! units. A field that a binary does not know survives when that binary reads and writes the row (`extra`), so that two
//! versions can run side by side. Fields are only ever added, each with a default.

mod app;
mod check_path;
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
pub use check_path::{CheckPath, InvalidCheckPath, LONGEST_CHECK_PATH};
pub use cluster::{Frozen, Incarnation, Leader, SCHEMA_VERSION, Schema, Unfreeze};
pub use env::{Env, Handed, WrapRequest, Wraps};
pub use host::{Archives, Capacity, Host, HostMeta, Serving, SlugSource};
pub use instance::{
    Assignment, Desired, Ended, Exit, Fault, Instance, Moment, Pending, Refusing, State, Status,
};
pub use people::{Access, Admission, AuditEntry, Granted, SshKey, SshKeys};
pub use proxy::Proxy;
pub use release::{Head, Pause, Promoter, Release, ReleaseStatus, Trial};
pub use repo::{Ask, Branch, Repo, Rm, Stored, Turn};
pub use service::{Check, Formation, Limits, OnPartition, Port, Proc, Protocol, RunSettings};
pub use stats::{AppDay, DayStats, DayTotals};

/// The fields that a newer version wrote, kept unchanged.
pub type Extra = serde_json::Map<String, serde_json::Value>;
