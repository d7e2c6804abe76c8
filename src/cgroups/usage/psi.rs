//! Pressure stall information: what waiting cost (kernel 4.20 and newer, v2 cgroups only).

use std::path::Path;

use crate::cgroups::fsutil::read_raw;

/// What waiting for one resource cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// At least one task waited.
    pub some: Stall,
    /// No task could go on.
    pub full: Stall,
}

/// Waiting of one degree.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Time since the cgroup was made, microseconds.
    pub total_us: u64,
    /// Share of the last 10 seconds, percent.
    pub avg10: f64,
    /// Share of the last minute, percent.
    pub avg60: f64,
    /// Share of the last five minutes, percent.
    pub avg300: f64,
}

/// Reads a `*.pressure` file; None where the kernel has none, or does not keep it (`psi=0`: EOPNOTSUPP).
pub(super) fn read(file: &Path) -> Option<Psi> {
    parse(&read_raw(file).ok()?)
}

pub(super) fn parse(text: &str) -> Option<Psi> {
    let mut psi = Psi::default();
    let mut known = false;
    for line in text.lines() {
        let (degree, rest) = line.split_once(' ')?;
        let stall = match degree {
            "some" => &mut psi.some,
            "full" => &mut psi.full,
            _ => continue,
        };
        known = true;
        for field in rest.split(' ') {
            let (key, value) = field.split_once('=')?;
            match key {
                "avg10" => stall.avg10 = value.parse().ok()?,
                "avg60" => stall.avg60 = value.parse().ok()?,
                "avg300" => stall.avg300 = value.parse().ok()?,
                "total" => stall.total_us = value.trim().parse().ok()?,
                _ => {}
            }
        }
    }
    known.then_some(psi)
}
