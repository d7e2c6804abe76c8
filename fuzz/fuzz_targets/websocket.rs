//! What a client sends over a WebSocket with channels, terminal sizes among it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::streaming::fuzzing::channels(bytes));
