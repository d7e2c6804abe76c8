//! Tar archives of layers, unpacked for real: nothing may come to be outside, and what was unpacked can be given back.
#![no_main]

use std::io::Read as _;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let layer = dir.path().join("layer");
    if std::fs::create_dir_all(layer.join("fs")).is_err() {
        return;
    }
    let options = wharf::images::unpack::Options { layer: "fuzz".into(), ..wharf::images::unpack::Options::default() };
    let unpacked = wharf::images::unpack::unpack_layer(bytes, &layer, &options);
    let beside = std::fs::read_dir(dir.path()).map(|entries| entries.count()).unwrap_or(1);
    assert_eq!(beside, 1, "the archive wrote outside of its root");
    if unpacked.is_ok() {
        let mut again = Vec::new();
        let archive = wharf::images::recipe::Archive::open(&layer);
        archive.expect("a recipe").read_to_end(&mut again).expect("the archive is given back");
        assert!(again == bytes, "the archive given back is another one");
    }
});
