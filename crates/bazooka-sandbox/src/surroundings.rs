//! The addresses around a daemon's instances or builds: which are closed to them, and which are open all the same.
//!
//! Owns finding them, at start and again while instances run: names have other addresses later, interfaces come and
//! go, the coordinator gets members.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use crate::{
    loopback::{SIX_BITS, SIX_PREFIX, is_private},
    protocol::Span,
    targets::Target,
};

/// The addresses by which machines in clouds ask for their secrets.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// The port of resolvers.
const DNS: u16 = 53;

/// The targets that settings and the cluster name.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// The ones that stay closed whatever is open.
    pub closed: BTreeSet<Target>,
    /// The ones that are open although they are the machine's own.
    pub open: BTreeSet<Target>,
    /// The addresses of linked services.
    pub services: Option<Target>,
    /// Ports that no instance may take in private, because others need them on every address.
    pub reserved: Vec<(u16, u16)>,
}

/// The parts that all fences of a daemon have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Closed, whatever is open.
    pub closed: Vec<Span>,
    /// Open, although they are the machine's own.
    pub open: Vec<Span>,
    /// The machine's own addresses and the cloud's metadata: closed unless open.
    pub machine: Vec<Span>,
    /// The addresses of linked services.
    pub services: Vec<IpAddr>,
    /// Ports that no instance may take in private.
    pub reserved: Vec<(u16, u16)>,
}

/// A name without an address.
#[derive(Debug, thiserror::Error)]
#[error("can't find out the addresses of {target}, from or to which sockets are fenced")]
pub struct UnresolvedError {
    target: Target,
    source: io::Error,
}

/// Finds the surroundings, again and again.
#[derive(Debug, Default)]
pub struct Finder {
    /// The last known addresses of each target.
    known: BTreeMap<Target, Vec<Span>>,
    /// The targets whose present addresses can't be had, said once.
    lost: BTreeSet<Target>,
}

impl Finder {
    /// Finds them for the first time. Blocks while names are resolved.
    ///
    /// # Errors
    /// [`UnresolvedError`]: the first name without an address.
    pub fn first(named: &Named) -> Result<(Finder, Surroundings), UnresolvedError> {
        let mut finder = Finder::default();
        for target in named.closed.iter().chain(&named.open).chain(&named.services) {
            let spans =
                target.spans().map_err(|source| UnresolvedError { target: target.clone(), source })?;
            finder.known.insert(target.clone(), spans);
        }
        let found = finder.put_together(named);
        Ok((finder, found))
    }

    /// Finds them again. A name that has no address now keeps its last ones, and the log says so once. Blocks.
    pub fn again(&mut self, named: &Named) -> Surroundings {
        for target in named.closed.iter().chain(&named.open).chain(&named.services) {
            match target.spans() {
                Ok(spans) => {
                    self.known.insert(target.clone(), spans);
                    self.lost.remove(target);
                }
                Err(error) => {
                    if self.lost.insert(target.clone()) {
                        let target = target.to_string();
                        tracing::warn!(target, error = %error, "can't resolve an address that fences name; its last ones stay");
                    }
                }
            }
        }
        self.put_together(named)
    }

    fn put_together(&self, named: &Named) -> Surroundings {
        let own = own_addresses();
        let spans = |targets: &BTreeSet<Target>| -> BTreeSet<Span> {
            targets.iter().filter_map(|target| self.known.get(target)).flatten().copied().collect()
        };
        let mut closed = BTreeSet::new();
        for span in spans(&named.closed) {
            closed.insert(span);
            closed.extend(others_of_machine(span, &own));
        }
        let mut open = spans(&named.open);
        open.extend(resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()));
        let mut reserved = named.reserved.clone();
        reserved.extend(
            open.iter()
                .filter(|span| span.address.is_loopback() && span.first != span.last && span.first != 0)
                .map(|span| (span.first, span.last)),
        );
        let services = named.services.iter().filter_map(|target| self.known.get(target)).flatten();
        let mut services: Vec<IpAddr> = services.map(|span| span.address).collect();
        services.sort_unstable();
        services.dedup();
        Surroundings {
            closed: closed.into_iter().collect(),
            open: open.into_iter().collect(),
            machine: machine(&own),
            services,
            reserved,
        }
    }
}

/// Returns every port of an address.
pub fn every_port(address: IpAddr) -> Span {
    Span { address, bits: if address.is_ipv4() { 32 } else { 128 }, first: 0, last: u16::MAX }
}

/// Returns what is closed unless it is opened.
fn machine(own: &[IpAddr]) -> Vec<Span> {
    let mut spans: Vec<Span> = own.iter().chain(&METADATA).map(|address| every_port(*address)).collect();
    spans.push(every_port(Ipv4Addr::BROADCAST.into()));
    // Other instances' loopbacks.
    spans.push(Span { bits: SIX_BITS, ..every_port(SIX_PREFIX.into()) });
    spans
}

/// Returns the same ports at all other addresses of this machine, if a span is one of them.
fn others_of_machine(span: Span, own: &[IpAddr]) -> Vec<Span> {
    let is_one = span.bits == every_port(span.address).bits;
    let is_own = span.address.is_unspecified() || UdpSocket::bind((span.address, 0)).is_ok();
    if !(is_one && is_own) {
        return Vec::new();
    }
    let all = own.iter().copied().chain([Ipv6Addr::LOCALHOST.into()]);
    let mut spans: Vec<Span> =
        all.map(|address| Span { first: span.first, last: span.last, ..every_port(address) }).collect();
    spans.push(Span { address: Ipv4Addr::new(127, 0, 0, 0).into(), bits: 8, ..span });
    spans
}

/// Returns the machine's addresses outside of its loopback, broadcast addresses among them.
fn own_addresses() -> Vec<IpAddr> {
    let listed = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut found: Vec<IpAddr> = listed
        .flat_map(|interface| [interface.address, interface.broadcast])
        .flatten()
        .filter_map(|address| {
            let four = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .filter(|address| !address.is_loopback() && !is_private(*address))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Returns the resolvers that programs ask, from the text of `resolv.conf`.
fn resolvers(text: &str) -> Vec<Span> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A link-local address names its interface too.
        address.split('%').next()?.parse::<IpAddr>().ok()
    });
    let mut found: Vec<IpAddr> = named.collect();
    if found.is_empty() {
        // The C library's own default.
        found.push(Ipv4Addr::LOCALHOST.into());
    }
    found.into_iter().map(|address| Span { first: DNS, last: DNS, ..every_port(address) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(spans: &[Span]) -> Vec<String> {
        let line = |span: &Span| format!("{}/{}:{}-{}", span.address, span.bits, span.first, span.last);
        spans.iter().map(line).collect()
    }

    fn named(closed: &[&str], open: &[&str]) -> Named {
        let targets = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("valid")).collect();
        Named { closed: targets(closed), open: targets(open), ..Named::default() }
    }

    #[test]
    fn what_is_on_this_machine_is_closed_by_each_of_its_addresses() {
        let closed = |target: &str| {
            shown(&Finder::first(&named(&[target], &[])).expect("nothing to resolve").1.closed)
        };
        assert_eq!(closed("192.0.2.1:2379"), ["192.0.2.1/32:2379-2379"]);
        assert_eq!(closed("192.0.2.0/24"), ["192.0.2.0/24:0-65535"]);
        let here = closed("127.0.0.1:2379");
        for wanted in ["127.0.0.0/8:2379-2379", "::1/128:2379-2379"] {
            assert!(here.iter().any(|known| known == wanted), "{here:?}");
        }
    }

    #[test]
    fn the_machine_and_the_clouds_metadata_are_closed_unless_opened() {
        let own: IpAddr = "10.0.0.5".parse().expect("valid");
        assert_eq!(
            shown(&machine(&[own])),
            [
                "10.0.0.5/32:0-65535",
                "169.254.169.254/32:0-65535",
                "fd00:ec2::254/128:0-65535",
                "255.255.255.255/32:0-65535",
                "fd62:617a:6f6f:6b61::/64:0-65535"
            ]
        );
    }

    #[test]
    fn resolvers_are_open() {
        let text =
            "# a comment\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nsearch example\noptions edns0\n";
        assert_eq!(shown(&resolvers(text)), ["127.0.0.53/32:53-53", "fe80::1/128:53-53"]);
        assert_eq!(shown(&resolvers("search example\n")), ["127.0.0.1/32:53-53"]);
    }

    #[test]
    fn a_name_that_is_lost_keeps_its_addresses_and_one_that_never_was_is_an_error() {
        let lost = Finder::first(&named(&["missing.invalid:1"], &[])).expect_err("there is none");
        assert!(lost.to_string().contains("missing.invalid:1"), "{lost}");
        let before = named(&["localhost:7"], &[]);
        let (mut finder, found) = Finder::first(&before).expect("it resolves");
        assert_eq!(finder.again(&before), found);
        // As if the name had gone.
        let gone: Target = "missing.invalid:1".parse().expect("valid");
        let span = Span { first: 1, last: 1, ..every_port("192.0.2.9".parse().expect("valid")) };
        finder.known.insert(gone, vec![span]);
        assert_eq!(finder.again(&named(&["missing.invalid:1"], &[])).closed, [span]);
    }
}
