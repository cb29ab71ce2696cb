//! A scope for abstract Unix sockets, by Landlock.
//!
//! Owns its calls. Abstract sockets have names without files, which a mount namespace doesn't hide, and no BPF hook
//! before Linux 6.7 sees their connect. From Linux 6.12 on a process can give up all those of processes outside.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

// linux/landlock.h
const VERSION: u32 = 1;
const ABSTRACT_SOCKETS: u64 = 1;
/// The first version of Landlock with scopes.
const SCOPES: libc::c_long = 6;

#[repr(C)]
struct Attributes {
    files: u64,
    ports: u64,
    scopes: u64,
}

/// Reports whether this kernel keeps instances from the abstract sockets of others: Linux from 6.12 on, with Landlock.
pub fn scopes_abstract_sockets() -> bool {
    // SAFETY: without a structure and with this flag the call only says its version.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0, VERSION)
    };
    version >= SCOPES
}

/// Keeps this process and its children from the abstract sockets of all others, where the kernel can. It takes the
/// promise of no new rights.
///
/// # Errors
/// The kernel's.
pub fn leave_abstract_sockets() -> io::Result<()> {
    if !scopes_abstract_sockets() {
        return Ok(());
    }
    let attributes = Attributes { files: 0, ports: 0, scopes: ABSTRACT_SOCKETS };
    // SAFETY: the structure outlives the call, which only reads it.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let made = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size_of::<Attributes>(), 0)
    };
    let fd = RawFd::try_from(made).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us.
    #[allow(unsafe_code, reason = "the call returns a bare number")]
    let _rules = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the call takes no memory of ours.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
