//! What it takes to give a layer back byte for byte, although only its files are kept.
//!
//! Beside a layer's `fs/` lies `recipe`: every byte of the archive that is not the content of a file in `fs/` (headers,
//! extended headers, padding, the end), and between them references "the content of file P". A file that a later entry
//! of the same archive takes the place of is not deleted but moved to `aside/`, so that it can still be given back.
//!
//! The file is a head of 24 bytes (magic, length of the archive and number of moves, little endian), then one zstd
//! frame with a checksum. In the frame are items: a kind byte, a number as LEB128, and bytes:
//!
//! | kind | number | bytes |
//! |---|---|---|
//! | [`INLINE`] | length | the archive's own |
//! | [`CONTENT`] | size of the file | length of the path (LEB128), path below `fs/` |
//! | [`MOVED`] | N: what was at the path is now `aside/N` | length of the path (LEB128), path below `fs/` |
//! | [`END`] | length of the archive | |
//!
//! A path never leads through a symlink, and what is named by it is moved at most once, as nothing in `aside/` moves.

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::path::{Path, PathBuf};

pub use read::Archive;
pub use write::{Kept, Recorder};

const MAGIC: &[u8; 8] = b"wharf\0r1";
const HEAD: usize = 24;
const INLINE: u8 = 0;
const CONTENT: u8 = 1;
const MOVED: u8 = 2;
const END: u8 = 3;

/// Longest path in an item; the content of a file with a longer one is kept in the recipe itself.
pub const MAX_PATH: usize = 4000;

/// Name of the recipe in a layer's directory.
pub const FILE: &str = "recipe";
/// Name of the directory of what was replaced, beside it.
pub const ASIDE: &str = "aside";

/// Why a layer can't be given back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layer was unpacked before recipes were written.
    #[error(
        "layer {} was unpacked by an older version, which did not keep what it takes to give it back: remove the image and pull it again", layer.display()
    )]
    Absent {
        /// Directory of the layer.
        layer: PathBuf,
    },
    /// The recipe or a file that it names is not as it was written.
    #[error("layer {} is damaged: {reason}", layer.display())]
    Damaged {
        /// Directory of the layer.
        layer: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    fn damaged(layer: &Path, reason: impl ToString) -> Self {
        Self::Damaged {
            layer: layer.to_owned(),
            reason: reason.to_string(),
        }
    }
}
