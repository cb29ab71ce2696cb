//! Shares: how much of a service's traffic each instance gets, if the traffic is split by release.
//!
//! Owns the arithmetic that turns the shares of releases into HAProxy's weights of servers. Pure.

use std::collections::BTreeMap;

use visor::names::{InstanceId, ReleaseId};

/// The weight of a server if no share is set: equal servers take turns.
pub const EVEN: u16 = 100;

/// The highest weight that HAProxy takes.
const MOST: f64 = 256.0;

/// Returns the weight of each instance of a service.
///
/// A release with a share gets that percentage, whatever the number of its instances; all others, the head among
/// them, share the rest. `parts` splits the traffic of a group among its instances, in parts that add up to 1. The
/// share of a release without instances goes to the others. A share of 0 means no requests, unless no other instance
/// is left: then all get equal weights. HAProxy's weights are whole numbers up to 256, so an instance with any
/// traffic gets at least a 256th of what the instance with the most gets.
pub fn weights(
    shares: &BTreeMap<ReleaseId, u32>,
    instances: &BTreeMap<ReleaseId, Vec<InstanceId>>,
    parts: impl Fn(&[InstanceId]) -> Vec<f64>,
) -> BTreeMap<InstanceId, u16> {
    let given: u32 = instances.keys().filter_map(|release| shares.get(release)).sum();
    let mut groups: Vec<(u32, Vec<InstanceId>)> = Vec::new();
    let mut others = Vec::new();
    for (release, ids) in instances {
        match shares.get(release) {
            Some(share) => groups.push((*share, ids.clone())),
            None => others.extend(ids),
        }
    }
    groups.push((100_u32.saturating_sub(given), others));
    let mut all: BTreeMap<InstanceId, f64> = BTreeMap::new();
    for (percent, ids) in groups.iter().filter(|(_, ids)| !ids.is_empty()) {
        all.extend(ids.iter().zip(parts(ids)).map(|(id, part)| (*id, f64::from(*percent) * part)));
    }
    let highest = all.values().copied().fold(0.0, f64::max);
    if highest == 0.0 {
        return all.into_keys().map(|id| (id, EVEN)).collect();
    }
    let weight = |part: f64| if part == 0.0 { 0 } else { (part / highest * MOST).round().max(1.0) as u16 };
    all.into_iter().map(|(id, part)| (id, weight(part))).collect()
}

/// Splits traffic equally.
pub fn evenly(ids: &[InstanceId]) -> Vec<f64> {
    vec![1.0 / ids.len() as f64; ids.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_releases_whatever_the_number_of_its_instances() {
        for (what, shares, instances, wanted) in [
            ("a tenth for one beside three", &[(2, 10)][..], &[(1, 3), (2, 1)][..], &[256, 256, 256, 85][..]),
            ("a tenth for two beside one", &[(2, 10)], &[(1, 1), (2, 2)], &[256, 14, 14]),
            ("one of a hundred", &[(2, 1)], &[(1, 1), (2, 1)], &[256, 3]),
            (
                "the old ones of a rollout go with head",
                &[(3, 50)],
                &[(1, 1), (2, 1), (3, 1)],
                &[128, 128, 256],
            ),
            ("all", &[(2, 100)], &[(1, 2), (2, 1)], &[0, 0, 256]),
            ("none", &[(2, 0)], &[(1, 1), (2, 1)], &[256, 0]),
            ("none, and nobody else is there", &[(2, 0)], &[(2, 2)], &[100, 100]),
            ("who isn't there leaves its share", &[(2, 100)], &[(1, 2)], &[256, 256]),
            ("it is alone", &[(2, 10)], &[(2, 2)], &[256, 256]),
        ] {
            let shares = shares.iter().map(|(release, share)| (ReleaseId(*release), *share)).collect();
            let mut ids = (1..).map(InstanceId);
            let instances: BTreeMap<ReleaseId, Vec<InstanceId>> = instances
                .iter()
                .map(|(release, n)| (ReleaseId(*release), ids.by_ref().take(*n).collect()))
                .collect();
            let got: Vec<u16> = weights(&shares, &instances, evenly).into_values().collect();
            assert_eq!(got, wanted, "{what}");
        }
    }
}
