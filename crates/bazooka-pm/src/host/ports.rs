//! Ports for instances, out of the host's range.
//!
//! Owns the choice: one that no instance of ours has, and that nobody else listens on.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
};

/// The host's range, and where the last choice was.
#[derive(Clone, Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    /// The next to be looked at. It goes round, so that a port rests for a while before it is another's.
    next: u16,
}

impl Ports {
    /// A range, starting anywhere in it.
    pub fn new(range: RangeInclusive<u16>, seed: u16) -> Self {
        let length = range.end().saturating_sub(*range.start()).saturating_add(1).max(1);
        let next = range.start() + seed % length;
        Ports { range, next }
    }

    /// A port that is not `used` and that `is_free`; none if there is none.
    pub fn choose(&mut self, used: &BTreeSet<u16>, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let (later, earlier) = (self.next..=last, first..self.next);
        let port = later.chain(earlier).find(|port| !used.contains(port) && is_free(*port))?;
        self.next = if port == last { first } else { port + 1 };
        Some(port)
    }
}

/// Whether nobody listens on this port, on whatever address.
pub fn is_free(port: u16) -> bool {
    let bind = |address: SocketAddr| TcpListener::bind(address).map(drop);
    match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        // It takes IPv4 too, unless the machine says otherwise, or has no IPv6.
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
