//! An OCI layout in a directory, which may hold one already.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;

use crate::images::unpack::{Kind, TarReader};

/// Largest `index.json` that is read.
const MAX_INDEX: u64 = 4 << 20;

/// Writes the layout in the archive `tar` into `directory`. What its index lists is added to an index that is there;
/// an image that was there under the same name loses it.
pub fn write(tar: impl Read, directory: &Path) -> io::Result<()> {
    let old = read_index(directory)?;
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut reader = TarReader::new(tar);
    let mut index = None;
    while let Some(entry) = reader.next_entry().map_err(io::Error::other)? {
        let name = String::from_utf8(entry.name.clone()).map_err(io::Error::other)?;
        if entry.kind != Kind::File {
            continue;
        }
        match name.as_str() {
            "index.json" => index = Some(copy(&mut reader, Vec::new())?),
            "oci-layout" => {
                let bytes = copy(&mut reader, Vec::new())?;
                fs::write(directory.join("oci-layout"), bytes)?;
            }
            name => {
                let hex = name.strip_prefix("blobs/sha256/").filter(|hex| is_hex(hex));
                let hex = hex.ok_or_else(|| bad(format!("the daemon sent a file named {name:?}")))?;
                let target = blobs.join(hex);
                if fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_file() && meta.len() == entry.size) {
                    continue;
                }
                let temporary = blobs.join(format!(".{hex}.{}", std::process::id()));
                let written = File::create_new(&temporary).and_then(|file| copy(&mut reader, file));
                if let Err(error) = written.and_then(|_| fs::rename(&temporary, &target)) {
                    let _ = fs::remove_file(&temporary);
                    return Err(error);
                }
            }
        }
    }
    let index = index.ok_or_else(|| bad("the daemon sent no index"))?;
    let new: Value = serde_json::from_slice(&index)?;
    // Last, so that it never lists what is not there.
    let temporary = directory.join(format!(".index.json.{}", std::process::id()));
    fs::write(&temporary, merged(old, new).to_string())?;
    fs::rename(&temporary, directory.join("index.json"))
}

fn read_index(directory: &Path) -> io::Result<Option<Value>> {
    let file = match File::open(directory.join("index.json")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let index: Value = serde_json::from_reader(file.take(MAX_INDEX))?;
    if !index["manifests"].is_array() {
        return Err(bad("its index.json is not that of an OCI layout"));
    }
    Ok(Some(index))
}

/// The old index with what the new one lists.
fn merged(old: Option<Value>, new: Value) -> Value {
    let Some(mut all) = old else { return new };
    let added = new["manifests"].as_array().cloned().unwrap_or_default();
    if let Some(list) = all["manifests"].as_array_mut() {
        list.retain(|one| {
            !added.iter().any(|other| {
                let name = &one["annotations"]["io.containerd.image.name"];
                one == other || (name.is_string() && *name == other["annotations"]["io.containerd.image.name"])
            })
        });
        list.extend(added);
    }
    all
}

fn copy<W: io::Write>(reader: &mut TarReader<impl Read>, mut out: W) -> io::Result<W> {
    loop {
        let data = reader.data().map_err(io::Error::other)?;
        if data.is_empty() {
            return Ok(out);
        }
        out.write_all(data)?;
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn bad(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_index_keeps_what_it_has_under_other_names() {
        let named =
            |name: &str, digest: &str| json!({"digest": digest, "annotations": {"io.containerd.image.name": name}});
        let old = json!({"schemaVersion": 2, "manifests": [named("a", "1"), named("b", "2"), {"digest": "3"}]});
        let new = json!({"schemaVersion": 2, "manifests": [named("a", "4"), {"digest": "3"}]});
        let all = merged(Some(old), new.clone());
        assert_eq!(
            all["manifests"],
            json!([named("b", "2"), named("a", "4"), {"digest": "3"}])
        );
        assert_eq!(merged(None, new.clone()), new);
    }
}
