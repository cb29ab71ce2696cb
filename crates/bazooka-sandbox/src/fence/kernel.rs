//! The kernel's calls that load a program and attach it to a control group.
//!
//! Owns the numbers and structures of `bpf(2)`. A program that is attached belongs to its group: it goes with it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

use super::assembler::Instruction;

/// A place in the kernel where a control group's programs run (linux/bpf.h); the numbers never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    NewSocket = 2,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    Send4 = 14,
    Send6 = 15,
    Receive4 = 19,
    Receive6 = 20,
    Option = 22,
    PeerName4 = 29,
    PeerName6 = 30,
    OwnName4 = 31,
    OwnName6 = 32,
}

impl Hook {
    fn program_kind(self) -> u32 {
        match self {
            Hook::NewSocket => 9,
            Hook::Option => 25,
            _ => 18,
        }
    }
}

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;

/// The kernel's own struct for loading, up to the last field that is needed.
#[repr(C)]
#[derive(Default)]
struct LoadArguments {
    kind: u32,
    length: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    hook: u32,
}

#[repr(C)]
struct AttachArguments {
    group: u32,
    program: u32,
    hook: u32,
    flags: u32,
}

/// Loads a program, and attaches it to a control group in place of the one that is there. The replacement is atomic:
/// each call of the group's processes meets the one or the other.
///
/// # Errors
/// The kernel's.
pub fn install(group: BorrowedFd<'_>, hook: Hook, program: &[Instruction]) -> io::Result<()> {
    let loaded = load(hook, program)?;
    let unsigned = |fd: RawFd| u32::try_from(fd).expect("an open descriptor isn't negative");
    let arguments = AttachArguments {
        group: unsigned(group.as_raw_fd()),
        program: unsigned(loaded.as_raw_fd()),
        hook: hook as u32,
        flags: 0,
    };
    // SAFETY: the arguments outlive the call, which only reads them.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &arguments, size_of::<AttachArguments>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn load(hook: Hook, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"bazooka");
    let arguments = LoadArguments {
        kind: hook.program_kind(),
        length: u32::try_from(program.len()).expect("a program is short"),
        program: program.as_ptr() as u64,
        licence: c"MIT".as_ptr() as u64,
        name,
        hook: hook as u32,
        ..LoadArguments::default()
    };
    // SAFETY: everything that the arguments point to outlives the call, which only reads it.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let made = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &arguments, size_of::<LoadArguments>()) };
    match RawFd::try_from(made) {
        // SAFETY: the kernel has just made this descriptor for us.
        #[allow(unsafe_code, reason = "the call returns a bare number")]
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
