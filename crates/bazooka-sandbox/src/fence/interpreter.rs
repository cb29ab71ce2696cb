//! An interpreter of a fence's programs, for tests: what the kernel would answer.

use std::collections::BTreeMap;

use super::assembler::*;

/// A socket that a lookup finds: its own address, port and priority.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub address: std::net::IpAddr,
    pub port: u16,
    pub priority: u32,
    pub is_tcp: bool,
}

/// The state of the world for one call.
#[derive(Default)]
pub struct Call<'a> {
    /// The context's words, by offset.
    pub context: BTreeMap<i16, u32>,
    /// The sockets of the machine.
    pub sockets: &'a [Found],
    /// The priority of the socket that the call is made on.
    pub priority: u32,
}

/// The outcome of a program.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub answer: u64,
    /// The error that the caller gets, if the program sets one.
    pub error: Option<i32>,
    pub context: BTreeMap<i16, u32>,
}

/// A register's content.
#[derive(Clone, Copy, Debug)]
enum Value {
    Number(u64),
    Context,
    Stack(i64),
    Socket(usize),
    OwnSocket,
}

/// Runs a program, as the kernel would.
pub fn run(program: &[Instruction], call: Call<'_>) -> Outcome {
    let Call { mut context, sockets, priority } = call;
    let mut registers = [Value::Number(0); 11];
    registers[1] = Value::Context;
    registers[10] = Value::Stack(0);
    let mut stack: BTreeMap<i64, u32> = BTreeMap::new();
    let (mut at, mut error, mut held) = (0, None, 0);
    loop {
        let Instruction { code, registers: named, offset, value } = program[at];
        let (to, from) = (usize::from(named & 0xf), usize::from(named >> 4));
        at += 1;
        let number = |value: Value| match value {
            Value::Number(number) => number,
            other => panic!("{other:?} is no number"),
        };
        let mut jumps = false;
        match code {
            LOAD => {
                let word = match registers[from] {
                    Value::Context => context.get(&offset).copied().unwrap_or(0),
                    Value::Stack(base) => stack[&(base + i64::from(offset))],
                    Value::Socket(which) => field(&sockets[which], offset),
                    Value::OwnSocket => priority,
                    Value::Number(_) => panic!("no address"),
                };
                registers[to] = Value::Number(word.into());
            }
            LOAD_ADDRESS => registers[to] = Value::OwnSocket,
            STORE | STORE_VALUE => {
                let word = if code == STORE { number(registers[from]) as u32 } else { value as u32 };
                match registers[to] {
                    Value::Context => drop(context.insert(offset, word)),
                    Value::Stack(base) => drop(stack.insert(base + i64::from(offset), word)),
                    other => panic!("{other:?} can't be written"),
                }
            }
            SET => registers[to] = Value::Number(i64::from(value) as u64),
            COPY => registers[to] = registers[from],
            ADD => match registers[to] {
                Value::Stack(base) => registers[to] = Value::Stack(base + i64::from(value)),
                other => panic!("{other:?} isn't added to"),
            },
            AND => registers[to] = Value::Number(u64::from(number(registers[to]) as u32 & value as u32)),
            SHIFT_LEFT => registers[to] = Value::Number(number(registers[to]) << value),
            TO_BIG_ENDIAN => {
                registers[to] = Value::Number(u16::from_be(number(registers[to]) as u16).into());
            }
            JUMP => jumps = true,
            JUMP_IF_NULL => jumps = matches!(registers[to], Value::Number(0)),
            IF_EQUAL => jumps = number(registers[to]) as u32 == value as u32,
            IF_NOT_EQUAL => jumps = number(registers[to]) as u32 != value as u32,
            IF_ABOVE => jumps = number(registers[to]) as u32 > value as u32,
            IF_BELOW => jumps = (number(registers[to]) as u32) < value as u32,
            CALL => {
                registers[0] = match value {
                    super::programs::LOOK_UP_TCP | super::programs::LOOK_UP_UDP => {
                        let Value::Stack(tuple) = registers[2] else { panic!("no tuple") };
                        let size = number(registers[3]);
                        let tuple: Vec<u32> =
                            (0..size as i64 / 4).map(|word| stack[&(tuple + 4 * word)]).collect();
                        let is_tcp = value == super::programs::LOOK_UP_TCP;
                        let found = sockets.iter().position(|socket| matches(socket, &tuple, is_tcp));
                        held += usize::from(found.is_some());
                        found.map_or(Value::Number(0), Value::Socket)
                    }
                    super::programs::RELEASE => {
                        held -= 1;
                        Value::Number(0)
                    }
                    super::programs::SET_ERROR => {
                        error = Some(number(registers[1]) as i32);
                        Value::Number(0)
                    }
                    other => panic!("function {other}"),
                };
                registers[1..=5].fill(Value::Number(u64::MAX));
            }
            EXIT => {
                assert_eq!(held, 0, "each socket that was found is released");
                return Outcome { answer: number(registers[0]), error, context };
            }
            other => panic!("{other:#x}"),
        }
        if jumps {
            at += usize::try_from(offset).expect("only forward");
        }
    }
}

fn words(address: std::net::Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]))
}

/// A field of the kernel's `struct bpf_sock`.
fn field(socket: &Found, offset: i16) -> u32 {
    let (four, six) = match socket.address {
        std::net::IpAddr::V4(four) => (four, std::net::Ipv6Addr::UNSPECIFIED),
        std::net::IpAddr::V6(six) => (six.to_ipv4_mapped().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED), six),
    };
    match offset {
        20 => socket.priority,
        24 => u32::from_ne_bytes(four.octets()),
        28 | 32 | 36 | 40 => words(six)[usize::try_from((offset - 28) / 4).expect("it is small")],
        other => panic!("field {other}"),
    }
}

/// Reports whether a listener matches: tuple of source, target, and both ports.
fn matches(socket: &Found, tuple: &[u32], is_tcp: bool) -> bool {
    let port = u16::from_be((tuple[tuple.len() - 1] >> 16) as u16);
    if socket.port != port || socket.is_tcp != is_tcp {
        return false;
    }
    match (socket.address, tuple.len()) {
        (std::net::IpAddr::V4(own), 3) => {
            own.is_unspecified() || u32::from_ne_bytes(own.octets()) == tuple[1]
        }
        (std::net::IpAddr::V6(own), 3) => {
            own.is_unspecified()
                || own.to_ipv4_mapped().is_some_and(|own| u32::from_ne_bytes(own.octets()) == tuple[1])
        }
        (std::net::IpAddr::V6(own), 9) => own.is_unspecified() || words(own) == tuple[4..8],
        _ => false,
    }
}
