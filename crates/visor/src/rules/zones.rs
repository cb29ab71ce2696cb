//! The instances that stand where their formation wants them, and the zone of the next one.
//!
//! Owns the sums of a service's zones; pure. Some of head's instances are to stand in a zone, the others anywhere. An
//! instance in a zone with no place left for it is replaced in the right zone, like one on a draining host: it stays
//! until its replacement is healthy.

use std::collections::{BTreeMap, BTreeSet};

use crate::names::{InstanceId, ZoneName};

/// The places of a release's instances: a number in each zone, and a number anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    zones: BTreeMap<ZoneName, u32>,
    anywhere: u32,
}

impl Places {
    /// Returns the places of `count` instances.
    ///
    /// A client that knows no zones may have scaled below the sum of the zones; then the first zones get what there is.
    pub fn of(count: u32, wanted: &BTreeMap<ZoneName, u32>) -> Places {
        let mut places = Places { zones: BTreeMap::new(), anywhere: count };
        for (zone, wanted) in wanted {
            let there = (*wanted).min(places.anywhere);
            places.zones.insert(zone.clone(), there);
            places.anywhere -= there;
        }
        places
    }

    /// Reports whether any of the places is in a zone.
    pub fn are_in_zones(&self) -> bool {
        !self.zones.is_empty()
    }

    /// Gives instances their places, in the given order; each comes with its zone, if that is known. Returns the
    /// instances for which no place is left in their zone.
    pub fn seat<'a>(
        &mut self,
        instances: impl IntoIterator<Item = (InstanceId, Option<&'a ZoneName>)>,
    ) -> BTreeSet<InstanceId> {
        let mut left_over = BTreeSet::new();
        for (id, zone) in instances {
            match zone.and_then(|zone| self.zones.get_mut(zone)).filter(|left| **left > 0) {
                Some(left) => *left -= 1,
                None if self.anywhere > 0 => self.anywhere -= 1,
                // An instance in an unknown zone is not moved.
                None if zone.is_none() => {}
                None => drop(left_over.insert(id)),
            }
        }
        left_over
    }

    /// Returns how many places in a zone have no instance yet.
    pub fn left_in(&self, zone: &ZoneName) -> u32 {
        self.zones.get(zone).copied().unwrap_or(0)
    }

    /// Returns how many of the next `n` instances go to which zone.
    ///
    /// Zones that lack instances come first, so that no other instance takes their room.
    pub fn next(&self, n: usize) -> Vec<(Option<ZoneName>, usize)> {
        let (mut next, mut rest) = (Vec::new(), n);
        for (zone, left) in &self.zones {
            let there = usize::try_from(*left).unwrap_or(usize::MAX).min(rest);
            if there > 0 {
                next.push((Some(zone.clone()), there));
                rest -= there;
            }
        }
        if rest > 0 {
            next.push((None, rest));
        }
        next
    }

    /// Returns the zone with the most places left, where a trial's instance runs; none unless all places are in zones.
    pub fn usual(&self) -> Option<&ZoneName> {
        let most = self.zones.iter().rev().max_by_key(|(_, left)| **left);
        most.filter(|(_, left)| self.anywhere == 0 && **left > 0).map(|(zone, _)| zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(of: &[(&str, u32)]) -> BTreeMap<ZoneName, u32> {
        of.iter().map(|(name, n)| (name.parse().expect("valid"), *n)).collect()
    }

    #[test]
    fn the_next_ones_go_where_a_zone_is_short_of_them() {
        let next = |count, wanted: &[(&str, u32)], n| {
            let next = Places::of(count, &zones(wanted)).next(n).into_iter();
            next.map(|(zone, n)| format!("{}:{n}", zone.map_or("any".into(), |zone| zone.to_string())))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(next(3, &[], 3), "any:3");
        assert_eq!(next(5, &[("a", 2), ("b", 1)], 5), "a:2 b:1 any:2");
        assert_eq!(next(5, &[("a", 2), ("b", 1)], 1), "a:1");
        assert_eq!(next(2, &[("a", 5), ("b", 1)], 2), "a:2", "there are no more");
        assert_eq!(next(0, &[("a", 5)], 0), "");
    }

    #[test]
    fn what_is_tried_goes_where_all_are() {
        let usual = |count, wanted: &[(&str, u32)]| {
            Places::of(count, &zones(wanted)).usual().map(ZoneName::to_string)
        };
        assert_eq!(usual(3, &[("a", 1), ("b", 2)]), Some("b".to_owned()));
        assert_eq!(usual(4, &[("a", 1), ("b", 2)]), None, "one of them stands anywhere");
        assert_eq!(usual(0, &[("a", 1)]), None);
    }
}
