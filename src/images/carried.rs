//! Content that descriptors have within them (`data`, image specification, descriptor.md).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::registry::{Document, digest_of};

/// What descriptors in `document` have within them (`data`), as far as their digests and sizes confirm it: whatever else
/// they have there is fetched as if it was not there.
pub(super) fn carried(document: &Document) -> Vec<Document> {
    #[derive(Deserialize)]
    struct Carrier {
        config: Option<Carried>,
        layers: Option<Vec<Carried>>,
        manifests: Option<Vec<Carried>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Carried {
        #[serde(default)]
        media_type: String,
        #[serde(default)]
        digest: String,
        #[serde(default)]
        size: i64,
        data: Option<String>,
    }
    // What is wrong with the document is said by who reads all of it.
    let Ok(carrier) = serde_json::from_slice::<Carrier>(&document.bytes) else {
        return Vec::new();
    };
    let lists = [carrier.layers, carrier.manifests];
    let all = carrier.config.into_iter().chain(lists.into_iter().flatten().flatten());
    all.filter_map(|one| {
        let bytes = BASE64_STANDARD.decode(one.data?).ok()?;
        let fits = i64::try_from(bytes.len()).is_ok_and(|size| size == one.size) && digest_of(&bytes) == one.digest;
        if !fits {
            tracing::debug!(digest = one.digest, "a descriptor's data is not what it points at");
        }
        fits.then(|| Document {
            bytes: bytes.into(),
            digest: one.digest,
            media_type: one.media_type,
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn data_within_a_descriptor_counts_only_if_its_digest_and_size_do() {
        let digest = digest_of(b"{}");
        let found = |digest: &str, size: i64, data: &str| {
            let json = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"x/y","digest":"{digest}","size":{size},"data":{data}}},"layers":[]}}"#
            );
            carried(&Document {
                bytes: json.into_bytes().into(),
                digest: A.into(),
                media_type: String::new(),
            })
        };
        let right = found(&digest, 2, r#""e30=""#);
        assert_eq!((&right[0].digest, &right[0].bytes[..]), (&digest, &b"{}"[..]));
        assert_eq!(right[0].media_type, "x/y");
        for wrong in [
            found(A, 2, r#""e30=""#),
            found(&digest, 3, r#""e30=""#),
            found(&digest, 2, r#""?""#),
            found(&digest, 2, "7"),
            found(&digest, 2, "null"),
        ] {
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }
}
