//! NRI plugins: the table `[nri]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::validate::{Check, absolute, fault, range};

/// Plugins that watch and adjust containers (Node Resource Interface).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nri {
    /// Serve plugins at all.
    pub enable: bool,
    /// Where plugins that were started by somebody else connect. Absolute.
    pub socket: PathBuf,
    /// No such plugins: nothing listens at `socket`.
    pub disable_connections: bool,
    /// Plugins that Wharf starts, files called `NN-name`. Absolute; absent is none.
    pub plugin_path: PathBuf,
    /// Their configurations, `NN-name.conf` or `name.conf`. Absolute; absent is none.
    pub plugin_config_path: PathBuf,
    /// Seconds within which a plugin must register; 1 to 600.
    pub registration_timeout_secs: u64,
    /// Seconds within which a plugin must answer; one that does not is cut off. 1 to 600.
    pub request_timeout_secs: u64,
    /// What plugins may not do.
    pub default_validator: DefaultValidator,
}

/// The validator that is built in: refuses containers that plugins have adjusted as they may not, or that a plugin has
/// not seen that must.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultValidator {
    /// Use it.
    pub enable: bool,
    /// No plugin may add OCI hooks.
    pub reject_oci_hook_adjustment: bool,
    /// No plugin may replace the seccomp profile RuntimeDefault.
    pub reject_runtime_default_seccomp_adjustment: bool,
    /// No plugin may give a profile to a container that asks for none.
    pub reject_unconfined_seccomp_adjustment: bool,
    /// No plugin may replace a profile of the node's.
    pub reject_custom_seccomp_adjustment: bool,
    /// No plugin may change namespaces.
    pub reject_namespace_adjustment: bool,
    /// No plugin may set sysctls.
    pub reject_sysctl_adjustment: bool,
    /// Plugins, by `name` or `NN-name`, without which no container is created.
    pub required_plugins: Vec<String>,
    /// An annotation with which a pod does without them; empty is none.
    pub tolerate_missing_plugins_annotation: String,
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            enable: false,
            socket: "/var/run/nri/nri.sock".into(),
            disable_connections: false,
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            registration_timeout_secs: 5,
            request_timeout_secs: 2,
            default_validator: DefaultValidator::default(),
        }
    }
}

/// The kernel takes 107 bytes.
const LONGEST_SOCKET: usize = 107;

/// Ranges of the table.
pub(super) fn check(nri: &Nri) -> Check {
    absolute(&["nri", "socket"], &nri.socket)?;
    absolute(&["nri", "plugin_path"], &nri.plugin_path)?;
    absolute(&["nri", "plugin_config_path"], &nri.plugin_config_path)?;
    range(
        &["nri", "registration_timeout_secs"],
        nri.registration_timeout_secs,
        1,
        600,
    )?;
    range(&["nri", "request_timeout_secs"], nri.request_timeout_secs, 1, 600)?;
    if nri.socket.as_os_str().len() > LONGEST_SOCKET {
        return fault(
            &["nri", "socket"],
            format!("is longer than the {LONGEST_SOCKET} bytes that a socket's path may have"),
        );
    }
    Ok(())
}
