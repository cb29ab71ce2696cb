//! The programs that mark a fence's sockets: new ones, and those that are for IPv6 only.

use super::{CONTEXT, PRIORITY, SIX_ONLY, mark_of};
use crate::{
    fence::assembler::{Assembler, Instruction, Is, Register::*},
    protocol::Rules,
};

/// The kernel's function that sets an option (linux/bpf.h).
const SET_OPTION: i32 = 49;

/// Offsets in the context of a socket's option (`struct bpf_sockopt`).
const OPTION_SOCKET: i16 = 0;
const OPTION_VALUE: i16 = 8;
const OPTION_END: i16 = 16;
const OPTION_LEVEL: i16 = 24;
const OPTION_NAME: i16 = 28;
const OPTION_LENGTH: i16 = 32;

const LEVEL_IPV6: u32 = 41;
const ONLY_IPV6: u32 = 26;
const LEVEL_SOCKET: i32 = 1;
const SOCKET_PRIORITY: i32 = 12;

/// Builds the program that marks each socket of the group.
pub fn new_socket(rules: &Rules) -> Vec<Instruction> {
    let mut program = Assembler::default();
    program.set(R2, mark_of(&rules.loopback) as i32);
    program.store(R1, PRIORITY, R2);
    program.answer(1);
    program.finish()
}

/// Builds the program for a socket's options: it notes in the mark that a socket is for IPv6 only, and changes nothing
/// else.
pub fn option(rules: &Rules) -> Vec<Instruction> {
    let mut program = Assembler::default();
    let [done, off, set] = [(); 3].map(|()| program.label());
    let mark = mark_of(&rules.loopback);
    program.copy(CONTEXT, R1);
    program.load(R2, R1, OPTION_LEVEL);
    program.jump_if(R2, Is::NotEqual, LEVEL_IPV6, done);
    program.load(R2, R1, OPTION_NAME);
    program.jump_if(R2, Is::NotEqual, ONLY_IPV6, done);
    program.load_address(R2, R1, OPTION_VALUE);
    program.load_address(R3, R1, OPTION_END);
    program.copy(R4, R2);
    program.add(R4, 4);
    program.jump_if_beyond(R4, R3, done);
    program.load(R2, R2, 0);
    program.jump_if(R2, Is::Equal, 0, off);
    program.store_value(Frame, -4, mark | SIX_ONLY);
    program.jump(set);
    program.place(off);
    program.store_value(Frame, -4, mark);
    program.place(set);
    program.load_address(R1, CONTEXT, OPTION_SOCKET);
    program.set(R2, LEVEL_SOCKET);
    program.set(R3, SOCKET_PRIORITY);
    program.copy(R4, Frame);
    program.add(R4, -4);
    program.set(R5, 4);
    program.call(SET_OPTION);
    program.place(done);
    // The kernel takes the caller's own value, however long it is.
    program.set(R2, 0);
    program.store(CONTEXT, OPTION_LENGTH, R2);
    program.answer(1);
    program.finish()
}
