//! Init's part of mounting: make the root file system the root, let go of the host's, attach what was prepared.

use super::paths::Root;
use super::prepare::{self, Prepared, Source};
use super::spec::Bundle;
use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys::{self, MountAttr};
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::{fchdir, symlinkat};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Make `tree` the root of this mount namespace and detach the old one. Needs no path on the host: the new root is
/// mounted over the old, which needs no permission to walk to it.
pub fn enter_root(tree: OwnedFd) -> Result<Root> {
    let what = || "enter the root file system".to_string();
    cut_propagation()?;
    let old: OwnedFd = File::open("/").context(what)?.into();
    sys::move_mount(tree.as_fd(), old.as_fd()).context(what)?;
    drop(old);
    let root = Root::new(tree);
    leave_host(&root)?;
    Ok(root)
}

fn cut_propagation() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .context(|| "cut the propagation of mounts to the host".into())
}

/// Make `root`, which is mounted somewhere, the root, and detach the old one.
pub fn leave_host(root: &Root) -> Result<()> {
    let what = || "enter the root file system".to_string();
    fchdir(root.fd()).context(what)?;
    sys::pivot_root_here().context(|| "pivot_root".into())?;
    // The old root now lies on top of the new one.
    umount2(".", MntFlags::MNT_DETACH).context(|| "detach the host's root file system".into())?;
    std::env::set_current_dir("/").context(what)
}

/// Where the root file system is on the host: hooks look for it there, in this mount namespace.
pub struct Place(OwnedFd);

impl Place {
    /// Opened while the process is still the host's root, which may walk there.
    pub fn open(path: &Path) -> Result<Place> {
        let what = || format!("open {}", path.display());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Place(nix::fcntl::open(path, flags, Mode::empty()).context(what)?))
    }

    /// Mount `tree` there. The host stays in sight until [`leave_host`].
    pub fn put(&self, tree: OwnedFd) -> Result<Root> {
        cut_propagation()?;
        sys::move_mount(tree.as_fd(), self.0.as_fd()).context(|| "mount the root file system in its place".into())?;
        Ok(Root::new(tree))
    }
}

/// Attach everything, in order.
pub fn attach_all(root: &Root, mounts: Vec<Prepared>) -> Result<()> {
    for prepared in mounts {
        let to = prepared.destination.clone();
        attach(root, prepared).map_err(|e| match e {
            Error::Os { what, source } => Error::os(format!("mount {}: {what}", to.display()), source),
            other => other,
        })?;
    }
    Ok(())
}

fn attach(root: &Root, prepared: Prepared) -> Result<()> {
    let to = &prepared.destination;
    match prepared.source {
        Source::Tree { mount, directory: true } => {
            let target = directory_target(root, to)?;
            sys::move_mount(mount.as_fd(), target.as_fd()).context(|| "attach".into())
        }
        Source::Tree {
            mount,
            directory: false,
        } => {
            let target = root.ensure_file(to).context(|| "make the file to mount on".into())?;
            sys::move_mount(mount.as_fd(), target.as_fd()).context(|| "attach".into())
        }
        Source::CgroupV1 { trees, links } => {
            let target = directory_target(root, to)?;
            let params = [
                ("mode".to_string(), "755".to_string()),
                ("source".to_string(), "tmpfs".to_string()),
            ];
            let base = sys::fsmount("tmpfs", &params, 0).context(|| "make tmpfs".into())?;
            sys::move_mount(base.as_fd(), target.as_fd()).context(|| "attach".into())?;
            for (name, tree) in trees {
                attach_below(base.as_fd(), &name, tree)?;
            }
            for (link, name) in links {
                symlinkat(name.as_str(), &base, link.as_str()).context(|| format!("link {link}"))?;
            }
            prepare::apply(&base, &prepared.options, prepared.options.attr).context(|| "set attributes".into())
        }
        Source::FileSystem { kind, .. } => Err(Error::Failed(format!("mount {}: {kind} was not made", to.display()))),
    }
}

/// A directory to mount on. The kernel's own file systems may not be redirected by a link in the image: later steps
/// rely on what is seen there.
fn directory_target(root: &Root, to: &Path) -> Result<OwnedFd> {
    let target = root
        .ensure_dir(to)
        .context(|| "make the directory to mount on".into())?;
    if to == Path::new("/proc") || to == Path::new("/sys") {
        root.open_without_links(to, libc::O_PATH | libc::O_DIRECTORY)
            .context(|| "the image must have a plain directory there".into())?;
    }
    Ok(target)
}

fn attach_below(dir: BorrowedFd, name: &str, tree: OwnedFd) -> Result<()> {
    mkdirat(dir, name, Mode::from_bits_truncate(0o755)).context(|| format!("make directory {name}"))?;
    let target = sys::openat2(
        dir,
        Path::new(name),
        libc::O_PATH | libc::O_DIRECTORY,
        0,
        libc::RESOLVE_NO_SYMLINKS,
    )
    .context(|| format!("open directory {name}"))?;
    sys::move_mount(tree.as_fd(), target.as_fd()).context(|| format!("attach {name}"))
}

/// Hide paths: files behind `null`, a detached mount of the null device, and directories behind an empty read-only
/// file system. Absent ones are skipped.
pub fn mask(root: &Root, paths: &[String], null: OwnedFd) -> Result<()> {
    let mut null = Cover {
        mount: null,
        attached: false,
    };
    let mut empty: Option<Cover> = None;
    for path in paths {
        let what = || format!("mask {path}");
        let Some(target) = find(root, path)? else { continue };
        let cover = if super::paths::file_type(&target).context(what)? == SFlag::S_IFDIR {
            match &mut empty {
                Some(cover) => cover,
                none => {
                    let params = [("source".to_string(), "tmpfs".to_string())];
                    let mount = sys::fsmount("tmpfs", &params, libc::MOUNT_ATTR_RDONLY).context(what)?;
                    none.insert(Cover { mount, attached: false })
                }
            }
        } else {
            &mut null
        };
        cover.over(&target).context(what)?;
    }
    Ok(())
}

/// A mount that serves many places: itself for the first, clones for the rest. A mount can be cloned once attached.
struct Cover {
    mount: OwnedFd,
    attached: bool,
}

impl Cover {
    fn over(&mut self, target: &OwnedFd) -> std::io::Result<()> {
        if self.attached {
            let clone = sys::clone_tree_fd(self.mount.as_fd(), false)?;
            return sys::move_mount(clone.as_fd(), target.as_fd());
        }
        self.attached = true;
        sys::move_mount(self.mount.as_fd(), target.as_fd())
    }
}

/// Make paths read-only. Absent ones are skipped.
pub fn make_readonly(root: &Root, paths: &[String]) -> Result<()> {
    for path in paths {
        let what = || format!("make {path} read-only");
        let Some(target) = find(root, path)? else { continue };
        let cover = sys::clone_tree_fd(target.as_fd(), true).context(what)?;
        let readonly = MountAttr {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        sys::mount_setattr(cover.as_fd(), false, &readonly).context(what)?;
        sys::move_mount(cover.as_fd(), target.as_fd()).context(what)?;
    }
    Ok(())
}

fn find(root: &Root, path: &str) -> Result<Option<OwnedFd>> {
    match root.open(Path::new(path), libc::O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(Error::os(format!("open {path}"), e)),
    }
}

/// `MS_*` type that the spec asks for at the root; slave if it says nothing.
pub fn root_propagation(bundle: &Bundle) -> Result<u64> {
    Ok(
        match bundle.linux()?.rootfs_propagation().as_deref().unwrap_or_default() {
            "" | "slave" | "rslave" => libc::MS_SLAVE,
            "private" | "rprivate" => libc::MS_PRIVATE,
            "shared" | "rshared" => libc::MS_SHARED,
            "unbindable" | "runbindable" => libc::MS_UNBINDABLE,
            other => return Err(Error::InvalidSpec(format!("linux.rootfsPropagation {other:?}"))),
        },
    )
}

/// Whether /dev must become read-only once it is filled.
pub fn readonly_dev(mounts: &[Prepared]) -> bool {
    let is_dev = |m: &&Prepared| m.destination == Path::new("/dev");
    mounts
        .iter()
        .rfind(is_dev)
        .is_some_and(|m| m.options.attr.set & libc::MOUNT_ATTR_RDONLY != 0)
}

/// The last changes to the root itself: propagation, and read-only. Mounts below have had their own say.
pub fn finish_root(root: &Root, bundle: &Bundle) -> Result<()> {
    let propagation = match root_propagation(bundle)? {
        kind @ (libc::MS_SHARED | libc::MS_UNBINDABLE) => kind,
        _ => 0,
    };
    let readonly = bundle
        .spec
        .root()
        .as_ref()
        .is_some_and(|root| root.readonly().unwrap_or(false));
    let set = if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attr = MountAttr {
        set,
        propagation,
        ..MountAttr::default()
    };
    if attr == MountAttr::default() {
        return Ok(());
    }
    sys::mount_setattr(root.fd(), false, &attr).context(|| "set the root's attributes".into())
}
