//! The descriptions in a checkpoint, read from bytes that nobody vouches for.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde::{Deserialize, de::DeserializeOwned};

use crate::containers::checkpoint::{
    archive::{BIND_MOUNTS, CONFIG, DELETED, SPEC},
    volumes::{VOLUMES, Volume},
};

/// What is needed of checkpointctl's `ContainerConfig`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// A digest reference, or an id.
    pub rootfs_image_ref: String,
    pub rootfs_image_name: String,
    /// RFC 3339.
    checkpointed_time: String,
}

/// Something that was bound into the container.
#[derive(Debug, Clone, Deserialize)]
pub struct Bind {
    pub destination: PathBuf,
    #[serde(rename = "file_type")]
    kind: String,
    #[serde(default)]
    permissions: u32,
}

/// All of them, as far as they have come.
#[derive(Debug, Default)]
pub struct Descriptions {
    pub config: Option<Config>,
    pub spec: Option<Spec>,
    /// Paths below the root.
    pub deleted: Vec<PathBuf>,
    pub binds: Vec<Bind>,
    pub volumes: Vec<Volume>,
}

impl Config {
    /// When the checkpoint was made: Unix time, nanoseconds; 0 if it does not say.
    pub fn checkpointed_at(&self) -> i64 {
        let time: Option<jiff::Timestamp> = self.checkpointed_time.parse().ok();
        time.and_then(|time| i64::try_from(time.as_nanosecond()).ok())
            .map_or(0, |nanos| nanos.max(0))
    }
}

impl Bind {
    /// It was a file and no directory.
    pub fn is_file(&self) -> bool {
        self.kind == "file"
    }

    /// Permission bits of what was bound.
    pub fn mode(&self) -> u32 {
        self.permissions & 0o777
    }
}

impl Descriptions {
    /// Whether a file of this name is one.
    pub fn knows(name: &str) -> bool {
        [CONFIG, SPEC, DELETED, BIND_MOUNTS, VOLUMES].contains(&name)
    }

    /// Takes in the description `name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, name: &str, text: &[u8]) -> Result<(), String> {
        match name {
            CONFIG => self.config = Some(json(name, text)?),
            SPEC => self.spec = Some(json(name, text)?),
            DELETED => self.deleted = json(name, text)?,
            BIND_MOUNTS => self.binds = json(name, text)?,
            VOLUMES => self.volumes = json(name, text)?,
            _ => {}
        }
        Ok(())
    }

    /// By where they were bound.
    pub fn binds(&self) -> BTreeMap<&Path, &Bind> {
        let pairs = self.binds.iter().map(|bind| (bind.destination.as_path(), bind));
        pairs.collect()
    }
}

fn json<T: DeserializeOwned>(name: &str, text: &[u8]) -> Result<T, String> {
    // Go writes an empty list as null.
    let text = if text.trim_ascii() == b"null" { b"[]" } else { text };
    serde_json::from_slice(text).map_err(|error| format!("{name} of a checkpoint: {error}"))
}

/// `path` below `rootfs`, unless a link on the way leads out of it.
pub fn within(rootfs: &Path, path: &Path) -> Option<PathBuf> {
    let mut place = rootfs.to_owned();
    let mut parts = path.components().filter(|part| *part != Component::RootDir).peekable();
    parts.peek()?;
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else { return None };
        place.push(name);
        let is_last = parts.peek().is_none();
        if !is_last && std::fs::symlink_metadata(&place).is_ok_and(|meta| !meta.is_dir()) {
            return None;
        }
    }
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_deleted_is_below_the_root() {
        let root = Path::new("/nowhere/rootfs");
        assert_eq!(within(root, Path::new("/etc/x")), Some("/nowhere/rootfs/etc/x".into()));
        assert_eq!(within(root, Path::new("etc/../../x")), None);
        assert_eq!(within(root, Path::new("/")), None);
        assert_eq!(within(root, Path::new("")), None);
    }

    #[test]
    fn descriptions_are_read_as_the_peers_write_them() {
        let mut all = Descriptions::default();
        let config = r#"{"id":"x","rootfsImageRef":"r","checkpointedTime":"2026-11-27T10:00:00.5Z","x":1}"#;
        all.take("config.dump", config.as_bytes()).unwrap();
        all.take("deleted.files", b"null\n").unwrap();
        let binds = r#"[{"source":"/s","destination":"/etc/issue","file_type":"file","permissions":420}]"#;
        all.take("bind.mounts", binds.as_bytes()).unwrap();
        let config = all.config.as_ref().unwrap();
        assert_eq!(config.rootfs_image_ref, "r");
        assert_eq!(config.checkpointed_at(), 1_795_773_600_500_000_000);
        let binds = all.binds();
        let bind = binds[Path::new("/etc/issue")];
        assert!(bind.is_file() && bind.mode() == 0o644 && all.deleted.is_empty());
        assert!(all.take("spec.dump", b"7").unwrap_err().contains("spec.dump"));
    }
}
