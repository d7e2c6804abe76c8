//! What the machine has and what a container's config refers to on it: all that spec generation must know and may not
//! look up itself. [`host`] runs once at start, [`inspect`] once per container (blocking: it may touch slow volumes).

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxDeviceType;
use wharf_proto::cri;

use super::{caps::CapSet, seccomp, spec, volumes::Volume};
use crate::{
    cgroups::Hierarchies,
    config::{Config, Containers, DEVICES, MissingHostPaths, parse_device},
    lsm,
};

/// Why the machine could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or device.
    #[error("{attempt} {path}: {source}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A setting of the node, which its check has let through.
    #[error("{0}")]
    Setting(String),
    /// A seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
}

/// Facts about the machine and the daemon. Plain data: tests make their own.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The controllers are on cgroup v2.
    pub cgroup_v2: bool,
    /// Memory and swap together can be limited.
    pub swap_limit: bool,
    /// Huge pages can be limited where the other controllers are.
    pub hugetlb: bool,
    /// Huge pages can be limited on the v2 side of a machine whose other controllers are on v1, which runtimes other than
    /// the built-in one do not do.
    pub hugetlb_beside: bool,
    /// What the daemon has, which bounds every container.
    pub capabilities: CapSet,
    /// The lowest OOM score adjustment that the daemon may give.
    pub min_oom_score_adj: i32,
    /// Kernel version, major and minor.
    pub kernel: (u32, u32),
    /// AppArmor.
    pub apparmor: Confinement,
    /// The kernel enforces SELinux.
    pub selinux: bool,
}

/// Whether a security module confines containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// It does.
    On,
    /// It does not, and why, for a person who has asked for it.
    Off(&'static str),
}

impl Default for Confinement {
    fn default() -> Self {
        Confinement::Off("this kernel does not enforce it")
    }
}

impl Host {
    /// Pods can have a user namespace: overlayfs takes layers with mapped owners since Linux 5.19.
    #[must_use]
    pub fn user_namespaces(&self) -> bool {
        self.kernel >= (5, 19) && std::path::Path::new("/proc/self/ns/user").exists()
    }

    /// Read-only can be made recursive: mount_setattr(2) is there since Linux 5.12.
    #[must_use]
    pub fn recursive_read_only(&self) -> bool {
        self.kernel >= (5, 12)
    }
}

/// What a container's config refers to on the machine.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// By place in `ContainerConfig.mounts`; None where nothing of the host is mounted.
    pub mounts: Vec<Option<MountSource>>,
    /// Nodes for `ContainerConfig.devices`.
    pub devices: Vec<DeviceNode>,
    /// Every node in /dev, for a privileged container; else empty.
    pub host_devices: Vec<DeviceNode>,
    /// Volumes that the image declares.
    pub volumes: Vec<Volume>,
    /// The Localhost seccomp profile, if one is asked for.
    pub localhost_seccomp: Option<seccomp::LocalProfile>,
    /// The machine's name now.
    pub hostname: String,
    /// The time zone that the node's settings want, as a file; none leaves it to the image.
    pub localtime: Option<PathBuf>,
}

impl Facts {
    /// Adds what a pod's annotation asks for: devices as Docker writes them, with commas between. Blocking.
    ///
    /// # Errors
    /// One that is not among those allowed, is no device, or not there, by name.
    pub(super) fn add_annotated(&mut self, text: &str, allowed: &[PathBuf]) -> Result<(), Error> {
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let device = device(part)?;
            if !allowed.iter().any(|path| path == Path::new(&device.host_path)) {
                return Err(Error::Setting(format!(
                    "annotation {}: {} is not among containers.allowed_devices in wharf.toml",
                    DEVICES[0], device.host_path
                )));
            }
            config_device(&device, &mut self.devices)?;
        }
        Ok(())
    }

    /// Adds what mounts of images show, by place in `ContainerConfig.mounts`.
    pub(super) fn add_views<'a>(&mut self, views: impl Iterator<Item = Option<&'a Path>>) {
        for (source, view) in self.mounts.iter_mut().zip(views) {
            if let Some(path) = view {
                *source = Some(MountSource {
                    path: path.to_owned(),
                    shared: false,
                    slave: false,
                });
            }
        }
    }
}

/// The host's side of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSource {
    /// Without symbolic links.
    pub path: PathBuf,
    /// Mounts made there by others arrive here, and the other way round.
    pub shared: bool,
    /// Mounts made there by others arrive here.
    pub slave: bool,
}

/// A device node and where the container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// On the node.
    pub host_path: PathBuf,
    /// Character or block device.
    pub kind: LinuxDeviceType,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of r, w and m; empty means all three.
    pub access: String,
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { attempt, path, source }
}

/// Looks at the machine.
///
/// # Errors
/// /proc cannot be read.
pub fn host(hierarchies: &Hierarchies, config: &Config) -> Result<Host, Error> {
    let read = |path: &str| fs::read_to_string(path).map_err(failed("read", Path::new(path)));
    let status = read("/proc/self/status")?;
    let mask = |field: &str| {
        let value = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        value.and_then(|v| u64::from_str_radix(v.trim(), 16).ok()).unwrap_or(0)
    };
    let capabilities = CapSet::from_mask(mask("CapBnd") & mask("CapPrm"));
    let own_adj = read("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0);
    let apparmor = match (lsm::apparmor::is_enabled(), config.apparmor) {
        (true, true) => Confinement::On,
        (true, false) => Confinement::Off("AppArmor is switched off in wharf.toml"),
        (false, _) => Confinement::Off("this kernel does not enforce AppArmor"),
    };
    Ok(Host {
        cgroup_v2: hierarchies.is_v2(),
        swap_limit: hierarchies.has_swap_limit(),
        hugetlb: hierarchies.has_controller("hugetlb"),
        hugetlb_beside: hierarchies.has_hugetlb_beside(),
        capabilities,
        // Going below one's own value takes this capability.
        min_oom_score_adj: if capabilities.has("SYS_RESOURCE") {
            -1000
        } else {
            own_adj
        },
        kernel: parse_kernel(&read("/proc/sys/kernel/osrelease")?),
        apparmor,
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
    })
}

fn parse_kernel(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Looks up what `config` and the node's settings refer to. A missing host path of a mount becomes a directory, as
/// kubelet's world expects (row D2), unless the settings say otherwise.
///
/// # Errors
/// A path, device or profile that cannot be used, by name.
pub fn inspect(config: &cri::ContainerConfig, settings: &Containers) -> Result<Facts, Error> {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let mut facts = Facts {
        hostname: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        localtime: zone(&settings.timezone)?,
        ..Facts::default()
    };
    let table = match config.mounts.iter().any(|m| m.propagation != 0) {
        true => MountTable::read()?,
        false => MountTable::default(),
    };
    for mount in &config.mounts {
        let source = match mount.image.is_some() || mount.host_path.is_empty() {
            true => None,
            false => Some(mount_source(Path::new(&mount.host_path), &table, settings)?),
        };
        facts.mounts.push(source);
    }
    for text in &settings.devices {
        config_device(&device(text)?, &mut facts.devices)?;
    }
    for device in &config.devices {
        config_device(device, &mut facts.devices)?;
    }
    if context.is_some_and(|c| c.privileged) {
        walk(Path::new("/dev"), Path::new("/dev"), "", &mut facts.host_devices)?;
    }
    if let Some(context) = context.filter(|c| !c.privileged)
        && let spec::ProfileChoice::Localhost(path) = spec::seccomp_choice(context)
    {
        facts.localhost_seccomp = Some(seccomp::load(Path::new(&path), &settings.seccomp_listeners)?);
    }
    Ok(facts)
}

/// The file of a time zone; the node may have none of its own.
fn zone(name: &str) -> Result<Option<PathBuf>, Error> {
    let own = Path::new("/etc/localtime");
    let path = match name {
        "" => return Ok(None),
        "local" if !own.exists() => return Ok(None),
        "local" => own.to_owned(),
        name => Path::new("/usr/share/zoneinfo").join(name),
    };
    let found = path.canonicalize().and_then(|path| match path.is_file() {
        true => Ok(Some(path)),
        false => Err(io::Error::other("not a file")),
    });
    found.map_err(failed("find time zone", &path))
}

fn mount_source(host_path: &Path, table: &MountTable, settings: &Containers) -> Result<MountSource, Error> {
    let refuse = settings.missing_host_paths == MissingHostPaths::Refuse
        || settings
            .required_host_paths
            .iter()
            .any(|required| required == host_path);
    let path = match host_path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !refuse => {
            fs::create_dir_all(host_path).map_err(failed("create host path of a mount", host_path))?;
            host_path.canonicalize()
        }
        other => other,
    };
    let path = path.map_err(failed("resolve host path of a mount", host_path))?;
    let (shared, slave) = table.propagation(&path);
    Ok(MountSource { path, shared, slave })
}

/// Whether mounts below `path` of the node reach a container, and (`both`) the container's the node. Blocking.
///
/// # Errors
/// When the path can't be resolved, or is on no such mount.
pub fn check_propagation(path: &Path, both: bool) -> Result<(), Error> {
    let resolved = path
        .canonicalize()
        .map_err(failed("resolve host path of a mount", path))?;
    let wrong = |why: &str| Err(Error::Setting(format!("{} is on {why}", path.display())));
    match MountTable::read()?.propagation(&resolved) {
        (true, _) => Ok(()),
        (false, _) if both => wrong("no shared mount"),
        (false, true) => Ok(()),
        (false, false) => wrong("neither a shared nor a slave mount"),
    }
}

/// Propagation of each mount point; of two mounts on one point, that of the upper.
#[derive(Debug, Default)]
struct MountTable(HashMap<PathBuf, (bool, bool)>);

impl MountTable {
    fn read() -> Result<MountTable, Error> {
        let path = "/proc/self/mountinfo";
        let text = fs::read_to_string(path).map_err(failed("read", Path::new(path)))?;
        Ok(MountTable::parse(&text))
    }

    fn parse(text: &str) -> MountTable {
        let entry = |line: &str| {
            let (left, _) = line.split_once(" - ")?;
            let mut fields = left.split(' ').skip(4);
            let point = PathBuf::from(unescape(fields.next()?));
            let tags: Vec<_> = fields.skip(1).collect();
            let has = |tag: &str| tags.iter().any(|t| t.starts_with(tag));
            Some((point, (has("shared:"), has("master:"))))
        };
        MountTable(text.lines().filter_map(entry).collect())
    }

    /// Of the mount that `path` is on.
    fn propagation(&self, path: &Path) -> (bool, bool) {
        path.ancestors()
            .find_map(|p| self.0.get(p))
            .copied()
            .unwrap_or((false, false))
    }
}

/// Undoes the four escapes of mountinfo.
fn unescape(field: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// As Docker writes it.
fn device(text: &str) -> Result<cri::Device, Error> {
    let (host_path, container_path, permissions) = parse_device(text).map_err(Error::Setting)?;
    Ok(cri::Device {
        host_path: host_path.to_owned(),
        container_path: container_path.to_owned(),
        permissions: permissions.to_owned(),
    })
}

/// A device of the config; a directory stands for all nodes in it.
fn config_device(device: &cri::Device, out: &mut Vec<DeviceNode>) -> Result<(), Error> {
    let path = Path::new(&device.host_path);
    let real = path.canonicalize().map_err(failed("find device", path))?;
    let inside = match device.container_path.as_str() {
        "" => path.to_owned(),
        inside => PathBuf::from(inside),
    };
    if real.is_dir() {
        return walk(&real, &inside, &device.permissions, out);
    }
    let metadata = real.metadata().map_err(failed("look at device", &real))?;
    let node = node(&metadata, inside, &real, &device.permissions);
    out.push(node.ok_or_else(|| failed("use device", path)(io::Error::other("not a device node")))?);
    Ok(())
}

pub(super) fn node(metadata: &fs::Metadata, path: PathBuf, host_path: &Path, access: &str) -> Option<DeviceNode> {
    let kind = match metadata.file_type() {
        t if t.is_char_device() => LinuxDeviceType::C,
        t if t.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    Some(DeviceNode {
        path,
        host_path: host_path.to_owned(),
        kind,
        major: nix::sys::stat::major(metadata.rdev()) as u32,
        minor: nix::sys::stat::minor(metadata.rdev()) as u32,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

/// Device nodes below `dir`, which the container sees below `inside`. What a container has of its own is left out, and
/// what vanishes meanwhile.
fn walk(dir: &Path, inside: &Path, access: &str, out: &mut Vec<DeviceNode>) -> Result<(), Error> {
    const OWN: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];
    let mut entries: Vec<_> = fs::read_dir(dir)
        .map_err(failed("list devices in", dir))?
        .filter_map(std::result::Result::ok)
        .collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let own = name.to_str().is_some_and(|n| OWN.contains(&n));
        // Of the entry itself: a symbolic link is no device, and following it could loop.
        let Ok(metadata) = entry.metadata() else { continue };
        let path = inside.join(&name);
        if metadata.is_dir() && !own {
            walk(&entry.path(), &path, access, out)?;
        } else if !own {
            out.extend(node(&metadata, path, &entry.path(), access));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_looked_at() {
        let host = host(&crate::cgroups::detect().unwrap(), &Config::default()).unwrap();
        assert!(host.kernel >= (4, 0), "{host:?}");
    }

    #[test]
    fn propagation_is_that_of_the_mount_below() {
        let table = MountTable::parse(
            "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n2 1 8:2 / /data\\040x rw master:3 - ext4 /dev/b rw\n\
             3 2 8:3 / /data\\040x/p rw - ext4 /dev/c rw\n",
        );
        assert_eq!(table.propagation(Path::new("/etc/hosts")), (true, false));
        assert_eq!(table.propagation(Path::new("/data x/y")), (false, true));
        assert_eq!(table.propagation(Path::new("/data x/p/q")), (false, false));
    }

    #[test]
    fn devices_of_a_config_are_looked_up() {
        let device = |host: &str| cri::Device {
            host_path: host.into(),
            container_path: "/dev/x".into(),
            permissions: "r".into(),
        };
        let config = cri::ContainerConfig {
            devices: vec![device("/dev/null")],
            ..Default::default()
        };
        let node = &inspect(&config, &Containers::default()).unwrap().devices[0];
        assert_eq!((node.major, node.minor, node.access.as_str()), (1, 3, "r"));
        for bad in ["/etc/passwd", "/dev/no-such-thing"] {
            let config = cri::ContainerConfig {
                devices: vec![device(bad)],
                ..Default::default()
            };
            assert!(
                inspect(&config, &Containers::default())
                    .unwrap_err()
                    .to_string()
                    .contains(bad)
            );
        }
    }

    #[test]
    fn a_missing_host_path_is_made_or_refused_as_the_node_says() {
        let base = std::env::temp_dir().join(format!("wharf-host-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let at = |name: &str| base.join(name);
        let look = |path: &Path, settings: &Containers| {
            let config = cri::ContainerConfig {
                mounts: vec![cri::Mount {
                    host_path: path.to_string_lossy().into_owned(),
                    container_path: "/x".into(),
                    ..Default::default()
                }],
                ..Default::default()
            };
            inspect(&config, settings).map(|mut facts| facts.mounts.remove(0).unwrap().path)
        };
        let mut settings = Containers::default();
        assert!(look(&at("made/deep"), &settings).is_ok() && at("made/deep").is_dir());
        std::os::unix::fs::symlink("made/deep", at("link")).unwrap();
        assert_eq!(
            look(&at("link"), &settings).unwrap(),
            at("made/deep").canonicalize().unwrap()
        );
        settings.required_host_paths = vec![at("mine")];
        let error = look(&at("mine"), &settings).unwrap_err().to_string();
        assert!(error.contains("mine") && !at("mine").exists(), "{error}");
        assert!(look(&at("other"), &settings).is_ok());
        settings.missing_host_paths = MissingHostPaths::Refuse;
        let error = look(&at("absent"), &settings).unwrap_err().to_string();
        assert!(error.contains("absent") && !at("absent").exists(), "{error}");
        assert!(look(&at("made"), &settings).is_ok());
        settings.devices = vec!["/dev/null:/dev/void:r".into()];
        let facts = inspect(&cri::ContainerConfig::default(), &settings).unwrap();
        assert_eq!(
            (facts.devices[0].path.as_path(), facts.devices[0].minor),
            (Path::new("/dev/void"), 3)
        );
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn kernel_releases_are_parsed() {
        assert_eq!(parse_kernel("6.18.44-fc-v657\n"), (6, 18));
        assert_eq!(parse_kernel("5.10-rc1"), (5, 10));
    }
}
