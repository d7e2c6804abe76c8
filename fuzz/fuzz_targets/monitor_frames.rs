//! What comes over the monitor's socket, in both directions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_proto::monitor::{Reply, Request};

fuzz_target!(|bytes: &[u8]| {
    frames::<Request>(bytes);
    frames::<Reply>(bytes);
});

fn frames<M: prost::Message + Default>(bytes: &[u8]) {
    let mut assembler = wharf::monitor::frame::Assembler::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(assembler.wanted().min(rest.len()));
        assert!(!now.is_empty(), "the assembler wants nothing and is not done");
        if assembler.push::<M>(now).is_err() {
            return;
        }
        rest = later;
    }
}
