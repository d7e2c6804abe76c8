//! What a registry asks for.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::images::fuzzing::challenge(bytes));
