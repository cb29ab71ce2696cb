//! The days that each run of the tests lives through on which a host and a proxy are cut off together.

use bazooka_simulation::{live_zones, search_for};

/// The seeds of the usual run.
const SEEDS: u64 = 200;

/// The program that shows a day.
const PROGRAM: &str = env!("CARGO_BIN_EXE_bazooka-simulation");

#[test]
fn what_was_replaced_ends_only_once_no_proxy_routes_to_it() {
    if let Some((seed, broken)) = search_for(live_zones, 0..SEEDS) {
        let day = live_zones(seed, true);
        panic!(
            "seed {seed}: {broken}\nthe same again: {PROGRAM} run --seed {seed} --zones; its day until then:\n{}",
            day.lines.join("\n")
        );
    }
}
