//! Device nodes and the usual links below /dev.

use super::paths::Root;
use super::spec::Bundle;
use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A device to put into the container.
pub struct Node {
    path: PathBuf,
    kind: SFlag,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    /// In a user namespace nodes cannot be made: the host's node, detached.
    host: Option<OwnedFd>,
}

/// Devices that every container has: name, major, minor.
const DEFAULT: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Devices of a spec; none when its /dev is bound from outside.
pub fn prepare(bundle: &Bundle) -> Result<Vec<Node>> {
    if !owns_dev(bundle) {
        return Ok(Vec::new());
    }
    let mut nodes: Vec<Node> = Vec::new();
    for device in bundle.linux()?.devices().iter().flatten() {
        nodes.push(node(device)?);
    }
    for (name, major, minor) in DEFAULT {
        let path = Path::new("/dev").join(name);
        if nodes.iter().all(|node| node.path != path) {
            let (kind, number) = (SFlag::S_IFCHR, makedev(major, minor));
            nodes.push(Node {
                path,
                kind,
                number,
                mode: 0o666,
                uid: 0,
                gid: 0,
                host: None,
            });
        }
    }
    if bundle.has_userns() {
        for node in &mut nodes {
            node.host = Some(host_node(&node.path, node.kind, node.number)?);
        }
    }
    Ok(nodes)
}

/// A detached mount of the host's null device.
pub fn host_null() -> Result<OwnedFd> {
    host_node(Path::new("/dev/null"), SFlag::S_IFCHR, makedev(1, 3))
}

/// A detached mount of a device node of the host, which must be that device: anything else at its place, such as a link
/// to a file, would end up in the container.
fn host_node(path: &Path, kind: SFlag, number: u64) -> Result<OwnedFd> {
    let what = || format!("bind device {}", path.display());
    let tree = sys::clone_tree(path, false).context(what)?;
    let found = fstat(&tree).context(what)?;
    if found.st_mode & libc::S_IFMT != kind.bits() || found.st_rdev != number {
        return Err(Error::Failed(format!("{}: the host has something else there", what())));
    }
    Ok(tree)
}

fn node(device: &LinuxDevice) -> Result<Node> {
    let path = device.path().clone();
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err(Error::InvalidSpec(format!("device {} of type a", path.display()))),
    };
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(Node {
        path,
        kind,
        number: makedev(number(device.major()), number(device.minor())),
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        host: None,
    })
}

/// Whether /dev is the container's own file system, which is then filled.
pub fn owns_dev(bundle: &Bundle) -> bool {
    !bundle.spec.mounts().iter().flatten().any(|mount| {
        let options = mount.options().iter().flatten();
        let bind = mount.typ().as_deref() == Some("bind") || options.into_iter().any(|o| o == "bind" || o == "rbind");
        bind && mount.destination() == Path::new("/dev")
    })
}

/// Make the nodes and links. The file creation mask is 0. The link to the kernel's memory image is made where the
/// kernel has one.
pub fn create(root: &Root, nodes: Vec<Node>, has_kcore: bool) -> Result<()> {
    if nodes.is_empty() {
        return Ok(());
    }
    for node in nodes {
        make(root, &node)?;
    }
    let dev = root.ensure_dir(Path::new("/dev")).context(|| "open /dev".into())?;
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    let core = [("core", "/proc/kcore")];
    for (name, target) in links.iter().chain(core.iter().filter(|_| has_kcore)) {
        if *name == "ptmx" {
            let _ = unlinkat(&dev, *name, UnlinkatFlags::NoRemoveDir);
        }
        match symlinkat(*target, &dev, *name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(Error::os(format!("link /dev/{name}"), e)),
        }
    }
    Ok(())
}

fn make(root: &Root, node: &Node) -> Result<()> {
    let what = || format!("make device {}", node.path.display());
    if let Some(host) = &node.host {
        let target = root.ensure_file(&node.path).context(what)?;
        return sys::move_mount(host.as_fd(), target.as_fd()).context(what);
    }
    let (dir, name) = root.ensure_parent(&node.path).context(what)?;
    let mode = Mode::from_bits_truncate(node.mode);
    match mknodat(&dir, name.as_os_str(), node.kind, mode, node.number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let found = fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).context(what)?;
            if found.st_mode & libc::S_IFMT != node.kind.bits() || found.st_rdev != node.number {
                return Err(Error::Failed(format!("{}: something else is there", what())));
            }
            return Ok(());
        }
        Err(e) => return Err(Error::os(what(), e)),
    }
    if (node.uid, node.gid) != (0, 0) {
        let (uid, gid) = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        fchownat(&dir, name.as_os_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).context(what)?;
        // chown takes set-id bits away, and nothing else.
    }
    Ok(())
}

/// Device rules that every container gets after its own: making any node, and using the default devices, terminals.
pub fn default_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |major: Option<i64>, minor: Option<i64>, kind, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(major)
            .set_minor(minor);
        rule.set_access(Some(access.into()));
        rule
    };
    let mut rules = vec![
        rule(None, None, LinuxDeviceType::C, "m"),
        rule(None, None, LinuxDeviceType::B, "m"),
    ];
    for (_, major, minor) in DEFAULT {
        rules.push(rule(Some(major as i64), Some(minor as i64), LinuxDeviceType::C, "rwm"));
    }
    rules.push(rule(Some(136), None, LinuxDeviceType::C, "rwm"));
    rules.push(rule(Some(5), Some(2), LinuxDeviceType::C, "rwm"));
    rules
}
