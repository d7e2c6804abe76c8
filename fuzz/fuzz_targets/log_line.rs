//! Lines of a log that a container may have influenced.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|byte| *byte == b'\n') {
        let _ = wharf::cli::logfile::Line::parse(line);
    }
});
