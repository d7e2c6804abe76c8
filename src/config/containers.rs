//! Settings of all containers of the node: the table `[containers]`.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::model::parse_size;

/// What all containers get, beyond what is asked for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containers {
    /// What becomes of volumes that an image declares.
    pub image_volumes: ImageVolumes,
    /// What becomes of a mount whose path on the node is not there.
    pub missing_host_paths: MissingHostPaths,
    /// Paths on the node that are never made for a mount, but must be there. Absolute.
    pub required_host_paths: Vec<PathBuf>,
    /// Size of a pod's /dev/shm in bytes; at least 4096. A number, or text such as `"64MiB"`.
    #[serde(deserialize_with = "size")]
    pub shm_size: u64,
    /// Seconds that ExecSync waits for output that a command's children hold open after its end; 0 is no limit beside the call's
    /// own.
    pub exec_drain_secs: u64,
    /// `NAME=value`: sysctls of pods, unless a pod asks for another value or shares the namespace with the node.
    pub sysctls: Vec<String>,
    /// Root filesystems can't be written, whatever is asked for.
    pub read_only_rootfs: bool,
    /// `NAME=value`; the image and the container override it.
    pub env: Vec<String>,
    /// Resource limits of processes as Docker writes them, `nofile=1024:2048`: name as in setrlimit(2), soft and hard
    /// limit; one number is both, -1 is none.
    pub ulimits: Vec<String>,
    /// Where OCI hooks lie, as CRI-O and Podman read them; a file in a later directory replaces one of the same name in
    /// an earlier. Absolute; a directory that is not there is empty.
    pub hooks_dirs: Vec<PathBuf>,
    /// Device nodes as Docker writes them: `host[:container[:permissions]]`.
    pub devices: Vec<String>,
    /// Time zone of all containers, such as `Europe/Berlin`, or `local` for the node's; empty leaves it to the image.
    pub timezone: String,
    /// Nodes that a pod may ask for by the annotation `devices.crio.io`, where its handler allows that. Absolute.
    pub allowed_devices: Vec<PathBuf>,
    /// Sockets that seccomp profiles may name as their listener, or directories with such sockets. Absolute; none unless set.
    pub seccomp_listeners: Vec<PathBuf>,
    /// Most bytes that a container may write to its root filesystem and the volumes that its image declares; 0 is no limit.
    /// Needs a file system with project quotas. A number, or text such as `"10GiB"`.
    #[serde(deserialize_with = "size")]
    pub disk_limit: u64,
}

/// What becomes of volumes that an image declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageVolumes {
    /// A directory beside the container's root filesystem, with what the image has there.
    Bind,
    /// Nothing: they are a part of the root filesystem.
    Ignore,
}

/// What becomes of a mount whose path on the node is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingHostPaths {
    /// It is made, as a directory: what other runtimes do.
    Create,
    /// The container is refused: what the API says.
    Refuse,
}

/// A resource limit of processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// As the runtime specification names it: `RLIMIT_NOFILE`.
    pub name: String,
    /// What counts; a process may raise it up to `hard`.
    pub soft: u64,
    /// The most.
    pub hard: u64,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            image_volumes: ImageVolumes::Bind,
            missing_host_paths: MissingHostPaths::Create,
            required_host_paths: Vec::new(),
            shm_size: 64 << 20,
            exec_drain_secs: 0,
            sysctls: Vec::new(),
            read_only_rootfs: false,
            env: Vec::new(),
            ulimits: Vec::new(),
            hooks_dirs: vec![
                "/usr/share/containers/oci/hooks.d".into(),
                "/etc/containers/oci/hooks.d".into(),
            ],
            devices: Vec::new(),
            timezone: String::new(),
            allowed_devices: vec!["/dev/fuse".into(), "/dev/net/tun".into()],
            seccomp_listeners: Vec::new(),
            disk_limit: 0,
        }
    }
}

/// Limits that Linux knows, in setrlimit(2)'s words without the head.
const LIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl Ulimit {
    /// Reads `name=soft[:hard]`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shape = || format!("\"{text}\" is not a limit such as nofile=1024:2048");
        let (name, limits) = text.split_once('=').ok_or_else(shape)?;
        let name = name.trim().to_ascii_lowercase();
        let name = name.strip_prefix("rlimit_").unwrap_or(&name);
        if !LIMITS.contains(&name) {
            return Err(format!("\"{name}\" is no resource limit of Linux"));
        }
        let number = |text: &str| match text.trim() {
            // RLIM_INFINITY.
            "-1" | "unlimited" => Ok(u64::MAX),
            text => text.parse::<u64>().map_err(|_| shape()),
        };
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(format!("\"{text}\": the soft limit is above the hard one"));
        }
        Ok(Self {
            name: format!("RLIMIT_{}", name.to_ascii_uppercase()),
            soft,
            hard,
        })
    }
}

/// Host path, container path and permissions of `host[:container[:permissions]]`; the container path is the host's, and
/// permissions are empty, where they are left out.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse_device(text: &str) -> Result<(&str, &str, &str), String> {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let (inside, access) = match (parts.next(), parts.next()) {
        (None, _) => (host, ""),
        (Some(access), None) if !access.is_empty() && access.chars().all(|c| "rwm".contains(c)) => (host, access),
        (Some(inside), access) => (inside, access.unwrap_or_default()),
    };
    let plain = |path: &str| path.starts_with('/') && !path.contains("/..");
    if parts.next().is_some() || !plain(host) || !plain(inside) || !access.chars().all(|c| "rwm".contains(c)) {
        return Err(format!(
            "\"{text}\" is not a device such as /dev/fuse or /dev/sdc:/dev/xvdc:rwm"
        ));
    }
    Ok((host, inside, access))
}

fn size<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(u64),
        Text(String),
    }
    match Size::deserialize(value) {
        Ok(Size::Number(bytes)) => Ok(bytes),
        Ok(Size::Text(text)) => parse_size(&text)
            .ok_or_else(|| D::Error::custom(format!("\"{text}\" is not a size such as 67108864 or \"64MiB\""))),
        Err(_) => Err(D::Error::custom("expected a size such as 67108864 or \"64MiB\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_docker_writes_them() {
        let limit = |text: &str| Ulimit::parse(text).map(|limit| (limit.name, limit.soft, limit.hard));
        let nofile = || "RLIMIT_NOFILE".to_owned();
        assert_eq!(limit("nofile=1024:2048").unwrap(), (nofile(), 1024, 2048));
        assert_eq!(limit("RLIMIT_NOFILE=5").unwrap(), (nofile(), 5, 5));
        assert_eq!(limit("core=0:-1").unwrap(), ("RLIMIT_CORE".to_owned(), 0, u64::MAX));
        for bad in [
            "nofile",
            "files=1",
            "nofile=2:1",
            "nofile=x",
            "nofile=-2",
            "nofile=",
            "=1",
        ] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_read_as_docker_writes_them() {
        assert_eq!(parse_device("/dev/fuse").unwrap(), ("/dev/fuse", "/dev/fuse", ""));
        assert_eq!(parse_device("/dev/fuse:r").unwrap(), ("/dev/fuse", "/dev/fuse", "r"));
        assert_eq!(parse_device("/dev/a:/dev/b").unwrap(), ("/dev/a", "/dev/b", ""));
        assert_eq!(parse_device("/dev/a:/dev/b:rw").unwrap(), ("/dev/a", "/dev/b", "rw"));
        for bad in [
            "",
            "fuse",
            "/dev/a:b",
            "/dev/a:/dev/b:x",
            "/dev/a:/dev/b:r:w",
            "/dev/../a",
            "/dev/a:",
        ] {
            assert!(parse_device(bad).is_err(), "{bad}");
        }
    }
}
