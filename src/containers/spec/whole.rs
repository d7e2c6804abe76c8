//! Puts the parts of the spec together.

use std::{collections::HashMap, path::PathBuf};

use oci_spec::runtime::{Linux, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec, User};

use super::{Result, SpecInput, command, devices, invalid, mounts, namespaces, resources, security};
use crate::{config::Ulimit, containers::caps};

/// Makes the spec.
///
/// # Errors
/// The first thing in the config that is wrong or not supported, by name.
pub fn generate(input: &SpecInput) -> Result<Spec> {
    refuse(input)?;
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned())
        .set_readonly(Some(input.read_only_root()));
    let mounts = mounts::generate(input)?;

    let range = |mapping| mounts::id_mapping(mapping).map(|mapping| vec![mapping]);
    let users = input.users();
    let uids = users.map(|users| range(users.uids)).transpose()?;
    let gids = users.map(|users| range(users.gids)).transpose()?;
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::generate(input)?))
        .set_resources(Some(resources::generate(input)?))
        .set_cgroups_path(Some(PathBuf::from(input.cgroup_path)))
        .set_devices(Some(devices::nodes(input)?).filter(|d| !d.is_empty()))
        .set_rootfs_propagation(mounts.rootfs_propagation)
        .set_mount_label(input.policy.labels.as_ref().map(|labels| labels.files.clone()))
        .set_seccomp(security::seccomp(input)?)
        .set_masked_paths(security::paths(input, |c| &c.masked_paths))
        .set_readonly_paths(security::paths(input, |c| &c.readonly_paths))
        // The pod's sysctls are in force in its namespaces already; a container must not set them anew.
        .set_sysctl(None)
        // The namespace has its mappings; runtimes ask here whose the bundle's files are.
        .set_uid_mappings(uids)
        .set_gid_mappings(gids);

    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts.mounts))
        .set_process(Some(process(input)?))
        // The pod's host name lives in its pinned namespace.
        .set_hostname(None)
        .set_annotations(Some(annotations(input)))
        .set_linux(Some(linux));
    Ok(spec)
}

/// What is refused as a whole, before anything is decided.
fn refuse(input: &SpecInput) -> Result<()> {
    let sandbox = input.pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
    if input.privileged() && !sandbox.is_some_and(|s| s.privileged) {
        return invalid(
            "failed to generate spec opts: no privileged container allowed in sandbox: the pod sandbox is not privileged",
        );
    }
    let context = input.context();
    if let Some(c) = context
        && let (Some(group), None, "") = (&c.run_as_group, &c.run_as_user, c.run_as_username.as_str())
    {
        return invalid(format!(
            "run_as_group {} is set without run_as_user or run_as_username",
            group.value
        ));
    }
    unmapped(input)?;
    security::refuse_selinux(input)
}

/// In a user namespace there are no users and groups but those of its mapping, which begins with 0.
fn unmapped(input: &SpecInput) -> Result<()> {
    let Some(users) = input.users() else { return Ok(()) };
    let groups = input.user.groups.iter().chain([&input.user.gid]);
    let beyond = groups.map(|gid| ("group", *gid, users.gids.length));
    match beyond
        .chain([("user", input.user.uid, users.uids.length)])
        .find(|(_, id, length)| id >= length)
    {
        None => Ok(()),
        Some((what, id, length)) => invalid(format!(
            "{what} {id} is not in the pod's user namespace, whose {length} {what} ids begin with 0"
        )),
    }
}

fn process(input: &SpecInput) -> Result<Process> {
    let mut user = User::default();
    user.set_uid(input.user.uid)
        .set_gid(input.user.gid)
        .set_additional_gids(Some(input.user.groups.clone()));
    let context = input.context();
    let capabilities = caps::of_container(
        input.privileged(),
        context.and_then(|c| c.capabilities.as_ref()),
        input.default_capabilities,
        input.host.capabilities,
    )?;
    let mut process = Process::default();
    process
        .set_terminal(Some(input.config.tty))
        .set_user(user)
        .set_args(Some(command::args(input)?))
        .set_env(Some(command::env(input)?))
        .set_cwd(command::cwd(input)?)
        .set_capabilities(Some(capabilities.to_oci()))
        .set_rlimits(rlimits(input)?)
        .set_no_new_privileges(Some(context.is_some_and(|c| c.no_new_privs)))
        .set_apparmor_profile(security::apparmor(input)?)
        .set_selinux_label(input.policy.labels.as_ref().map(|labels| labels.process.clone()))
        .set_oom_score_adj(Some(resources::oom_score_adj(input)));
    Ok(process)
}

/// The node's limits for all containers; CRI has none of its own.
fn rlimits(input: &SpecInput) -> Result<Option<Vec<PosixRlimit>>> {
    let base = input.base.and_then(|spec| spec.process().as_ref()?.rlimits().as_ref());
    let mut limits = base.cloned().unwrap_or_default();
    for text in &input.settings.ulimits {
        let limit = Ulimit::parse(text).or_else(invalid)?;
        let kind = serde_json::from_value(limit.name.clone().into())
            .or_else(|_| invalid(format!("resource limit {} does not exist", limit.name)))?;
        let kind: PosixRlimitType = kind;
        let rlimit = PosixRlimitBuilder::default()
            .typ(kind)
            .soft(limit.soft)
            .hard(limit.hard)
            .build()
            .or_else(|error| invalid(format!("resource limit {}: {error}", limit.name)))?;
        limits.retain(|known: &PosixRlimit| known.typ() != rlimit.typ());
        limits.push(rlimit);
    }
    Ok(Some(limits).filter(|limits| !limits.is_empty()))
}

/// What tools that look at running specs know from other runtimes; nothing here changes how the container runs.
fn annotations(input: &SpecInput) -> HashMap<String, String> {
    let pod = input.pod.metadata.clone().unwrap_or_default();
    let name = input.config.metadata.clone().unwrap_or_default().name;
    let image = input.config.image.clone().unwrap_or_default();
    let image = if image.user_specified_image.is_empty() {
        image.image
    } else {
        image.user_specified_image
    };
    let pairs = [
        ("container-type", "container".to_owned()),
        ("container-name", name),
        ("image-name", image),
        ("sandbox-id", input.pod_id.to_owned()),
        ("sandbox-name", pod.name),
        ("sandbox-namespace", pod.namespace),
        ("sandbox-uid", pod.uid),
    ];
    let limits = input.pod.linux.as_ref().and_then(|linux| linux.resources.clone());
    let limits = limits.unwrap_or_default();
    // For runtimes that start a virtual machine for the pod, which is to be as large as all of its containers (row A10).
    let sizes = [
        ("sandbox-cpu-period", limits.cpu_period),
        ("sandbox-cpu-quota", limits.cpu_quota),
        ("sandbox-cpu-shares", limits.cpu_shares),
        ("sandbox-memory", limits.memory_limit_in_bytes),
    ];
    let sizes = sizes.into_iter().filter(|(_, size)| *size != 0);
    pairs
        .into_iter()
        .chain(sizes.map(|(key, size)| (key, size.to_string())))
        .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value))
        .collect()
}
