//! Doors for the fuzz targets (fuzz/).

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use super::dockerconfig::DockerConfig;
use super::logfile::{Printer, Show, start_of_last};

/// Docker's `config.json`.
pub fn docker_config(bytes: &[u8], registry: &str) {
    if let Ok(config) = DockerConfig::parse("fuzz".into(), bytes) {
        let _ = (config.helper(registry), config.stored(registry, "a/b"));
    }
}

/// A log file, of which the last `count` lines are shown.
///
/// # Panics
/// When they do not begin at the beginning of a line.
pub fn log(file: &mut File, count: usize) {
    let Ok(start) = start_of_last(file, count) else { return };
    let mut text = Vec::new();
    if file.seek(SeekFrom::Start(0)).is_err() || file.read_to_end(&mut text).is_err() {
        return;
    }
    let (before, last) = text.split_at(usize::try_from(start).unwrap_or(usize::MAX));
    assert!(
        before.last().is_none_or(|byte| *byte == b'\n') || last.is_empty(),
        "in the middle of a line"
    );
    let since = "2026-01-31T12:00:00Z".parse().ok();
    let show = Show {
        timestamps: true,
        since,
    };
    let mut printer = Printer::new(show, std::io::sink(), std::io::sink());
    for line in last.split(|byte| *byte == b'\n') {
        let _ = printer.line(line);
    }
}
