#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rewind_fuzz::config(bytes));
