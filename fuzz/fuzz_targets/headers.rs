//! What a registry asks for, and which part of a blob it sends.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::images::fuzzing::headers(bytes));
