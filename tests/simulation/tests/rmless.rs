//! The days that each run of the tests lives through on which the rm and its disk are gone for good.

use bazooka_simulation::{live_rmless, search_for};

/// The seeds of the usual run.
const SEEDS: u64 = 60;

/// The program that shows a day.
const PROGRAM: &str = env!("CARGO_BIN_EXE_bazooka-simulation");

#[test]
fn with_no_rm_there_services_heal_and_scale_and_roll_back() {
    if let Some((seed, broken)) = search_for(live_rmless, 0..SEEDS) {
        let day = live_rmless(seed, true);
        panic!(
            "seed {seed}: {broken}\nthe same again: {PROGRAM} run --seed {seed} --rmless; its day until then:\n{}",
            day.lines.join("\n")
        );
    }
}
