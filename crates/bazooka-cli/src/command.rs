//! The commands, one a file: what each reads, writes and prints.

pub mod access;
pub mod apps;
pub mod audit;
pub mod completions;
pub mod config;
pub mod credential;
pub mod destroy;
pub mod events;
pub mod hosts;
pub mod init;
pub mod keys;
pub mod logs;
pub mod procs;
pub mod ps;
pub mod release;
pub mod releases;
pub mod restart;
pub mod revs;
pub mod rollback;
pub mod rollout;
pub mod scale;
pub mod traffic;
pub mod version;
pub mod why;
