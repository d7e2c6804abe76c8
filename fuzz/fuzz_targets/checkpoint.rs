//! The descriptions in checkpoints: the first byte says which.
#![no_main]

use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 6] = ["config.dump", "spec.dump", "deleted.files", "bind.mounts", "volumes.dump", "pod.dump"];

fuzz_target!(|bytes: &[u8]| {
    let Some((first, text)) = bytes.split_first() else { return };
    wharf::containers::fuzzing::checkpoint(NAMES[usize::from(*first) % NAMES.len()], text);
});
