//! What can go wrong in a runtime.

use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the runtime room. The text names the attempt and the object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be executed; the text is for `StartError`.
    #[error("{0}")]
    StartFailed(String),
    /// The helper or the runtime command said why it failed.
    #[error("{0}")]
    Failed(String),
    /// The spec asks for something that the built-in runtime does not do.
    #[error("the built-in runtime does not support {0}")]
    Unsupported(String),
    /// The spec contradicts itself or cannot be read.
    #[error("invalid spec: {0}")]
    InvalidSpec(String),
    /// A kernel call failed.
    #[error("{what}: {source}")]
    Os { what: String, source: io::Error },
    /// The helper ended without a word, for instance killed for want of memory.
    #[error("{0}: the helper process ended without a result")]
    HelperDied(&'static str),
    /// cgroup work failed.
    #[error("{0}")]
    Cgroup(String),
}

impl Error {
    pub(crate) fn os(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Os {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// Says what was attempted when a kernel call fails.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::os(what(), e))
    }
}
