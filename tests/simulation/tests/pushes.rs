//! The days of pushes that each run of the tests lives through: the rules hold on every one of them.

use std::ops::Range;

use bazooka_simulation::{live_pushes, search_for};

/// The seeds of the usual run.
const SEEDS: Range<u64> = 0..100;

/// The seeds of the long form.
const MORE_SEEDS: Range<u64> = 100..2_000;

/// The program that shows a day.
const PROGRAM: &str = env!("CARGO_BIN_EXE_bazooka-simulation");

fn must_hold(seeds: Range<u64>) {
    if let Some((seed, broken)) = search_for(live_pushes, seeds) {
        let day = live_pushes(seed, true);
        panic!(
            "seed {seed}: {broken}\nthe same again: {PROGRAM} run --seed {seed} --pushes; its day until then:\n{}",
            day.lines.join("\n")
        );
    }
}

#[test]
fn whatever_befalls_rms_pushes_keep_their_turns_and_what_was_acknowledged_is_released() {
    must_hold(SEEDS);
}

#[test]
#[ignore = "some minutes: tests/run --long"]
fn whatever_befalls_rms_on_many_more_days_the_rules_of_pushes_hold() {
    must_hold(MORE_SEEDS);
}

#[test]
fn a_day_of_pushes_replays_bit_for_bit() {
    for seed in [1, 2, 3] {
        let (once, again) = (live_pushes(seed, true), live_pushes(seed, true));
        let differs = once.lines.iter().zip(&again.lines).find(|(a, b)| a != b);
        assert_eq!(once.hash, again.hash, "seed {seed}: {differs:?}");
    }
}
