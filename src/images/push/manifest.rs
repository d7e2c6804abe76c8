//! The manifest that is pushed.

use serde_json::Value;

use super::Sent;
use crate::images::{
    Image, Layer,
    manifest::{self, OCI_MANIFEST},
    registry::Document,
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Media type and bytes of a manifest for `sent`, the blobs of the image's layers: that by which the image came, as it
/// was or with the layers that are other blobs now.
pub(super) fn compose(
    original: Option<&Document>,
    image: &Image,
    config_size: u64,
    sent: &[Sent],
) -> (String, Vec<u8>) {
    let was = original.and_then(|document| Some((document, serde_json::from_slice::<Value>(&document.bytes).ok()?)));
    let Some((document, mut value)) = was else {
        return (OCI_MANIFEST.into(), fresh(image, config_size, sent));
    };
    let media_type = value["mediaType"].as_str().unwrap_or(OCI_MANIFEST).to_owned();
    let same = sent.len() == image.layers.len()
        && image
            .layers
            .iter()
            .zip(sent)
            .all(|(layer, sent)| layer.digest == sent.digest);
    if same {
        return (media_type, document.bytes.to_vec());
    }
    let kind = if media_type == DOCKER_MANIFEST {
        DOCKER_LAYER
    } else {
        OCI_LAYER
    };
    let Some(layers) = value["layers"]
        .as_array_mut()
        .filter(|layers| layers.len() == sent.len())
    else {
        return (OCI_MANIFEST.into(), fresh(image, config_size, sent));
    };
    for ((entry, layer), sent) in layers.iter_mut().zip(&image.layers).zip(sent) {
        if layer.digest != sent.digest {
            // What annotations say of a blob (tables of contents, checksums) holds for that blob only.
            *entry = serde_json::json!({ "mediaType": kind, "digest": sent.digest, "size": sent.size });
        }
    }
    (media_type, value.to_string().into_bytes())
}

fn fresh(image: &Image, config_size: u64, sent: &[Sent]) -> Vec<u8> {
    let layers: Vec<Layer> = image
        .layers
        .iter()
        .zip(sent)
        .map(|(layer, sent)| Layer {
            digest: sent.digest.clone(),
            diff_id: layer.diff_id.clone(),
            size: sent.size,
        })
        .collect();
    manifest::compose(&image.id, config_size, &layers)
}
