//! What can go wrong with images.

use std::{io, path::PathBuf, sync::Arc};

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something about an image could not be done. No message holds a credential or the query of an address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not an image reference.
    #[error("image reference {reference:?} is not valid: {reason}")]
    InvalidReference {
        /// The text, shortened if long.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The registry has no such manifest or blob, or keeps it from us.
    #[error("{what} not found in registry {host}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
    },
    /// There is no such image on this node.
    #[error("there is no image {0:?} on this node")]
    NoImage(String),
    /// The registry can't be reached or is out of order. Kubelet looks for this first word.
    #[error("RegistryUnavailable: {host}: {reason}")]
    RegistryUnavailable {
        /// The registry.
        host: String,
        /// What happened.
        reason: String,
    },
    /// The registry refused the credentials, or wants some.
    #[error("{action} access to {what} denied by registry {host}: {reason}")]
    Unauthorized {
        /// `pull` or `push`.
        action: &'static str,
        /// What was asked for.
        what: String,
        /// The registry or token server.
        host: String,
        /// What it said.
        reason: String,
    },
    /// The registry answered something that makes no sense or is not supported.
    #[error("{what} from registry {host}: {reason}")]
    Registry {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// Content does not have the digest or size that was promised.
    #[error("{what} is not what was promised: expected {expected}, got {got}")]
    Mismatch {
        /// The content.
        what: String,
        /// Digest or size promised.
        expected: String,
        /// Digest or size found.
        got: String,
    },
    /// A manifest, configuration or layer is malformed or not supported.
    #[error("{what}: {reason}")]
    BadContent {
        /// The content.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The node's policy does not let the image in. Kubelet looks for this first word.
    #[error("SignatureValidationFailed: image {what}: {reason}")]
    Untrusted {
        /// The image.
        what: String,
        /// Why not.
        reason: String,
    },
    /// The operating system refused.
    #[error("{attempt} {}: {source}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record could not be read or written.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// A layer could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] super::unpack::Error),
    /// A layer can't be given back.
    #[error(transparent)]
    Recipe(#[from] super::recipe::Error),
    /// A root filesystem could not be mounted, unmounted or measured.
    #[error(transparent)]
    RootFs(#[from] super::rootfs::Error),
    /// The room is being shut down.
    #[error("{0}: the daemon is shutting down")]
    ShuttingDown(&'static str),
    /// The failure of work that several callers shared.
    #[error(transparent)]
    Shared(Arc<Error>),
}

/// Sorts errors for callers that answer differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The image does not exist in the registry.
    NotFound,
    /// The text is not a reference.
    InvalidReference,
    /// The registry can't be reached; the message begins with `RegistryUnavailable`.
    RegistryUnavailable,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// The node's policy does not let it in; the message begins with `SignatureValidationFailed`.
    Untrusted,
    /// Anything else.
    Other,
}

impl Error {
    /// What sort of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NoImage(_) => ErrorKind::NotFound,
            Self::InvalidReference { .. } => ErrorKind::InvalidReference,
            Self::RegistryUnavailable { .. } => ErrorKind::RegistryUnavailable,
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::Untrusted { .. } => ErrorKind::Untrusted,
            Self::Shared(error) => error.kind(),
            _ => ErrorKind::Other,
        }
    }

    /// For `map_err` on operations on files.
    pub(crate) fn io(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { attempt, path, source }
    }
}
