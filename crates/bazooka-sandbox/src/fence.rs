//! The fence of an instance's sockets, and its loopback: BPF programs that the kernel runs at each bind, connect and
//! datagram in its control group.
//!
//! Owns the programs and their attachment to the instance's control group (version 2, which exists beside version 1
//! too). They disappear with that group, whoever removes it, so they need no cleanup. They take Linux 5.18.
//!
//! ```text
//! assembler ─▶ programs: one for each hook ─▶ kernel: load, attach ─▶ the group
//!                 ▲ protocol::Rules, which a daemon renews while the instance runs (crate::fences)
//! ```
//!
//! The kernel verifies each program when it is loaded, so a wrong one only causes an error at start.

mod assembler;
#[cfg(test)]
mod interpreter;
mod kernel;
mod programs;

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use crate::{
    loopback::{self, LoopbackError},
    protocol::{Fence, Rules, Span},
};
use kernel::Hook;
use programs::Family::{Four, Six};

/// The part of a fence that the kernel refuses.
#[derive(Debug, thiserror::Error)]
#[error("can't fence its sockets: the kernel refuses {what} (a BPF program of {})", group.display())]
pub struct FenceError {
    what: String,
    group: PathBuf,
    source: io::Error,
}

/// The reason why an instance has no fence.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum EncloseError {
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
    #[error(transparent)]
    Fence(#[from] FenceError),
}

/// Gives the processes of a user in a control group their fence and their loopback.
///
/// # Errors
/// [`EncloseError`].
pub fn enclose(group: &Path, fence: &Fence, uid: u32) -> Result<(), EncloseError> {
    let rules = fence.rules.clone().unwrap_or_else(|| of_older_daemon(fence, uid));
    loopback::add(&rules.loopback)?;
    Ok(attach(group, &rules, fence.port)?)
}

/// Takes back what [`enclose`] did beside the control group. No process of the group is left.
pub fn release(fence: &Fence) {
    if let Some(rules) = &fence.rules {
        loopback::remove(&rules.loopback);
    }
}

/// Returns the rules that a daemon before the loopbacks meant: the machine's loopback is reached, but for what is
/// closed.
fn of_older_daemon(fence: &Fence, uid: u32) -> Rules {
    let every = |address, bits| Span { address, bits, first: 0, last: u16::MAX };
    let closed = fence.closed.iter();
    Rules {
        host: Ipv4Addr::UNSPECIFIED.into(),
        loopback: loopback::of(uid, false),
        closed: closed
            .map(|closed| Span {
                address: closed.address,
                bits: closed.bits,
                first: closed.port,
                last: closed.port,
            })
            .collect(),
        open: vec![every(Ipv4Addr::LOCALHOST.into(), 8), every(Ipv6Addr::LOCALHOST.into(), 128)],
        machine: Vec::new(),
        reserved: vec![(1, u16::MAX)],
    }
}

/// Attaches a fence to a control group. `port` is the one that is reached from outside; 0 for none.
///
/// # Errors
/// [`FenceError`].
fn attach(group: &Path, rules: &Rules, port: u16) -> Result<(), FenceError> {
    let names = [
        (Hook::Receive4, Four),
        (Hook::PeerName4, Four),
        (Hook::OwnName4, Four),
        (Hook::Receive6, Six),
        (Hook::PeerName6, Six),
        (Hook::OwnName6, Six),
    ];
    let mut all = vec![
        (Hook::NewSocket, programs::new_socket(rules)),
        (Hook::Option, programs::option(rules)),
        (Hook::Bind4, programs::bind(rules, port, Four)),
        (Hook::Bind6, programs::bind(rules, port, Six)),
    ];
    all.extend(names.map(|(hook, family)| (hook, programs::name(family))));
    all.extend(reaching(rules, port));
    install(group, all)
}

/// Replaces what a fence says of others' addresses, while processes run in the group.
///
/// # Errors
/// [`FenceError`].
pub fn renew(group: &Path, rules: &Rules, port: u16) -> Result<(), FenceError> {
    install(group, reaching(rules, port))
}

fn reaching(rules: &Rules, port: u16) -> Vec<(Hook, Vec<assembler::Instruction>)> {
    vec![
        (Hook::Connect4, programs::reach(rules, port, Four, true)),
        (Hook::Connect6, programs::reach(rules, port, Six, true)),
        (Hook::Send4, programs::reach(rules, port, Four, false)),
        (Hook::Send6, programs::reach(rules, port, Six, false)),
    ]
}

fn install(group: &Path, all: Vec<(Hook, Vec<assembler::Instruction>)>) -> Result<(), FenceError> {
    let failed = |what: String, source| FenceError { what, group: group.to_owned(), source };
    let folder = File::open(group).map_err(|error| failed("its control group".to_owned(), error))?;
    for (hook, program) in all {
        kernel::install(folder.as_fd(), hook, &program)
            .map_err(|error| failed(format!("{hook:?}"), error))?;
    }
    Ok(())
}
