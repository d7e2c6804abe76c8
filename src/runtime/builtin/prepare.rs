//! The helper's part of mounting: everything that needs the host's paths or privileges becomes a detached mount here,
//! so that init only attaches descriptors, when nothing of the host can be reached any more.

use super::idmap;
use super::options::Options;
use super::spec::{Bundle, Namespace};
use crate::cgroups::{Cgroup, Hierarchies};
use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys::{self, MountAttr};
use nix::sys::stat::SFlag;
use oci_spec::runtime::{LinuxNamespaceType, Mount};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount on its way into the container.
pub struct Prepared {
    pub destination: PathBuf,
    pub options: Options,
    pub source: Source,
}

pub enum Source {
    /// A detached mount.
    Tree { mount: OwnedFd, directory: bool },
    /// A file system that must be made in the container's own namespaces.
    FileSystem { kind: String, name: String },
    /// The v1 hierarchies below a directory: file systems by name, and links to them.
    CgroupV1 {
        trees: Vec<(String, OwnedFd)>,
        links: Vec<(String, String)>,
    },
}

/// Prepare the mounts of a spec in their order. The container's cgroup exists.
pub fn mounts(bundle: &Bundle, hierarchies: &Hierarchies, cgroup: &Cgroup) -> Result<Vec<Prepared>> {
    bundle
        .spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| one(bundle, mount, hierarchies, cgroup))
        .collect()
}

fn one(bundle: &Bundle, mount: &Mount, hierarchies: &Hierarchies, cgroup: &Cgroup) -> Result<Prepared> {
    let destination = mount.destination().clone();
    let mut options = Options::parse(mount.options().as_deref().unwrap_or_default())
        .map_err(|option| Error::Unsupported(format!("mount option {option} (for {})", destination.display())))?;
    let kind = mount.typ().as_deref().unwrap_or("none");
    let source = if options.bind || kind == "bind" {
        bind(bundle, mount, &options)?
    } else if kind == "cgroup" || kind == "cgroup2" {
        self::cgroup(bundle, &options, hierarchies, cgroup)?
    } else {
        label(bundle, kind, &mut options)?;
        let name = mount
            .source()
            .as_ref()
            .map_or_else(|| kind.into(), |s| s.to_string_lossy().into_owned());
        Source::FileSystem {
            kind: kind.into(),
            name,
        }
    };
    Ok(Prepared {
        destination,
        options,
        source,
    })
}

/// File systems that are the container's own get its SELinux label, as with runc; those of the kernel keep theirs.
fn label(bundle: &Bundle, kind: &str, options: &mut Options) -> Result<()> {
    let Some(label) = bundle.linux()?.mount_label().as_ref().filter(|label| !label.is_empty()) else {
        return Ok(());
    };
    super::labels::check_selinux(label)?;
    if matches!(kind, "tmpfs" | "devpts") && options.data.iter().all(|(key, _)| key != "context") {
        options.data.push(("context".into(), label.clone()));
    }
    Ok(())
}

fn bind(bundle: &Bundle, mount: &Mount, options: &Options) -> Result<Source> {
    let to = mount.destination().display();
    let path = mount
        .source()
        .as_ref()
        .ok_or_else(|| Error::InvalidSpec(format!("mount {to} has no source")))?;
    let from = || format!("bind {} to {to}", path.display());
    if !options.data.is_empty() {
        let (key, _) = &options.data[0];
        return Err(Error::InvalidSpec(format!("{}: unknown option {key}", from())));
    }
    let tree = sys::clone_tree(path, options.rbind).context(from)?;
    let mut attr = options.attr;
    // A source that is read-only on the host stays so: only what the spec adds is changed.
    attr.clear &= !libc::MOUNT_ATTR_RDONLY;
    let mappings = (mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref());
    let wants_map = options.idmap.is_some() || mappings.0.is_some_and(|m| !m.is_empty());
    if wants_map {
        let linux = bundle.linux()?;
        let uids = mappings.0.or(linux.uid_mappings().as_ref());
        let gids = mappings.1.or(linux.gid_mappings().as_ref());
        let userns = idmap::namespace(uids, gids)?;
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_IDMAP,
            userns: idmap::number(&userns),
            ..MountAttr::default()
        };
        let recursive = options.idmap == Some(true);
        sys::mount_setattr(tree.as_fd(), recursive, &attr).context(|| format!("map the ids of {}", path.display()))?;
    }
    // As below a root whose propagation is "rslave": shared sources go on telling the container of new mounts, and
    // never the other way round, unless the spec says otherwise.
    let shared = options.propagation.iter().any(|(kind, _)| *kind == libc::MS_SHARED);
    if !shared {
        let slave = MountAttr {
            propagation: libc::MS_SLAVE,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), true, &slave).context(from)?;
    }
    apply(&tree, options, attr).context(from)?;
    let directory = super::paths::file_type(&tree).context(from)? == SFlag::S_IFDIR;
    Ok(Source::Tree { mount: tree, directory })
}

/// Set attributes and propagation of a detached mount.
pub fn apply(mount: &OwnedFd, options: &Options, attr: MountAttr) -> std::io::Result<()> {
    if options.recursive != MountAttr::default() {
        sys::mount_setattr(mount.as_fd(), true, &options.recursive)?;
    }
    if attr != MountAttr::default() {
        sys::mount_setattr(mount.as_fd(), false, &attr)?;
    }
    for (propagation, recursive) in &options.propagation {
        let attr = MountAttr {
            propagation: *propagation,
            ..MountAttr::default()
        };
        sys::mount_setattr(mount.as_fd(), *recursive, &attr)?;
    }
    Ok(())
}

fn cgroup(bundle: &Bundle, options: &Options, hierarchies: &Hierarchies, cgroup: &Cgroup) -> Result<Source> {
    let tree = |dir: &Path| -> Result<OwnedFd> {
        let what = || format!("bind cgroup {}", dir.display());
        let tree = sys::clone_tree(dir, false).context(what)?;
        let attr = MountAttr {
            propagation: libc::MS_PRIVATE,
            ..options.attr
        };
        sys::mount_setattr(tree.as_fd(), false, &attr).context(what)?;
        Ok(tree)
    };
    if let Some(dir) = cgroup.v2_dir() {
        return Ok(match bundle.namespace(LinuxNamespaceType::Cgroup) {
            Namespace::New => Source::FileSystem {
                kind: "cgroup2".into(),
                name: "cgroup".into(),
            },
            _ => Source::Tree {
                mount: tree(&dir)?,
                directory: true,
            },
        });
    }
    let path = cgroup.path();
    let (mut trees, mut links) = (Vec::new(), Vec::new());
    for (controllers, root) in hierarchies.v1_mounts() {
        let Some(name) = root.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        trees.push((name.clone(), tree(&root.join(path.trim_start_matches('/')))?));
        for controller in controllers.iter().filter(|c| **c != name && !c.starts_with("name=")) {
            links.push((controller.clone(), name.clone()));
        }
    }
    Ok(Source::CgroupV1 { trees, links })
}

/// Make the file systems that show a namespace which the container joins, or shares with the node: that takes privileges
/// over the namespace, which a container in a user namespace does not have. Called when the helper has joined them.
pub fn of_joined_namespaces(bundle: &Bundle, mounts: &mut [Prepared]) -> Result<()> {
    for mount in mounts {
        let namespace = match &mount.source {
            Source::FileSystem { kind, .. } if kind == "sysfs" => LinuxNamespaceType::Network,
            Source::FileSystem { kind, .. } if kind == "mqueue" => LinuxNamespaceType::Ipc,
            // The helper is not in a PID namespace that it has joined; only its children are.
            Source::FileSystem { kind, .. }
                if kind == "proc" && bundle.namespace(LinuxNamespaceType::Pid) == Namespace::Host =>
            {
                LinuxNamespaceType::Pid
            }
            _ => continue,
        };
        if bundle.namespace(namespace) != Namespace::New {
            make(mount)?;
        }
    }
    Ok(())
}

/// Turn a file system to be made into a detached mount, in the namespaces of the caller.
pub fn make(mount: &mut Prepared) -> Result<()> {
    let Source::FileSystem { kind, name } = &mount.source else {
        return Ok(());
    };
    let what = || format!("make {kind} for {}", mount.destination.display());
    let mut params = vec![("source".to_string(), name.clone())];
    params.extend(mount.options.data.iter().cloned());
    let made = sys::fsmount(kind, &params, 0).context(what)?;
    // /dev is filled before it becomes read-only.
    let mut attr = mount.options.attr;
    if mount.destination == Path::new("/dev") {
        attr.set &= !libc::MOUNT_ATTR_RDONLY;
    }
    apply(&made, &mount.options, attr).context(what)?;
    mount.source = Source::Tree {
        mount: made,
        directory: true,
    };
    Ok(())
}
