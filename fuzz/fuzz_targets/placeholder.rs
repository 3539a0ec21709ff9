#![no_main]

#[path = "../../tests/laws/placeholder.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|input: &[u8]| laws::check(input));
