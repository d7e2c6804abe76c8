//! Tar archives of layers, unpacked for real: nothing may come to be outside.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let root = dir.path().join("root");
    if std::fs::create_dir(&root).is_err() {
        return;
    }
    let options = wharf::images::unpack::Options { layer: "fuzz".into() };
    let _ = wharf::images::unpack::unpack_tar(bytes, &root, &options);
    let beside = std::fs::read_dir(dir.path()).map(|entries| entries.count()).unwrap_or(1);
    assert_eq!(beside, 1, "the archive wrote outside of its root");
});
