//! The overlay mount of a container: layers below, a volatile upper directory of its own above.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};

use super::mapped::{self, Mapped, Owners};
use super::{Error, Result, io_at, quota, remove_tree, sys};

/// Bytes of options that mount(2) takes: a page, with the NUL.
const MOUNT_DATA: usize = 4096;

/// Mounts `layers` (top first; none is allowed) at `container_dir/rootfs` and returns that path. Changes go to
/// `container_dir/upper`, which is made if it is absent and kept if not. `volatile`: the kernel syncs nothing of it,
/// because a container does not survive a crash of the machine. With `owners` the files are theirs; with `label` they all
/// have that SELinux label. A new `upper` belongs to `project`, see [`super::Projects`]; one that is there keeps its own.
///
/// # Errors
/// A layer is missing, something is mounted there already, or overlayfs refuses.
pub fn mount_labelled(
    layers: &[PathBuf],
    container_dir: &Path,
    owners: Option<&Owners>,
    label: Option<&str>,
    project: u32,
) -> Result<PathBuf> {
    let rootfs = container_dir.join("rootfs");
    let (upper, work, empty) = (
        container_dir.join("upper"),
        container_dir.join("work"),
        container_dir.join("empty"),
    );
    let fresh = make_dir(&upper)?;
    let project = if fresh { project } else { quota::project_of(&work) };
    // After a crash the work directory holds the mark of a volatile mount, with which the kernel refuses it. There is
    // nothing to keep in it but whose it is: files are renamed from it, which can't be done between projects.
    remove_tree(&work)?;
    make_dir(&rootfs)?;
    make_dir(&work)?;
    quota::join_project(&work, project)?;
    if fresh {
        quota::join_project(&upper, project)?;
        adopt_root(layers.first(), &upper, owners)?;
    }
    let target = open_path(&rootfs)?;
    if sys::is_mount_root(target.as_fd(), c"").map_err(io_at("stat", &rootfs))? {
        return Err(Error::AlreadyMounted { path: rootfs });
    }
    let mut lower = visible(layers)?;
    if lower.is_empty() {
        // overlayfs wants at least one lower directory.
        make_dir(&empty)?;
        lower.push(empty);
    }
    let above = Above {
        upper: &upper,
        work: &work,
    };
    attach(lower, Some(above), container_dir, &target, owners, label)
}

/// Mounts `layers` (top first; none is allowed) at `dir/rootfs` for reading only and returns that path. With `owners` the
/// files are theirs.
///
/// # Errors
/// As [`mount`].
pub fn mount_read_only(
    layers: &[PathBuf],
    dir: &Path,
    owners: Option<&Owners>,
    label: Option<&str>,
) -> Result<PathBuf> {
    let rootfs = dir.join("rootfs");
    make_dir(&rootfs)?;
    let target = open_path(&rootfs)?;
    if sys::is_mount_root(target.as_fd(), c"").map_err(io_at("stat", &rootfs))? {
        return Err(Error::AlreadyMounted { path: rootfs });
    }
    let mut lower = visible(layers)?;
    // Without an upper directory overlayfs wants two lower ones, and not the same twice.
    for name in ["empty", "empty2"] {
        if lower.len() < 2 {
            let empty = dir.join(name);
            make_dir(&empty)?;
            lower.push(empty);
        }
    }
    attach(lower, None, dir, &target, owners, label)
}

/// `dir/rootfs`, if something is mounted there.
///
/// # Errors
/// When it can't be looked at.
pub fn mounted(dir: &Path) -> Result<Option<PathBuf>> {
    let rootfs = dir.join("rootfs");
    let target = match open_path(&rootfs) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let is = sys::is_mount_root(target.as_fd(), c"").map_err(io_at("stat", &rootfs))?;
    Ok(is.then_some(rootfs))
}

/// Mounts `lower` (top first) at `dir/rootfs`, which is `target`.
fn attach(
    lower: Vec<PathBuf>,
    above: Option<Above>,
    dir: &Path,
    target: &OwnedFd,
    owners: Option<&Owners>,
    label: Option<&str>,
) -> Result<PathBuf> {
    let rootfs = dir.join("rootfs");
    let mapped = owners.map(|owners| Mapped::new(&lower, owners, dir)).transpose()?;
    let plan = Plan {
        lower: mapped.as_ref().map_or(&lower, |mapped| &mapped.layers),
        above,
        label,
    };
    match plan.mount_by_context(target) {
        Ok(()) => Ok(rootfs),
        // Linux before 6.7 does not know `lowerdir+`; a sandbox may forbid the newer calls.
        Err(Refusal {
            errno: Errno::EINVAL | Errno::ENOSYS | Errno::EPERM,
            early: true,
            ..
        }) => {
            plan.mount_by_options(&rootfs)?;
            Ok(rootfs)
        }
        Err(refusal) => Err(Error::Overlay {
            path: rootfs,
            layers: lower.len(),
            log: refusal.log,
            source: refusal.errno.into(),
        }),
    }
}

/// [`mount_labelled`] without a label and a project.
///
/// # Errors
/// As there.
pub fn mount(layers: &[PathBuf], container_dir: &Path, owners: Option<&Owners>) -> Result<PathBuf> {
    mount_labelled(layers, container_dir, owners, None, 0)
}

/// Unmounts `container_dir/rootfs`, also while it is in use. Nothing mounted, or no such directory, is success.
///
/// # Errors
/// Whatever else the kernel refuses.
pub fn unmount(container_dir: &Path) -> Result<()> {
    mapped::release(container_dir)?;
    let rootfs = container_dir.join("rootfs");
    loop {
        match umount2(&rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Once more: a mount may lie below.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(io_at("unmount", &rootfs)(errno)),
        }
    }
}

/// The root filesystem as [`mount`] shows it, as an open directory and what keeps its mount; mounted meanwhile if it is
/// not mounted now. Nobody else may mount or unmount it at the same time.
///
/// # Errors
/// As [`mount`].
pub fn view(layers: &[PathBuf], container_dir: &Path, owners: Option<&Owners>) -> Result<(OwnedFd, OwnedFd)> {
    let rootfs = container_dir.join("rootfs");
    make_dir(&rootfs)?;
    let target = open_path(&rootfs)?;
    let mounted = sys::is_mount_root(target.as_fd(), c"").map_err(io_at("stat", &rootfs))?;
    drop(target);
    if !mounted {
        mount(layers, container_dir, owners)?;
    }
    let tree = crate::sys::clone_tree(&rootfs, false);
    if !mounted {
        unmount(container_dir)?;
    }
    let tree = tree.map_err(|source| Error::Io {
        what: "clone the mount at",
        path: rootfs.clone(),
        source,
    })?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = openat(&tree, ".", flags, Mode::empty()).map_err(io_at("open", &rootfs))?;
    Ok((root, tree))
}

/// The layers down to one that hides all below it: overlayfs reads the opaque mark of directories in a layer, but not
/// that of a layer's root.
fn visible(layers: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut visible = Vec::with_capacity(layers.len() + 1);
    for layer in layers {
        visible.push(layer.clone());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(layer, flags, Mode::empty()).map_err(io_at("open layer", layer))?;
        let opaque =
            sys::xattr(&root, c"trusted.overlay.opaque").map_err(io_at("read the attributes of layer", layer))?;
        if opaque.as_deref() == Some(b"y") {
            break;
        }
    }
    Ok(visible)
}

struct Plan<'a> {
    /// Top first, at least one.
    lower: &'a [PathBuf],
    /// None: for reading only.
    above: Option<Above<'a>>,
    /// SELinux.
    label: Option<&'a str>,
}

/// Where changes go.
#[derive(Clone, Copy)]
struct Above<'a> {
    upper: &'a Path,
    work: &'a Path,
}

/// Why the newer mount calls did not do it.
struct Refusal {
    errno: Errno,
    /// The kernel is too old, or forbids the calls; nothing is wrong with our directories.
    early: bool,
    log: String,
}

impl Plan<'_> {
    /// fsopen, one `lowerdir+` per layer, fsmount, move_mount: no limit of a page.
    fn mount_by_context(&self, target: &OwnedFd) -> std::result::Result<(), Refusal> {
        let early = |errno| Refusal {
            errno,
            early: true,
            log: String::new(),
        };
        let context = sys::fsopen(c"overlay").map_err(early)?;
        let late = |errno| Refusal {
            errno,
            early: false,
            log: explanation(&context),
        };
        let spell = |path: &Path| Spelling::new(path, sys::FSCONFIG_STRING - 1, b"\\").map_err(late);
        sys::set_string(&context, c"source", c"wharf").map_err(early)?;
        for (i, layer) in self.lower.iter().enumerate() {
            let layer = spell(layer)?;
            let set = sys::set_string(&context, c"lowerdir+", &layer.text);
            set.map_err(|errno| if i == 0 { early(errno) } else { late(errno) })?;
        }
        sys::set_string(&context, c"index", c"off").map_err(late)?;
        if let Some(above) = self.above {
            sys::set_string(&context, c"upperdir", &spell(above.upper)?.text).map_err(late)?;
            sys::set_string(&context, c"workdir", &spell(above.work)?.text).map_err(late)?;
            sys::set_flag(&context, c"volatile").map_err(late)?;
        }
        if let Some(label) = self.label {
            let label = CString::new(label).map_err(|_| late(Errno::EINVAL))?;
            sys::set_string(&context, c"context", &label).map_err(late)?;
        }
        sys::create(&context).map_err(|errno| {
            let refusal = late(errno);
            // Linux before 6.5 takes every option, and says here, without a word, that it does not know one.
            let early = errno == Errno::EINVAL && refusal.log.is_empty();
            Refusal { early, ..refusal }
        })?;
        let mount = sys::fsmount(&context).map_err(late)?;
        sys::attach(&mount, target).map_err(late)
    }

    /// mount(2), for Linux before 6.7. Its options must fit a page, which sixty layers by their paths do not: then each
    /// directory is spelled by a descriptor.
    fn mount_by_options(&self, rootfs: &Path) -> Result<()> {
        let failed = |errno: Errno| Error::Overlay {
            path: rootfs.to_owned(),
            layers: self.lower.len(),
            log: String::new(),
            source: errno.into(),
        };
        let mut spelled = self.options(usize::MAX).map_err(failed)?;
        if spelled.0.len() >= MOUNT_DATA {
            spelled = self.options(0).map_err(failed)?;
        }
        if spelled.0.len() >= MOUNT_DATA {
            return Err(failed(Errno::E2BIG));
        }
        let (source, kind) = (Some(c"wharf"), Some(c"overlay"));
        nix::mount::mount(source, rootfs, kind, MsFlags::empty(), Some(spelled.0.as_slice())).map_err(failed)
    }

    /// The options, and the descriptors they lean on. Paths longer than `limit` are spelled by descriptor.
    fn options(&self, limit: usize) -> nix::Result<(Vec<u8>, Vec<Spelling>)> {
        let spell = |path: &Path| Spelling::new(path, limit, b",:\\");
        let lower = self
            .lower
            .iter()
            .map(|path| spell(path))
            .collect::<nix::Result<Vec<_>>>()?;
        let mut text = b"index=off,lowerdir=".to_vec();
        text.extend(lower.iter().map(|s| s.text.to_bytes()).collect::<Vec<_>>().join(&b':'));
        let mut spelled = lower;
        if let Some(above) = self.above {
            for (key, path) in [(",volatile,upperdir=", above.upper), (",workdir=", above.work)] {
                let value = spell(path)?;
                text.extend_from_slice(key.as_bytes());
                text.extend_from_slice(value.text.to_bytes());
                spelled.push(value);
            }
        }
        if let Some(label) = self.label {
            // Quoted: a level has commas in it.
            text.extend_from_slice(format!(",context=\"{label}\"").as_bytes());
        }
        Ok((text, spelled))
    }
}

/// A directory as text for the kernel: its path, or `/proc/self/fd/N` where the path is too long or has characters
/// that would need escaping.
struct Spelling {
    text: CString,
    _fd: Option<OwnedFd>,
}

impl Spelling {
    fn new(path: &Path, limit: usize, special: &[u8]) -> nix::Result<Spelling> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() <= limit && !bytes.iter().any(|b| special.contains(b)) {
            return Ok(Spelling {
                text: CString::new(bytes).map_err(|_| Errno::EINVAL)?,
                _fd: None,
            });
        }
        let fd = open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let text = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
        Ok(Spelling { text, _fd: Some(fd) })
    }
}

/// What the filesystem wrote to its context, one line after another.
fn explanation(context: &OwnedFd) -> String {
    let Ok(fd) = context.try_clone() else {
        return String::new();
    };
    let mut file = std::fs::File::from(fd);
    let mut lines = Vec::new();
    let mut message = [0; 1024];
    while let Ok(length) = file.read(&mut message)
        && length > 0
        && lines.len() < 8
    {
        lines.push(String::from_utf8_lossy(&message[..length]).trim().to_owned());
    }
    lines.join("; ")
}

/// Makes a directory unless it exists; says whether it did.
fn make_dir(path: &Path) -> Result<bool> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(Error::Io {
            what: "make directory",
            path: path.to_owned(),
            source,
        }),
    }
}

/// The merged root directory has the attributes of `upper`, so they must be those of the image's root.
fn adopt_root(layer: Option<&PathBuf>, upper: &Path, owners: Option<&Owners>) -> Result<()> {
    let (mut mode, mut owner) = (0o755, (0, 0));
    if let Some(layer) = layer {
        let stat = nix::sys::stat::stat(layer).map_err(io_at("stat layer", layer))?;
        (mode, owner) = (stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid));
    }
    if let Some(owners) = owners {
        owner = owners.on_node(owner);
    }
    let upper_fd = open(
        upper,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(io_at("open", upper))?;
    fchown(&upper_fd, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1))).map_err(io_at("chown", upper))?;
    fchmod(&upper_fd, Mode::from_bits_truncate(mode)).map_err(io_at("chmod", upper))
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(io_at("open", path))
}

/// The way of Linux before 6.7, for tests on newer ones.
#[cfg(test)]
pub fn mount_as_before_6_7(lower: &[PathBuf], container_dir: &Path) -> Result<()> {
    let (upper, work) = (container_dir.join("upper"), container_dir.join("work"));
    Plan {
        lower,
        above: Some(Above {
            upper: &upper,
            work: &work,
        }),
        label: None,
    }
    .mount_by_options(&container_dir.join("rootfs"))
}
