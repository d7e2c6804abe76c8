//! The configuration of an image.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = wharf::images::ImageConfig::parse(bytes);
});
