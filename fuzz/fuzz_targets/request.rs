//! HTTP requests for a stream.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::streaming::fuzzing::request(bytes));
