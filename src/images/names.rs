//! What images are called: a tag is one image's, a digest may be that of several names.

use std::{collections::BTreeMap, sync::Arc};

use wharf_proto::record;

use super::{
    Image, Reference,
    index::{Entry, List, now},
};

/// What an image is called, with a tag or a digest.
pub(in crate::images) fn names(record: &record::Image) -> Vec<String> {
    let tags = record.tags.iter().map(|tag| tag.name.clone());
    tags.chain(record.digests.iter().cloned()).collect()
}

/// Leaves each tag to the image that got it last; returns the ids of the others, with what they lost.
pub(super) fn settle_tags(entries: &mut BTreeMap<String, Entry>) -> Vec<(String, Vec<String>)> {
    let mut owners: BTreeMap<String, (i64, String)> = BTreeMap::new();
    for entry in entries.values() {
        for tag in &entry.record.tags {
            let claim = (tag.moved_at, entry.record.id.clone());
            let owner = owners.entry(tag.name.clone()).or_insert_with(|| claim.clone());
            if *owner < claim {
                *owner = claim;
            }
        }
    }
    let mut losers = Vec::new();
    for (id, entry) in entries.iter_mut() {
        let mut lost = Vec::new();
        entry.record.tags.retain(|tag| {
            let keeps = owners.get(&tag.name).is_some_and(|(_, owner)| owner == id);
            if !keeps {
                lost.push(tag.name.clone());
            }
            keeps
        });
        if !lost.is_empty() {
            entry.image = Arc::new(entry.again(&entry.record));
            losers.push((id.clone(), lost));
        }
    }
    losers
}

/// Adds the names that a pull of `reference` gives; false if nothing is new.
pub(super) fn name(record: &mut record::Image, reference: &Reference, digest: Option<&str>) -> bool {
    let mut changed = false;
    if let Some(digest) = digest {
        let by_digest = format!("{}@{digest}", reference.name());
        if let Err(at) = record.digests.binary_search(&by_digest) {
            record.digests.insert(at, by_digest);
            changed = true;
        }
    }
    if let Some(tagged) = reference.tagged()
        && !record.tags.iter().any(|tag| tag.name == tagged)
    {
        record.tags.push(record::ImageTag {
            name: tagged,
            moved_at: now(),
        });
        record.tags.sort_by(|a, b| a.name.cmp(&b.name));
        changed = true;
    }
    changed
}

/// The image that `reference` names by tag or digest.
pub(super) fn named(list: &List, reference: &Reference) -> Option<Arc<Image>> {
    let fits = |image: &&Arc<Image>| match (&reference.digest, reference.tagged()) {
        (Some(digest), _) => {
            let name = format!("{}@{digest}", reference.name());
            image.digests.binary_search(&name).is_ok()
        }
        (None, Some(tagged)) => image.tags.binary_search(&tagged).is_ok(),
        (None, None) => false,
    };
    list.iter().find(fits).cloned()
}
