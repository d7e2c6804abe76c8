//! The first bytes of a client's connection.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::cri::fuzzing::authority(bytes));
