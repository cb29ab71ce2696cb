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
    let [local, mapped, own6] = [(); 3].map(|()| fence.program.label());
    let Rules { closed, open, machine, loopback, .. } = rules;
    fence.split6(local, mapped);
    fence.if_in6(closed, fence.refused);
    fence.if_in6(open, fence.allowed);
    fence.if_in6(machine, fence.refused);
    fence.program.jump(fence.allowed);

    fence.program.place(local);
    // `::` leads to `::1`; each of these lists' spans holds that.
    fence.rewrite6([0, 0, 0, LOCALHOST6]);
    for (spans, to) in [(of_loopback(closed), own6), (of_loopback(open), fence.allowed)] {
        for span in spans.iter().filter(|span| span.address.is_ipv6()) {
            fence.if_port(span.first, span.last, to);
        }
    }
    fence.program.place(own6);
    match loopback.six.map(words_of) {
        Some(six) => {
            let [there, none, foreign] = [(); 3].map(|()| fence.program.label());
            fence.look_up(&six, there, if connects { foreign } else { fence.nobody });
            if connects {
                // What listens on `::` is at the private IPv4 address. A datagram can't be led there.
                let four = word_of(loopback.four);
                let dual = fence.program.label();
                fence.look_up(&[four], dual, none);
                fence.program.jump(none);
                // Somebody else's socket on every address is at the private IPv6 address too.
                fence.program.place(foreign);
                fence.look_up(&[four], dual, fence.nobody);
                fence.program.jump(fence.nobody);
                fence.program.place(dual);
                fence.rewrite4(Family::Six, four);
                fence.program.jump(fence.allowed);
                fence.program.place(none);
            }
            fence.program.place(there);
            fence.rewrite6(six);
            fence.program.jump(fence.allowed);
        }
        None if connects => fence.own4(family),
        None => fence.program.jump(fence.refused),
    }
    // The kernel turns a datagram to a mapped address into one of IPv4 before it asks.
    fence.program.place(mapped);
    if connects {
        fence.reach4(family);
    } else {
        fence.program.jump(fence.refused);
    }
    fence.finish()
}
