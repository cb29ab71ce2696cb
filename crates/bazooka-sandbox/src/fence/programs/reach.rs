//! The programs for connect and for datagrams: which addresses are reached, and which are the instance's own.

use super::{ADDRESS, ADDRESS4, CONTEXT, Family, Fence, LOCALHOST6, of_loopback, word_of, words_of};
use crate::{fence::assembler::Instruction, protocol::Rules};

/// Builds the program for connect, or for a datagram that is sent without.
pub fn reach(rules: &Rules, port: u16, family: Family, connects: bool) -> Vec<Instruction> {
    let mut fence = Fence::begin(rules, port);
    if family == Family::Four {
        fence.program.load(ADDRESS, CONTEXT, ADDRESS4);
        fence.reach4(family);
        return fence.finish();
    }
    let [local, mapped, own6, by_four] = [(); 4].map(|()| fence.program.label());
    let Rules { closed, open, machine, loopback, .. } = rules;
    fence.split6(local, mapped);
    fence.if_in6(closed, fence.refused);
    fence.if_in6(open, fence.allowed);
    fence.if_in6(machine, fence.refused);
    fence.program.jump(fence.allowed);

    fence.program.place(local);
    // `::` leads to `::1`; the lists name that.
    fence.rewrite6([0, 0, 0, LOCALHOST6]);
    fence.if_in6(&of_loopback(closed), own6);
    fence.if_in6(&of_loopback(open), fence.allowed);
    fence.program.place(own6);
    match loopback.six.map(words_of) {
        Some(six) => {
            let there = fence.program.label();
            let elsewhere = if connects { by_four } else { fence.nobody };
            fence.look_up(&six, there, elsewhere);
            if connects {
                fence.program.jump(by_four);
                fence.program.place(by_four);
                // What listens on `::` is at the private IPv4 address. A datagram can't be led there.
                let (dual, none) = (fence.program.label(), fence.program.label());
                let four = word_of(loopback.four);
                fence.look_up(&[four], dual, none);
                fence.program.jump(none);
                fence.program.place(dual);
                fence.rewrite4(Family::Six, four);
                fence.program.jump(fence.allowed);
                fence.program.place(none);
                // Somebody else's socket on every address is at the private one too; this one says that nobody is.
                fence.look_up(&six, there, fence.nobody);
            }
            fence.program.place(there);
            fence.rewrite6(six);
            fence.program.jump(fence.allowed);
        }
        None if connects => {
            fence.program.place(by_four);
            fence.own4(family);
        }
        None => {
            fence.program.place(by_four);
            fence.program.jump(fence.refused);
        }
    }
    fence.program.place(mapped);
    fence.reach4(family);
    fence.finish()
}
