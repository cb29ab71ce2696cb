//! The places for a listener's connections, and who has how many of them.
//!
//! Owns the bounds: in all, for each party, and for parties without an identity together. A party is the identity that a
//! connection's certificate names; without one it is the address. A connection without a request under way is *idle*, and
//! *silent* until its first byte. Where a bound is reached, an idle connection gives its place to the new one: a silent one
//! if there is one, and of those the oldest. So connections that say nothing shut nobody out. Only where none is idle, the
//! new one is refused. A request under way is never ended for another one.
//!
//! ```text
//! take ─▶ silent ─▶ idle ─▶ busy ─▶ idle ─▶ ... ─▶ dropped
//!           └─────────┴─ evicted: `left` returns; the place is another's already
//! ```

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use visor::identity::Identity;

/// The most connections of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// In all.
    pub all: usize,
    /// Of all parties without an identity together, where others have one.
    pub unknown: usize,
    /// Of one identity or one address.
    pub each: usize,
    /// Of one proxy that carries other people's connections to git.
    pub each_carrier: usize,
}

/// The other end of a connection, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// Known by its certificate.
    Identity(Identity),
    /// Known by its address alone.
    Address(IpAddr),
    /// The address of a proxy, which carries the connections of many people to git.
    Carrier(IpAddr),
}

impl Party {
    /// Returns the party of an address. Whoever has one address of an IPv6 network has all of its 2^64.
    pub fn of(address: IpAddr) -> Party {
        Party::Address(network(address))
    }

    /// Returns the word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Party::Identity(_) => "identity",
            Party::Address(_) => "address",
            Party::Carrier(_) => "proxy",
        }
    }
}

/// Returns an address as parties are told apart by it.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The bound that a connection was refused by: all places of that kind have a request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// [`Bounds::all`].
    #[error("all connections of this endpoint are in use")]
    All,
    /// [`Bounds::unknown`].
    #[error("all connections for callers without a certificate are in use")]
    Unknown,
    /// [`Bounds::each`] or [`Bounds::each_carrier`].
    #[error("all connections of this caller are in use")]
    Party,
}

impl Full {
    /// Returns the word for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Full::All => "all",
            Full::Unknown => "unknown",
            Full::Party => "party",
        }
    }
}

/// The places of a listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    bounds: Bounds,
    next: u64,
    taken: BTreeMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    party: Party,
    /// True until its first byte.
    silent: bool,
    /// The number of requests under way.
    busy: usize,
    /// The end of its last request, or the moment at which it came.
    idle_since: Instant,
    left: CancellationToken,
}

/// The place of one connection. Dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    id: u64,
    places: Places,
    left: CancellationToken,
}

impl Places {
    /// Creates free places.
    pub fn new(bounds: Bounds) -> Places {
        Places(Arc::new(Mutex::new(Table { bounds, next: 0, taken: BTreeMap::new() })))
    }

    /// Takes a place for a new connection.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(&self, party: Party) -> Result<Place, Full> {
        let mut table = self.table();
        table.make_room(&party, None)?;
        let left = CancellationToken::new();
        let id = table.next;
        table.next += 1;
        let taken = Taken { party, silent: true, busy: 0, idle_since: Instant::now(), left: left.clone() };
        table.taken.insert(id, taken);
        Ok(Place { id, places: self.clone(), left })
    }

    /// Returns the most connections in all.
    pub fn most(&self) -> usize {
        self.table().bounds.all
    }

    /// Returns the number of connections by the kind of their party.
    pub fn taken(&self) -> [(&'static str, usize); 3] {
        let table = self.table();
        ["identity", "address", "proxy"]
            .map(|kind| (kind, table.taken.values().filter(|taken| taken.party.kind() == kind).count()))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Sees to it that a connection of a party has a place. `own` is a place that the connection has already.
    fn make_room(&mut self, party: &Party, own: Option<u64>) -> Result<(), Full> {
        let Bounds { all, unknown, each, each_carrier } = self.bounds;
        let most = if matches!(party, Party::Carrier(_)) { each_carrier } else { each };
        self.evict(own, most, Full::Party, |other| other == party)?;
        let is_unknown = |party: &Party| matches!(party, Party::Address(_));
        if is_unknown(party) {
            self.evict(own, unknown, Full::Unknown, is_unknown)?;
        }
        self.evict(own, all, Full::All, |_| true)
    }

    /// Evicts an idle connection if there are `most` of these.
    fn evict(
        &mut self,
        own: Option<u64>,
        most: usize,
        full: Full,
        is_one: impl Fn(&Party) -> bool,
    ) -> Result<(), Full> {
        let those = || self.taken.iter().filter(|(id, taken)| Some(**id) != own && is_one(&taken.party));
        if those().count() < most {
            return Ok(());
        }
        let is_known = |taken: &Taken| !matches!(taken.party, Party::Address(_));
        let idlest = those()
            .filter(|(_, taken)| taken.busy == 0)
            .min_by_key(|(id, taken)| (!taken.silent, is_known(taken), taken.idle_since, **id));
        let Some(id) = idlest.map(|(id, _)| *id) else { return Err(full) };
        if let Some(taken) = self.taken.remove(&id) {
            taken.left.cancel();
        }
        Ok(())
    }
}

impl Place {
    /// Tells whose connection it is, now that this is known.
    ///
    /// # Errors
    /// [`Full`]: the connection is to be closed.
    pub fn identify(&self, party: Party) -> Result<(), Full> {
        let mut table = self.places.table();
        table.make_room(&party, Some(self.id))?;
        if let Some(taken) = table.taken.get_mut(&self.id) {
            taken.party = party;
        }
        Ok(())
    }

    /// Notes the first byte.
    pub fn spoke(&self) {
        if let Some(taken) = self.places.table().taken.get_mut(&self.id) {
            taken.silent = false;
        }
    }

    /// Keeps the place until it is dropped, because all of the connection is one request.
    pub fn busy(self) -> Place {
        self.begin();
        self
    }

    /// Notes the begin of a request.
    pub fn begin(&self) {
        if let Some(taken) = self.places.table().taken.get_mut(&self.id) {
            taken.busy += 1;
        }
    }

    /// Notes the end of a request's answer.
    pub fn end(&self) {
        if let Some(taken) = self.places.table().taken.get_mut(&self.id) {
            taken.silent = false;
            taken.busy = taken.busy.saturating_sub(1);
            taken.idle_since = Instant::now();
        }
    }

    /// Returns once the place is another connection's, and this one is to end.
    pub async fn left(&self) {
        self.left.cancelled().await;
    }

    /// Reports whether the place is another connection's.
    pub fn has_left(&self) -> bool {
        self.left.is_cancelled()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table().taken.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 6, unknown: 4, each: 3, each_carrier: 5 };

    fn address(last: u8) -> Party {
        Party::of(IpAddr::from([10, 0, 0, last]))
    }

    fn known(name: &str) -> Party {
        Party::Identity(name.parse().expect("valid"))
    }

    #[test]
    fn idle_connections_give_way_to_new_ones_of_the_same_party() {
        let places = Places::new(BOUNDS);
        let other = places.take(address(2)).expect("free");
        let mut own: Vec<Place> = (0..3).map(|_| places.take(address(1)).expect("free")).collect();
        own.push(places.take(address(1)).expect("an idle one goes"));
        let left: Vec<bool> = own.iter().map(Place::has_left).collect();
        assert_eq!(left, [true, false, false, false], "the one that has been idle longest");
        assert!(!other.has_left(), "another's place is no help");
    }

    #[test]
    fn silent_connections_give_way_before_those_that_have_spoken() {
        let places = Places::new(BOUNDS);
        let own: Vec<Place> = (0..3).map(|_| places.take(address(1)).expect("free")).collect();
        own[0].spoke();
        let more: Vec<Place> = (0..9).map(|_| places.take(address(1)).expect("a silent one goes")).collect();
        assert!(!own[0].has_left() && own[1].has_left() && own[2].has_left());
        assert_eq!(more.iter().filter(|one| one.has_left()).count(), 7);
        more.iter().for_each(Place::spoke);
        drop(places.take(address(1)).expect("an idle one goes"));
        assert!(own[0].has_left(), "then the one that has been idle longest");
    }

    #[test]
    fn requests_under_way_are_not_ended_for_others() {
        let places = Places::new(BOUNDS);
        let own: Vec<Place> = (0..3).map(|_| places.take(address(1)).expect("free")).collect();
        own.iter().for_each(Place::begin);
        assert_eq!(places.take(address(1)).err(), Some(Full::Party));
        own[1].end();
        let _new = places.take(address(1)).expect("an idle one goes");
        assert!(own[1].has_left() && !own[0].has_left() && !own[2].has_left());
    }

    #[test]
    fn those_without_an_identity_leave_places_for_the_others() {
        let places = Places::new(BOUNDS);
        let unknown: Vec<Place> = (1..=4).map(|last| places.take(address(last)).expect("free")).collect();
        unknown.iter().for_each(Place::begin);
        assert_eq!(places.take(address(5)).err(), Some(Full::Unknown));
        let ada = places.take(address(5));
        assert!(ada.is_err(), "a handshake has no identity yet");
        unknown[0].end();
        let ada = places.take(address(5)).expect("an idle one goes");
        ada.identify(known("ada")).expect("free");
        let bob = places.take(Party::Carrier(IpAddr::from([10, 0, 0, 9]))).expect("free");
        bob.begin();
        ada.begin();
        let eve = places.take(Party::Carrier(IpAddr::from([10, 0, 0, 9]))).expect("free");
        eve.begin();
        assert_eq!(places.take(known("ops")).err(), Some(Full::All));
        assert_eq!(places.taken(), [("identity", 1), ("address", 3), ("proxy", 2)]);
        drop(unknown);
        drop(places.take(known("ops")).expect("free again"));
    }

    #[test]
    fn a_connection_that_turns_out_to_be_of_an_identity_counts_there() {
        let places = Places::new(BOUNDS);
        let own: Vec<Place> = (0..3).map(|_| places.take(known("ada")).expect("free")).collect();
        own.iter().for_each(Place::begin);
        let new = places.take(address(1)).expect("free");
        assert_eq!(new.identify(known("ada")), Err(Full::Party));
        own[0].end();
        assert_eq!(new.identify(known("ada")), Ok(()));
        assert!(own[0].has_left());
    }

    #[test]
    fn an_ipv6_network_is_one_party() {
        let of = |address: &str| Party::of(address.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), address(1));
    }
}
