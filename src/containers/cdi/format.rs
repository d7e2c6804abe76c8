//! A spec file: its fields, and what makes it valid (CDI specification 0.3 to 1.1).

use std::{collections::HashMap, collections::HashSet, path::PathBuf};

use serde::{Deserialize, de::IgnoredAny};

use super::names;
use crate::netns;

/// Larger files are refused; real ones have some kilobytes.
pub(super) const MAX_FILE: u64 = 4 << 20;
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SpecFile {
    cdi_version: String,
    /// `vendor/class` of every device.
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: HashMap<String, String>,
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Made once for each container that gets a device of this file.
    #[serde(default)]
    pub container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: HashMap<String, String>,
    pub container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub net_devices: Vec<NetDevice>,
    pub mounts: Vec<Bind>,
    pub hooks: Vec<Hook>,
    pub intel_rdt: Option<IgnoredAny>,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Node {
    pub path: PathBuf,
    pub host_path: Option<PathBuf>,
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub major: i64,
    #[serde(default)]
    pub minor: i64,
    pub file_mode: Option<u32>,
    #[serde(default)]
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// Since version 1.1.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Bind {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub hook_name: String,
    pub path: PathBuf,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

/// Reads the text of a file with this extension.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(super) fn parse(text: &str, yaml: bool) -> Result<SpecFile, String> {
    let file: SpecFile = if yaml {
        // Vendors write modes as `0660`, which YAML 1.1 and the readers of other runtimes take for octal.
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?
    } else {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    };
    check(&file)?;
    Ok(file)
}

fn check(file: &SpecFile) -> Result<(), String> {
    let version = file.cdi_version.trim_start_matches('v');
    if !VERSIONS.contains(&version) {
        return Err(format!(
            "cdiVersion {:?} is none of {}",
            file.cdi_version,
            VERSIONS.join(", ")
        ));
    }
    names::check_kind(&file.kind).map_err(|reason| format!("kind {:?}: {reason}", file.kind))?;
    if file.devices.is_empty() {
        return Err("it defines no devices".into());
    }
    let mut seen = HashSet::new();
    check_edits(&file.container_edits)?;
    for device in &file.devices {
        let in_device = |reason: String| format!("device {:?}: {reason}", device.name);
        names::check_device(&device.name).map_err(|reason| in_device(reason.into()))?;
        if !seen.insert(&device.name) {
            return Err(in_device("defined twice".into()));
        }
        if device.container_edits.is_empty() {
            return Err(in_device("its containerEdits are empty".into()));
        }
        check_edits(&device.container_edits).map_err(in_device)?;
    }
    Ok(())
}

impl Edits {
    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.net_devices.is_empty()
            && self.mounts.is_empty()
            && self.hooks.is_empty()
            && self.intel_rdt.is_none()
            && self.additional_gids.is_empty()
    }
}

fn check_edits(edits: &Edits) -> Result<(), String> {
    let plain = |path: &PathBuf| {
        path.is_absolute()
            && !path.components().any(|part| part == std::path::Component::ParentDir)
            && !path.as_os_str().as_encoded_bytes().contains(&0)
    };
    for env in &edits.env {
        if env.split_once('=').is_none_or(|(name, _)| name.is_empty()) || env.contains('\0') {
            return Err(format!("env {env:?} is not NAME=value"));
        }
    }
    for node in &edits.device_nodes {
        let wrong = |reason: &str| Err(format!("device node {}: {reason}", node.path.display()));
        if !plain(&node.path) || node.host_path.as_ref().is_some_and(|path| !plain(path)) {
            return wrong("a path is not plain and absolute");
        }
        if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
            return wrong(&format!("type {:?} is none of b, c, u and p", node.kind));
        }
        if !node.permissions.chars().all(|c| "rwm".contains(c)) {
            return wrong(&format!(
                "permissions {:?} are not made of r, w and m",
                node.permissions
            ));
        }
        let number = |value| (0..=i64::from(u32::MAX)).contains(&value);
        if !number(node.major) || !number(node.minor) {
            return wrong("its major or minor number is out of range");
        }
    }
    let names = |device: &NetDevice| [device.host_interface_name.clone(), device.name.clone()];
    if let Some(wrong) = edits
        .net_devices
        .iter()
        .flat_map(names)
        .find(|name| !netns::is_device_name(name))
    {
        return Err(format!("network device {wrong:?}: no device can have this name"));
    }
    for bind in &edits.mounts {
        if !plain(&bind.container_path) || bind.host_path.as_os_str().is_empty() {
            return Err(format!(
                "mount {}: containerPath is not plain and absolute, or hostPath is empty",
                bind.container_path.display()
            ));
        }
    }
    for hook in &edits.hooks {
        let wrong = |reason: String| Err(format!("hook {} {}: {reason}", hook.hook_name, hook.path.display()));
        const HOOKS: [&str; 6] = [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ];
        if !HOOKS.contains(&hook.hook_name.as_str()) {
            return wrong(format!("its name is none of {}", HOOKS.join(", ")));
        }
        if !plain(&hook.path) {
            return wrong("its path is not plain and absolute".into());
        }
        if hook.timeout.is_some_and(|seconds| seconds < 0) {
            return wrong("its timeout is less than zero".into());
        }
        if let Some(env) = hook.env.iter().find(|env| !env.contains('=')) {
            return wrong(format!("env {env:?} is not NAME=value"));
        }
    }
    Ok(())
}
