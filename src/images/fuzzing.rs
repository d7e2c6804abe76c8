//! Doors for the fuzz targets (fuzz/) to parsers that nobody else outside needs.

use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};

use super::{manifest, platform::Host, registry, registry::Document};

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

/// A `WWW-Authenticate` header.
pub fn challenge(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let _ = registry::challenge::best(&headers);
}
