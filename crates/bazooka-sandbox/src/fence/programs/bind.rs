//! The program for bind: which addresses are the machine's, and which are private.

use std::net::IpAddr;

use super::{
    ADDRESS, ADDRESS4, CONTEXT, Family, Fence, LOCALHOST6, NUMBER, PRIORITY, SIX_ONLY, SOCKET, word_of,
    words_of,
};
use crate::{
    fence::assembler::{Instruction, Is, Register::*},
    protocol::Rules,
};

/// Builds the program for bind.
pub fn bind(rules: &Rules, port: u16, family: Family) -> Vec<Instruction> {
    let mut fence = Fence::begin(rules, port);
    let [local, mapped, four, own4, own6, outside] = [(); 6].map(|()| fence.program.label());
    match family {
        Family::Four => fence.program.load(ADDRESS, CONTEXT, ADDRESS4),
        Family::Six => {
            fence.split6(local, mapped);
            fence.program.jump(outside);
            fence.program.place(mapped);
        }
    }
    fence.program.place(four);
    let named = fence.program.label();
    fence.program.jump_if(ADDRESS, Is::NotEqual, 0, named);
    if_reached_from_outside(&mut fence);
    fence.program.jump(own4);
    fence.program.place(named);
    if let (IpAddr::V4(host), true) = (rules.host, port != 0) {
        // Where the host's own address is one of 127.0.0.0/8, its $PORT there is what proxies reach.
        let other = fence.program.label();
        fence.program.jump_if(ADDRESS, Is::NotEqual, word_of(host), other);
        fence.program.jump_if(NUMBER, Is::Equal, port.into(), fence.allowed);
        fence.program.place(other);
    }
    fence.if_loopback4(own4);
    fence.program.place(outside);
    if_reached_from_outside(&mut fence);
    fence.program.jump(fence.refused);

    if family == Family::Six {
        fence.program.place(local);
        fence.program.jump_if(ADDRESS, Is::Equal, LOCALHOST6, own6);
        if_reached_from_outside(&mut fence);
        // A socket on `::` serves IPv4 too, unless it is for IPv6 only. At the private IPv4 address it serves both,
        // because a connection to `::1` is led there as well.
        fence.program.load_address(R1, CONTEXT, SOCKET);
        fence.program.load(R2, R1, PRIORITY);
        fence.program.mask(R2, SIX_ONLY);
        fence.program.jump_if(R2, Is::Equal, 0, own4);
        fence.program.place(own6);
        if let Some(six) = rules.loopback.six {
            if_reserved(&mut fence);
            fence.rewrite6(words_of(six));
            fence.program.jump(fence.allowed);
        }
    }
    fence.program.place(own4);
    if_reserved(&mut fence);
    fence.rewrite4(family, word_of(rules.loopback.four));
    fence.program.jump(fence.allowed);
    fence.finish()
}

/// Allows the ports that stay on the machine's addresses: the instance's own, and one that the kernel picks.
fn if_reached_from_outside(fence: &mut Fence<'_>) {
    fence.program.jump_if(NUMBER, Is::Equal, 0, fence.allowed);
    if fence.port != 0 {
        fence.program.jump_if(NUMBER, Is::Equal, fence.port.into(), fence.allowed);
    }
}

/// Refuses the ports that other instances need on every address.
fn if_reserved(fence: &mut Fence<'_>) {
    let free = fence.program.label();
    if fence.port != 0 {
        fence.program.jump_if(NUMBER, Is::Equal, fence.port.into(), free);
    }
    for (first, last) in &fence.rules.reserved {
        fence.if_port(*first, *last, fence.in_use);
    }
    fence.program.place(free);
}
