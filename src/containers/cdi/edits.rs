//! From found devices to what they bring: device numbers are looked up, what can't be done is refused.

use std::{fs, path::PathBuf, sync::Arc};

use oci_spec::runtime::LinuxDeviceType;

use super::{
    Error,
    catalog::Found,
    format::{Bind, Edits, Hook, Node},
};
use crate::containers::host::{self, DeviceNode};

/// What CDI devices bring into a container. Plain data: nothing of it needs the machine any more.
#[derive(Debug, Clone, Default)]
pub struct Injection {
    pub(super) env: Vec<String>,
    pub(super) nodes: Vec<InjectedNode>,
    pub(super) mounts: Vec<Bind>,
    pub(super) hooks: Vec<Hook>,
    pub(super) groups: Vec<u32>,
    pub(super) net_devices: Vec<(String, String)>,
}

/// A device node; without an owner it becomes the process's.
#[derive(Debug, Clone)]
pub(super) struct InjectedNode {
    pub path: PathBuf,
    /// On the node.
    pub host_path: PathBuf,
    pub kind: LinuxDeviceType,
    pub major: i64,
    pub minor: i64,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub access: String,
}

/// The edits of each file, once and before those of its first device, then each device's.
pub(super) fn collect(devices: Vec<Found>) -> Result<Injection, Error> {
    let mut out = Injection::default();
    let mut files = Vec::new();
    for device in &devices {
        let fail = |reason: String| Error::Edit {
            device: device.name.clone(),
            file: device.source.path.clone(),
            reason,
        };
        if !files.iter().any(|known| Arc::ptr_eq(known, &device.source)) {
            files.push(Arc::clone(&device.source));
            out.add(&device.source.file.container_edits).map_err(fail)?;
        }
        let own = &device.source.file.devices[device.at];
        out.add(&own.container_edits).map_err(fail)?;
    }
    Ok(out)
}

impl Injection {
    /// Network devices of the node's, by their names there, with those in the pod.
    pub fn net_devices(&self) -> impl Iterator<Item = (String, String)> {
        self.net_devices.iter().cloned()
    }

    /// Where the device nodes are in the container, and where on the machine.
    pub fn places(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        let place = |node: &InjectedNode| (node.path.clone(), node.host_path.clone());
        self.nodes.iter().map(place)
    }

    fn add(&mut self, edits: &Edits) -> Result<(), String> {
        if edits.intel_rdt.is_some() {
            return Err("intelRdt is not supported".into());
        }
        self.env.extend(edits.env.iter().cloned());
        for wanted in &edits.device_nodes {
            self.nodes.push(node(wanted)?);
        }
        for bind in &edits.mounts {
            let absent = fs::symlink_metadata(&bind.host_path).err();
            // Whatever is no bind has a source that is no path.
            if let (true, Some(error)) = (is_bind(bind), absent) {
                return Err(format!("mount of {}: {error}", bind.host_path.display()));
            }
            self.mounts.push(bind.clone());
        }
        self.hooks.extend(edits.hooks.iter().cloned());
        let devices = edits.net_devices.iter();
        self.net_devices
            .extend(devices.map(|device| (device.host_interface_name.clone(), device.name.clone())));
        self.groups
            .extend(edits.additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }
}

/// A mount without a type is one too.
pub(super) fn is_bind(bind: &Bind) -> bool {
    bind.kind.is_empty() || bind.options.iter().any(|option| option == "bind" || option == "rbind")
}

/// Type and numbers that the file leaves out are those of the node on the host.
fn node(wanted: &Node) -> Result<InjectedNode, String> {
    let fail = |reason: String| format!("device node {}: {reason}", wanted.path.display());
    let mut kind = match wanted.kind.as_str() {
        "b" => Some(LinuxDeviceType::B),
        "c" => Some(LinuxDeviceType::C),
        "u" => Some(LinuxDeviceType::U),
        "p" => Some(LinuxDeviceType::P),
        _ => None,
    };
    let (mut major, mut minor) = (wanted.major, wanted.minor);
    let fifo = kind == Some(LinuxDeviceType::P);
    if kind.is_none() || (!fifo && major == 0 && minor == 0) {
        let host_path = wanted.host_path.as_ref().unwrap_or(&wanted.path);
        let metadata = fs::metadata(host_path).map_err(|error| fail(format!("{}: {error}", host_path.display())))?;
        let found: DeviceNode = host::node(&metadata, wanted.path.clone(), host_path, "")
            .ok_or_else(|| fail(format!("{} is not a device node", host_path.display())))?;
        let same = |asked| asked == found.kind || (asked == LinuxDeviceType::U && found.kind == LinuxDeviceType::C);
        if !kind.is_none_or(same) {
            return Err(fail(format!(
                "{} is not of type {:?}",
                host_path.display(),
                wanted.kind
            )));
        }
        kind.get_or_insert(found.kind);
        (major, minor) = (i64::from(found.major), i64::from(found.minor));
    }
    Ok(InjectedNode {
        path: wanted.path.clone(),
        host_path: wanted.host_path.as_ref().unwrap_or(&wanted.path).clone(),
        kind: kind.unwrap_or(LinuxDeviceType::C),
        major,
        minor,
        mode: wanted.file_mode,
        uid: wanted.uid,
        gid: wanted.gid,
        access: if wanted.permissions.is_empty() {
            "rwm".to_owned()
        } else {
            wanted.permissions.clone()
        },
    })
}
