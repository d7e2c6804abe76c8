//! Turns a layer's tar stream into a directory of the overlay. Owns the tar reader and the extraction; everything in
//! the stream is hostile until checked. Never writes outside the layer's root, never follows a symlink, never syncs
//! (the images room does one `syncfs` per pull), never knows registries or digests.

use std::io::Read;
use std::path::Path;

/// How a layer is extracted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What error messages call the layer: its digest or chain id.
    pub layer: String,
    /// How deletions of lower layers' files are written down.
    pub whiteouts: Whiteouts,
}

/// The two forms of whiteout that overlayfs understands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// A character device 0:0 (every kernel; needs CAP_MKNOD in the initial user namespace).
    #[default]
    Device,
    /// An empty file with `trusted.overlay.whiteout` (Linux 6.7).
    Xattr,
}

/// What a layer holds once extracted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of regular files.
    pub bytes: u64,
    /// Files, directories, links and devices, without the layer's root.
    pub inodes: u64,
}

/// Why a layer could not be extracted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unpack layer {layer}: {what}")]
    Layer {
        layer: String,
        what: String,
        source: std::io::Error,
    },
}

pub type Result<T> = std::result::Result<T, Error>;

/// Extracts the tar stream `reader` into the existing, empty directory `dest`, up to and including the end of the
/// stream (so a digest computed by `reader` covers all of it). Blocking; run it with `spawn_blocking`.
///
/// # Errors
/// The first entry that cannot be extracted ends the work; `dest` is then to be removed by the caller.
pub fn unpack_tar(_reader: impl Read, _dest: &Path, _opts: &Options) -> Result<Stats> {
    todo!()
}
