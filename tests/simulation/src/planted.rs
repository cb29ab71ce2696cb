//! Proof of the simulation: with a fault planted in the production code, some seed breaks a rule.
//!
//! Owns which faults are planted together, and which ones the rules can't see.

use std::ops::Range;

use visor::planted::{Bug, plant, planted};

use crate::{Live, live, live_rmless, live_zones, search_for};

/// A fault must be found within so many seeds.
const SEEDS: u64 = 200;

/// A pair must be found within so many seeds, because both faults have to meet.
const SEEDS_OF_A_PAIR: u64 = 400;

/// Faults that a second rule covers, each with the fault that takes the second rule out.
const PAIRS: [[Bug; 2]; 2] = [
    [Bug::IdsAreTakenUnguarded, Bug::LateWriteIsCarriedOut],
    [Bug::AssignmentIsMovedUnguarded, Bug::LateWriteIsCarriedOut],
];

/// Faults that show on days on which a host and a proxy are cut off together.
const OF_ZONES: [Bug; 1] = [Bug::ReplacedEndAtOnce];

/// Faults that show on days on which the rm is gone for good.
const OF_RMLESS: [Bug; 6] = [
    Bug::NoSourceIsNamed,
    Bug::SourcesServeForEver,
    Bug::UnnamedHostIsServed,
    Bug::NoHostWrapsForOthers,
    Bug::NobodyElseHoldsVars,
    Bug::RequestsNeverEnd,
];

/// Faults that break no rule; the documentation of each says why.
const HARMLESS: [Bug; 1] = [Bug::RefusedReportIsDropped];

/// Faults that are planted together.
pub struct Planting {
    /// The fault to be found, then the one that it needs beside it.
    pub bugs: Vec<Bug>,
    /// How many seeds must suffice.
    pub seeds: u64,
    /// The kind of day on which the fault shows.
    pub live: Live,
}

/// Returns the faults that are planted one after the other.
pub fn plantings() -> Vec<Planting> {
    let visible = Bug::ALL.iter().filter(|bug| !HARMLESS.contains(bug));
    visible
        .map(|bug| match PAIRS.iter().find(|pair| pair[0] == *bug) {
            Some(pair) => Planting { bugs: pair.to_vec(), seeds: SEEDS_OF_A_PAIR, live },
            None if OF_ZONES.contains(bug) => Planting { bugs: vec![*bug], seeds: SEEDS, live: live_zones },
            None if OF_RMLESS.contains(bug) => Planting { bugs: vec![*bug], seeds: SEEDS, live: live_rmless },
            None => Planting { bugs: vec![*bug], seeds: SEEDS, live },
        })
        .collect()
}

/// Returns the lowest seed whose day breaks a rule while these faults are planted, and the rule.
///
/// # Errors
/// This build can't hold faults.
pub fn find(live: Live, bugs: &[Bug], seeds: Range<u64>) -> Result<Option<(u64, String)>, NoSwitches> {
    if !plant(bugs) {
        return Err(NoSwitches);
    }
    let found = search_for(live, seeds);
    plant(&[]);
    Ok(found)
}

/// The error of a build without the feature `planted`.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this build holds no faults; run cargo run -p bazooka-simulation --features planted -- planted")]
pub struct NoSwitches;

/// Reports whether late writes only come along with another fault, which is to be found by what it does itself.
pub(crate) fn late_writes_come_along() -> bool {
    let pair = planted(Bug::LateWriteIsCarriedOut) && PAIRS.iter().any(|pair| planted(pair[0]));
    pair || planted(Bug::DeposedConvergerWrites)
}
