//! Docker's config.json.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for registry in ["docker.io", "example.com:5000"] {
        wharf::cli::fuzzing::docker_config(bytes, registry);
    }
});
