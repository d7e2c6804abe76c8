//! Answers of CNI plugins, and their configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    wharf::netns::fuzzing::answer(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        wharf::netns::fuzzing::config(text);
        wharf::netns::fuzzing::template(text);
    }
});
