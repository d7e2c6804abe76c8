//! Localhost seccomp profiles.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new_in("/dev/shm") else { return };
    if file.write_all(bytes).is_ok()
        && let Ok(profile) = wharf::containers::seccomp::load(file.path(), &["/run".into()])
    {
        let _ = profile.to_oci(wharf::containers::caps::CapSet::all(), (6, 1));
    }
});
