//! What a container that comes back had bound into it must be of the same kind again: CRIU binds no directory over a file.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use wharf_proto::cri::ContainerConfig;

use super::described::{Bind, Descriptions};
use crate::{
    config::{Containers, MissingHostPaths},
    containers::{Error, Result},
};

/// Makes what the mounts of `config` lack on the node, as files and directories of the kind that the checkpoint had
/// there; where the node's settings refuse missing paths, they are left to who refuses them. Blocks.
///
/// # Errors
/// [`Error::Invalid`] when what is there is of the other kind, or can't be made.
pub fn make(described: &Descriptions, config: &ContainerConfig, settings: &Containers) -> Result<()> {
    let binds = described.binds();
    for mount in &config.mounts {
        let (source, target) = (Path::new(&mount.host_path), Path::new(&mount.container_path));
        let Some(bind) = binds.get(target).filter(|_| mount.image.is_none()) else {
            continue;
        };
        let refused = settings.missing_host_paths == MissingHostPaths::Refuse
            || settings.required_host_paths.iter().any(|path| path == source);
        match fs::metadata(source) {
            Ok(meta) if meta.is_dir() == bind.is_file() => {
                let (was, is) = if bind.is_file() {
                    ("a file", "a directory")
                } else {
                    ("a directory", "none")
                };
                return Err(Error::Invalid(format!(
                    "the mount at {}: the checkpoint had {was} there, and {} is {is}",
                    target.display(),
                    source.display()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !refused => {
                one(bind, source).map_err(|error| {
                    Error::Invalid(format!(
                        "make {}, which the checkpoint had mounted at {}: {error}",
                        source.display(),
                        target.display()
                    ))
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn one(bind: &Bind, source: &Path) -> io::Result<()> {
    let made = if bind.is_file() {
        if let Some(parent) = source.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(bind.mode())
            .open(source)
            .map(drop)
    } else {
        let mut options = fs::DirBuilder::new();
        options.recursive(true).mode(bind.mode()).create(source)
    };
    made?;
    // Whatever the daemon's mask is.
    fs::set_permissions(source, fs::Permissions::from_mode(bind.mode()))
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::Mount;

    use super::*;

    #[test]
    fn what_is_missing_becomes_what_it_was() {
        let dir = std::env::temp_dir().join(format!("wharf-binds-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let mut described = Descriptions::default();
        let text = r#"[{"destination":"/etc/issue","file_type":"file","permissions":384},
            {"destination":"/data","file_type":"directory","permissions":448}]"#;
        described.take("bind.mounts", text.as_bytes()).unwrap();
        let config = |pairs: &[(&str, &str)]| ContainerConfig {
            mounts: pairs
                .iter()
                .map(|(target, name)| Mount {
                    container_path: (*target).to_owned(),
                    host_path: dir.join(name).display().to_string(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let mut settings = Containers::default();
        let wanted = config(&[("/etc/issue", "deep/file"), ("/data", "data"), ("/other", "other")]);
        make(&described, &wanted, &settings).unwrap();
        let mode = |name: &str| dir.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert!(dir.join("deep/file").is_file() && mode("deep/file") == 0o600);
        assert!(dir.join("data").is_dir() && mode("data") == 0o700);
        assert!(!dir.join("other").exists());
        make(&described, &wanted, &settings).unwrap();
        for other in [("/etc/issue", "data"), ("/data", "deep/file")] {
            let error = make(&described, &config(&[other]), &settings).unwrap_err().to_string();
            assert!(error.contains(other.0), "{error}");
        }
        settings.missing_host_paths = MissingHostPaths::Refuse;
        make(&described, &config(&[("/data", "absent")]), &settings).unwrap();
        assert!(!dir.join("absent").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
