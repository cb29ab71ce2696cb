//! Ports for instances, out of the host's range.
//!
//! Owns the choice of a port that no instance here has and no other process listens on.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
};

use visor::planted::{Bug, planted};

/// The host's range of ports, and the position after the last choice.
#[derive(Clone, Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    /// The next port to look at. It goes round the range, so that a port rests for a while before another instance
    /// gets it.
    next: u16,
}

impl Ports {
    /// Creates a range that starts at a port derived from `seed`.
    pub fn new(range: RangeInclusive<u16>, seed: u16) -> Self {
        let length = range.end().saturating_sub(*range.start()).saturating_add(1).max(1);
        let next = range.start() + seed % length;
        Ports { range, next }
    }

    /// Returns a port that is not `used` and that `is_free`; none if there is none.
    pub fn choose(&mut self, used: &BTreeSet<u16>, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let (later, earlier) = (self.next..=last, first..self.next);
        if planted(Bug::PortIsGivenTwice) {
            return later.chain(earlier).find(|port| is_free(*port));
        }
        let port = later.chain(earlier).find(|port| !used.contains(port) && is_free(*port))?;
        self.next = if port == last { first } else { port + 1 };
        Some(port)
    }
}

/// Reports whether no process listens on this port, on any address.
pub fn is_free(port: u16) -> bool {
    let bind = |address: SocketAddr| TcpListener::bind(address).map(drop);
    match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        // An IPv6 socket covers IPv4 too, unless the machine is set otherwise or has no IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => false,
        _ => bind((Ipv4Addr::UNSPECIFIED, port).into()).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_to_one_instance_and_rests_after_it() {
        let mut ports = Ports::new(21_000..=21_003, 0);
        let mut used = BTreeSet::new();
        for expected in [21_000, 21_001] {
            let port = ports.choose(&used, |_| true).expect("one is free");
            assert_eq!(port, expected);
            used.insert(port);
        }
        used.remove(&21_000);
        assert_eq!(ports.choose(&used, |_| true), Some(21_002));
        assert_eq!(ports.choose(&used, |port| port != 21_003), Some(21_000));
        assert_eq!(ports.choose(&BTreeSet::from_iter(21_000..=21_003), |_| true), None);
    }

    #[test]
    fn a_port_that_an_outsider_listens_on_is_passed_over() {
        let outsider = TcpListener::bind(("127.0.0.5", 0)).expect("a port is free");
        let taken = outsider.local_addr().expect("it listens").port();
        assert!(!is_free(taken));
        drop(outsider);
        assert!(is_free(taken));
    }
}
