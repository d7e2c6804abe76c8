//! Doors for the fuzz targets (fuzz/) to parsers that nobody else outside needs.

use super::{manifest, platform::Host, registry::Document};

pub use super::lazy::fuzzing::contents;
pub use super::registry::fuzzing::{conf, headers, hosts};

/// A manifest or an index, as a registry sends it.
pub fn manifest(bytes: &[u8]) {
    let document = Document {
        bytes: bytes.to_vec().into(),
        digest: "sha256:0".into(),
        media_type: String::new(),
    };
    if let Ok(manifest::Parsed::Manifest(manifest)) = manifest::parse(&document, &Host::new("amd64", "")) {
        let _ = manifest.size();
        let _ = manifest.with_diff_ids(&["sha256:1".into()]);
    }
}
