//! Archives as `docker save` writes them, with `manifest.json`.

use serde::Deserialize;

use super::{
    super::{Error, Reference, Result, reference::is_hex, registry::digest_of},
    Found, refused,
    scan::Contents,
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The images that `manifest.json` lists.
pub(super) fn find(contents: &Contents) -> Result<Vec<Found>> {
    let Some(list) = contents.document("manifest.json") else {
        return Err(refused(
            "it has neither an index.json (OCI image layout) nor a manifest.json (docker save)",
        ));
    };
    let list: Vec<Item> =
        serde_json::from_slice(list).map_err(|error| refused(format!("its manifest.json can't be read: {error}")))?;
    if list.is_empty() {
        return Err(refused("its manifest.json lists no image"));
    }
    list.into_iter().map(|item| image(contents, item)).collect()
}

fn image(contents: &Contents, item: Item) -> Result<Found> {
    let path = contents.resolve(&item.config)?;
    let config = contents
        .document(&path)
        .ok_or_else(|| refused(format!("configuration {path:?} is no document")))?;
    let id = digest_of(config);
    // `HEX.json`, or `blobs/sha256/HEX`.
    let stem = path
        .rsplit('/')
        .next()
        .and_then(|name| name.split('.').next())
        .unwrap_or_default();
    if stem.len() == 64 && is_hex(stem) && id != format!("sha256:{stem}") {
        return Err(Error::Mismatch {
            what: format!("configuration {path} in the archive"),
            expected: format!("sha256:{stem}"),
            got: id,
        });
    }
    let layers = item.layers.unwrap_or_default();
    let layers = layers
        .iter()
        .map(|path| contents.resolve(path))
        .collect::<Result<_>>()?;
    let names = item.repo_tags.unwrap_or_default();
    Ok(Found {
        config: config.clone(),
        layers,
        promised: None,
        documents: Vec::new(),
        names: names.iter().map(|name| Reference::parse(name)).collect::<Result<_>>()?,
        artifact: None,
    })
}
