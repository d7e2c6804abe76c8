//! The settings: names, types and defaults.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::{
    cgroups::Cgroups,
    containers::Containers,
    handlers::RuntimeHandler,
    isolation::CpuIsolation,
    network::{BuiltinNetwork, Cni},
    nri::Nri,
    observability::{Audit, Metrics, Tracing},
    trust::Trust,
};

/// Name of the runtime handler that is always there: Wharf's own OCI runtime.
pub const BUILTIN_RUNTIME: &str = "builtin";

/// All settings of the daemon, in range and with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default = "defaults")]
pub struct Config {
    /// Durable state: records, images, bundles. Absolute.
    pub state_dir: PathBuf,
    /// What does not outlive a reboot: sockets, pinned namespaces, compiled seccomp filters. Absolute.
    pub run_dir: PathBuf,
    /// The gRPC socket; `<run_dir>/wharf.sock` unless set.
    pub socket: PathBuf,
    /// Group that may use the socket beside root.
    pub socket_group: Option<String>,
    /// Seconds that a pod or container is kept whose creation ended when nobody waited for it any more; 1 to 3600.
    pub unclaimed_secs: u64,
    /// Who connects pods to the network.
    pub network: NetworkMode,
    /// Which of a pod's addresses is told first.
    pub ip_preference: IpPreference,
    /// The daemon's own log.
    pub log: Log,
    /// Handler of pods that name none; a key of `runtimes`.
    pub default_runtime: String,
    /// Runtime handlers by name; [`BUILTIN_RUNTIME`] is always among them, with an empty path.
    pub runtimes: BTreeMap<String, RuntimeHandler>,
    /// Who makes cgroups, and where.
    pub cgroups: Cgroups,
    /// Who reads the daemon's own figures, and where.
    pub metrics: Metrics,
    /// Where traces of calls go.
    pub tracing: Tracing,
    /// Where it is noted who asked for what.
    pub audit: Audit,
    /// Settings per registry, by `host` or `host:port`.
    pub registries: BTreeMap<String, Registry>,
    /// CNI; used when `network` is [`NetworkMode::Cni`].
    pub cni: Cni,
    /// The built-in network; used when `network` is [`NetworkMode::Builtin`].
    pub builtin_network: BuiltinNetwork,
    /// Longest line of a container's log in bytes; longer ones are split into parts. A number, or text such as
    /// `"16KiB"`.
    #[serde(deserialize_with = "size")]
    pub max_log_line: u32,
    /// Bytes that a container may log in a second; lines beyond are left out of its log. 0 is no limit. A number, or text
    /// such as `"1MiB"`.
    #[serde(deserialize_with = "size")]
    pub log_rate_limit: u32,
    /// Copy containers' logs to systemd's journal.
    pub log_to_journald: bool,
    /// Most processes and threads of a container; unset is no limit of its own.
    pub pids_limit: Option<u32>,
    /// Classes of block I/O, which annotations of pods and containers name.
    pub blockio_classes: BTreeMap<String, BlockIoClass>,
    /// Classes of cache and memory bandwidth.
    pub rdt: Rdt,
    /// How CPUs are kept for single containers, which annotations ask for.
    pub cpu_isolation: CpuIsolation,
    /// Capabilities of containers before their own additions and drops; unset is the list that Docker made common.
    pub default_capabilities: Option<Vec<String>>,
    /// What a container gets that asks for no seccomp profile.
    pub unset_seccomp: SeccompDefault,
    /// Confine containers by AppArmor where the kernel enforces it.
    pub apparmor: bool,
    /// The AppArmor profile of containers that name none. Wharf loads the one named `wharf-default` itself; any other must be
    /// loaded by whoever sets it here.
    pub apparmor_profile: String,
    /// Label processes and files by SELinux where the kernel has it.
    pub selinux: bool,
    /// How many categories there are, of which each pod has two of its own; 2 to 1024.
    pub selinux_categories: u32,
    /// Devices that a container asks for belong to the user and group that its security context names.
    pub device_ownership_from_security_context: bool,
    /// A user or group whom the image does not know gets an entry in the container's /etc/passwd or /etc/group.
    pub passwd_entries: bool,
    /// What all containers get.
    pub containers: Containers,
    /// First and last project id (quotactl(2)) for what single containers write, where the file system counts it; at least 1.
    pub project_ids: [u32; 2],
    /// Devices that vendors describe (Container Device Interface).
    pub cdi: Cdi,
    /// Plugins that watch and adjust containers.
    pub nri: Nri,
    /// Images that kubelet's garbage collection must spare: whole names, in which `*` stands for any text and `?` for any character.
    pub pinned_images: Vec<String>,
    /// Image pulls.
    pub pull: Pull,
    /// Which images are let in and run.
    pub trust: Trust,
    /// The server of exec, attach and port-forward.
    pub streaming: Streaming,
}

/// Who connects pods to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Wharf's own bridge; needs nothing else on the node.
    Builtin,
    /// CNI plugins, as Kubernetes networks expect it.
    Cni,
}

/// Which of a pod's addresses is told first; within a family the network's order stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpPreference {
    /// IPv4 before IPv6.
    Ipv4,
    /// IPv6 before IPv4.
    Ipv6,
    /// As the network named them: the built-in one IPv4 first, CNI in the order of the plugin's result.
    Network,
}

/// The daemon's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,wharf::images=debug`.
    pub level: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of the daemon's log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// A class of block I/O. Devices are named by their path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockIoClass {
    /// Share among containers when a disk is busy; 10 to 1000.
    pub weight: Option<u16>,
    /// Most bytes read in a second. A number, or text such as `"10MiB"`.
    #[serde(deserialize_with = "rates")]
    pub read_bps: BTreeMap<PathBuf, u64>,
    /// Most bytes written in a second.
    #[serde(deserialize_with = "rates")]
    pub write_bps: BTreeMap<PathBuf, u64>,
    /// Most reads in a second.
    #[serde(deserialize_with = "rates")]
    pub read_iops: BTreeMap<PathBuf, u64>,
    /// Most writes in a second.
    #[serde(deserialize_with = "rates")]
    pub write_iops: BTreeMap<PathBuf, u64>,
}

/// Classes of cache and memory bandwidth (Resource Director Technology), which annotations of pods and containers name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rdt {
    /// Where the kernel's resctrl file system is mounted. Absolute.
    pub resctrl_dir: PathBuf,
    /// Lines of a class's `schemata`, by its name; classes that are there already need not be named.
    pub classes: BTreeMap<String, Vec<String>>,
}

/// How a registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Speak HTTP without TLS. Loopback registries need no such entry.
    pub plain_http: bool,
    /// Accept any certificate.
    pub skip_verify: bool,
    /// PEM file with certificate authorities that are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// Hosts asked before the registry itself, in this order, as `host[:port]`, with a path if need be.
    pub mirrors: Vec<String>,
}

/// What a container gets that asks for no seccomp profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompDefault {
    /// No filter, as CRI says.
    Unconfined,
    /// The default profile.
    RuntimeDefault,
}

/// The Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cdi {
    /// Where spec files lie; a device in a later directory replaces one of the same name in an earlier. Empty is no CDI.
    pub spec_dirs: Vec<PathBuf>,
}

/// Image pulls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pull {
    /// Layers of one image that are fetched at a time; 1 to 32.
    pub max_parallel_layers: usize,
    /// Seconds without a byte, or with less than 1 KiB a second, after which a transfer counts as broken; 1 to 3600.
    pub stall_timeout_secs: u64,
    /// Seconds for which what a pull that was given up has unpacked is kept for the next try; 0 is not at all, at most 86400.
    pub keep_partial_secs: u64,
    /// Bytes that a layer may have unpacked, so that a small blob can't fill the disk; 0 is no limit. A number, or text such as
    /// `"64GiB"`.
    #[serde(deserialize_with = "bytes")]
    pub max_layer_size: u64,
    /// Keep the compressed blobs of pulled layers beside their files, so that a push gives them on as they came: same bytes, same
    /// manifest, same digest. They take their size on disk.
    pub keep_blobs: bool,
    /// Let containers start before their image is complete, where its layers have a table of contents (eStargz, zstd:chunked);
    /// what they read is fetched on demand meanwhile.
    pub lazy: bool,
    /// Seconds that a container's read of what is not here waits for its registry before it fails; 1 to 3600.
    pub lazy_timeout_secs: u64,
    /// Trees of `hosts.toml` files and certificates, by registry; the first that knows one counts. Absolute.
    pub hosts_dirs: Vec<PathBuf>,
    /// `registries.conf`, version 2, with its `.d` directory. Absolute; absent is fine.
    pub registries_conf: PathBuf,
}

/// The server of exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Where it listens, and what its URLs name; never an unspecified address.
    pub address: IpAddr,
    /// 0 is a free one, chosen at each start.
    pub port: u16,
    /// Speak TLS; without `cert` and `key` with a certificate that is made at each start.
    pub tls: bool,
    /// PEM file with the certificate and those between it and its authority. Absolute.
    pub cert: Option<PathBuf>,
    /// PEM file with the certificate's private key. Absolute.
    pub key: Option<PathBuf>,
    /// PEM file with the authorities one of which must have signed a client's certificate. Absolute.
    pub client_ca: Option<PathBuf>,
    /// The oldest version of TLS that clients may speak.
    pub min_tls_version: TlsVersion,
    /// Seconds without a byte in either direction after which a session ends; 1 to 604800.
    pub idle_timeout_secs: u64,
    /// Seconds within which a client must open its streams; 1 to 600.
    pub creation_timeout_secs: u64,
}

/// A version of TLS; older ones are not spoken at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V13,
}

/// Defaults before [`Config::complete`]: what depends on another setting is still empty.
pub(super) fn defaults() -> Config {
    Config {
        state_dir: "/var/lib/wharf".into(),
        run_dir: "/run/wharf".into(),
        socket: PathBuf::new(),
        socket_group: None,
        unclaimed_secs: 120,
        network: NetworkMode::Builtin,
        ip_preference: IpPreference::Ipv4,
        log: Log::default(),
        default_runtime: BUILTIN_RUNTIME.into(),
        runtimes: BTreeMap::new(),
        cgroups: Cgroups::default(),
        metrics: Metrics::default(),
        tracing: Tracing::default(),
        audit: Audit::default(),
        registries: BTreeMap::new(),
        cni: Cni::default(),
        builtin_network: BuiltinNetwork::default(),
        max_log_line: 16384,
        log_rate_limit: 0,
        log_to_journald: false,
        pids_limit: None,
        blockio_classes: BTreeMap::new(),
        rdt: Rdt::default(),
        cpu_isolation: CpuIsolation::default(),
        default_capabilities: None,
        unset_seccomp: SeccompDefault::Unconfined,
        apparmor: true,
        apparmor_profile: "wharf-default".into(),
        selinux: false,
        selinux_categories: 1024,
        device_ownership_from_security_context: false,
        passwd_entries: true,
        project_ids: [0x7000_0000, 0x700f_ffff],
        containers: Containers::default(),
        cdi: Cdi::default(),
        nri: Nri::default(),
        pinned_images: Vec::new(),
        pull: Pull::default(),
        trust: Trust::default(),
        streaming: Streaming::default(),
    }
}

impl Config {
    /// Fills in what follows from other settings.
    pub(super) fn complete(&mut self) {
        if self.socket.as_os_str().is_empty() {
            self.socket = self.run_dir.join("wharf.sock");
        }
        self.runtimes.entry(BUILTIN_RUNTIME.into()).or_default();
        self.inherit();
    }

    /// Project ids for what containers write.
    #[must_use]
    pub fn project_ids(&self) -> std::ops::RangeInclusive<u32> {
        let [first, last] = self.project_ids;
        first..=last
    }
}

impl Default for Rdt {
    fn default() -> Self {
        Self {
            resctrl_dir: "/sys/fs/resctrl".into(),
            classes: BTreeMap::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

impl Default for Cdi {
    fn default() -> Self {
        Self {
            spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

impl Default for Pull {
    fn default() -> Self {
        Self {
            max_parallel_layers: 3,
            stall_timeout_secs: 60,
            keep_partial_secs: 300,
            max_layer_size: 64 << 30,
            keep_blobs: false,
            lazy: false,
            lazy_timeout_secs: 90,
            hosts_dirs: [
                "/etc/wharf/certs.d",
                "/etc/containerd/certs.d",
                "/etc/containers/certs.d",
                "/etc/docker/certs.d",
            ]
            .map(Into::into)
            .into(),
            registries_conf: "/etc/containers/registries.conf".into(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            tls: false,
            cert: None,
            key: None,
            client_ca: None,
            min_tls_version: TlsVersion::V12,
            idle_timeout_secs: 4 * 3600,
            creation_timeout_secs: 30,
        }
    }
}

/// A number, or text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

impl Size {
    fn bytes<E: serde::de::Error>(self) -> Result<u64, E> {
        match self {
            Self::Number(bytes) => Ok(bytes),
            Self::Text(text) => parse_size(&text)
                .ok_or_else(|| E::custom(format!("\"{text}\" is not a size such as 16384 or \"16KiB\""))),
        }
    }
}

/// A number, or text such as `"16KiB"`.
pub(super) fn bytes<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    let expected = || serde::de::Error::custom("expected a size such as 16384 or \"16KiB\"");
    Size::deserialize(value).map_err(|_| expected())?.bytes()
}

fn size<'de, D: Deserializer<'de>>(value: D) -> Result<u32, D::Error> {
    u32::try_from(bytes(value)?).map_err(|_| serde::de::Error::custom("expected a size below 4 GiB"))
}

fn rates<'de, D: Deserializer<'de>>(value: D) -> Result<BTreeMap<PathBuf, u64>, D::Error> {
    let map = BTreeMap::<PathBuf, Size>::deserialize(value)?;
    map.into_iter().map(|(path, rate)| Ok((path, rate.bytes()?))).collect()
}

/// Bytes of `16384`, `16k`, `16KiB`, `1m`, `1.5g`: powers of 1024, as Docker reads them. `None` if it is no size.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift);
    }
    let bytes = number.parse::<f64>().ok()? * (1u64 << shift) as f64;
    (bytes.is_finite() && bytes < u64::MAX as f64).then_some(bytes as u64)
}
