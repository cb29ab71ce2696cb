//! A filter of system calls as a tree of comparisons, in the kernel's classic BPF.
//!
//! Owns the form of the program. The kernel goes through a new filter once for every system call, to remember which
//! ones it always allows; in a chain of comparisons that takes half a millisecond at each start, in a tree a tenth of
//! that.
//!
//! ```text
//! right architecture? ── no ─▶ kill
//! number ≥ middle? ─┬─ yes ─▶ number ≥ middle of the upper half? …
//!                   └─ no ──▶ …   ▶ allow │ absent (ENOSYS) │ conditions on arguments ─▶ allow or absent
//! ```

use nix::libc;
use seccompiler::{BpfProgram, sock_filter};

/// A condition on the lower half of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The argument's position, from 0.
    pub argument: u32,
    /// The bits that count.
    pub mask: u32,
    /// The value that these bits must have.
    pub value: u32,
}

/// The filter's answer to a range of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The call is made.
    Allow,
    /// The kernel answers that it has no such call.
    Absent,
    /// The call is made if all conditions of one of these lists hold; it is absent otherwise.
    AllowIf(Vec<Vec<Word>>),
}

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// linux/seccomp.h: offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The architecture of this program, as the kernel names it (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const OWN_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OWN_ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const OWN_ARCHITECTURE: u32 = 0xc000_00f3;

/// Builds the program. Each pair is the first call of a range and the verdict on it, in order, from 0 on; the last
/// range has no end.
pub fn program(ranges: &[(u32, Verdict)]) -> BpfProgram {
    let mut program = vec![
        step(LOAD_WORD, ARCHITECTURE),
        branch(JUMP_IF_EQUAL, OWN_ARCHITECTURE, 1, 0),
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD_WORD, NUMBER),
    ];
    program.extend(tree(ranges));
    program
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Every branch of the tree ends with a return.
fn tree(ranges: &[(u32, Verdict)]) -> BpfProgram {
    match ranges {
        [] => absent(),
        [(_, verdict)] => leaf(verdict),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let (middle, lower) = (upper[0].0, tree(lower));
            // A branch reaches 255 instructions, a jump all of them.
            let mut made = match u8::try_from(lower.len()) {
                Ok(length) => vec![branch(JUMP_IF_AT_LEAST, middle, length, 0)],
                Err(_) => {
                    let length = u32::try_from(lower.len()).expect("a filter is short");
                    vec![branch(JUMP_IF_AT_LEAST, middle, 0, 1), step(JUMP, length)]
                }
            };
            made.extend(lower);
            made.extend(tree(upper));
            made
        }
    }
}

fn absent() -> BpfProgram {
    let not_there = u32::try_from(libc::ENOSYS).expect("error numbers are positive");
    vec![step(RETURN, libc::SECCOMP_RET_ERRNO | not_there)]
}

fn leaf(verdict: &Verdict) -> BpfProgram {
    match verdict {
        Verdict::Allow => vec![step(RETURN, libc::SECCOMP_RET_ALLOW)],
        Verdict::Absent => absent(),
        Verdict::AllowIf(lists) => {
            let mut made = Vec::new();
            for list in lists {
                let mut tests: BpfProgram = vec![step(RETURN, libc::SECCOMP_RET_ALLOW)];
                // Built from its end, so that each condition knows how many instructions lead to the next list.
                for word in list.iter().rev() {
                    let skipped = u8::try_from(tests.len()).expect("a list of conditions is short");
                    let mut test = vec![step(LOAD_WORD, ARGUMENTS + 8 * word.argument)];
                    if word.mask != u32::MAX {
                        test.push(step(AND, word.mask));
                    }
                    test.push(branch(JUMP_IF_EQUAL, word.value, 0, skipped));
                    tests.splice(0..0, test);
                }
                made.extend(tests);
            }
            made.extend(absent());
            made
        }
    }
}

/// Returns a program's answer to a call, and the number of instructions until then, as the kernel would.
#[cfg(test)]
pub fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 3]) -> (u32, usize) {
    let (mut at, mut loaded, mut steps) = (0, 0_u32, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        (at, steps) = (at + 1, steps + 1);
        let taken = match code {
            LOAD_WORD => {
                loaded = match k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    k => arguments[usize::try_from((k - ARGUMENTS) / 8).expect("it is small")],
                };
                continue;
            }
            AND => {
                loaded &= k;
                continue;
            }
            JUMP => {
                at += usize::try_from(k).expect("it is small");
                continue;
            }
            RETURN => return (k, steps),
            JUMP_IF_EQUAL => loaded == k,
            JUMP_IF_AT_LEAST => loaded >= k,
            other => panic!("{other:#x}"),
        };
        at += usize::from(if taken { jt } else { jf });
    }
}

#[cfg(test)]
pub const OWN: u32 = OWN_ARCHITECTURE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_a_thousand_ranges_is_found_in_few_steps() {
        let verdict = |at: u32| if at.is_multiple_of(2) { Verdict::Allow } else { Verdict::Absent };
        let ranges: Vec<(u32, Verdict)> = (0..1_000).map(|at| (3 * at, verdict(at))).collect();
        let program = program(&ranges);
        for at in 0..1_000 {
            for number in [3 * at, 3 * at + 2] {
                let (answer, steps) = run(&program, OWN, number, [0; 3]);
                assert_eq!(answer == libc::SECCOMP_RET_ALLOW, at.is_multiple_of(2), "{number}");
                assert!(steps <= 4 + 2 * 10 + 1, "{steps} for {number}");
            }
        }
    }

    #[test]
    fn all_conditions_of_one_list_must_hold() {
        let word = |argument, value| Word { argument, mask: u32::MAX, value };
        let even = Word { argument: 2, mask: 1, value: 0 };
        let lists = vec![vec![word(0, 7), even], vec![word(1, 9)]];
        let program = program(&[(0, Verdict::AllowIf(lists))]);
        for (arguments, allowed) in
            [([7, 0, 2], true), ([7, 0, 3], false), ([7, 9, 3], true), ([8, 9, 3], true), ([8, 8, 2], false)]
        {
            let (answer, _) = run(&program, OWN, 1, arguments);
            assert_eq!(answer == libc::SECCOMP_RET_ALLOW, allowed, "{arguments:?}");
        }
    }

    #[test]
    fn a_call_of_another_architecture_ends_the_process() {
        let program = program(&[(0, Verdict::Allow)]);
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 3]).0, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
