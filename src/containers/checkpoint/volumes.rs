//! The volumes that an image declares are the container's own, so what is in them is dumped with it.

use std::{
    collections::HashSet,
    fs,
    io::{self, BufWriter},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::{Patience, archive::create, output::Limited};
use crate::images::{
    rootfs::{changes::Changes, remove_tree},
    unpack::{self, Options},
};

/// JSON array of [`Volume`].
pub const VOLUMES: &str = "volumes.dump";

/// The archive of a volume, by its place in [`VOLUMES`].
pub fn archive(number: usize) -> String {
    format!("volume-{number}.tar")
}

/// A volume as it was; what is in it is in its archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute path in the container.
    pub destination: PathBuf,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Writes the archives of the container's own volumes, which lie below `own`, to `work`. Nothing may write to them
/// meanwhile. Blocks.
pub fn dump(spec: &Spec, own: &Path, work: &Path, patience: &Patience) -> io::Result<Vec<Volume>> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut volumes = Vec::new();
    for mount in mounts {
        let Some(source) = mount.source().as_ref().filter(|source| source.starts_with(own)) else {
            continue;
        };
        let file = create(&work.join(archive(volumes.len())))?;
        let out = BufWriter::new(Limited::new(file, patience));
        Changes::whole(source).write(&HashSet::new(), out)?;
        let meta = fs::metadata(source)?;
        volumes.push(Volume {
            destination: mount.destination().clone(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
        });
    }
    Ok(volumes)
}

impl Volume {
    /// Gives the directory `target`, which is a new container's, what was in the volume. Blocks.
    pub fn restore(&self, archive: &Path, target: &Path) -> io::Result<()> {
        for entry in fs::read_dir(target)? {
            remove_tree(&entry?.path()).map_err(io::Error::other)?;
        }
        let options = Options {
            layer: archive.display().to_string(),
            plain: true,
            hollow: false,
        };
        unpack::unpack_tar(io::BufReader::new(fs::File::open(archive)?), target, &options).map_err(io::Error::other)?;
        chown(target, Some(self.uid), Some(self.gid))?;
        fs::set_permissions(target, fs::Permissions::from_mode(self.mode & 0o7777))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_volume_comes_back_as_it_was() {
        let dir = std::env::temp_dir().join(format!("wharf-volumes-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let own = dir.join("volumes");
        for path in ["volumes/0/deep", "work", "again"] {
            fs::create_dir_all(dir.join(path)).unwrap();
        }
        fs::write(own.join("0/deep/file"), "kept").unwrap();
        fs::write(own.join("0/.wh.name"), "").unwrap();
        fs::set_permissions(own.join("0"), fs::Permissions::from_mode(0o1750)).unwrap();
        fs::write(dir.join("again/of the image"), "").unwrap();
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "mounts": [
                { "destination": "/host", "type": "bind", "source": "/etc" },
                { "destination": "/data", "type": "bind", "source": own.join("0") },
            ],
        });
        let spec = serde_json::from_value(spec).unwrap();
        let patience = Patience::new(Duration::from_secs(60));
        let volumes = dump(&spec, &own, &dir.join("work"), &patience).unwrap();
        assert_eq!(volumes.len(), 1);
        assert_eq!(volumes[0].destination, Path::new("/data"));
        let again = dir.join("again");
        volumes[0].restore(&dir.join("work").join(archive(0)), &again).unwrap();
        let mut names: Vec<_> = fs::read_dir(&again).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".wh.name", "deep"]);
        assert_eq!(fs::read_to_string(again.join("deep/file")).unwrap(), "kept");
        assert_eq!(again.metadata().unwrap().permissions().mode() & 0o7777, 0o1750);
        fs::remove_dir_all(&dir).unwrap();
    }
}
