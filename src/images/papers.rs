//! What lies beside an image's record: the documents that it came by, and what speaks for it.

use std::{fs, io::ErrorKind, path::Path};

use super::{Error, Result, index::write_synced, manifest, registry::Document, trust::Evidence};

/// What speaks for an image, in its directory.
pub(super) const EVIDENCE: &str = "signatures";

/// The document at `path`, which has `digest`, if it is there. Blocking.
pub(super) fn document(path: &Path, digest: &str) -> Result<Option<Document>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(Document {
            media_type: manifest::media_type(&bytes),
            bytes: bytes.into(),
            digest: digest.to_owned(),
        })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// What speaks for the image in `directory`. What can't be understood is worth nothing. Blocking.
pub(super) fn evidence(directory: &Path) -> Result<Evidence> {
    let path = directory.join(EVIDENCE);
    match fs::read(&path) {
        Ok(bytes) => Ok(Evidence::parse(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the signatures of an image can't be read; pull it again");
            Evidence::default()
        })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Evidence::default()),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Adds to it. Not to be called twice at once for one image. Blocking.
pub(super) fn add(directory: &Path, evidence: Evidence) -> Result<()> {
    if evidence.is_empty() {
        return Ok(());
    }
    let known = self::evidence(directory)?;
    let mut all = known.clone();
    all.merge(evidence);
    if all == known {
        return Ok(());
    }
    write_synced(&directory.join(EVIDENCE), &all.to_bytes())
}
