//! What a client sends over SPDY, alone and in a WebSocket.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    wharf::streaming::fuzzing::spdy(bytes);
    wharf::streaming::fuzzing::tunnel(bytes);
});
