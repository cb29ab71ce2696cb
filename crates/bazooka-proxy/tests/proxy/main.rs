//! bazooka-proxy as a process, with the real HAProxy and a real etcd.

#![allow(missing_docs, reason = "tests are named for what they show")]

mod deadly;
mod directory;
mod dns;
mod drains;
mod exporter;
mod faults;
mod git;
mod http;
mod load;
mod rig;
mod routing;
