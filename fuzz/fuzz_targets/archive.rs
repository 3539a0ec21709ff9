#![no_main]

#[path = "../../tests/properties/archive.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::check(input));
