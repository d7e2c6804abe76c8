//! Ranges and relations of values that types alone can't state.

use std::net::IpAddr;
use std::path::Path;

use super::{
    containers::{Ulimit, parse_device},
    model::{BUILTIN_RUNTIME, CgroupDriver, Config},
};

/// A value that is not allowed.
pub struct Fault {
    /// Where it stands, from the outermost table inwards.
    pub key: Vec<String>,
    /// What is wrong with it.
    pub message: String,
}

type Check = Result<(), Fault>;

fn fault(key: &[&str], message: impl Into<String>) -> Check {
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
    runtimes(config)?;
    if config.cgroup_driver == CgroupDriver::Systemd {
        return fault(
            &["cgroup_driver"],
            "the systemd driver is not supported yet; set \"cgroupfs\" here and in kubelet's configuration",
        );
    }
    pinned_images(config)?;
    registries(config)?;
    if config.cni.bin_dirs.is_empty() {
        return fault(&["cni", "bin_dirs"], "needs at least one directory");
    }
    range(&["cni", "timeout_secs"], config.cni.timeout_secs, 1, 600)?;
    builtin_network(config)?;
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
    range(&["pull", "keep_partial_secs"], config.pull.keep_partial_secs, 0, 86400)?;
    config
        .cdi
        .spec_dirs
        .iter()
        .try_for_each(|dir| absolute(&["cdi", "spec_dirs"], dir))?;
    streaming(config)?;
    apparmor(config)?;
    range(&["selinux_categories"], u64::from(config.selinux_categories), 2, 1024)?;
    containers(config)?;
    capabilities(config)
}

fn pinned_images(config: &Config) -> Check {
    for pattern in &config.pinned_images {
        let inner = pattern
            .strip_suffix('*')
            .map_or(pattern.as_str(), |rest| rest.strip_prefix('*').unwrap_or(rest));
        if inner.is_empty() || inner.contains('*') {
            let text = format!("\"{pattern}\" is neither a name nor of the form \"name*\" or \"*part*\"");
            return fault(&["pinned_images"], text);
        }
    }
    Ok(())
}

fn containers(config: &Config) -> Check {
    let settings = &config.containers;
    for path in &settings.required_host_paths {
        absolute(&["containers", "required_host_paths"], path)?;
    }
    for path in &settings.hooks_dirs {
        absolute(&["containers", "hooks_dirs"], path)?;
    }
    range(&["containers", "shm_size"], settings.shm_size, 4096, i64::MAX as u64)?;
    for entry in &settings.env {
        let name = entry.split_once('=').map_or("", |(name, _)| name);
        if name.is_empty() || entry.contains('\0') {
            return fault(
                &["containers", "env"],
                format!("\"{entry}\" is not a variable such as NAME=value"),
            );
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
    match (&streaming.cert, &streaming.key) {
        (Some(_), None) => fault(&["streaming", "cert"], "needs its private key: set key as well"),
        (None, Some(_)) => fault(&["streaming", "key"], "needs its certificate: set cert as well"),
        _ => Ok(()),
    }
}

fn absolute(key: &[&str], path: &Path) -> Check {
    if path.is_absolute() {
        return Ok(());
    }
    fault(key, format!("\"{}\" is not an absolute path", path.display()))
}

fn range(key: &[&str], value: u64, low: u64, high: u64) -> Check {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    fault(key, format!("{value} is not between {low} and {high}"))
}

/// The kernel takes 107 bytes for a socket's path; the longest is a monitor's below `run_dir`.
fn socket_length(config: &Config) -> Check {
    let monitor = "/pods/".len() + 64 + "/monitor.sock".len();
    let run_dir = config.run_dir.as_os_str().len();
    if run_dir + monitor > 107 {
        let most = 107 - monitor;
        return fault(
            &["run_dir"],
            format!("is {run_dir} bytes long; sockets below it allow at most {most}"),
        );
    }
    if config.socket.as_os_str().len() > 107 {
        return fault(
            &["socket"],
            "is longer than the 107 bytes that the kernel allows for a socket",
        );
    }
    Ok(())
}

fn runtimes(config: &Config) -> Check {
    for (name, handler) in &config.runtimes {
        if handler.privileged_without_host_devices_all_devices_allowed && !handler.privileged_without_host_devices {
            return fault(
                &["runtimes", name, "privileged_without_host_devices_all_devices_allowed"],
                "has no meaning without privileged_without_host_devices = true",
            );
        }
        if name.is_empty()
            || !name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
        {
            return fault(
                &["runtimes", name],
                "a handler's name has only a-z, 0-9, \"-\" and \".\"",
            );
        }
        if let Some(base) = &handler.base_runtime_spec {
            absolute(&["runtimes", name, "base_runtime_spec"], base)?;
        }
        if name == BUILTIN_RUNTIME {
            if handler.path.as_os_str().is_empty() && handler.root.is_none() {
                continue;
            }
            return fault(
                &["runtimes", name],
                "is Wharf's own runtime and has no path; choose another name",
            );
        }
        if handler.path.as_os_str().is_empty() {
            return fault(
                &["runtimes", name, "path"],
                "is missing: the command of the OCI runtime",
            );
        }
        absolute(&["runtimes", name, "path"], &handler.path)?;
        if let Some(root) = &handler.root {
            absolute(&["runtimes", name, "root"], root)?;
        }
    }
    let default = &config.default_runtime;
    if default != BUILTIN_RUNTIME && !config.runtimes.contains_key(default) {
        let mut known: Vec<_> = config.runtimes.keys().map(String::as_str).collect();
        known.push(BUILTIN_RUNTIME);
        return fault(
            &["default_runtime"],
            format!("no runtime is named \"{default}\"; there are {}", known.join(", ")),
        );
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

fn builtin_network(config: &Config) -> Check {
    let network = &config.builtin_network;
    let bridge = &network.bridge;
    if bridge.is_empty() || bridge.len() > 15 || bridge.contains(['/', ' ', ':']) || bridge.starts_with('.') {
        return fault(
            &["builtin_network", "bridge"],
            format!("\"{bridge}\" is no device name (1 to 15 characters)"),
        );
    }
    subnet(&["builtin_network", "subnet"], &network.subnet, false)?;
    if let Some(v6) = &network.subnet_v6 {
        subnet(&["builtin_network", "subnet_v6"], v6, true)?;
    }
    match network.mtu {
        Some(mtu) => range(&["builtin_network", "mtu"], u64::from(mtu), 1280, 65535),
        None => Ok(()),
    }
}

fn subnet(key: &[&str], text: &str, v6: bool) -> Check {
    let (low, high, example) = if v6 {
        (48, 124, "fd57:1::/64")
    } else {
        (8, 29, "10.121.0.0/16")
    };
    let parsed = text
        .split_once('/')
        .and_then(|(address, prefix)| Some((address.parse::<IpAddr>().ok()?, prefix.parse::<u64>().ok()?)));
    let Some((address, prefix)) = parsed.filter(|(address, _)| address.is_ipv6() == v6) else {
        let family = if v6 { "IPv6" } else { "IPv4" };
        return fault(
            key,
            format!("\"{text}\" is not an {family} network such as \"{example}\""),
        );
    };
    if !(low..=high).contains(&prefix) {
        return fault(key, format!("the prefix /{prefix} is not between /{low} and /{high}"));
    }
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    if bits & ((1u128 << (width - prefix)) - 1) != 0 {
        return fault(
            key,
            format!("\"{text}\" has bits set beyond its prefix; name the network's first address"),
        );
    }
    Ok(())
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
