//! Settings of networks.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::model::{Config, NetworkMode};
use super::validate::{Check, absolute, fault, range};

/// The Container Network Interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// Where network configurations lie; the first by name is used. Absolute.
    pub conf_dir: PathBuf,
    /// Where plugins are looked for, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Where results of ADD are kept as libcni does, below `results`. Absolute.
    pub cache_dir: PathBuf,
    /// Seconds after which a plugin is killed; 1 to 600.
    pub timeout_secs: u64,
    /// How many networks a pod is attached to at most, in the order of their files' names; 0 is all.
    pub max_networks: usize,
    /// Seconds that a pod's creation waits at most for a network that is not ready; 0 to 600.
    pub ready_wait_secs: u64,
    /// Seconds between two STATUS of the plugins; 1 to 3600.
    pub status_interval_secs: u64,
    /// Seconds for which a network that was ready must be found not to be before that is told; 0 to 3600.
    pub status_grace_secs: u64,
    /// Seconds between two rounds of GC and CHECK, after the one at the start; 60 to 604800, or 0 for none.
    pub upkeep_interval_secs: u64,
    /// A template from which a configuration is made when kubelet tells the pod CIDR and none is there. Absolute.
    pub conf_template: Option<PathBuf>,
}

/// Wharf's own network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuiltinNetwork {
    /// Name of the bridge device; made when absent.
    pub bridge: String,
    /// IPv4 addresses of pods in CIDR notation; the first is the bridge's. Empty is IPv6 only.
    pub subnet: String,
    /// IPv6 addresses of pods in CIDR notation; unset is IPv4 only.
    pub subnet_v6: Option<String>,
    /// Largest packet in bytes; unset follows the device of the default route.
    pub mtu: Option<u32>,
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            timeout_secs: 60,
            max_networks: 1,
            ready_wait_secs: 120,
            status_interval_secs: 10,
            status_grace_secs: 60,
            upkeep_interval_secs: 3600,
            conf_template: None,
        }
    }
}

impl Default for BuiltinNetwork {
    fn default() -> Self {
        Self {
            bridge: "wharf0".into(),
            subnet: "10.121.0.0/16".into(),
            subnet_v6: None,
            mtu: None,
        }
    }
}

/// Checks the settings of networks.
pub(super) fn check(config: &Config) -> Check {
    cni(config)?;
    handlers(config)?;
    builtin(config)
}

fn cni(config: &Config) -> Check {
    let cni = &config.cni;
    absolute(&["cni", "conf_dir"], &cni.conf_dir)?;
    absolute(&["cni", "cache_dir"], &cni.cache_dir)?;
    if let Some(template) = &cni.conf_template {
        absolute(&["cni", "conf_template"], template)?;
    }
    if cni.bin_dirs.is_empty() {
        return fault(&["cni", "bin_dirs"], "needs at least one directory");
    }
    range(&["cni", "timeout_secs"], cni.timeout_secs, 1, 600)?;
    range(&["cni", "ready_wait_secs"], cni.ready_wait_secs, 0, 600)?;
    range(&["cni", "status_interval_secs"], cni.status_interval_secs, 1, 3600)?;
    range(&["cni", "status_grace_secs"], cni.status_grace_secs, 0, 3600)?;
    match cni.upkeep_interval_secs {
        0 => Ok(()),
        seconds => range(&["cni", "upkeep_interval_secs"], seconds, 60, 7 * 24 * 3600),
    }
}

fn handlers(config: &Config) -> Check {
    for (name, handler) in &config.runtimes {
        if let Some(dir) = &handler.cni_conf_dir {
            absolute(&["runtimes", name, "cni_conf_dir"], dir)?;
        }
        let own = handler.cni_conf_dir.is_some() || handler.cni_max_networks.is_some();
        if own && config.network != NetworkMode::Cni {
            let key = if handler.cni_conf_dir.is_some() {
                "cni_conf_dir"
            } else {
                "cni_max_networks"
            };
            return fault(&["runtimes", name, key], "has no meaning without network = \"cni\"");
        }
    }
    Ok(())
}

fn builtin(config: &Config) -> Check {
    let network = &config.builtin_network;
    let bridge = &network.bridge;
    if bridge.is_empty() || bridge.len() > 15 || bridge.contains(['/', ' ', ':']) || bridge.starts_with('.') {
        return fault(
            &["builtin_network", "bridge"],
            format!("\"{bridge}\" is no device name (1 to 15 characters)"),
        );
    }
    match (network.subnet.as_str(), &network.subnet_v6) {
        ("", None) => {
            return fault(
                &["builtin_network", "subnet"],
                "may be empty only when subnet_v6 is set",
            );
        }
        ("", Some(_)) => {}
        (v4, _) => subnet(&["builtin_network", "subnet"], v4, false)?,
    }
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
