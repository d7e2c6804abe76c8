//! Results of ADD as libcni keeps them, so that other tools (cnitool, a network's own agents) find them: one file for each
//! container, network and device below `results`, see `libcni/api.go`.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::netns::{Error, Result, thread};

/// What libcni calls this form of a file.
const KIND: &str = "cniCacheV1";
/// Longest file that is read, bytes: an answer and a configuration.
const LONGEST: u64 = 4 << 20;

/// One file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Entry {
    kind: String,
    pub(super) container_id: String,
    /// The configuration list, in base64.
    config: String,
    #[serde(rename = "ifName")]
    pub(super) device: String,
    #[serde(rename = "networkName")]
    pub(super) network: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) netns: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) cni_args: Vec<[String; 2]>,
    #[serde(rename = "capabilityArgs", skip_serializing_if = "Map::is_empty")]
    pub(super) capabilities: Map<String, Value>,
    pub(super) result: Value,
}

impl Entry {
    /// An entry for a pod's device on a network.
    pub(super) fn new(network: &str, config: &[u8], container_id: &str, device: &str) -> Self {
        Self {
            kind: KIND.to_owned(),
            config: STANDARD.encode(config),
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            device: device.to_owned(),
            ..Self::default()
        }
    }

    /// The configuration list.
    pub(super) fn config(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.config).ok()
    }
}

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Cache(PathBuf);

impl Cache {
    /// The results below `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self(dir.join("results"))
    }

    fn path(&self, network: &str, container_id: &str, device: &str) -> PathBuf {
        self.0.join(format!("{network}-{container_id}-{device}"))
    }

    /// Writes an entry; readers see the one before or this one.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) async fn put(&self, entry: &Entry) -> Result<()> {
        let path = self.path(&entry.network, &entry.container_id, &entry.device);
        let (dir, text) = (self.0.clone(), serde_json::to_vec(entry).unwrap_or_default());
        thread::run("wharf-cni", move || {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|source| Error::io("create directory", &dir, source))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // No name of a network begins so: who lists the directory skips it.
            let new = dir.join(format!(".{name}"));
            let write = || {
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&new)?;
                file.write_all(&text)?;
                fs::rename(&new, &path)
            };
            write().map_err(|source| {
                let _ = fs::remove_file(&new);
                Error::io("write CNI result", &path, source)
            })
        })
        .await
    }

    /// The entry of a pod's device on a network; none if there is none that can be read.
    pub(super) async fn get(&self, network: &str, container_id: &str, device: &str) -> Option<Entry> {
        let path = self.path(network, container_id, device);
        thread::run("wharf-cni", move || Ok(read(&path))).await.ok().flatten()
    }

    /// Removes an entry; one that is gone is no error.
    ///
    /// # Errors
    /// When it can't be removed.
    pub(super) async fn remove(&self, network: &str, container_id: &str, device: &str) -> Result<()> {
        let path = self.path(network, container_id, device);
        thread::run("wharf-cni", move || match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io("remove CNI result", &path, source)),
            _ => Ok(()),
        })
        .await
    }

    /// Every entry of a network.
    ///
    /// # Errors
    /// When the directory can't be listed.
    pub(super) async fn of(&self, network: &str) -> Result<Vec<Entry>> {
        let (dir, network) = (self.0.clone(), network.to_owned());
        thread::run("wharf-cni", move || {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(source) if source.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(source) => return Err(Error::io("list CNI results in", &dir, source)),
            };
            let begin = format!("{network}-");
            Ok(entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin))
                .filter_map(|entry| read(&entry.path()))
                .filter(|entry| entry.network == network)
                .collect())
        })
        .await
    }
}

/// What is no entry is somebody else's.
fn read(path: &Path) -> Option<Entry> {
    if fs::metadata(path).ok()?.len() > LONGEST {
        return None;
    }
    let entry: Entry = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (entry.kind == KIND).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn entries_have_libcnis_form_and_are_found_by_network() {
        let dir = std::env::temp_dir().join(format!("wharf-cni-cache-{}", std::process::id()));
        let cache = Cache::new(&dir);
        let mut entry = Entry::new("net", b"{}", "pod", "eth0");
        entry.netns = "/ns".into();
        entry.cni_args = vec![["IgnoreUnknown".into(), "1".into()]];
        entry.result = json!({"cniVersion": "1.0.0"});
        cache.put(&entry).await.unwrap();
        let text = fs::read_to_string(dir.join("results/net-pod-eth0")).unwrap();
        let expected = json!({
            "kind": "cniCacheV1", "containerId": "pod", "config": "e30=", "ifName": "eth0", "networkName": "net",
            "netns": "/ns", "cniArgs": [["IgnoreUnknown", "1"]], "result": {"cniVersion": "1.0.0"},
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        fs::write(dir.join("results/net-broken-eth0"), "{").unwrap();
        cache.put(&Entry::new("net-2", b"{}", "pod", "eth0")).await.unwrap();
        assert_eq!(cache.of("net").await.unwrap(), [entry.clone()]);
        assert_eq!(cache.get("net", "pod", "eth0").await, Some(entry));
        for _ in 0..2 {
            cache.remove("net", "pod", "eth0").await.unwrap();
        }
        assert!(cache.of("net").await.unwrap().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
