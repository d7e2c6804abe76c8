//! Doors for the fuzz targets (fuzz/).

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// What a plugin writes, whether it succeeds or not.
pub fn answer(bytes: &[u8]) {
    let (code, answer) = bytes.split_first().unwrap_or((&0, b""));
    if let Ok(result) = super::plugin::judge(ExitStatus::from_raw(i32::from(*code) << 8), answer, answer) {
        let _ = super::result::addresses(&result);
        let _ = super::result::in_version(result, "0.4.0");
    }
}

/// A file of the configuration directory.
pub fn config(text: &str) {
    let _ = super::config::NetworkList::parse("fuzz.conflist", text);
}

/// A template for a configuration.
pub fn template(text: &str) {
    let ranges = ["10.0.0.0/24".to_owned(), "fd00::/64".to_owned()];
    if let Ok(text) = super::template::render(text, &ranges) {
        config(&text);
    }
}
