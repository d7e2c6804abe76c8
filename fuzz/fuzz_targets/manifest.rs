//! Manifests and indexes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::images::fuzzing::manifest(bytes));
