//! A layer's table of contents and the footer that leads to it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::images::fuzzing::contents(bytes));
