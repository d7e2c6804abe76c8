//! Turns a layer's tar stream into a directory of the overlay. Owns the tar reader and the extraction; everything in
//! the stream is hostile until checked. Never writes outside the layer's root, never follows a symlink out of it, never
//! syncs (the images room does one `syncfs` per pull), never knows registries or digests. May ask `rootfs` to remove.
//!
//! `header` and `pax` parse bytes, `reader` makes entries of them, `name` makes names safe, `dirs` walks to an entry's
//! directory, `extract` creates it there.

mod dirs;
mod extract;
mod fault;
mod header;
mod name;
mod pax;
mod reader;
mod sys;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

pub use fault::{Error, Result};
pub use header::FormatError;
pub use reader::{Entry, Kind, ReadError, TarReader};

/// How a layer is extracted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What error messages call the layer: its digest or chain id.
    pub layer: String,
}

/// What a layer holds once extracted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of regular files.
    pub bytes: u64,
    /// Files, directories, symlinks, devices and whiteouts, without the layer's root.
    pub inodes: u64,
}

/// Extracts the tar stream `reader` into the existing, empty directory `dest`, which nobody else may write to. Reads
/// to the end of the stream, so that a digest computed by `reader` covers all of it. Whiteouts become overlayfs' own
/// (a character device 0:0, `trusted.overlay.opaque`). Needs root. Blocking; run it with `spawn_blocking`.
///
/// # Errors
/// The first entry that cannot be extracted ends the work, named in the error; the caller removes `dest`.
pub fn unpack_tar(reader: impl Read, dest: &Path, opts: &Options) -> Result<Stats> {
    let layer = opts.layer.as_str();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut extractor = open(dest, flags, Mode::empty())
        .map_err(fault::io("open the directory for"))
        .and_then(extract::Extractor::new)
        .map_err(|e| e.at(layer, b"/", 0))?;
    let mut reader = TarReader::new(reader);
    loop {
        let next = reader
            .next_entry()
            .map_err(|e| fault::Fault::Read(e).at(layer, b"", reader.header_at()))?;
        let Some(entry) = next else { break };
        let name = entry.name.clone();
        extractor
            .entry(entry, &mut reader)
            .map_err(|e| e.at(layer, &name, reader.header_at()))?;
    }
    extractor.finish().map_err(|e| e.at(layer, b"/", reader.header_at()))
}
