//! Files that describe devices.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for yaml in [false, true] {
        wharf::containers::cdi::fuzzing::file(text, yaml);
    }
});
