//! The fence of an instance's sockets: BPF programs that the kernel runs at each bind and connect in its control
//! group.
//!
//! Owns the programs, which are built anew for each start, and their attachment to the instance's control group
//! (version 2, which exists beside version 1 too). They disappear with that group, whoever removes it, so they need no
//! cleanup. They cover TCP and UDP, from kernel 4.17 on; a UDP socket that sends without connecting is not checked.
//!
//! A program is a list of comparisons that ends with 1 (allowed) or 0 (refused: `EPERM`). The kernel verifies each
//! program when it is loaded, so a wrong one only causes an error at start.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use nix::libc;

use crate::protocol::{Closed, Fence};

/// The part of a fence that the kernel refuses.
#[derive(Debug, thiserror::Error)]
#[error("can't fence its sockets: the kernel refuses {what} (a BPF program of {})", group.display())]
pub struct FenceError {
    what: &'static str,
    group: PathBuf,
    source: io::Error,
}

/// Attaches a fence to a control group.
///
/// # Errors
/// [`FenceError`].
pub fn attach(group: &Path, fence: &Fence) -> Result<(), FenceError> {
    let failed = |what, source| FenceError { what, group: group.to_owned(), source };
    let folder = File::open(group).map_err(|error| failed("its control group", error))?;
    for (what, hook, program) in [
        ("the bind program", BIND4, bind(fence.port)),
        ("the bind program for IPv6", BIND6, bind(fence.port)),
        ("the connect program", CONNECT4, connect4(&fence.closed)),
        ("the connect program for IPv6", CONNECT6, connect6(&fence.closed)),
    ] {
        let loaded = load(hook, &program).map_err(|error| failed(what, error))?;
        hang(folder.as_raw_fd(), loaded.as_raw_fd(), hook).map_err(|error| failed(what, error))?;
    }
    Ok(())
}

// The kernel's numbers (linux/bpf.h), which never change.
const BIND4: u32 = 8;
const BIND6: u32 = 9;
const CONNECT4: u32 = 10;
const CONNECT6: u32 = 11;
const CGROUP_SOCK_ADDR: u32 = 18;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;

/// Offsets in the program's context (`struct bpf_sock_addr`) of the address and the port.
const ADDRESS4: i16 = 4;
const ADDRESS6: i16 = 8;
const PORT: i16 = 24;

/// One instruction, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// The target register in the lower half, the source in the upper.
    registers: u8,
    offset: i16,
    value: i32,
}

/// Registers: the kernel defines the ones for result and context; the third holds the loaded word.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const LOADED: u8 = 2;

fn load_word(offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: CONTEXT << 4 | LOADED, offset, value: 0 }
}

fn mask(bits: u32) -> Instruction {
    Instruction { code: 0x54, registers: LOADED, offset: 0, value: bits as i32 }
}

/// Skips the next `skipped` instructions unless the loaded word equals `value`.
fn unless(value: u32, skipped: usize) -> Instruction {
    let offset = i16::try_from(skipped).expect("a comparison is short");
    Instruction { code: 0x56, registers: LOADED, offset, value: value as i32 }
}

fn answer(value: i32) -> [Instruction; 2] {
    [
        Instruction { code: 0xb7, registers: RESULT, offset: 0, value },
        Instruction { code: 0x95, registers: 0, offset: 0, value: 0 },
    ]
}

/// Returns the context's word for a port: its two bytes in network order, then zeros.
fn port_word(port: u16) -> u32 {
    let [high, low] = port.to_be_bytes();
    u32::from_ne_bytes([high, low, 0, 0])
}

fn bind(own: u16) -> Vec<Instruction> {
    let mut program = vec![load_word(PORT)];
    // With port 0 the kernel picks a free one.
    for port in [0, own] {
        program.push(unless(port_word(port), 2));
        program.extend(answer(1));
    }
    program.extend(answer(0));
    program
}

/// A word of the context that must equal `value` in the bits of `mask`.
struct Wanted {
    offset: i16,
    mask: u32,
    value: u32,
}

/// Builds a program that refuses a call if all words of any one list match.
fn refuse(lists: impl Iterator<Item = Vec<Wanted>>) -> Vec<Instruction> {
    let mut program = Vec::new();
    for list in lists {
        // Built from its end, so that each comparison knows how many instructions to skip.
        let mut test: Vec<Instruction> = answer(0).into();
        for Wanted { offset, mask: bits, value } in list.into_iter().rev() {
            let mut before = vec![load_word(offset)];
            if bits != u32::MAX {
                before.push(mask(bits));
            }
            before.push(unless(value, test.len()));
            test.splice(0..0, before);
        }
        program.extend(test);
    }
    program.extend(answer(1));
    program
}

fn is(offset: i16, value: u32) -> Wanted {
    Wanted { offset, mask: u32::MAX, value }
}

fn is_address(offset: i16, address: Ipv4Addr, bits: u8) -> Wanted {
    let ones = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
    let word = |bits: u32| u32::from_ne_bytes(bits.to_be_bytes());
    Wanted { offset, mask: word(ones), value: word(u32::from(address) & ones) }
}

fn connect4(closed: &[Closed]) -> Vec<Instruction> {
    refuse(closed.iter().filter_map(|closed| match closed.address {
        IpAddr::V4(address) => {
            Some(vec![is(PORT, port_word(closed.port)), is_address(ADDRESS4, address, closed.bits)])
        }
        IpAddr::V6(_) => None,
    }))
}

fn connect6(closed: &[Closed]) -> Vec<Instruction> {
    let word = |at: usize| ADDRESS6 + 4 * i16::try_from(at).expect("an address has four words");
    refuse(closed.iter().map(|closed| {
        let mut list = vec![is(PORT, port_word(closed.port))];
        match closed.address {
            // An IPv4 address as an IPv6 socket names it.
            IpAddr::V4(address) => {
                list.extend([
                    is(word(0), 0),
                    is(word(1), 0),
                    is(word(2), u32::from_ne_bytes([0, 0, 0xff, 0xff])),
                ]);
                list.push(is_address(word(3), address, closed.bits));
            }
            IpAddr::V6(address) => {
                let octets = address.octets();
                let words = octets.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
                list.extend(words.enumerate().map(|(at, bytes)| is(word(at), u32::from_ne_bytes(bytes))));
            }
        }
        list
    }))
}

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

fn load(hook: u32, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"bazooka");
    let arguments = LoadArguments {
        kind: CGROUP_SOCK_ADDR,
        length: u32::try_from(program.len()).expect("a program is short"),
        program: program.as_ptr() as u64,
        licence: c"MIT".as_ptr() as u64,
        name,
        hook,
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

fn hang(group: RawFd, program: RawFd, hook: u32) -> io::Result<()> {
    let unsigned = |fd: RawFd| u32::try_from(fd).expect("an open descriptor isn't negative");
    let arguments = AttachArguments { group: unsigned(group), program: unsigned(program), hook, flags: 0 };
    // SAFETY: the arguments outlive the call, which only reads them.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &arguments, size_of::<AttachArguments>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a program's answer over a context of words, as the kernel would run it.
    fn run(program: &[Instruction], words: &[(i16, u32)]) -> i32 {
        let (mut at, mut loaded, mut result) = (0, 0_u32, -1);
        loop {
            let Instruction { code, offset, value, .. } = program[at];
            at += 1;
            match code {
                0x61 => {
                    loaded = words.iter().find(|(known, _)| *known == offset).map_or(0, |(_, word)| *word)
                }
                0x54 => loaded &= value as u32,
                0x56 if loaded != value as u32 => at += usize::try_from(offset).expect("only forward"),
                0x56 => {}
                0xb7 => result = value,
                0x95 => return result,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn to4(address: &str, port: u16) -> Vec<(i16, u32)> {
        let address: Ipv4Addr = address.parse().expect("valid");
        vec![(PORT, port_word(port)), (ADDRESS4, u32::from_ne_bytes(address.octets()))]
    }

    fn to6(address: &str, port: u16) -> Vec<(i16, u32)> {
        let address: std::net::Ipv6Addr = address.parse().expect("valid");
        let octets = address.octets();
        let words = octets.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
        let words = (0..).map(|at| ADDRESS6 + 4 * at).zip(words.map(u32::from_ne_bytes));
        words.chain([(PORT, port_word(port))]).collect()
    }

    #[test]
    fn an_instance_binds_its_own_port_or_one_that_the_kernel_picks() {
        for (port, allowed) in [(21_000, 1), (0, 1), (21_001, 0), (80, 0), (8_274, 0)] {
            assert_eq!(run(&bind(21_000), &[(PORT, port_word(port))]), allowed, "{port}");
        }
    }

    #[test]
    fn what_is_closed_is_closed_by_each_of_its_addresses_and_nothing_else_is() {
        let closed =
            |address: &str, bits, port| Closed { address: address.parse().expect("valid"), bits, port };
        let closed = [closed("127.0.0.0", 8, 2379), closed("10.0.0.1", 32, 2380), closed("::1", 128, 2379)];
        for (address, port, allowed) in [
            ("127.0.0.1", 2379, 0),
            ("127.9.9.9", 2379, 0),
            ("127.0.0.1", 2380, 1),
            ("128.0.0.1", 2379, 1),
            ("10.0.0.1", 2380, 0),
            ("10.0.0.2", 2380, 1),
        ] {
            assert_eq!(run(&connect4(&closed), &to4(address, port)), allowed, "{address}:{port}");
            let mapped = format!("::ffff:{address}");
            assert_eq!(run(&connect6(&closed), &to6(&mapped, port)), allowed, "[{mapped}]:{port}");
        }
        for (address, port, allowed) in
            [("::1", 2379, 0), ("::1", 80, 1), ("::2", 2379, 1), ("1::1", 2379, 1)]
        {
            assert_eq!(run(&connect6(&closed), &to6(address, port)), allowed, "[{address}]:{port}");
        }
    }
}
