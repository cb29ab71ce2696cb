//! An assembler of the kernel's BPF: instructions, registers and labels.
//!
//! Owns the encoding. It knows nothing of sockets.

use std::collections::{BTreeMap, BTreeSet};

/// One instruction, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    /// The target register in the lower half, the source in the upper.
    pub registers: u8,
    pub offset: i16,
    pub value: i32,
}

/// A register. Calls of the kernel's functions take R1 to R5, answer in R0, and keep R6 to R9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    R9 = 9,
    /// The end of the stack, read-only.
    Frame = 10,
}

/// A place in a program that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// The comparisons of a register's lower half with a value, without sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    Equal,
    NotEqual,
    Above,
    Below,
}

pub const LOAD: u8 = 0x61;
pub const LOAD_ADDRESS: u8 = 0x79;
pub const STORE: u8 = 0x63;
pub const STORE_VALUE: u8 = 0x62;
pub const SET: u8 = 0xb7;
pub const COPY: u8 = 0xbf;
pub const ADD: u8 = 0x07;
pub const AND: u8 = 0x54;
pub const SHIFT_LEFT: u8 = 0x67;
pub const TO_BIG_ENDIAN: u8 = 0xdc;
pub const JUMP: u8 = 0x05;
pub const JUMP_IF_NULL: u8 = 0x15;
pub const CALL: u8 = 0x85;
pub const EXIT: u8 = 0x95;
pub const IF_BEYOND: u8 = 0x2d;
pub const IF_EQUAL: u8 = 0x16;
pub const IF_NOT_EQUAL: u8 = 0x56;
pub const IF_ABOVE: u8 = 0x26;
pub const IF_BELOW: u8 = 0xa6;

/// A program under construction.
#[derive(Default)]
pub struct Assembler {
    steps: Vec<Instruction>,
    /// The jumps whose distance isn't known yet.
    jumps: Vec<(usize, Label)>,
    /// The place of each label, once it is known.
    places: Vec<Option<usize>>,
}

impl Assembler {
    /// Returns a label, to be placed once.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Places a label before the next instruction.
    pub fn place(&mut self, label: Label) {
        let before = self.places[label.0].replace(self.steps.len());
        assert!(before.is_none(), "a label has one place");
    }

    fn step(&mut self, code: u8, to: Register, from: Register, offset: i16, value: i32) {
        let registers = (from as u8) << 4 | to as u8;
        self.steps.push(Instruction { code, registers, offset, value });
    }

    /// Loads a word from memory.
    pub fn load(&mut self, to: Register, from: Register, offset: i16) {
        self.step(LOAD, to, from, offset, 0);
    }

    /// Loads an address from memory.
    pub fn load_address(&mut self, to: Register, from: Register, offset: i16) {
        self.step(LOAD_ADDRESS, to, from, offset, 0);
    }

    /// Stores a register's lower half in memory.
    pub fn store(&mut self, to: Register, offset: i16, from: Register) {
        self.step(STORE, to, from, offset, 0);
    }

    /// Stores a word in memory. The kernel's context takes only [`Assembler::store`].
    pub fn store_value(&mut self, to: Register, offset: i16, value: u32) {
        self.step(STORE_VALUE, to, Register::R0, offset, value as i32);
    }

    /// Sets a register, with sign.
    pub fn set(&mut self, to: Register, value: i32) {
        self.step(SET, to, Register::R0, 0, value);
    }

    /// Copies a register.
    pub fn copy(&mut self, to: Register, from: Register) {
        self.step(COPY, to, from, 0, 0);
    }

    /// Adds to a register, such as an address.
    pub fn add(&mut self, to: Register, value: i32) {
        self.step(ADD, to, Register::R0, 0, value);
    }

    /// Keeps these bits of a register's lower half.
    pub fn mask(&mut self, to: Register, bits: u32) {
        self.step(AND, to, Register::R0, 0, bits as i32);
    }

    /// Shifts a register's bits up.
    pub fn shift_left(&mut self, to: Register, bits: i32) {
        self.step(SHIFT_LEFT, to, Register::R0, 0, bits);
    }

    /// Turns a port in network order into a number.
    pub fn port_to_number(&mut self, to: Register) {
        self.step(TO_BIG_ENDIAN, to, Register::R0, 0, 16);
    }

    /// Calls a function of the kernel, by its number.
    pub fn call(&mut self, function: i32) {
        self.step(CALL, Register::R0, Register::R0, 0, function);
    }

    /// Ends the program with an answer.
    pub fn answer(&mut self, value: i32) {
        self.set(Register::R0, value);
        self.step(EXIT, Register::R0, Register::R0, 0, 0);
    }

    /// Jumps.
    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.steps.len(), to));
        self.step(JUMP, Register::R0, Register::R0, 0, 0);
    }

    /// Jumps if a register's lower half compares so.
    pub fn jump_if(&mut self, register: Register, is: Is, value: u32, to: Label) {
        let code = match is {
            Is::Equal => IF_EQUAL,
            Is::NotEqual => IF_NOT_EQUAL,
            Is::Above => IF_ABOVE,
            Is::Below => IF_BELOW,
        };
        self.jumps.push((self.steps.len(), to));
        self.step(code, register, Register::R0, 0, value as i32);
    }

    /// Jumps if a register is no address.
    pub fn jump_if_null(&mut self, register: Register, to: Label) {
        self.jumps.push((self.steps.len(), to));
        self.step(JUMP_IF_NULL, register, Register::R0, 0, 0);
    }

    /// Jumps if an address is beyond another.
    pub fn jump_if_beyond(&mut self, address: Register, end: Register, to: Label) {
        self.jumps.push((self.steps.len(), to));
        self.step(IF_BEYOND, address, end, 0, 0);
    }

    /// Returns the program, without what no way leads to: the kernel refuses a program with such instructions.
    pub fn finish(self) -> Vec<Instruction> {
        let target = |label: Label| self.places[label.0].expect("each label that a jump leads to is placed");
        let jumps: BTreeMap<usize, usize> =
            self.jumps.iter().map(|(at, label)| (*at, target(*label))).collect();
        let mut reached = BTreeSet::new();
        let mut ways = vec![0];
        while let Some(at) = ways.pop() {
            if !reached.insert(at) {
                continue;
            }
            ways.extend(jumps.get(&at));
            if !matches!(self.steps[at].code, JUMP | EXIT) {
                ways.push(at + 1);
            }
        }
        let mut places = vec![0; self.steps.len()];
        for (place, at) in reached.iter().enumerate() {
            places[*at] = place;
        }
        let placed = reached.iter().map(|at| {
            let mut step = self.steps[*at];
            if let Some(to) = jumps.get(at) {
                let distance = places[*to].checked_sub(places[*at] + 1).expect("only forward");
                step.offset = i16::try_from(distance).expect("a fence's program is short");
            }
            step
        });
        placed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_way_leads_to_is_left_out() {
        let mut program = Assembler::default();
        let (used, unused) = (program.label(), program.label());
        program.jump(used);
        program.place(unused);
        program.answer(0);
        program.place(used);
        program.answer(1);
        let codes: Vec<(u8, i16, i32)> =
            program.finish().iter().map(|step| (step.code, step.offset, step.value)).collect();
        assert_eq!(codes, [(JUMP, 0, 0), (SET, 0, 1), (EXIT, 0, 0)]);
    }
}
