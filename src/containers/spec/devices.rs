//! Device nodes and device rules.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{PrivilegedDevices, Result, SpecInput, invalid};
use crate::containers::host::DeviceNode;

/// Nodes beside those that every runtime makes (null, zero, full, random, urandom, tty, ptmx, console). A later one
/// replaces an earlier one of the same path, but not one of the node's that is another device.
pub(super) fn nodes(input: &SpecInput) -> Result<Vec<LinuxDevice>> {
    let mut out: Vec<LinuxDevice> = Vec::new();
    let of_host = match input.policy.privileged_devices {
        PrivilegedDevices::All => input.facts.host_devices.as_slice(),
        PrivilegedDevices::Allowed | PrivilegedDevices::Own => &[],
    };
    for (own, of_host) in input
        .facts
        .devices
        .iter()
        .filter_map(|own| Some((own, of_host.iter().find(|node| node.path == own.path)?)))
    {
        if (own.kind, own.major, own.minor) != (of_host.kind, of_host.major, of_host.minor) {
            return invalid(format!(
                "device {}: it already exists on the host, all of whose devices a privileged container gets",
                own.path.display()
            ));
        }
    }
    let owned = input.facts.devices.iter().map(|node| (node, owner(input)));
    for (node, (uid, gid)) in of_host.iter().map(|node| (node, (None, None))).chain(owned) {
        check(node)?;
        let mut device = LinuxDevice::default();
        device
            .set_path(node.path.clone())
            .set_typ(node.kind)
            .set_major(i64::from(node.major))
            .set_minor(i64::from(node.minor))
            .set_file_mode(Some(node.mode))
            .set_uid(Some(uid.unwrap_or(node.uid)))
            .set_gid(Some(gid.unwrap_or(node.gid)));
        out.retain(|d| d.path() != device.path());
        out.push(device);
    }
    Ok(out)
}

/// Who shall own the devices that the config asks for, if that is not who owns the node's (row C20). Only what the config
/// says counts: the image must not choose.
fn owner(input: &SpecInput) -> (Option<u32>, Option<u32>) {
    let Some(context) = input.context().filter(|_| input.policy.device_ownership) else {
        return (None, None);
    };
    let named = context.run_as_user.is_some() || !context.run_as_username.is_empty();
    (
        named.then_some(input.user.uid),
        context.run_as_group.is_some().then_some(input.user.gid),
    )
}

fn check(node: &DeviceNode) -> Result<()> {
    let shown = node.path.display();
    if !node.path.is_absolute() || node.path.components().any(|c| c == std::path::Component::ParentDir) {
        return invalid(format!("device {shown}: container_path is not a plain absolute path"));
    }
    match node.access.chars().all(|c| "rwm".contains(c)) {
        true => Ok(()),
        false => invalid(format!(
            "device {shown}: permissions {:?} are not made of r, w and m",
            node.access
        )),
    }
}

fn rule(allow: bool, kind: LinuxDeviceType, major: Option<i64>, minor: Option<i64>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(kind))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

/// Nothing but what follows: making nodes (without using them), the harmless devices, terminals, and what the config
/// names. Everything for a privileged container.
pub(super) fn rules(input: &SpecInput) -> Result<Vec<LinuxDeviceCgroup>> {
    let (c, b) = (LinuxDeviceType::C, LinuxDeviceType::B);
    if input.privileged() && input.policy.privileged_devices != PrivilegedDevices::Own {
        return Ok(vec![rule(true, LinuxDeviceType::A, None, None, "rwm")]);
    }
    let mut out = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, c, None, None, "m"),
        rule(true, b, None, None, "m"),
    ];
    // null, zero, full, random, urandom; tty, console, ptmx; pts.
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ] {
        out.push(rule(true, c, Some(major), minor, "rwm"));
    }
    for node in &input.facts.devices {
        check(node)?;
        let access = if node.access.is_empty() { "rwm" } else { &node.access };
        out.push(rule(
            true,
            node.kind,
            Some(i64::from(node.major)),
            Some(i64::from(node.minor)),
            access,
        ));
    }
    Ok(out)
}
