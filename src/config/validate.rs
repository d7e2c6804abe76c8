//! Ranges and relations of values that types alone can't state.

mod runtimes;

use std::net::IpAddr;
use std::path::Path;

use super::{
    containers::{Ulimit, parse_device},
    isolation::CpuSet,
    model::{Config, TlsVersion},
};

/// A value that is not allowed.
pub struct Fault {
    /// Where it stands, from the outermost table inwards.
    pub key: Vec<String>,
    /// What is wrong with it.
    pub message: String,
}

pub(super) type Check = Result<(), Fault>;

pub(super) fn fault(key: &[&str], message: impl Into<String>) -> Check {
    Err(Fault {
        key: key.iter().map(|part| (*part).to_owned()).collect(),
        message: message.into(),
    })
}

/// Checks a merged configuration.
pub fn check(config: &Config) -> Check {
    absolute(&["state_dir"], &config.state_dir)?;
    absolute(&["run_dir"], &config.run_dir)?;
    if !config.socket.as_os_str().is_empty() {
        absolute(&["socket"], &config.socket)?;
    }
    if config.state_dir == config.run_dir {
        return fault(&["run_dir"], "is the same directory as state_dir; each needs its own");
    }
    socket_length(config)?;
    let level = config.log.level.parse::<tracing_subscriber::EnvFilter>();
    if let Err(error) = level {
        return fault(
            &["log", "level"],
            format!("\"{}\" is no log level or filter: {error}", config.log.level),
        );
    }
    runtimes::check(config)?;
    if let Some(file) = &config.audit.file {
        absolute(&["audit", "file"], file)?;
    }
    super::observability::check(&config.tracing)?;
    if !config.cgroups.has_slice() {
        return fault(
            &["cgroups", "slice"],
            format!(
                "\"{}\" is not the name of a slice, such as \"wharf.slice\"",
                config.cgroups.slice
            ),
        );
    }
    pinned_images(config)?;
    registries(config)?;
    super::network::check(config)?;
    super::nri::check(&config.nri)?;
    range(&["max_log_line"], u64::from(config.max_log_line), 256, 1 << 20)?;
    if config.log_rate_limit > 0 {
        range(
            &["log_rate_limit"],
            u64::from(config.log_rate_limit),
            1024,
            u64::from(u32::MAX),
        )?;
    }
    if let Some(limit) = config.pids_limit {
        range(&["pids_limit"], u64::from(limit), 1, 4 << 20)?;
    }
    for (name, class) in &config.blockio_classes {
        let key = ["blockio_classes", name];
        let rates = [&class.read_bps, &class.write_bps, &class.read_iops, &class.write_iops];
        for device in rates.iter().flat_map(|rates| rates.keys()) {
            absolute(&key, device)?;
        }
        if let Some(weight) = class.weight {
            range(&["blockio_classes", name, "weight"], u64::from(weight), 10, 1000)?;
        }
    }
    range(&["unclaimed_secs"], config.unclaimed_secs, 1, 3600)?;
    cpu_isolation(config)?;
    rdt(config)?;
    range(
        &["pull", "max_parallel_layers"],
        config.pull.max_parallel_layers as u64,
        1,
        32,
    )?;
    for directory in &config.pull.hosts_dirs {
        absolute(&["pull", "hosts_dirs"], directory)?;
    }
    absolute(&["pull", "registries_conf"], &config.pull.registries_conf)?;
    range(&["pull", "stall_timeout_secs"], config.pull.stall_timeout_secs, 1, 3600)?;
    range(&["pull", "lazy_timeout_secs"], config.pull.lazy_timeout_secs, 1, 3600)?;
    range(&["pull", "keep_partial_secs"], config.pull.keep_partial_secs, 0, 86400)?;
    config
        .cdi
        .spec_dirs
        .iter()
        .try_for_each(|dir| absolute(&["cdi", "spec_dirs"], dir))?;
    super::trust::check(&config.trust)?;
    streaming(config)?;
    apparmor(config)?;
    range(&["selinux_categories"], u64::from(config.selinux_categories), 2, 1024)?;
    containers(config)?;
    capabilities(config)
}

fn pinned_images(config: &Config) -> Check {
    if config.pinned_images.iter().any(String::is_empty) {
        return fault(&["pinned_images"], "has an empty name, which no image has");
    }
    Ok(())
}

fn containers(config: &Config) -> Check {
    let settings = &config.containers;
    for path in &settings.required_host_paths {
        absolute(&["containers", "required_host_paths"], path)?;
    }
    if settings.timezone.starts_with('/') || settings.timezone.split('/').any(|part| part == "..") {
        return fault(
            &["containers", "timezone"],
            format!("\"{}\" is no time zone such as Europe/Berlin", settings.timezone),
        );
    }
    for path in &settings.allowed_devices {
        absolute(&["containers", "allowed_devices"], path)?;
    }
    for path in &settings.seccomp_listeners {
        absolute(&["containers", "seccomp_listeners"], path)?;
    }
    for path in &settings.hooks_dirs {
        absolute(&["containers", "hooks_dirs"], path)?;
    }
    if let [0, _] = config.project_ids {
        return fault(
            &["project_ids"],
            "must not have 0, which is what files without a project have",
        );
    }
    if config.project_ids[0] > config.project_ids[1] {
        return fault(&["project_ids"], "has the last id before the first");
    }
    range(&["containers", "disk_limit"], settings.disk_limit, 0, i64::MAX as u64)?;
    range(&["containers", "shm_size"], settings.shm_size, 4096, i64::MAX as u64)?;
    for (key, entries) in [("env", &settings.env), ("sysctls", &settings.sysctls)] {
        for entry in entries {
            let name = entry.split_once('=').map_or("", |(name, _)| name);
            if name.is_empty() || entry.contains('\0') {
                return fault(
                    &["containers", key],
                    format!("\"{entry}\" is not of the form NAME=value"),
                );
            }
        }
    }
    for limit in &settings.ulimits {
        if let Err(why) = Ulimit::parse(limit) {
            return fault(&["containers", "ulimits"], why);
        }
    }
    for device in &settings.devices {
        if let Err(why) = parse_device(device) {
            return fault(&["containers", "devices"], why);
        }
    }
    Ok(())
}

fn streaming(config: &Config) -> Check {
    let streaming = &config.streaming;
    if streaming.address.is_unspecified() {
        return fault(
            &["streaming", "address"],
            "must be an address that clients can reach; it is part of the URLs that they get",
        );
    }
    range(
        &["streaming", "idle_timeout_secs"],
        streaming.idle_timeout_secs,
        1,
        7 * 24 * 3600,
    )?;
    range(
        &["streaming", "creation_timeout_secs"],
        streaming.creation_timeout_secs,
        1,
        600,
    )?;
    for (key, file) in [
        ("cert", &streaming.cert),
        ("key", &streaming.key),
        ("client_ca", &streaming.client_ca),
    ] {
        if let Some(file) = file {
            if !streaming.tls {
                return fault(&["streaming", key], "has no meaning without tls = true");
            }
            absolute(&["streaming", key], file)?;
        }
    }
    if streaming.min_tls_version != TlsVersion::V12 && !streaming.tls {
        return fault(&["streaming", "min_tls_version"], "has no meaning without tls = true");
    }
    match (&streaming.cert, &streaming.key) {
        (Some(_), None) => fault(&["streaming", "cert"], "needs its private key: set key as well"),
        (None, Some(_)) => fault(&["streaming", "key"], "needs its certificate: set cert as well"),
        _ => Ok(()),
    }
}

pub(super) fn absolute(key: &[&str], path: &Path) -> Check {
    if path.is_absolute() {
        return Ok(());
    }
    fault(key, format!("\"{}\" is not an absolute path", path.display()))
}

pub(super) fn range(key: &[&str], value: u64, low: u64, high: u64) -> Check {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    fault(key, format!("{value} is not between {low} and {high}"))
}

/// The kernel takes 107 bytes for a socket's path, unix(7). Clients name this one; those of monitors are reached by a
/// descriptor of their directory and may lie deeper.
fn socket_length(config: &Config) -> Check {
    if config.socket.as_os_str().len() > 107 {
        return fault(
            &["socket"],
            "is longer than the 107 bytes that the kernel allows for a socket",
        );
    }
    Ok(())
}

fn cpu_isolation(config: &Config) -> Check {
    let settings = &config.cpu_isolation;
    for (key, path) in [
        ("irq_affinity_file", &settings.irq_affinity_file),
        ("irqbalance_config", &settings.irqbalance_config),
        ("cpu_dir", &settings.cpu_dir),
    ] {
        absolute(&["cpu_isolation", key], path)?;
    }
    if let Some(list) = &settings.shared_cpuset
        && CpuSet::parse(list).is_none_or(|set| set.is_empty())
    {
        return fault(
            &["cpu_isolation", "shared_cpuset"],
            format!("\"{list}\" is not a list of CPUs such as \"0-1,4\""),
        );
    }
    Ok(())
}

fn rdt(config: &Config) -> Check {
    absolute(&["rdt", "resctrl_dir"], &config.rdt.resctrl_dir)?;
    for (name, schemata) in &config.rdt.classes {
        let key = ["rdt", "classes", name];
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return fault(&key, "is no name of a class");
        }
        if let Some(line) = schemata.iter().find(|line| !line.contains(':') || line.contains('\n')) {
            return fault(&key, format!("\"{line}\" is not a line such as \"L3:0=ff;1=ff\""));
        }
    }
    Ok(())
}

fn registries(config: &Config) -> Check {
    for (host, registry) in &config.registries {
        if !is_host(host) {
            return fault(&["registries", host], "is not a registry's host or host:port");
        }
        if let Some(ca) = &registry.ca {
            absolute(&["registries", host, "ca"], ca)?;
        }
        for mirror in &registry.mirrors {
            if !is_host(mirror.split('/').next().unwrap_or_default()) {
                return fault(
                    &["registries", host, "mirrors"],
                    format!("\"{mirror}\" is not host[:port][/path]; a scheme is not part of it (use plain_http)"),
                );
            }
        }
    }
    Ok(())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let named = host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let v6 = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .is_some_and(|h| h.parse::<IpAddr>().is_ok());
    !host.is_empty() && (named || v6) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn apparmor(config: &Config) -> Check {
    let name = &config.apparmor_profile;
    if name.is_empty() || name == "unconfined" || name.contains(char::is_control) {
        return fault(
            &["apparmor_profile"],
            format!("{name:?} is no profile's name; apparmor = false switches AppArmor off"),
        );
    }
    Ok(())
}

fn capabilities(config: &Config) -> Check {
    for name in config.default_capabilities.iter().flatten() {
        let known = format!("CAP_{}", name.strip_prefix("CAP_").unwrap_or(name));
        if !CAPABILITIES.contains(&known.as_str()) {
            return fault(
                &["default_capabilities"],
                format!("\"{name}\" is no capability of Linux"),
            );
        }
    }
    Ok(())
}

/// Every capability, in the kernel's order (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];
