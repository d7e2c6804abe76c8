//! What the container sees mounted.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};
use wharf_proto::cri::{self, MountPropagation};

use super::{Error, Result, SpecInput, invalid, namespaces};
use crate::containers::host::MountSource;

pub(super) struct Mounts {
    pub mounts: Vec<Mount>,
    pub rootfs_propagation: Option<String>,
}

/// Defaults and CRI's mounts, those of a shallower target first so that none hides another by accident (row D1). A CRI
/// mount replaces the default of the same target; one at /dev or /sys also those below, which it would hide.
pub(super) fn generate(input: &SpecInput) -> Result<Mounts> {
    let mut own = Vec::new();
    let mut rootfs_propagation = None;
    for (at, mount) in input.config.mounts.iter().enumerate() {
        let source = input.facts.mounts.get(at).and_then(Option::as_ref);
        own.push(cri_mount(input, mount, source)?);
        match propagation(mount)? {
            MountPropagation::PropagationPrivate => {}
            MountPropagation::PropagationBidirectional => rootfs_propagation = Some("rshared".to_owned()),
            MountPropagation::PropagationHostToContainer => {
                rootfs_propagation.get_or_insert_with(|| "rslave".to_owned());
            }
        }
    }
    let hidden = |default: &Mount| {
        own.iter().map(Mount::destination).any(|target| {
            let whole = target == Path::new("/dev") || target == Path::new("/sys");
            target == default.destination() || (whole && default.destination().starts_with(target))
        })
    };
    let mut mounts: Vec<_> = defaults(input).into_iter().filter(|m| !hidden(m)).collect();
    mounts.extend(own);
    for volume in &input.facts.volumes {
        // An image can't replace what the pod brings.
        if mounts.iter().any(|known| *known.destination() == volume.target) {
            continue;
        }
        let mut declared = mount("", "bind", &volume.source, &["rbind", "rprivate", "rw"]);
        declared.set_destination(volume.target.clone());
        mounts.push(declared);
    }
    mounts.sort_by_key(|m| m.destination().components().count());
    Ok(Mounts {
        mounts,
        rootfs_propagation,
    })
}

fn mount(target: &str, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(target))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

fn defaults(input: &SpecInput) -> Vec<Mount> {
    // /sys and the cgroups can be changed by a privileged container only.
    let access = if input.privileged() { "rw" } else { "ro" };
    let cgroup_access = if input.policy.cgroup_writable { "rw" } else { access };
    let mut out = vec![
        mount("/proc", "proc", Path::new("proc"), &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            Path::new("tmpfs"),
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            Path::new("devpts"),
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            Path::new("mqueue"),
            &["nosuid", "noexec", "nodev"],
        ),
        match foreign_network(input) {
            true => mount(
                "/sys",
                "bind",
                Path::new("/sys"),
                &["rbind", "rslave", "nosuid", "noexec", "nodev", access],
            ),
            false => mount(
                "/sys",
                "sysfs",
                Path::new("sysfs"),
                &["nosuid", "noexec", "nodev", access],
            ),
        },
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            Path::new("cgroup"),
            &["nosuid", "noexec", "nodev", "relatime", cgroup_access],
        ),
    ];
    let host_shm = namespaces::host_ipc(input).then(|| PathBuf::from("/dev/shm"));
    out.push(match host_shm.as_ref().or(input.files.shm.as_ref()) {
        Some(shm) => mount(
            "/dev/shm",
            "bind",
            shm,
            &["rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"],
        ),
        None => {
            let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
            mount("/dev/shm", "tmpfs", Path::new("shm"), &options)
        }
    });
    let access = if input.read_only_root() { "ro" } else { "rw" };
    let files = [
        ("/etc/hosts", &input.files.hosts),
        ("/etc/hostname", &input.files.hostname),
        ("/etc/resolv.conf", &input.files.resolv_conf),
        ("/etc/passwd", &input.files.passwd),
        ("/etc/group", &input.files.group),
    ];
    for (target, source) in files {
        out.extend(
            source
                .as_ref()
                .map(|source| mount(target, "bind", source, &["rbind", "rprivate", access])),
        );
    }
    out.extend(
        input
            .facts
            .localtime
            .as_ref()
            .map(|zone| mount("/etc/localtime", "bind", zone, &["rbind", "rprivate", "ro"])),
    );
    out
}

/// A user namespace that does not own its network may not mount sysfs, which shows it: it gets the node's (row C3).
fn foreign_network(input: &SpecInput) -> bool {
    !input.policy.builtin && input.users().is_some() && namespaces::host_network(input)
}

fn propagation(mount: &cri::Mount) -> Result<MountPropagation> {
    let value = mount.propagation;
    MountPropagation::try_from(value).or_else(|_| {
        invalid(format!(
            "mount at {}: propagation {value} does not exist",
            mount.container_path
        ))
    })
}

fn cri_mount(input: &SpecInput, mount: &cri::Mount, source: Option<&MountSource>) -> Result<Mount> {
    let target = clean(&mount.container_path)?;
    let shown = target.display();
    // `image_sub_path` says nothing without an image: in a pod with an image volume kubelet puts the `subPath` of every other
    // volume there as well, which `host_path` already has (makeMounts in pkg/kubelet/kubelet_pods.go, 1.36).
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return invalid(format!(
            "mount at {shown}: users and groups must be mapped both or not at all"
        ));
    }
    let Some(source) = source else {
        return invalid(format!("mount at {shown}: no host_path"));
    };
    let from = source.path.display();
    let mut options = vec!["rbind".to_owned()];
    options.push(
        match propagation(mount)? {
            MountPropagation::PropagationPrivate => "rprivate",
            MountPropagation::PropagationHostToContainer if source.shared || source.slave => "rslave",
            MountPropagation::PropagationHostToContainer => {
                return invalid(format!(
                    "mount at {shown}: {from} is on neither a shared nor a slave mount"
                ));
            }
            MountPropagation::PropagationBidirectional if source.shared => "rshared",
            MountPropagation::PropagationBidirectional => {
                return invalid(format!("mount at {shown}: {from} is not on a shared mount"));
            }
        }
        .to_owned(),
    );
    for option in &mount.mount_options {
        match option.as_str() {
            "noexec" | "nodev" | "nosuid" => options.push(option.clone()),
            _ => {
                return invalid(format!(
                    "mount at {shown}: option {option:?} is not noexec, nodev or nosuid"
                ));
            }
        }
    }
    options.push(access(input, mount, &target)?.to_owned());
    let mut out = self::mount("", "bind", &source.path, &[]);
    out.set_destination(target).set_options(Some(options));
    // The view of an image has its owners mapped already.
    if !mount.uid_mappings.is_empty() && mount.image.is_none() {
        let mapped = |mappings: &[cri::IdMapping]| mappings.iter().copied().map(id_mapping).collect::<Result<_>>();
        out.set_uid_mappings(Some(mapped(&mount.uid_mappings)?))
            .set_gid_mappings(Some(mapped(&mount.gid_mappings)?));
    }
    Ok(out)
}

/// A range of ids in the runtime specification's words.
pub(super) fn id_mapping(mapping: cri::IdMapping) -> Result<LinuxIdMapping> {
    LinuxIdMappingBuilder::default()
        .host_id(mapping.host_id)
        .container_id(mapping.container_id)
        .size(mapping.length)
        .build()
        .or_else(|error| invalid(format!("id mapping: {error}")))
}

/// `rro` reaches the mounts below as well, which plain `ro` leaves writable.
fn access(input: &SpecInput, mount: &cri::Mount, target: &Path) -> Result<&'static str> {
    let shown = target.display();
    if !mount.recursive_read_only {
        // Those of images must say it. Those of artifacts need not: nobody takes such files for a root filesystem, and clients
        // of CRI-O, where artifacts come from, leave it out.
        return Ok(if mount.readonly || mount.image.is_some() {
            "ro"
        } else {
            "rw"
        });
    }
    if !mount.readonly {
        return invalid(format!(
            "mount at {shown}: recursive read-only mount conflicts with read-write mount: recursive_read_only needs readonly"
        ));
    }
    if mount.propagation != MountPropagation::PropagationPrivate as i32 {
        return invalid(format!(
            "mount at {shown}: recursive read-only mount requires private propagation"
        ));
    }
    // A runtime that does not know how gets it ready-made: `runtime::prepared`.
    match input.host.recursive_read_only() {
        true => Ok("rro"),
        false => Err(Error::RroUnsupported(shown.to_string())),
    }
}

/// An absolute target without `.`, `..` and doubled slashes.
fn clean(target: &str) -> Result<PathBuf> {
    if !target.starts_with('/') || target.contains('\0') {
        return invalid(format!("mount at {target:?}: container_path is not an absolute path"));
    }
    let mut out = PathBuf::from("/");
    for component in Path::new(target).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    match out == Path::new("/") {
        true => invalid("mount at \"/\": the root filesystem cannot be replaced"),
        false => Ok(out),
    }
}
