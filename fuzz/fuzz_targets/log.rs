//! Log files that a container may have influenced.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((count, bytes)) = bytes.split_first() else { return };
    let Ok(mut file) = tempfile::tempfile_in("/dev/shm") else { return };
    if std::io::Write::write_all(&mut file, bytes).is_ok() {
        wharf::cli::fuzzing::log(&mut file, usize::from(*count));
    }
});
