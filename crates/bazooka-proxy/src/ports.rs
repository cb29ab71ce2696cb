//! Ports that others hold: found before a reload, kept out, tried again.
//!
//! Owns the memory of what was refused. A reload that can't open a port disturbs the worker that serves for
//! seconds (it pauses its listeners while the new one tries), so each new port is tried here first.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use bazooka_daemon::in_words;
use tokio::time::Instant;
use visor::pause::{Doubling, Pauses};

use crate::routes::{Routes, ServiceId};

/// The pause before a refused port is tried again.
const PAUSE: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(30));

/// Whose port it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The public one.
    Public,
    /// The way to the rms.
    Git,
    /// A service's own.
    Service(ServiceId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Public => f.write_str("public"),
            Owner::Git => f.write_str("git"),
            Owner::Service(id) => write!(f, "{id}"),
        }
    }
}

/// The reason why a port can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortRefused {
    /// Another process listens on it.
    #[error("port {0} is taken")]
    Taken(u16),
    /// Another service, or the proxy itself, has it here.
    #[error("port {port} is that of {owner}")]
    Owned {
        /// The port.
        port: u16,
        /// The owner of the port.
        owner: Owner,
    },
    /// The address is none of this machine's.
    #[error("this machine has no address {0}")]
    NoAddress(IpAddr),
    /// The port requires rights that this process lacks.
    #[error("port {0} is not allowed to this user")]
    NotAllowed(u16),
    /// The kernel refuses it for another reason.
    #[error("port {port} can't be opened")]
    Unusable {
        /// The port.
        port: u16,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A port that can't be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub address: SocketAddr,
    /// Why, for people.
    pub cause: String,
    /// When to try again.
    pub again_at: Instant,
    pauses: Pauses,
}

/// The ports that can't be opened.
#[derive(Debug, Default)]
pub struct Refusals {
    refused: BTreeMap<Owner, Refused>,
}

impl Refusals {
    /// Looks at each wanted port that isn't open yet, unless it was refused lately.
    ///
    /// `is_free` says why a port can't be opened.
    pub fn look(
        &mut self,
        wanted: &BTreeMap<Owner, SocketAddr>,
        is_open: impl Fn(&Owner, SocketAddr) -> bool,
        now: Instant,
        is_free: impl Fn(SocketAddr) -> Result<(), PortRefused>,
    ) {
        self.refused.retain(|owner, refused| wanted.get(owner) == Some(&refused.address));
        let mut owners: BTreeMap<u16, &Owner> = BTreeMap::new();
        for (owner, address) in wanted {
            let first = *owners.entry(address.port()).or_insert(owner);
            if is_open(first, *address) && first == owner {
                self.refused.remove(owner);
                continue;
            }
            let before = self.refused.get(owner);
            if before.is_some_and(|refused| now < refused.again_at) {
                continue;
            }
            let free = if first == owner {
                is_free(*address)
            } else {
                Err(PortRefused::Owned { port: address.port(), owner: first.clone() })
            };
            match free {
                Ok(()) => drop(self.refused.remove(owner)),
                Err(error) => {
                    let cause = in_words(&error);
                    let mut pauses = before.map_or(PAUSE.begin(), |before| before.pauses);
                    if before.is_none() {
                        tracing::error!(address = %address, cause, "a port can't be opened; the rest is served without it");
                    }
                    let again_at = now + pauses.next();
                    let refused = Refused { address: *address, cause, again_at, pauses };
                    self.refused.insert(owner.clone(), refused);
                }
            }
        }
    }

    /// The services whose own port is refused.
    pub fn services(&self) -> impl Iterator<Item = &ServiceId> {
        self.refused.keys().filter_map(|owner| match owner {
            Owner::Service(id) => Some(id),
            Owner::Public | Owner::Git => None,
        })
    }

    /// Reports whether the public port is refused.
    pub fn public(&self) -> bool {
        self.refused.contains_key(&Owner::Public)
    }

    /// Reports whether the way to the rms is refused.
    pub fn git(&self) -> bool {
        self.refused.contains_key(&Owner::Git)
    }

    /// Each with its cause, as the coordinator is told.
    pub fn causes(&self) -> BTreeMap<String, String> {
        self.refused.iter().map(|(owner, refused)| (owner.to_string(), refused.cause.clone())).collect()
    }

    /// When to look again.
    pub fn look_again_at(&self) -> Option<Instant> {
        self.refused.values().map(|refused| refused.again_at).min()
    }
}

/// Every port that is wanted open.
pub fn wanted(
    routes: &Routes,
    bind: IpAddr,
    public: SocketAddr,
    git: Option<SocketAddr>,
) -> BTreeMap<Owner, SocketAddr> {
    let mut ports = BTreeMap::from([(Owner::Public, public)]);
    ports.extend(git.map(|git| (Owner::Git, git)));
    for (id, service) in &routes.services {
        if let Some(port) = service.port {
            ports.insert(Owner::Service(id.clone()), SocketAddr::new(bind, port));
        }
    }
    ports
}

/// Reports whether a port can be opened now, by opening it for a moment.
///
/// # Errors
/// [`PortRefused`].
pub fn is_free(address: SocketAddr) -> Result<(), PortRefused> {
    let (ip, port) = (address.ip(), address.port());
    TcpListener::bind(address).map(drop).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => PortRefused::Taken(port),
        io::ErrorKind::AddrNotAvailable => PortRefused::NoAddress(ip),
        io::ErrorKind::PermissionDenied => PortRefused::NotAllowed(port),
        _ => PortRefused::Unusable { port, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Owner {
        Owner::Service(ServiceId { app: name.parse().expect("valid"), proc: "web".parse().expect("valid") })
    }

    #[test]
    fn a_taken_port_is_left_out_and_tried_again_later_and_later() {
        let address: SocketAddr = "127.0.0.1:8511".parse().expect("valid");
        let wanted = BTreeMap::from([(service("a"), address)]);
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let taken = |_| Err(PortRefused::Taken(8511));
        let mut now = start;
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            refusals.look(&wanted, |_, _| false, now, taken);
            assert_eq!(refusals.causes()["a/web"], "port 8511 is taken");
            let again = refusals.look_again_at().expect("it is refused");
            assert_eq!(again - now, Duration::from_secs(expected));
            // Not before its time.
            refusals.look(
                &wanted,
                |_, _| false,
                again - Duration::from_millis(1),
                |_| panic!("it was looked at too early"),
            );
            now = again;
        }
        refusals.look(&wanted, |_, _| false, now, |_| Ok(()));
        assert!(refusals.causes().is_empty());
        assert_eq!(refusals.look_again_at(), None);
    }

    #[test]
    fn two_owners_of_one_port_would_share_its_traffic_so_the_second_is_refused() {
        let at = |address: &str| address.parse::<SocketAddr>().expect("valid");
        let wanted = BTreeMap::from([
            (Owner::Public, at("0.0.0.0:8511")),
            (service("a"), at("127.0.0.1:8511")),
            (service("b"), at("127.0.0.1:8512")),
            (service("c"), at("127.0.0.1:8512")),
        ]);
        let mut refusals = Refusals::default();
        // The owner is asked for by the port: both ports are open, by their first owners.
        refusals.look(&wanted, |_, _| true, Instant::now(), |_| Ok(()));
        let expected = [("a/web", "port 8511 is that of public"), ("c/web", "port 8512 is that of b/web")];
        let expected = expected.map(|(owner, cause)| (owner.to_owned(), cause.to_owned()));
        assert_eq!(refusals.causes(), expected.into());
    }

    #[test]
    fn a_port_that_haproxy_has_open_is_never_tried() {
        let address: SocketAddr = "127.0.0.1:8511".parse().expect("valid");
        let public: SocketAddr = "127.0.0.1:8080".parse().expect("valid");
        let wanted = BTreeMap::from([(service("a"), address), (Owner::Public, public)]);
        let mut refusals = Refusals::default();
        refusals.look(&wanted, |_, _| true, Instant::now(), |_| panic!("it was tried"));
        assert!(refusals.causes().is_empty());
    }

    #[test]
    fn a_service_that_has_gone_is_forgotten() {
        let address: SocketAddr = "127.0.0.1:8511".parse().expect("valid");
        let mut refusals = Refusals::default();
        let wanted = BTreeMap::from([(service("a"), address)]);
        refusals.look(&wanted, |_, _| false, Instant::now(), |_| Err(PortRefused::Taken(8511)));
        assert_eq!(refusals.services().count(), 1);
        refusals.look(&BTreeMap::new(), |_, _| false, Instant::now(), |_| Ok(()));
        assert_eq!(refusals.services().count(), 0);
    }

    #[test]
    fn a_port_with_a_listener_is_not_free() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        assert!(matches!(is_free(address), Err(PortRefused::Taken(port)) if port == address.port()));
        drop(listener);
        is_free(address).expect("its listener has gone");
    }
}
