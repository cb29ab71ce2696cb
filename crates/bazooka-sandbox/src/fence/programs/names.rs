//! The program for names: an instance sees loopback where it used that.

use super::{ADDRESS4, ADDRESS6, Family, LOCALHOST4, LOCALHOST6, MAPPED, leading, word_of, words_of};
use crate::{
    fence::assembler::{Assembler, Instruction, Is, Register::*},
    loopback::{FOUR_BITS, FOUR_FIRST, SIX_PREFIX},
};

/// Builds the program that shows private addresses as loopback: for the names of both ends of a connection, and the
/// sender of a datagram.
pub fn name(family: Family) -> Vec<Instruction> {
    let mut program = Assembler::default();
    let as_it_is = program.label();
    let bits = leading(FOUR_BITS);
    match family {
        Family::Four => {
            program.load(R2, R1, ADDRESS4);
            program.mask(R2, bits);
            program.jump_if(R2, Is::NotEqual, word_of(FOUR_FIRST), as_it_is);
            program.set(R2, LOCALHOST4 as i32);
            program.store(R1, ADDRESS4, R2);
        }
        Family::Six => {
            let [high, low, ..] = words_of(SIX_PREFIX);
            let (mapped, six) = (program.label(), program.label());
            program.load(R2, R1, ADDRESS6);
            program.jump_if(R2, Is::Equal, high, six);
            program.jump_if(R2, Is::Equal, 0, mapped);
            program.jump(as_it_is);
            program.place(six);
            program.load(R2, R1, ADDRESS6 + 4);
            program.jump_if(R2, Is::NotEqual, low, as_it_is);
            for (at, word) in (0_i16..).zip([0, 0, 0, LOCALHOST6]) {
                program.set(R2, word as i32);
                program.store(R1, ADDRESS6 + 4 * at, R2);
            }
            program.answer(1);
            program.place(mapped);
            program.load(R2, R1, ADDRESS6 + 4);
            program.jump_if(R2, Is::NotEqual, 0, as_it_is);
            program.load(R2, R1, ADDRESS6 + 8);
            program.jump_if(R2, Is::NotEqual, MAPPED, as_it_is);
            program.load(R2, R1, ADDRESS6 + 12);
            program.mask(R2, bits);
            program.jump_if(R2, Is::NotEqual, word_of(FOUR_FIRST), as_it_is);
            program.set(R2, LOCALHOST4 as i32);
            program.store(R1, ADDRESS6 + 12, R2);
        }
    }
    program.place(as_it_is);
    program.answer(1);
    program.finish()
}
