//! The answers of the programs, run by an interpreter.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    super::interpreter::{Call, Found, Outcome, run},
    *,
};
use crate::loopback;

const OWN_PORT: u16 = 21_000;
const UID: u32 = 7;

fn own() -> Loopback {
    loopback::of(UID, true)
}

fn span(address: &str, bits: u8, first: u16, last: u16) -> Span {
    Span { address: address.parse().expect("valid"), bits, first, last }
}

fn rules() -> Rules {
    Rules {
        host: "10.0.0.5".parse().expect("valid"),
        loopback: own(),
        closed: vec![
            span("10.0.0.1", 32, 2379, 2380),
            span("10.0.0.5", 32, 8274, 8274),
            span("127.0.0.0", 8, 2379, 2379),
            span("fd00::1", 128, 2379, 2379),
            span("::1", 128, 2379, 2379),
        ],
        open: vec![
            span("127.0.0.53", 32, 53, 53),
            span("10.0.0.5", 32, 0, u16::MAX),
            span("127.0.0.1", 32, 8_500, 8_510),
            span("127.0.0.1", 32, 2379, 2379),
            span("::1", 128, 8_500, 8_510),
        ],
        machine: vec![
            span("10.0.0.5", 32, 0, u16::MAX),
            span("10.0.0.6", 32, 0, u16::MAX),
            span("169.254.169.254", 32, 0, u16::MAX),
            span("fd00:ec2::254", 128, 0, u16::MAX),
            span("fd62:617a:6f6f:6b61::", 64, 0, u16::MAX),
        ],
        reserved: vec![(21_000, 21_999)],
    }
}

fn socket(address: &str, is_tcp: bool, priority: u32) -> Found {
    let at: SocketAddr = address.parse().expect("valid");
    Found { address: at.ip(), port: at.port(), priority, is_tcp }
}

fn context(at: SocketAddr, is_tcp: bool) -> BTreeMap<i16, u32> {
    let [high, low] = at.port().to_be_bytes();
    let mut words = BTreeMap::from([(PORT, u32::from_ne_bytes([high, low, 0, 0]))]);
    words.insert(PROTOCOL, if is_tcp { TCP } else { UDP });
    match at.ip() {
        IpAddr::V4(four) => drop(words.insert(ADDRESS4, word_of(four))),
        IpAddr::V6(six) => words.extend((0..).map(|at| ADDRESS6 + 4 * at).zip(words_of(six))),
    }
    words
}

/// Returns what becomes of a call: the address that the kernel goes on with, or the error.
fn outcome(program: &[Instruction], at: SocketAddr, is_tcp: bool, sockets: &[Found]) -> String {
    let Outcome { answer, error, context } =
        run(program, Call { context: context(at, is_tcp), sockets, priority: mark_of(&own()) });
    match (answer, error) {
        (0, None) => "refused".to_owned(),
        (0, Some(error)) if error == -CONNECTION_REFUSED => "nobody".to_owned(),
        (0, Some(error)) if error == -ADDRESS_IN_USE => "in use".to_owned(),
        (0, Some(other)) => panic!("{other}"),
        _ if at.is_ipv4() => Ipv4Addr::from(context[&ADDRESS4].to_ne_bytes()).to_string(),
        _ => {
            let octets: Vec<u8> =
                (0..4).flat_map(|word| context[&(ADDRESS6 + 4 * word)].to_ne_bytes()).collect();
            let octets: [u8; 16] = octets.try_into().expect("four words");
            Ipv6Addr::from(octets).to_string()
        }
    }
}

fn binds(port: u16, at: &str) -> String {
    let at: SocketAddr = at.parse().expect("valid");
    let family = if at.is_ipv4() { Family::Four } else { Family::Six };
    outcome(&bind(&rules(), port, family), at, true, &[])
}

fn reaches(at: &str, is_tcp: bool, sockets: &[Found]) -> String {
    let at: SocketAddr = at.parse().expect("valid");
    let family = if at.is_ipv4() { Family::Four } else { Family::Six };
    outcome(&reach(&rules(), OWN_PORT, family, true), at, is_tcp, sockets)
}

fn sends(at: &str, sockets: &[Found]) -> String {
    let at: SocketAddr = at.parse().expect("valid");
    let family = if at.is_ipv4() { Family::Four } else { Family::Six };
    outcome(&reach(&rules(), OWN_PORT, family, false), at, false, sockets)
}

#[test]
fn its_port_stays_on_the_machine_and_all_others_are_private() {
    for (at, wanted) in [
        ("0.0.0.0:21000", "0.0.0.0"),
        ("0.0.0.0:0", "0.0.0.0"),
        ("10.0.0.5:21000", "10.0.0.5"),
        ("10.0.0.5:0", "10.0.0.5"),
        ("10.0.0.5:9464", "refused"),
        ("127.0.0.1:21000", "127.99.0.7"),
        ("127.0.0.1:9464", "127.99.0.7"),
        ("127.0.0.1:0", "127.99.0.7"),
        ("127.99.0.9:9464", "127.99.0.7"),
        ("0.0.0.0:9464", "127.99.0.7"),
        ("0.0.0.0:21001", "in use"),
        ("127.0.0.1:21999", "in use"),
        ("127.0.0.1:22000", "127.99.0.7"),
        ("[::]:21000", "::"),
        ("[::]:0", "::"),
        ("[::]:9464", "::ffff:127.99.0.7"),
        ("[::]:21001", "in use"),
        ("[::1]:9464", "fd62:617a:6f6f:6b61::7"),
        ("[::1]:21000", "fd62:617a:6f6f:6b61::7"),
        ("[::1]:21001", "in use"),
        ("[::1]:0", "fd62:617a:6f6f:6b61::7"),
        ("[::ffff:127.0.0.1]:9464", "::ffff:127.99.0.7"),
        ("[::ffff:0.0.0.0]:9464", "::ffff:127.99.0.7"),
        ("[::ffff:0.0.0.0]:21000", "::ffff:0.0.0.0"),
        ("[fd00::5]:21000", "fd00::5"),
        ("[fd00::5]:9464", "refused"),
        ("[fd62:617a:6f6f:6b61::9]:9464", "refused"),
    ] {
        assert_eq!(binds(OWN_PORT, at), wanted, "{at}");
    }
    for (at, wanted) in [("0.0.0.0:0", "0.0.0.0"), ("0.0.0.0:9464", "127.99.0.7"), ("10.0.0.5:80", "refused")]
    {
        assert_eq!(binds(0, at), wanted, "without a port of its own: {at}");
    }
}

#[test]
fn a_socket_for_ipv6_only_is_at_the_private_ipv6_address() {
    let at: SocketAddr = "[::]:9464".parse().expect("valid");
    let program = bind(&rules(), OWN_PORT, Family::Six);
    for (priority, words) in [
        (mark_of(&own()), [0, 0, MAPPED, word_of(own().four)]),
        (mark_of(&own()) | SIX_ONLY, words_of(own().six.expect("it was asked for"))),
    ] {
        let outcome = run(&program, Call { context: context(at, true), sockets: &[], priority });
        assert_eq!((outcome.answer, outcome.error), (1, None));
        assert_eq!([0, 4, 8, 12].map(|word| outcome.context[&(ADDRESS6 + word)]), words);
    }
}

#[test]
fn a_host_whose_address_is_a_loopback_one_is_reached_there() {
    let mut rules = rules();
    rules.host = "127.0.0.2".parse().expect("valid");
    let program = bind(&rules, OWN_PORT, Family::Four);
    for (at, wanted) in [
        ("127.0.0.2:21000", "127.0.0.2"),
        ("127.0.0.1:21000", "127.99.0.7"),
        ("127.0.0.2:9464", "127.99.0.7"),
        ("127.0.0.2:21001", "in use"),
    ] {
        assert_eq!(outcome(&program, at.parse().expect("valid"), true, &[]), wanted, "{at}");
    }
}

#[test]
fn loopback_is_its_own_but_for_what_is_opened() {
    for (at, wanted) in [
        ("127.0.0.1:9464", "127.99.0.7"),
        ("127.9.9.9:9464", "127.99.0.7"),
        ("0.0.0.0:9464", "127.99.0.7"),
        ("127.99.0.9:9464", "127.99.0.7"),
        // Closed is closed, whatever is open.
        ("127.0.0.1:2379", "127.99.0.7"),
        ("127.0.0.53:53", "127.0.0.53"),
        ("127.0.0.1:53", "127.99.0.7"),
        ("127.0.0.1:8501", "127.0.0.1"),
        ("0.0.0.0:8501", "0.0.0.0"),
        ("[::1]:9464", "fd62:617a:6f6f:6b61::7"),
        ("[::]:9464", "fd62:617a:6f6f:6b61::7"),
        ("[::1]:8501", "::1"),
        ("[::1]:2379", "fd62:617a:6f6f:6b61::7"),
        ("[::ffff:127.0.0.1]:9464", "::ffff:127.99.0.7"),
        ("[::ffff:127.0.0.1]:8501", "::ffff:127.0.0.1"),
    ] {
        // A datagram finds the same; one to a mapped address is asked about as an IPv4 one.
        for is_tcp in [true, false] {
            assert_eq!(reaches(at, is_tcp, &[]), wanted, "{at}");
        }
        if !at.contains("ffff") {
            assert_eq!(sends(at, &[]), wanted, "{at}");
        }
    }
}

#[test]
fn of_the_machine_nothing_is_reached_but_what_is_opened() {
    for (at, wanted) in [
        ("10.0.0.1:2379", "refused"),
        ("10.0.0.1:2380", "refused"),
        ("10.0.0.1:2381", "10.0.0.1"),
        ("10.0.0.5:8274", "refused"),
        ("10.0.0.5:5432", "10.0.0.5"),
        ("10.0.0.6:5432", "refused"),
        ("10.0.0.7:5432", "10.0.0.7"),
        ("169.254.169.254:80", "refused"),
        ("[fd00::1]:2379", "refused"),
        ("[fd00::1]:2380", "fd00::1"),
        ("[fd00:ec2::254]:80", "refused"),
        ("[fd62:617a:6f6f:6b61::9]:9464", "refused"),
        ("[fd62:617a:6f6f:6b61::7]:9464", "refused"),
        ("[::ffff:10.0.0.1]:2379", "refused"),
        ("[::ffff:10.0.0.6]:5432", "refused"),
        ("[::ffff:169.254.169.254]:80", "refused"),
        ("[::ffff:10.0.0.7]:5432", "::ffff:10.0.0.7"),
    ] {
        assert_eq!(reaches(at, true, &[]), wanted, "{at}");
        if !at.contains("ffff") {
            assert_eq!(sends(at, &[]), wanted, "{at}");
        }
    }
}

#[test]
fn a_listener_on_every_address_is_reached_by_its_own_instance_alone() {
    let mark = mark_of(&own());
    assert_ne!(mark, mark_of(&loopback::of(UID + 1, true)));
    for (listener, priority, wanted4, wanted6) in [
        ("0.0.0.0:9464", 0, "nobody", "fd62:617a:6f6f:6b61::7"),
        ("[::]:9464", 0, "nobody", "nobody"),
        ("0.0.0.0:9464", mark_of(&loopback::of(UID + 1, true)), "nobody", "fd62:617a:6f6f:6b61::7"),
        ("0.0.0.0:9464", mark, "127.99.0.7", "::ffff:127.99.0.7"),
        ("[::]:9464", mark, "127.99.0.7", "fd62:617a:6f6f:6b61::7"),
        ("[::]:9464", mark | SIX_ONLY, "127.99.0.7", "fd62:617a:6f6f:6b61::7"),
        ("127.99.0.7:9464", 0, "127.99.0.7", "::ffff:127.99.0.7"),
        ("[::ffff:127.99.0.7]:9464", 0, "127.99.0.7", "::ffff:127.99.0.7"),
        ("[fd62:617a:6f6f:6b61::7]:9464", 0, "127.99.0.7", "fd62:617a:6f6f:6b61::7"),
    ] {
        for is_tcp in [true, false] {
            let sockets = [socket(listener, is_tcp, priority)];
            assert_eq!(reaches("127.0.0.1:9464", is_tcp, &sockets), wanted4, "{listener} {priority}");
            assert_eq!(reaches("[::1]:9464", is_tcp, &sockets), wanted6, "{listener} {priority}");
        }
    }
    let foreign = [socket("0.0.0.0:9464", false, 0), socket("[::]:9465", false, 0)];
    assert_eq!(sends("127.0.0.1:9464", &foreign), "nobody");
    assert_eq!(sends("[::1]:9465", &foreign), "nobody");
    let own_port = [socket("0.0.0.0:21000", true, 0)];
    assert_eq!(reaches("127.0.0.1:21000", true, &own_port), "127.99.0.7");
}

#[test]
fn names_are_those_that_the_instance_used() {
    for (at, wanted) in [
        ("127.99.0.7:1", "127.0.0.1"),
        ("127.0.0.53:1", "127.0.0.53"),
        ("10.0.0.5:1", "10.0.0.5"),
        ("[fd62:617a:6f6f:6b61::7]:1", "::1"),
        ("[::ffff:127.99.0.7]:1", "::ffff:127.0.0.1"),
        ("[::ffff:10.0.0.5]:1", "::ffff:10.0.0.5"),
        ("[::]:1", "::"),
        ("[fd00::5]:1", "fd00::5"),
    ] {
        let at: SocketAddr = at.parse().expect("valid");
        let family = if at.is_ipv4() { Family::Four } else { Family::Six };
        assert_eq!(outcome(&name(family), at, true, &[]), wanted, "{at}");
    }
}

#[test]
fn without_ipv6_its_loopback_is_the_one_of_ipv4() {
    let mut rules = rules();
    rules.loopback.six = None;
    let at: SocketAddr = "[::1]:9464".parse().expect("valid");
    for program in [bind(&rules, OWN_PORT, Family::Six), reach(&rules, OWN_PORT, Family::Six, true)] {
        assert_eq!(outcome(&program, at, true, &[]), "::ffff:127.99.0.7");
    }
    assert_eq!(outcome(&reach(&rules, OWN_PORT, Family::Six, false), at, false, &[]), "refused");
}
