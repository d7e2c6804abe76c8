//! Writing an injection into a spec: a pure function.

use oci_spec::runtime::{Hook, Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec};

use super::{
    Injection,
    edits::{InjectedNode, is_bind},
};

/// Changes `spec` as the devices want it. A later edit replaces an earlier one of the same name or path, and what the
/// container's own config put there.
pub fn apply(injection: &Injection, spec: &mut Spec) {
    env(injection, spec);
    groups(injection, spec);
    nodes(injection, spec);
    mounts(injection, spec);
    hooks(injection, spec);
}

fn env(injection: &Injection, spec: &mut Spec) {
    let Some(process) = spec.process_mut() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    for entry in &injection.env {
        let name = entry.split('=').next();
        match env.iter_mut().find(|old| old.split('=').next() == name) {
            Some(old) => old.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    process.set_env(Some(env));
}

fn groups(injection: &Injection, spec: &mut Spec) {
    let Some(process) = spec.process_mut() else { return };
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in &injection.groups {
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

fn nodes(injection: &Injection, spec: &mut Spec) {
    let owner = spec
        .process()
        .as_ref()
        .map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
    let Some(linux) = spec.linux_mut() else { return };
    if injection.nodes.is_empty() {
        return;
    }
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for node in &injection.nodes {
        devices.retain(|device| *device.path() != node.path);
        devices.push(device(node, owner));
        if matches!(node.kind, LinuxDeviceType::B | LinuxDeviceType::C) {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true)
                .set_typ(Some(node.kind))
                .set_major(Some(node.major))
                .set_minor(Some(node.minor))
                .set_access(Some(node.access.clone()));
            rules.push(rule);
        }
    }
    resources.set_devices(Some(rules));
    linux.set_devices(Some(devices)).set_resources(Some(resources));
}

fn device(node: &InjectedNode, (uid, gid): (u32, u32)) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(node.kind)
        .set_major(node.major)
        .set_minor(node.minor)
        .set_file_mode(node.mode)
        .set_uid(node.uid.or(Some(uid)))
        .set_gid(node.gid.or(Some(gid)));
    device
}

fn mounts(injection: &Injection, spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for bind in &injection.mounts {
        mounts.retain(|mount| *mount.destination() != bind.container_path);
        let mut options = bind.options.clone();
        let mut kind = bind.kind.clone();
        if is_bind(bind) {
            kind = "bind".to_owned();
            if !options.iter().any(|option| option == "bind" || option == "rbind") {
                options.push("rbind".to_owned());
            }
        }
        let mut mount = Mount::default();
        mount
            .set_destination(bind.container_path.clone())
            .set_typ(Some(kind))
            .set_source(Some(bind.host_path.clone()))
            .set_options(Some(options));
        mounts.push(mount);
    }
    // A shallower target first, so that none hides another.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
}

fn hooks(injection: &Injection, spec: &mut Spec) {
    if injection.hooks.is_empty() {
        return;
    }
    let mut hooks: Hooks = spec.hooks().clone().unwrap_or_default();
    for wanted in &injection.hooks {
        let mut hook = Hook::default();
        hook.set_path(wanted.path.clone())
            .set_args(Some(wanted.args.clone()).filter(|args| !args.is_empty()))
            .set_env(Some(wanted.env.clone()).filter(|env| !env.is_empty()))
            .set_timeout(wanted.timeout.filter(|seconds| *seconds > 0));
        let list = match wanted.hook_name.as_str() {
            #[allow(deprecated)] // Still what older drivers use.
            "prestart" => hooks.prestart_mut(),
            "createRuntime" => hooks.create_runtime_mut(),
            "createContainer" => hooks.create_container_mut(),
            "startContainer" => hooks.start_container_mut(),
            "poststart" => hooks.poststart_mut(),
            _ => hooks.poststop_mut(),
        };
        list.get_or_insert_default().push(hook);
    }
    spec.set_hooks(Some(hooks));
}
