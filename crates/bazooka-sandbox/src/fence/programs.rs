//! The programs of a fence, one for each hook of a control group.
//!
//! Owns the decisions at bind, connect, send and the questions for names. It is pure: it turns [`Rules`] into lists of
//! instructions.
//!
//! ```text
//! bind     port 0 or $PORT on every address ─▶ as asked      other ports there ─▶ the private address
//!          127.0.0.0/8, ::1 ─▶ the private address           other addresses ─▶ refused, unless port 0 or $PORT
//! connect  127.0.0.0/8, 0.0.0.0, ::1, :: ── opened? ─▶ as asked
//! send       └─▶ the private address ── somebody else's listener? ─▶ connection refused
//!          closed ─▶ refused; opened ─▶ as asked; the machine's own ─▶ refused; others ─▶ as asked
//! names    a private address ─▶ 127.0.0.1 or ::1
//! ```
//!
//! A listener on every address of the machine answers on a private address too. So each lookup asks whose the socket
//! is: the instance's own is on its private address, on its $PORT, or carries the instance's mark. The mark is the
//! priority of each socket of the group; a process without rights can't set that of another.

mod bind;
mod marks;
mod names;
mod reach;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use bind::bind;
pub use marks::{new_socket, option};
pub use names::name;
pub use reach::reach;

use super::assembler::{Assembler, Instruction, Is, Label, Register, Register::*};
use crate::protocol::{Loopback, Rules, Span};

// Functions of the kernel (linux/bpf.h): the lookups take a tuple on the stack.
pub const LOOK_UP_TCP: i32 = 84;
pub const LOOK_UP_UDP: i32 = 85;
pub const RELEASE: i32 = 86;
pub const SET_ERROR: i32 = 187;

/// Offsets in the context (`struct bpf_sock_addr`).
const ADDRESS4: i16 = 4;
const ADDRESS6: i16 = 8;
const PORT: i16 = 24;
const PROTOCOL: i16 = 36;
const SOCKET: i16 = 64;

/// Offsets in `struct bpf_sock`, which is also the context of a new socket's program.
const PRIORITY: i16 = 20;
const SOURCE4: i16 = 24;
const SOURCE6: i16 = 28;

const TCP: u32 = 6;
const UDP: u32 = 17;
const CONNECTION_REFUSED: i32 = 111;
const ADDRESS_IN_USE: i32 = 98;

/// The third word of an IPv4 address as an IPv6 socket names it.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
const LOCALHOST4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
/// The last word of `::1`.
const LOCALHOST6: u32 = u32::from_ne_bytes([0, 0, 0, 1]);

/// The families of the sockets that a hook runs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Four,
    Six,
}

/// The registers of every program: the context, an IPv4 address or the last word of an IPv6 one, and the port's
/// number. R9 is the priority of a socket that a lookup found.
const CONTEXT: Register = R6;
const ADDRESS: Register = R7;
const NUMBER: Register = R8;
const MARK: Register = R9;
/// The words of an IPv6 address, until the first call of the kernel.
const WORDS: [Register; 4] = [R2, R3, R4, R5];

const EVERY_PORT: (u16, u16) = (0, u16::MAX);

fn word_of(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn words_of(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]))
}

/// Returns the word of leading bits, in the order of memory.
fn leading(bits: u8) -> u32 {
    u32::from_ne_bytes(u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0).to_be_bytes())
}

/// Returns the mark of a fence's sockets. Its last four bits are zero, as those of common traffic, and its upper half
/// is no number that `tc` gives to a queue by itself.
fn mark_of(own: &Loopback) -> u32 {
    0x3000_0000 | (u32::from(own.four) & 0x003f_ffff) << 4
}

/// The bit of a mark that says of a socket that it is for IPv6 only. No other way leads from a program to that.
const SIX_ONLY: u32 = 0x0400_0000;

/// The parts that all programs of one fence share.
struct Fence<'a> {
    program: Assembler,
    rules: &'a Rules,
    /// The one port that is reached from outside; 0 for none.
    port: u16,
    allowed: Label,
    refused: Label,
    /// Nobody listens there.
    nobody: Label,
    in_use: Label,
}

impl<'a> Fence<'a> {
    fn begin(rules: &'a Rules, port: u16) -> Fence<'a> {
        let mut program = Assembler::default();
        let [allowed, refused, nobody, in_use] = [(); 4].map(|()| program.label());
        program.copy(CONTEXT, R1);
        program.load(NUMBER, CONTEXT, PORT);
        program.port_to_number(NUMBER);
        Fence { program, rules, port, allowed, refused, nobody, in_use }
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (label, error) in [(self.nobody, CONNECTION_REFUSED), (self.in_use, ADDRESS_IN_USE)] {
            self.program.place(label);
            self.program.set(R1, -error);
            self.program.call(SET_ERROR);
            self.program.answer(0);
        }
        for (label, answer) in [(self.refused, 0), (self.allowed, 1)] {
            self.program.place(label);
            self.program.answer(answer);
        }
        self.program.finish()
    }

    /// Jumps if the port is one of these, and falls through otherwise.
    fn if_port(&mut self, first: u16, last: u16, to: Label) {
        if (first, last) == EVERY_PORT {
            return self.program.jump(to);
        }
        if first == last {
            return self.program.jump_if(NUMBER, Is::Equal, first.into(), to);
        }
        let next = self.program.label();
        if first > 0 {
            self.program.jump_if(NUMBER, Is::Below, first.into(), next);
        }
        if last < u16::MAX {
            self.program.jump_if(NUMBER, Is::Above, last.into(), next);
        }
        self.program.jump(to);
        self.program.place(next);
    }

    /// Jumps if a register has these leading bits and the port is one of these. The kernel goes through each
    /// instruction several times as it loads a program, so there are as few as can be.
    fn if_word(&mut self, register: Register, word: u32, bits: u8, ports: (u16, u16), to: Label) {
        let mask = leading(bits);
        let compared = if mask == u32::MAX { register } else { R0 };
        if mask == 0 {
            return self.if_port(ports.0, ports.1, to);
        }
        if compared == R0 {
            self.program.copy(R0, register);
            self.program.mask(R0, mask);
        }
        if ports == EVERY_PORT {
            return self.program.jump_if(compared, Is::Equal, word & mask, to);
        }
        let next = self.program.label();
        self.program.jump_if(compared, Is::NotEqual, word & mask, next);
        self.if_port(ports.0, ports.1, to);
        self.program.place(next);
    }

    /// Jumps if the IPv4 address in its register and the port are in one of the spans.
    fn if_in4(&mut self, spans: &[Span], to: Label) {
        for span in spans {
            let IpAddr::V4(address) = span.address else { continue };
            self.if_word(ADDRESS, word_of(address), span.bits, (span.first, span.last), to);
        }
    }

    /// Jumps if the IPv6 address in its registers and the port are in one of the spans.
    fn if_in6(&mut self, spans: &[Span], to: Label) {
        for span in spans {
            let IpAddr::V6(address) = span.address else { continue };
            let next = self.program.label();
            let words = words_of(address);
            let full = usize::from(span.bits / 32);
            // All whole words, then what is left of the last one, with the port.
            let (last, rest) = if full > 3 { (3, 32) } else { (full, span.bits % 32) };
            for (register, word) in WORDS.into_iter().zip(words).take(last) {
                self.program.jump_if(register, Is::NotEqual, word, next);
            }
            self.if_word(WORDS[last], words[last], rest, (span.first, span.last), to);
            self.program.place(next);
        }
    }

    /// Jumps if the IPv4 address in its register is one of this machine's loopback, or none.
    fn if_loopback4(&mut self, to: Label) {
        self.program.jump_if(ADDRESS, Is::Equal, 0, to);
        self.if_word(ADDRESS, LOCALHOST4, 8, EVERY_PORT, to);
    }

    /// Loads an IPv6 address into its registers, and splits: `::` and `::1` (the last word is in the register for IPv4
    /// too), mapped ones (likewise), and others, for which it falls through.
    fn split6(&mut self, local: Label, mapped: Label) {
        let others = self.program.label();
        for (register, at) in WORDS.into_iter().zip((ADDRESS6..).step_by(4)) {
            self.program.load(register, CONTEXT, at);
        }
        self.program.copy(ADDRESS, WORDS[3]);
        self.program.jump_if(WORDS[0], Is::NotEqual, 0, others);
        self.program.jump_if(WORDS[1], Is::NotEqual, 0, others);
        self.program.jump_if(WORDS[2], Is::Equal, MAPPED, mapped);
        self.program.jump_if(WORDS[2], Is::NotEqual, 0, others);
        self.program.jump_if(ADDRESS, Is::Equal, 0, local);
        self.program.jump_if(ADDRESS, Is::Equal, LOCALHOST6, local);
        self.program.place(others);
    }

    /// Writes an IPv4 address into the context.
    fn rewrite4(&mut self, family: Family, address: u32) {
        match family {
            Family::Four => {
                self.program.set(R2, address as i32);
                self.program.store(CONTEXT, ADDRESS4, R2);
            }
            Family::Six => self.rewrite6([0, 0, MAPPED, address]),
        }
    }

    fn rewrite6(&mut self, words: [u32; 4]) {
        for (at, word) in (0_i16..).zip(words) {
            self.program.set(R2, word as i32);
            self.program.store(CONTEXT, ADDRESS6 + 4 * at, R2);
        }
    }

    /// Looks for the socket that a private address leads to. Jumps to `own` if it is the instance's, to `foreign` if it
    /// is not, and falls through if there is none.
    ///
    /// Without a source only listeners and unconnected sockets match.
    fn look_up(&mut self, target: &[u32], own: Label, foreign: Label) {
        let [tcp, found, none] = [(); 3].map(|()| self.program.label());
        let words = i16::try_from(2 * target.len() + 1).expect("an address is short");
        let base = -4 * words;
        for at in 0..words - 1 {
            let half = words / 2;
            let word = usize::try_from(at - half).ok().map_or(0, |at| target[at]);
            self.program.store_value(Frame, base + 4 * at, word);
        }
        self.program.load(R2, CONTEXT, PORT);
        self.program.shift_left(R2, 16);
        self.program.store(Frame, -4, R2);
        self.program.load(R0, CONTEXT, PROTOCOL);
        self.program.copy(R1, CONTEXT);
        self.program.copy(R2, Frame);
        self.program.add(R2, base.into());
        self.program.set(R3, i32::from(4 * words));
        // The network namespace of the caller.
        self.program.set(R4, -1);
        self.program.set(R5, 0);
        self.program.jump_if(R0, Is::Equal, TCP, tcp);
        self.program.jump_if(R0, Is::NotEqual, UDP, none);
        self.program.call(LOOK_UP_UDP);
        self.program.jump_if_null(R0, none);
        self.program.jump(found);
        self.program.place(tcp);
        self.program.call(LOOK_UP_TCP);
        self.program.jump_if_null(R0, none);
        self.program.place(found);
        self.program.load(MARK, R0, PRIORITY);
        let first = match target.len() {
            1 => SOURCE4,
            _ => SOURCE6 + 12,
        };
        self.program.load(ADDRESS, R0, first);
        self.program.copy(R1, R0);
        self.program.call(RELEASE);
        // Private addresses of one family differ in the last word, and nothing else of a machine ends so: a listener
        // that answers there is on that very address or on every one.
        let last = *target.last().expect("an address has words");
        self.program.jump_if(ADDRESS, Is::Equal, last, own);
        self.program.mask(MARK, !SIX_ONLY);
        self.program.jump_if(MARK, Is::Equal, mark_of(&self.rules.loopback), own);
        if self.port != 0 {
            self.program.jump_if(NUMBER, Is::Equal, self.port.into(), own);
        }
        self.program.jump(foreign);
        self.program.place(none);
    }

    /// Leads to the instance's own loopback by IPv4.
    fn own4(&mut self, family: Family) {
        let own = word_of(self.rules.loopback.four);
        self.rewrite4(family, own);
        self.look_up(&[own], self.allowed, self.nobody);
        self.program.jump(self.allowed);
    }

    /// Decides on an IPv4 address in its register.
    fn reach4(&mut self, family: Family) {
        let (local, own) = (self.program.label(), self.program.label());
        let Rules { closed, open, machine, .. } = self.rules;
        self.if_loopback4(local);
        self.if_in4(closed, self.refused);
        self.if_in4(open, self.allowed);
        self.if_in4(machine, self.refused);
        self.program.jump(self.allowed);
        self.program.place(local);
        let named = self.program.label();
        self.program.jump_if(ADDRESS, Is::NotEqual, 0, named);
        self.program.set(ADDRESS, LOCALHOST4 as i32);
        self.program.place(named);
        self.if_in4(&of_loopback(closed), own);
        self.if_in4(&of_loopback(open), self.allowed);
        self.program.place(own);
        self.own4(family);
    }
}

/// Returns the spans that hold loopback addresses.
fn of_loopback(spans: &[Span]) -> Vec<Span> {
    let holds = |span: &&Span| match span.address {
        IpAddr::V4(address) => {
            let bits = leading(span.bits.min(8));
            (word_of(address) ^ LOCALHOST4) & bits == 0
        }
        IpAddr::V6(address) => {
            let words = words_of(address);
            (0_u8..).zip(words).all(|(at, word)| {
                let bits = leading(span.bits.saturating_sub(32 * at));
                (word ^ if at == 3 { LOCALHOST6 } else { 0 }) & bits == 0
            })
        }
    };
    spans.iter().filter(holds).copied().collect()
}

#[cfg(test)]
mod tests;
