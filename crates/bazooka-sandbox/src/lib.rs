//! Sandboxes.

pub mod cgroups;
pub mod etc;
pub mod family;
pub mod fence;
pub mod files;
pub mod groups;
pub mod init;
pub mod isolation;
pub mod launch;
pub mod protocol;
pub mod root;
pub mod sandboxes;
pub mod seccomp;
pub mod shim;
pub mod start;
pub mod uids;
pub mod unpack;
