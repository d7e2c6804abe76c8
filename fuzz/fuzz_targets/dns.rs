//! Questions for names from pods.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    wharf::netns::dns_fuzzing::question(bytes);
});
