//! What comes over the monitor's socket.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut assembler = wharf::monitor::frame::Assembler::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(assembler.wanted().min(rest.len()));
        assert!(!now.is_empty(), "the assembler wants nothing and is not done");
        if assembler.push::<wharf_proto::monitor::Request>(now).is_err() {
            return;
        }
        rest = later;
    }
});
