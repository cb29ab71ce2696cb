//! Zones: how much of a proxy's traffic the instances of each zone get.
//!
//! Owns only the arithmetic. Pure.
//!
//! A proxy prefers its own zone. Its traffic stays there as long as no instance there gets over a fifth more than an
//! equal share among all instances of all zones. The excess goes to zones with spare capacity.

use std::collections::BTreeMap;

use visor::{names::ZoneName, snapshot::Snapshot};

/// The most that an instance gets to keep traffic in its zone, as a multiple of an equal share.
const SLACK: f64 = 1.2;

/// The part of an instance in another zone while it isn't needed. It is so small that HAProxy's lowest weight
/// results, and above zero so that HAProxy uses it at once if all preferred instances are down.
const HARDLY: f64 = 1e-9;

/// The name of the zone of hosts and proxies without `--zone`.
const UNNAMED: &str = "default";

/// A proxy's zone and the zones of all proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    own: ZoneName,
    /// The number of proxies in each zone, this proxy included.
    proxies: BTreeMap<ZoneName, usize>,
}

impl Locality {
    /// Returns the locality of a proxy in the zone `own`; `None` without `--zone`: such a proxy treats all zones
    /// alike.
    ///
    /// Only the proxy's own settings decide whether it has a locality, so HAProxy's `balance` algorithm doesn't
    /// change as hosts come and go.
    pub fn of(own: &ZoneName, snapshot: &Snapshot) -> Option<Self> {
        if own.as_str() == UNNAMED {
            return None;
        }
        let mut proxies: BTreeMap<ZoneName, usize> = BTreeMap::new();
        for zone in snapshot.proxies.values().filter_map(|proxy| proxy.zone.as_ref()) {
            *proxies.entry(zone.clone()).or_default() += 1;
        }
        // The proxy's own row may not be there yet.
        proxies.entry(own.clone()).or_insert(1);
        Some(Locality { own: own.clone(), proxies })
    }

    /// Returns each instance's part of the traffic, given the instances' zones; the parts add up to 1. An instance
    /// whose zone isn't known has lost its host's registration and is the last choice.
    pub fn parts(&self, zones: &[Option<&ZoneName>]) -> Vec<f64> {
        let mut counts: BTreeMap<&ZoneName, usize> = BTreeMap::new();
        zones.iter().flatten().for_each(|zone| *counts.entry(*zone).or_default() += 1);
        if counts.is_empty() {
            return vec![1.0 / zones.len() as f64; zones.len()];
        }
        let of_zone = self.of_zones(&counts);
        let part = |zone: &ZoneName| of_zone[zone] / counts[zone] as f64;
        zones.iter().map(|zone| zone.map_or(0.0, part).max(HARDLY)).collect()
    }

    /// Returns each zone's part of the traffic.
    fn of_zones<'a>(&self, counts: &BTreeMap<&'a ZoneName, usize>) -> BTreeMap<&'a ZoneName, f64> {
        let (instances, proxies) = (counts.values().sum::<usize>(), self.proxies.values().sum::<usize>());
        // `has`: a zone's part of the instances. `takes`: its proxies' part of the traffic, if clients use all
        // proxies alike.
        let has = |zone: &ZoneName| counts.get(zone).copied().unwrap_or(0) as f64 / instances as f64;
        let takes = |zone: &ZoneName| self.proxies.get(zone).copied().unwrap_or(0) as f64 / proxies as f64;
        let spare = |zone: &ZoneName| (has(zone) - takes(zone)).max(0.0);
        let stays = (has(&self.own) * SLACK / takes(&self.own)).min(1.0);
        let others = || counts.keys().filter(|zone| ***zone != self.own);
        let (all_spare, elsewhere): (f64, f64) =
            (others().map(|zone| spare(zone)).sum(), others().map(|zone| has(zone)).sum());
        let part = |zone: &ZoneName| match *zone == self.own {
            true => stays,
            false if all_spare > 0.0 => (1.0 - stays) * spare(zone) / all_spare,
            false => (1.0 - stays) * has(zone) / elsewhere,
        };
        counts.keys().map(|zone| (*zone, part(zone))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zone(name: &str) -> ZoneName {
        name.parse().expect("valid")
    }

    fn locality(own: &str, proxies: &[(&str, usize)]) -> Locality {
        Locality { own: zone(own), proxies: proxies.iter().map(|(name, n)| (zone(name), *n)).collect() }
    }

    #[test]
    fn traffic_stays_in_the_zone_while_its_instances_have_no_more_than_their_share() {
        let both = &[("a", 1), ("b", 1)][..];
        for (what, proxies, zones, wanted) in [
            ("all here", both, "aa", &[0.5, 0.5][..]),
            ("half here", both, "aabb", &[0.5, 0.5, 0.0, 0.0]),
            ("nearly half here", both, "aaabbbb", &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0, 0.0]),
            (
                "one of four here: it would get half of all",
                both,
                "abbb",
                &[0.6, 0.4 / 3.0, 0.4 / 3.0, 0.4 / 3.0],
            ),
            ("nothing here", both, "bb", &[0.5, 0.5]),
            ("who is on a host that has gone is the last choice", both, "a?", &[1.0, 0.0]),
            ("nothing else", both, "??", &[0.5, 0.5]),
            ("the others' proxies are no concern of a zone without clients", &[("a", 1)], "ab", &[0.6, 0.4]),
            (
                "what is over goes where there is room",
                &[("a", 1), ("b", 1), ("c", 1)],
                "abccc",
                &[0.72, 0.0, 0.28 / 3.0, 0.28 / 3.0, 0.28 / 3.0],
            ),
        ] {
            let names: Vec<Option<ZoneName>> =
                zones.chars().map(|letter| (letter != '?').then(|| zone(&letter.to_string()))).collect();
            let names: Vec<Option<&ZoneName>> = names.iter().map(Option::as_ref).collect();
            let got = locality("a", proxies).parts(&names);
            let close =
                got.len() == wanted.len() && got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6);
            let all_get_some = got.iter().all(|part| *part > 0.0);
            assert!(close && all_get_some, "{what}: {got:?}, not {wanted:?}");
        }
    }

    proptest! {
        /// Over all proxies together, no instance gets over a fifth more than an equal share.
        #[test]
        fn no_instance_is_overloaded_for_the_sake_of_a_zone(
            instances in proptest::collection::vec(0..4_usize, 1..20),
            proxies in proptest::collection::vec(0..4_usize, 1..6),
        ) {
            let names = ["a", "b", "c", "d"].map(zone);
            let mut standing = BTreeMap::new();
            proxies.iter().for_each(|at| *standing.entry(names[*at].clone()).or_insert(0) += 1);
            let zones: Vec<Option<&ZoneName>> = instances.iter().map(|at| Some(&names[*at])).collect();
            let mut load = vec![0.0; zones.len()];
            for at in &proxies {
                let own = Locality { own: names[*at].clone(), proxies: standing.clone() };
                let parts = own.parts(&zones);
                prop_assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{parts:?}");
                load.iter_mut().zip(parts).for_each(|(load, part)| *load += part / proxies.len() as f64);
            }
            let most = SLACK / zones.len() as f64 + 1e-6;
            prop_assert!(load.iter().all(|load| *load <= most), "{load:?}");
        }
    }
}
