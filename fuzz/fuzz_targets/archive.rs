#![no_main]

#[path = "../../tests/laws/archive.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|input: &[u8]| laws::check(input));
