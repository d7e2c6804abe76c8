//! Mounts that a runtime's program can't make by itself: with the owners of files mapped (runc before 1.2, crun before 1.9
//! don't say that they can), or read-only with all that is mounted below.
//!
//! The daemon writes down what is to be done ([`plan`], [`write`]) and lets the spec name places in the bundle instead. The
//! helper that runs the program makes those mounts ([`make`]) in a mount namespace of its own, which the program and the
//! container begin with a copy of: nobody else sees them, and they end with the helper. The namespace receives what is mounted
//! on the node and sends nothing back, so that none of it spreads there either.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use serde::{Deserialize, Serialize};

use super::{Error, Result, error::Context as _, features::Features};
use crate::sys::{self, MountAttr};

/// In a bundle: what is to be made, and where.
const FILE: &str = "mounts.json";
const DIRECTORY: &str = "mounts";

/// A mount to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What of the node.
    source: PathBuf,
    /// With all that is mounted below it.
    recursive: bool,
    /// The user namespace whose ids the owners of the files shall be those of.
    users: Option<PathBuf>,
    /// Read-only, and all below.
    read_only: bool,
    /// What is mounted below it on the node later arrives.
    slave: bool,
}

/// A pod's user namespace.
#[derive(Debug, Clone)]
pub struct Users {
    /// Where it is pinned.
    pub namespace: PathBuf,
    /// Its users: first inside, first on the node, how many.
    pub uids: (u32, u32, u32),
    /// Its groups.
    pub gids: (u32, u32, u32),
}

/// Takes out of the spec what a program with these features can't do, for [`make`]. `bundle` is its directory.
///
/// # Errors
/// Says of which mount it can't be done that way, and why.
pub fn plan(
    spec: &mut Spec,
    bundle: &Path,
    features: &Features,
    users: Option<&Users>,
) -> std::result::Result<Vec<Wanted>, String> {
    let mut wanted = Vec::new();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.typ().as_deref() != Some("bind") {
            continue;
        }
        if let Some(one) = one(mount, features, users)
            .map_err(|why| format!("mount at {}: the pod's runtime {why}", mount.destination().display()))?
        {
            mount.set_source(Some(place(bundle, wanted.len())));
            wanted.push(one);
        }
    }
    if !wanted.is_empty()
        && let Some(mount) = spec.mounts().iter().flatten().find(|mount| is_shared(mount))
    {
        return Err(format!(
            "mount at {}: the pod's runtime can't propagate mounts to the node from a container that also has mounts with \
             mapped owners, or read-only all the way down",
            mount.destination().display()
        ));
    }
    Ok(wanted)
}

fn is_shared(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| matches!(option.as_str(), "rshared" | "shared"))
}

fn one(mount: &mut Mount, features: &Features, users: Option<&Users>) -> std::result::Result<Option<Wanted>, String> {
    let mut options = mount.options().clone().unwrap_or_default();
    let has = |options: &[String], name: &str| options.iter().any(|option| option == name);
    let mapped = mount.uid_mappings().as_ref().is_some_and(|ids| !ids.is_empty());
    let map = mapped && !features.idmapped_mounts;
    let read_only = has(&options, "rro") && !features.mount_option("rro");
    if !map && !read_only {
        return Ok(None);
    }
    let namespace = match (map, users) {
        (false, _) => None,
        (true, Some(users))
            if same(mount.uid_mappings().as_deref(), users.uids)
                && same(mount.gid_mappings().as_deref(), users.gids) =>
        {
            Some(users.namespace.clone())
        }
        (true, _) => return Err("maps owners of files in the way of the pod only".into()),
    };
    if map {
        mount.set_uid_mappings(None).set_gid_mappings(None);
    }
    let wanted = Wanted {
        source: mount.source().clone().unwrap_or_default(),
        recursive: has(&options, "rbind"),
        users: namespace,
        read_only,
        slave: has(&options, "rslave") || has(&options, "slave"),
    };
    if read_only {
        for option in options.iter_mut().filter(|option| option.as_str() == "rro") {
            *option = "ro".into();
        }
        mount.set_options(Some(options));
    }
    Ok(Some(wanted))
}

fn same(mappings: Option<&[LinuxIdMapping]>, of: (u32, u32, u32)) -> bool {
    matches!(mappings, Some([one]) if (one.container_id(), one.host_id(), one.size()) == of)
}

fn place(bundle: &Path, number: usize) -> PathBuf {
    bundle.join(DIRECTORY).join(number.to_string())
}

/// Leaves word of what is to be made, and makes the places for it. Blocking.
///
/// # Errors
/// When a source can't be looked at, or the bundle not be written to.
pub fn write(bundle: &Path, wanted: &[Wanted]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let directory = bundle.join(DIRECTORY);
    // The container's root passes on the way to its volumes.
    match DirBuilder::new().mode(0o711).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::os(format!("make {}", directory.display()), error));
        }
        _ => {}
    }
    let pass = Permissions::from_mode(0o711);
    fs::set_permissions(&directory, pass).context(|| format!("let {} be passed", directory.display()))?;
    for (number, one) in wanted.iter().enumerate() {
        let at = place(bundle, number);
        let what = || format!("make a place for {} at {}", one.source.display(), at.display());
        let made = match fs::metadata(&one.source).context(what)?.is_dir() {
            true => fs::create_dir(&at),
            false => File::create_new(&at).map(drop),
        };
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::os(what(), error)),
            _ => {}
        }
    }
    let file = bundle.join(FILE);
    let json = serde_json::to_vec(wanted).map_err(|error| Error::InvalidSpec(error.to_string()))?;
    fs::write(&file, json).context(|| format!("write {}", file.display()))
}

/// Makes what [`write`] has left word of, in a new mount namespace for the calling process, which must have one thread.
/// Nothing to be made: the namespace stays.
///
/// # Errors
/// When one can't be made; file systems differ in whether they take mapped owners.
pub fn make(bundle: &Path) -> Result<()> {
    let file = bundle.join(FILE);
    let json = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("read {}", file.display()))?,
    };
    let wanted: Vec<Wanted> =
        serde_json::from_slice(&json).map_err(|error| Error::InvalidSpec(format!("{}: {error}", file.display())))?;
    sys::unshare(libc::CLONE_NEWNS).context(|| "make a mount namespace for prepared mounts".into())?;
    let slave = MountAttr {
        propagation: libc::MS_SLAVE,
        ..MountAttr::default()
    };
    let root = File::open("/").context(|| "open /".into())?;
    sys::mount_setattr(root.as_fd(), true, &slave).context(|| "keep prepared mounts from the node".into())?;
    for (number, one) in wanted.iter().enumerate() {
        one.make(&place(bundle, number))?;
    }
    Ok(())
}

impl Wanted {
    fn make(&self, at: &Path) -> Result<()> {
        let what = || format!("prepare the mount of {}", self.source.display());
        let tree = sys::clone_tree(&self.source, self.recursive).context(what)?;
        if let Some(users) = &self.users {
            let namespace = File::open(users).context(|| format!("open user namespace {}", users.display()))?;
            let attr = MountAttr {
                set: libc::MOUNT_ATTR_IDMAP,
                userns: u64::from(namespace.as_raw_fd().unsigned_abs()),
                ..MountAttr::default()
            };
            // As runtimes do: what is mounted below it has its own owners.
            sys::mount_setattr(tree.as_fd(), false, &attr)
                .context(|| format!("map the owners of files in {}", self.source.display()))?;
        }
        let attr = MountAttr {
            set: if self.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
            propagation: if self.slave { libc::MS_SLAVE } else { libc::MS_PRIVATE },
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), true, &attr).context(what)?;
        let target = File::open(at).context(|| format!("open {}", at.display()))?;
        sys::move_mount(tree.as_fd(), target.as_fd()).context(what)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    fn users() -> Users {
        Users {
            namespace: "/run/pod/ns/user".into(),
            uids: (0, 200_000, 65_536),
            gids: (0, 200_000, 65_536),
        }
    }

    fn mapping(host: u32) -> Option<Vec<LinuxIdMapping>> {
        let mapping = LinuxIdMappingBuilder::default();
        Some(vec![
            mapping
                .container_id(0_u32)
                .host_id(host)
                .size(65_536_u32)
                .build()
                .unwrap(),
        ])
    }

    fn bind(options: &[&str], host: Option<u32>) -> Mount {
        let mut mount = Mount::default();
        mount
            .set_typ(Some("bind".into()))
            .set_source(Some("/data".into()))
            .set_destination("/volume".into())
            .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()))
            .set_uid_mappings(host.and_then(mapping))
            .set_gid_mappings(host.and_then(mapping));
        mount
    }

    fn planned(mount: Mount, features: &Features) -> std::result::Result<(Vec<Wanted>, Mount), String> {
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![bind(&["rbind", "ro"], None), mount]));
        let wanted = plan(&mut spec, Path::new("/bundle"), features, Some(&users()))?;
        Ok((wanted, spec.mounts().as_ref().unwrap()[1].clone()))
    }

    #[test]
    fn only_what_the_program_lacks_is_prepared() {
        let (old, new) = (Features::default(), Features::builtin());
        for mount in [
            bind(&["rbind", "rprivate", "rro"], None),
            bind(&["rbind", "rslave", "rw"], Some(200_000)),
            bind(&["rbind", "rshared", "rw"], None),
        ] {
            assert_eq!(planned(mount.clone(), &new).unwrap(), (vec![], mount));
        }
        let (wanted, mount) = planned(bind(&["rbind", "rprivate", "rro"], None), &old).unwrap();
        assert!(wanted[0].read_only && wanted[0].recursive && wanted[0].users.is_none() && !wanted[0].slave);
        assert_eq!(mount.source().as_deref(), Some(Path::new("/bundle/mounts/0")));
        assert_eq!(mount.options().as_ref().unwrap(), &["rbind", "rprivate", "ro"]);
        let (wanted, mount) = planned(bind(&["rbind", "rslave", "rw"], Some(200_000)), &old).unwrap();
        assert_eq!(wanted[0].source, Path::new("/data"));
        assert_eq!(wanted[0].users.as_deref(), Some(Path::new("/run/pod/ns/user")));
        assert!(wanted[0].slave && !wanted[0].read_only);
        assert_eq!(mount.uid_mappings(), &None);
    }

    #[test]
    fn what_cannot_be_prepared_is_told() {
        let old = Features::default();
        let refused = |mount| planned(mount, &old).unwrap_err();
        let text = refused(bind(&["rbind", "rshared", "rw"], Some(200_000)));
        assert!(text.contains("/volume") && text.contains("propagate"), "{text}");
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![
            bind(&["rbind", "rro"], None),
            bind(&["rbind", "rshared"], None),
        ]));
        let text = plan(&mut spec, Path::new("/bundle"), &old, None).unwrap_err();
        assert!(text.contains("propagate"), "{text}");
        let text = refused(bind(&["rbind", "rw"], Some(300_000)));
        assert!(text.contains("/volume") && text.contains("of the pod only"), "{text}");
    }

    #[test]
    fn mounts_are_made_for_this_process_alone() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let base = std::env::temp_dir().join(format!("wharf-prepared-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let (source, bundle) = (base.join("source"), base.join("bundle"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir(&bundle).unwrap();
        fs::write(source.join("file"), "x").unwrap();
        let wanted = |source: PathBuf| Wanted {
            source,
            recursive: true,
            users: None,
            read_only: true,
            slave: false,
        };
        write(&bundle, &[wanted(source.clone()), wanted(source.join("file"))]).unwrap();
        // A namespace is a thread's.
        let inside = bundle.clone();
        std::thread::spawn(move || {
            make(&inside).unwrap();
            assert_eq!(fs::read(place(&inside, 0).join("file")).unwrap(), b"x");
            assert_eq!(fs::read(place(&inside, 1)).unwrap(), b"x");
            let refused = fs::write(place(&inside, 0).join("new"), "y").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        })
        .join()
        .unwrap();
        assert!(!place(&bundle, 0).join("file").exists());
        fs::write(source.join("new"), "y").unwrap();
        fs::remove_dir_all(&base).unwrap();
    }
}
