//! What an NRI plugin sends: frames of the multiplexer, in them ttrpc's messages, in them the answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::nri::fuzzing::socket(bytes));
