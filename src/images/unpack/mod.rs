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
pub(in crate::images) mod tests;

use std::io::Read;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

pub use fault::{Error, Result};
pub use header::{BLOCK, FormatError};
pub use name::{Meaning, NameError, components, meaning};
pub use reader::{Entry, Kind, ReadError, TarReader};
pub use sys::spread;

use super::recipe::{Kept, Recorder};

/// Entries of one layer: more would take the file system's inodes from all others.
const MAX_ENTRIES: u64 = 8_000_000;

/// Whether an archive may begin with these 512 bytes.
#[must_use]
pub fn is_archive(block: &[u8; BLOCK]) -> bool {
    header::parse(block).is_ok()
}

/// How a layer is extracted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What error messages call the layer: its digest or chain id.
    pub layer: String,
    /// It is no layer but a plain archive: names that begin with `.wh.` hide nothing, they are names like others.
    pub plain: bool,
    /// Files get their size and no content: what is wanted is the shape of the tree.
    pub hollow: bool,
}

/// What a layer holds once extracted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes that files and directories take on disk.
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
    unpack(&mut TarReader::new(reader), dest, opts)
}

/// The same with a recipe, by which the archive can be given back: `layer` is an existing directory with nothing but an
/// empty `fs` in it, which gets the files.
///
/// # Errors
/// As [`unpack_tar`]; the caller removes `layer`.
pub fn unpack_layer(reader: impl Read, layer: &Path, opts: &Options) -> Result<(Stats, Kept)> {
    let failed = |source| Error::Io {
        layer: opts.layer.clone(),
        entry: layer.display().to_string(),
        what: "write the recipe in",
        source,
    };
    let recorder = Recorder::create(layer).map_err(failed)?;
    let mut reader = TarReader::recording(reader, recorder);
    let stats = unpack(&mut reader, &layer.join("fs"), opts)?;
    let kept = reader
        .into_recorder()
        .map(Recorder::finish)
        .transpose()
        .map_err(failed)?;
    Ok((stats, kept.unwrap_or_default()))
}

fn unpack<R: Read>(reader: &mut TarReader<R>, dest: &Path, opts: &Options) -> Result<Stats> {
    let layer = opts.layer.as_str();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut extractor = open(dest, flags, Mode::empty())
        .map_err(fault::io("open the directory for"))
        .and_then(|root| extract::Extractor::new(root, opts))
        .map_err(|e| e.at(layer, b"/", 0))?;
    for number in 0_u64.. {
        let next = reader
            .next_entry()
            .map_err(|e| fault::Fault::Read(e).at(layer, b"", reader.header_at()))?;
        let Some(entry) = next else { break };
        let name = entry.name.clone();
        if number == MAX_ENTRIES {
            let reason = format!("it is one more than the {MAX_ENTRIES} that a layer may have");
            return Err(fault::Fault::Refused(reason).at(layer, &name, reader.header_at()));
        }
        extractor
            .entry(entry, reader)
            .map_err(|e| e.at(layer, &name, reader.header_at()))?;
    }
    extractor.finish().map_err(|e| e.at(layer, b"/", reader.header_at()))
}
