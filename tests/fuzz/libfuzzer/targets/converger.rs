#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bazooka_fuzz::converger(data));
