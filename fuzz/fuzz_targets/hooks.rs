//! Files that describe OCI hooks.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wharf::containers::hooks::fuzzing(bytes));
