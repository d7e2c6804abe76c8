//! Errors of the unpack room.

use nix::errno::Errno;

use super::name::NameError;
use super::reader::ReadError;

/// Why a layer could not be extracted. Every message names the layer, and the entry once there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source of the stream failed, or the stream is no tar.
    #[error("unpack layer {layer}: read the tar stream near byte {offset}: {source}")]
    Read {
        layer: String,
        offset: u64,
        source: ReadError,
    },
    /// The entry is one that no honest layer contains.
    #[error("unpack layer {layer}: entry {entry} is refused: {reason}")]
    Refused {
        layer: String,
        entry: String,
        reason: String,
    },
    /// The kernel said no.
    #[error("unpack layer {layer}: {what} {entry}: {source}")]
    Io {
        layer: String,
        entry: String,
        what: &'static str,
        source: std::io::Error,
    },
}

pub type Result<T> = std::result::Result<T, Error>;

/// An error before it knows its layer and entry.
#[derive(Debug)]
pub enum Fault {
    Read(ReadError),
    Refused(String),
    Io(&'static str, std::io::Error),
}

impl Fault {
    /// Adds what the message needs.
    pub fn at(self, layer: &str, entry: &[u8], offset: u64) -> Error {
        let layer = layer.to_owned();
        match self {
            Fault::Read(source) => Error::Read { layer, offset, source },
            Fault::Refused(reason) => Error::Refused {
                layer,
                entry: printable(entry),
                reason,
            },
            Fault::Io(what, source) => Error::Io {
                layer,
                entry: printable(entry),
                what,
                source,
            },
        }
    }
}

impl From<NameError> for Fault {
    fn from(error: NameError) -> Self {
        Fault::Refused(error.to_string())
    }
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Fault::Read(error)
    }
}

/// For `map_err`: an errno with the attempt it ended.
pub fn io(what: &'static str) -> impl Fn(Errno) -> Fault {
    move |errno| Fault::Io(what, errno.into())
}

/// A hostile name as one short, quoted word.
pub fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
