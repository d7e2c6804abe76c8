//! Checkpoint and restore of what [`super::create`] made: how CRIU is told which mounts, namespaces and streams are not
//! the container's own.

use std::{
    collections::HashSet,
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    mount::{MsFlags, mount},
    sys::stat::{Mode, umask},
};
use oci_spec::runtime::{LinuxNamespaceType, Mount};

use super::paths::Root;
use super::spec::{Bundle, Namespace};
use crate::cgroups::{self, Cgroup};
use crate::runtime::checkpoint::{
    self, CheckpointRequest, DUMP_LOG, RESTORE_LOG, RestoreRequest, external_key, external_namespace,
};
use crate::runtime::error::Context;
use crate::runtime::report::Report;
use crate::runtime::{CreateRequest, Error, Result, Stdio};
use crate::sys;

/// Where CRIU writes the pid of a restored init, in the work directory.
const PID_FILE: &str = "restored.pid";

/// A mount that comes from outside.
#[derive(Debug, PartialEq, Eq)]
struct Foreign {
    /// In the container; also what CRIU remembers it by.
    point: PathBuf,
    source: Source,
}

#[derive(Debug, PartialEq, Eq)]
enum Source {
    Path(PathBuf),
    /// The container's own cgroup.
    Cgroup,
}

/// Runs in the helper, with the container frozen.
pub fn dump(request: &CheckpointRequest, cgroup: &Cgroup) -> Result<()> {
    let bundle = Bundle::load(request.container.bundle)?;
    refuse(&bundle)?;
    let pid = request.container.init_pid;
    let mut criu = Command::new(request.criu);
    criu.arg("dump")
        .args(["--tree", &pid.to_string(), "--leave-running", "--manage-cgroups=ignore"])
        .args([
            "--file-locks",
            "--ext-unix-sk",
            "--enable-external-masters",
            "--enable-external-sharing",
        ])
        .args(["-v3", "--log-file", DUMP_LOG])
        .arg("--images-dir")
        .arg(request.images)
        .arg("--work-dir")
        .arg(request.work)
        .arg("--root")
        .arg(&bundle.rootfs)
        .arg("--freeze-cgroup")
        .arg(cgroup.freezer_dir().map_err(|error| Error::Cgroup(error.to_string()))?);
    let mounts = checkpoint::mounts_of(pid)?;
    checkpoint::write_mounts(&mounts, request.images)?;
    for foreign in foreign_mounts(&bundle, &mounts) {
        let point = foreign.point.display();
        criu.arg("--external").arg(format!("mnt[{point}]:{point}"));
    }
    for (kind, name) in [(LinuxNamespaceType::Network, "net"), (LinuxNamespaceType::Pid, "pid")] {
        if let Namespace::Join(path) = bundle.namespace(kind) {
            criu.arg("--external").arg(external_namespace(name, path)?);
        }
    }
    checkpoint::write_descriptors(pid, request.images)?;
    enter_shared(&bundle)?;
    checkpoint::run(criu, request.work, DUMP_LOG)
}

/// Joins the UTS and IPC namespaces that the container shares with its pod; see [`checkpoint::enter`].
fn enter_shared(bundle: &Bundle) -> Result<()> {
    let kinds = [
        (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC),
        (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS),
    ];
    for (kind, flag) in kinds {
        if let Namespace::Join(path) = bundle.namespace(kind) {
            checkpoint::enter(path, flag)?;
        }
    }
    Ok(())
}

/// Runs in the helper; reports init's pid. The container runs when this returns.
pub fn restore(request: &CreateRequest, restore: &RestoreRequest) -> Result<Report> {
    umask(Mode::empty());
    let bundle = Bundle::load(request.bundle)?;
    refuse(&bundle)?;
    let Stdio::Streams(streams) = request.stdio else {
        return Err(Error::Unsupported("restoring a container with a terminal".into()));
    };
    let failed = |error: cgroups::Error| Error::Cgroup(error.to_string());
    let hierarchies = cgroups::detect().map_err(failed)?;
    if !hierarchies.is_v2() {
        return Err(Error::Unsupported("restoring a container on cgroup v1".into()));
    }
    let cgroup = Cgroup::new(&hierarchies, restore.cgroup_path).map_err(failed)?;
    let inside = super::create::begin_scope(&cgroup, request.id)?;
    cgroup.create().map_err(failed)?;
    super::create::limit_devices(&bundle, &cgroup)?;
    super::create::limit_cgroup(&bundle, &cgroup)?;

    let mut criu = Command::new(restore.criu);
    criu.args(["restore", "--restore-detached", "--manage-cgroups=ignore"])
        .args([
            "--file-locks",
            "--ext-unix-sk",
            "--enable-external-masters",
            "--enable-external-sharing",
        ])
        .args(["-v3", "--log-file", RESTORE_LOG])
        .arg("--pidfile")
        .arg(restore.work.join(PID_FILE))
        .arg("--images-dir")
        .arg(restore.images)
        .arg("--work-dir")
        .arg(restore.work);
    // What criu inherits of descriptors.
    let mut inherited: Vec<OwnedFd> = Vec::new();
    for (stream, was) in streams.iter().zip(checkpoint::read_descriptors(restore.images)?) {
        if was.starts_with("pipe:") {
            inherit(&mut criu, &mut inherited, *stream, &was)?;
        }
    }
    for (kind, name) in [(LinuxNamespaceType::Network, "net"), (LinuxNamespaceType::Pid, "pid")] {
        if let Namespace::Join(path) = bundle.namespace(kind) {
            let file = File::open(path).context(|| format!("open namespace {}", path.display()))?;
            inherit(&mut criu, &mut inherited, file.as_fd(), &external_key(name))?;
        }
    }
    // The restored processes stay in criu's cgroup and so in its cgroup namespace.
    if !inside {
        cgroup.join_self().map_err(failed)?;
    }
    let mut kinds = libc::CLONE_NEWNS;
    if bundle.namespace(LinuxNamespaceType::Cgroup) == Namespace::New {
        kinds |= libc::CLONE_NEWCGROUP;
    }
    sys::unshare(kinds).context(|| "make namespaces for criu".into())?;
    let root = stage(&bundle, restore.work)?;
    criu.arg("--root").arg(&root);
    let mounts = checkpoint::read_mounts(restore.images)?;
    let foreign = foreign_mounts(&bundle, &mounts);
    make_points(&bundle, &mounts, &foreign)?;
    for foreign in foreign {
        let source = match &foreign.source {
            Source::Path(path) => path.clone(),
            Source::Cgroup => cgroup_mount(restore.work)?,
        };
        criu.arg("--external")
            .arg(format!("mnt[{}]:{}", foreign.point.display(), source.display()));
    }
    enter_shared(&bundle)?;
    checkpoint::run(criu, restore.work, RESTORE_LOG)?;
    drop(inherited);
    let file = restore.work.join(PID_FILE);
    let text = std::fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
    let pid = text
        .trim()
        .parse()
        .map_err(|_| Error::Failed(format!("criu wrote no pid to {}", file.display())))?;
    Ok(Report {
        pid,
        ..Report::default()
    })
}

/// What CRIU can't bring back as it was.
fn refuse(bundle: &Bundle) -> Result<()> {
    if bundle.has_userns() {
        return Err(Error::Unsupported(
            "a checkpoint of a container in a user namespace".into(),
        ));
    }
    if bundle.process()?.terminal() == Some(true) {
        return Err(Error::Unsupported("a checkpoint of a container with a terminal".into()));
    }
    Ok(())
}

/// Of the mounts in a container, those that the spec binds from the host, with what lies below such a bind.
fn foreign_mounts(bundle: &Bundle, mounts: &[(PathBuf, String)]) -> Vec<Foreign> {
    let wanted = bundle.spec.mounts().as_deref().unwrap_or_default();
    let wanted: Vec<_> = wanted
        .iter()
        .map(|mount| (real(&bundle.rootfs, mount.destination()), mount))
        .collect();
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for (point, kind) in mounts.iter().filter(|(point, _)| point != Path::new("/")) {
        let source = if kind == "cgroup" || kind == "cgroup2" {
            Some(Source::Cgroup)
        } else {
            masked(bundle, point, kind).or_else(|| bound(&wanted, point))
        };
        if let Some(source) = source
            && seen.insert(point.clone())
        {
            found.push(Foreign {
                point: point.clone(),
                source,
            });
        }
    }
    found
}

/// A masked file has the null device above it; a masked directory an empty file system, which is the container's own.
fn masked(bundle: &Bundle, point: &Path, kind: &str) -> Option<Source> {
    let paths = bundle.linux().ok()?.masked_paths().clone().unwrap_or_default();
    let hidden = paths.iter().any(|path| Path::new(path) == point);
    (hidden && kind != "tmpfs").then(|| Source::Path("/dev/null".into()))
}

/// Where a mount of the spec is: the root file system may have a symbolic link there.
fn real(rootfs: &Path, destination: &Path) -> PathBuf {
    let resolve = || {
        let (root, inside) = (File::open(rootfs).ok()?, destination.strip_prefix("/").ok()?);
        let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let place = sys::openat2(root.as_fd(), inside, libc::O_PATH, 0, resolve).ok()?;
        let target = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let (root, place) = (target(root.as_raw_fd())?, target(place.as_raw_fd())?);
        Some(Path::new("/").join(place.strip_prefix(root).ok()?))
    };
    resolve().unwrap_or_else(|| destination.to_owned())
}

/// The innermost mount of the spec that holds `point`, where that is a bind. `wanted` are its mounts, with where they are.
fn bound(wanted: &[(PathBuf, &Mount)], point: &Path) -> Option<Source> {
    let (place, mount) = wanted
        .iter()
        .filter(|(place, _)| point.starts_with(place))
        .max_by_key(|(place, _)| place.components().count())?;
    let options = mount.options().as_deref().unwrap_or_default();
    let bind = mount.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind");
    let source = mount.source().as_ref().filter(|_| bind)?;
    let below = point.strip_prefix(place).ok()?;
    Some(Source::Path(match below.as_os_str().is_empty() {
        true => source.clone(),
        false => source.join(below),
    }))
}

/// Makes the mount points that the root file system lacks: those in other mounts come with them.
fn make_points(bundle: &Bundle, mounts: &[(PathBuf, String)], foreign: &[Foreign]) -> Result<()> {
    let what = || format!("root file system {}", bundle.rootfs.display());
    let root = Root::new(File::open(&bundle.rootfs).context(what)?.into());
    let points = || {
        mounts
            .iter()
            .map(|(point, _)| point)
            .filter(|point| *point != Path::new("/"))
    };
    for point in points() {
        if points().any(|other| other != point && point.starts_with(other)) {
            continue;
        }
        let source = foreign.iter().find(|one| one.point == *point).map(|one| &one.source);
        let made = match source {
            Some(Source::Path(path)) if !path.is_dir() => root.ensure_file(point),
            _ => root.ensure_dir(point),
        };
        made.context(|| format!("make the mount point {}", point.display()))?;
    }
    Ok(())
}

/// CRIU wants the root file system to be a mount point among its own mounts, and none of what it mounts may be heard of
/// outside.
fn stage(bundle: &Bundle, work: &Path) -> Result<PathBuf> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).context(|| "keep criu's mounts apart".into())?;
    let root = work.join("root");
    std::fs::create_dir_all(&root).context(|| format!("make {}", root.display()))?;
    mount(
        Some(&bundle.rootfs),
        &root,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .context(|| format!("bind {} to {}", bundle.rootfs.display(), root.display()))?;
    Ok(root)
}

fn cgroup_mount(work: &Path) -> Result<PathBuf> {
    let point = work.join("cgroup");
    std::fs::create_dir_all(&point).context(|| format!("make {}", point.display()))?;
    mount(Some("cgroup"), &point, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .context(|| format!("mount the cgroups at {}", point.display()))?;
    Ok(point)
}

/// Gives criu a descriptor in place of what was dumped as `name`.
fn inherit(criu: &mut Command, kept: &mut Vec<OwnedFd>, fd: BorrowedFd, name: &str) -> Result<()> {
    let what = || format!("hand criu {name}");
    let copy = fd.try_clone_to_owned().context(what)?;
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty())).context(what)?;
    criu.arg("--inherit-fd").arg(format!("fd[{}]:{name}", copy.as_raw_fd()));
    kept.push(copy);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_where_the_links_of_its_root_lead() {
        let root = std::env::temp_dir().join(format!("wharf-real-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("linked")).unwrap();
        std::os::unix::fs::symlink("/../../etc", root.join("out")).unwrap();
        let at = |path: &str| real(&root, Path::new(path));
        let found = [at("/linked"), at("/real"), at("/out"), at("/absent")];
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, ["/real", "/real", "/out", "/absent"].map(PathBuf::from));
    }

    #[test]
    fn binds_and_what_lies_below_them_are_foreign_and_nothing_else() {
        let json = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "process": { "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "linux": { "maskedPaths": ["/proc/kcore", "/proc/acpi"], "namespaces": [{ "type": "mount" }] },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
                { "destination": "/data", "type": "bind", "source": "/host/data", "options": ["rbind"] },
                { "destination": "/data/own", "type": "tmpfs", "source": "tmpfs" },
            ],
        });
        let bundle = Bundle {
            spec: serde_json::from_value(json).unwrap(),
            rootfs: "/rootfs".into(),
        };
        let mounts = [
            ("/", "overlay"),
            ("/proc", "proc"),
            ("/dev", "tmpfs"),
            ("/sys/fs/cgroup", "cgroup2"),
            ("/data", "ext4"),
            ("/data/sub", "tmpfs"),
            ("/data/own", "tmpfs"),
            ("/proc/kcore", "devtmpfs"),
            ("/proc/acpi", "tmpfs"),
        ];
        let mounts = mounts.map(|(point, kind)| (PathBuf::from(point), kind.to_owned()));
        let found: Vec<_> = foreign_mounts(&bundle, &mounts)
            .into_iter()
            .map(|foreign| (foreign.point.display().to_string(), foreign.source))
            .collect();
        let path = |path: &str| Source::Path(path.into());
        let want = [
            ("/sys/fs/cgroup", Source::Cgroup),
            ("/data", path("/host/data")),
            ("/data/sub", path("/host/data/sub")),
            ("/proc/kcore", path("/dev/null")),
        ];
        assert_eq!(found, want.map(|(point, source)| (point.to_owned(), source)));
    }
}
