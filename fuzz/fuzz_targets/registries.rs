//! registries.conf, and after a zero byte a name that it may rewrite.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (text, name) = text.split_once('\0').unwrap_or((text, "example.com/a/b"));
    wharf::images::fuzzing::conf(text, name);
});
