//! passwd and group of an image, and its USER.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8], &str)| {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let etc = dir.path().join("etc");
    let (passwd, group, user) = input;
    let written = std::fs::create_dir(&etc)
        .and_then(|()| std::fs::write(etc.join("passwd"), passwd))
        .and_then(|()| std::fs::write(etc.join("group"), group));
    if written.is_ok() {
        let _ = wharf::containers::users::resolve(&wharf::images::rootfs::Root::new(dir.path(), false), None, user);
    }
});
