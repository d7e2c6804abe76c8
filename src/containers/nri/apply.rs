//! What plugins want of a container that is created, written into its spec or refused by name.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime as oci;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType, Mount, Spec};
use wharf_proto::{
    cri::LinuxContainerResources,
    nri::{
        ContainerAdjustment, Hooks, IoPrioClass, KeyValue, LinuxContainerAdjustment, LinuxDevice, LinuxIoPriority,
        LinuxNetDevice, LinuxRdt, LinuxResources, LinuxScheduler, PosixRlimit,
    },
};

use super::{limits, parts};
use crate::{
    cgroups::Cgroup,
    containers::{Error, Result, Tools, cdi, host, limits as settings, rdt},
    lsm, netns,
    nri::merge::unmarked,
    runtime::features::Features,
    sandbox::Labels,
};

/// What the container is made on.
pub struct Ground<'a> {
    /// The daemon's.
    pub tools: &'a Tools,
    /// The container's name in its pod.
    pub name: &'a str,
    /// By the built-in runtime.
    pub builtin: bool,
    /// What the runtime can do.
    pub runtime: &'a Features,
    /// SELinux.
    pub labels: Option<&'a Labels>,
    /// Least memory that the handler allows.
    pub min_memory: u64,
}

/// What is not in the spec alone.
#[derive(Debug, Default)]
pub struct Adjusted {
    /// Another cgroup.
    pub cgroup_path: Option<String>,
    /// The `tasks` file of a class of cache and memory bandwidth; empty for none any more.
    pub rdt_tasks: Option<PathBuf>,
    /// Network devices by their names on the node, with those in the pod; none for what shall not be moved any more.
    pub net_devices: Vec<(String, Option<String>)>,
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::Unsupported(format!("NRI: {what}")))
}

/// Changes `spec` as the plugins want it, and `resources` where CRI has words for it. Blocking.
///
/// # Errors
/// For what can't be, by name. The spec is then of no use.
pub fn apply(
    wanted: &ContainerAdjustment,
    ground: &Ground,
    resources: &mut LinuxContainerResources,
    spec: &mut Spec,
) -> Result<Adjusted> {
    annotations(wanted, spec);
    environment(&wanted.env, spec);
    if !wanted.args.is_empty()
        && let Some(process) = spec.process_mut()
    {
        process.set_args(Some(wanted.args.clone()));
    }
    if let Some(wanted) = &wanted.hooks {
        hooks(wanted, spec)?;
    }
    let names: Vec<_> = wanted.cdi_devices.iter().map(|device| device.name.clone()).collect();
    let devices = ground.tools.cdi.resolve(&names)?;
    cdi::apply(&devices, spec);
    let mut adjusted = Adjusted::default();
    if let Some(wanted) = &wanted.linux {
        adjusted = linux(wanted, ground, resources, spec)?;
    }
    let devices = devices.net_devices().map(|(host_name, name)| (host_name, Some(name)));
    adjusted.net_devices.extend(devices);
    mounts(wanted, ground, spec)?;
    rlimits(&wanted.rlimits, spec)?;
    if ground.builtin {
        crate::runtime::builtin::check(spec).map_err(|error| Error::Unsupported(format!("NRI: {error}")))?;
    }
    Ok(adjusted)
}

fn annotations(wanted: &ContainerAdjustment, spec: &mut Spec) {
    let annotations = spec.annotations_mut().get_or_insert_default();
    annotations.retain(|key, _| !wanted.annotations.contains_key(&crate::nri::merge::marked(key)));
    let set = wanted.annotations.iter().filter(|(key, _)| unmarked(key).is_none());
    annotations.extend(set.map(|(key, value)| (key.clone(), value.clone())));
}

fn environment(wanted: &[KeyValue], spec: &mut Spec) {
    let Some(process) = spec.process_mut() else { return };
    let env = process.env_mut().get_or_insert_default();
    for entry in wanted {
        let key = unmarked(&entry.key).unwrap_or(&entry.key);
        let at = env.iter().position(|old| old.split('=').next() == Some(key));
        match (unmarked(&entry.key), at) {
            (Some(_), Some(at)) => drop(env.remove(at)),
            (Some(_), None) => {}
            (None, Some(at)) => env[at] = format!("{key}={}", entry.value),
            (None, None) => env.push(format!("{key}={}", entry.value)),
        }
    }
}

fn hooks(wanted: &Hooks, spec: &mut Spec) -> Result<()> {
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    #[allow(deprecated)] // Plugins may still ask for them.
    let prestart = hooks.prestart_mut();
    prestart
        .get_or_insert_default()
        .extend(wanted.prestart.iter().map(parts::to_hook));
    macro_rules! add {
        ($($moment:ident => $list:ident),*) => {
            $(if !wanted.$moment.is_empty() {
                hooks.$list().get_or_insert_default().extend(wanted.$moment.iter().map(parts::to_hook));
            })*
        };
    }
    add!(create_runtime => create_runtime_mut, create_container => create_container_mut,
         start_container => start_container_mut, poststart => poststart_mut, poststop => poststop_mut);
    let lists = [
        &wanted.prestart,
        &wanted.create_runtime,
        &wanted.create_container,
        &wanted.start_container,
        &wanted.poststart,
        &wanted.poststop,
    ];
    if let Some(hook) = lists.into_iter().flatten().find(|hook| !hook.path.starts_with('/')) {
        return Err(Error::Invalid(format!(
            "NRI: hook {:?} is not an absolute path",
            hook.path
        )));
    }
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn linux(
    wanted: &LinuxContainerAdjustment,
    ground: &Ground,
    resources: &mut LinuxContainerResources,
    spec: &mut Spec,
) -> Result<Adjusted> {
    let mut adjusted = Adjusted {
        net_devices: net_devices(&wanted.net_devices)?,
        ..Default::default()
    };
    devices(&wanted.devices, spec)?;
    if let Some(score) = wanted.oom_score_adj {
        let score = i32::try_from(score.value.clamp(-1000, 1000)).unwrap_or(0);
        resources.oom_score_adj = score.into();
        if let Some(process) = spec.process_mut() {
            process.set_oom_score_adj(Some(score.max(ground.tools.host.min_oom_score_adj)));
        }
    }
    if let Some(priority) = &wanted.io_priority {
        io_priority(priority, ground, spec)?;
    }
    if let Some(scheduler) = &wanted.scheduler {
        schedule(scheduler, ground, spec)?;
    }
    let linux = spec.linux_mut().get_or_insert_default();
    if let Some(policy) = &wanted.seccomp_policy {
        let profile =
            parts::to_seccomp(policy).map_err(|error| Error::Invalid(format!("NRI: seccomp_policy: {error}")))?;
        linux.set_seccomp(Some(profile));
    }
    if let Some(policy) = &wanted.memory_policy {
        if !ground.builtin && !ground.runtime.memory_policy {
            return unsupported("memory_policy: the pod's runtime does not know it, by its features");
        }
        let policy = parts::to_memory_policy(policy);
        linux.set_memory_policy(Some(
            policy.map_err(|error| Error::Invalid(format!("NRI: memory_policy: {error}")))?,
        ));
    }
    namespaces(wanted, linux)?;
    let sysctls = linux.sysctl_mut().get_or_insert_default();
    sysctls.retain(|key, _| !wanted.sysctl.contains_key(&crate::nri::merge::marked(key)));
    let set = wanted.sysctl.iter().filter(|(key, _)| unmarked(key).is_none());
    sysctls.extend(set.map(|(key, value)| (key.clone(), value.clone())));
    if !wanted.cgroups_path.is_empty() {
        let path = own_cgroup(&wanted.cgroups_path, ground)?;
        linux.set_cgroups_path(Some(path.clone().into()));
        adjusted.cgroup_path = Some(path);
    }
    if let Some(limits) = &wanted.resources {
        adjusted.rdt_tasks = take_limits(limits, ground, resources, linux)?;
    }
    if let Some(rdt) = &wanted.rdt {
        adjusted.rdt_tasks = bandwidth(rdt, ground)?.or(adjusted.rdt_tasks);
    }
    Ok(adjusted)
}

/// A device without a name for the pod keeps its own.
fn net_devices(wanted: &HashMap<String, LinuxNetDevice>) -> Result<Vec<(String, Option<String>)>> {
    let change = |(host_name, device): (&String, &LinuxNetDevice)| {
        if let Some(removed) = unmarked(host_name) {
            return Ok((removed.to_owned(), None));
        }
        let name = if device.name.is_empty() {
            host_name
        } else {
            &device.name
        };
        match [host_name, name].into_iter().find(|name| !netns::is_device_name(name)) {
            Some(wrong) => Err(Error::Invalid(format!(
                "NRI: net_devices: {wrong:?} is no device's name"
            ))),
            None => Ok((host_name.clone(), Some(name.clone()))),
        }
    };
    wanted.iter().map(change).collect()
}

/// Limits, and classes of block I/O and of cache and memory bandwidth.
fn take_limits(
    wanted: &LinuxResources,
    ground: &Ground,
    resources: &mut LinuxContainerResources,
    linux: &mut oci::Linux,
) -> Result<Option<PathBuf>> {
    limits::take(resources, wanted);
    settings::check(resources, ground.min_memory)?;
    let out = linux.resources_mut().get_or_insert_default();
    limits::apply(wanted, resources, &ground.tools.host, ground.builtin, out)?;
    let config = &ground.tools.mechanisms.config.get();
    if let Some(class) = &wanted.blockio_class {
        let io = match class.value.as_str() {
            "" => None,
            class => Some(settings::block_io(config, class, ground.name)?),
        };
        out.set_block_io(io);
    }
    match &wanted.rdt_class {
        Some(class) if class.value.is_empty() => Ok(Some(PathBuf::new())),
        Some(class) => rdt::tasks(config, &class.value, ground.name).map(Some),
        None => Ok(None),
    }
}

/// A group of resctrl is joined by whoever begins the process, whatever the runtime.
fn bandwidth(wanted: &LinuxRdt, ground: &Ground) -> Result<Option<PathBuf>> {
    if wanted.schemata.is_some() {
        return unsupported("rdt.schemata: classes are described in Wharf's configuration, or made beforehand");
    }
    if wanted.enable_monitoring.is_some_and(|monitor| monitor.value) {
        return unsupported("rdt.enable_monitoring: groups for monitoring are not made");
    }
    match &wanted.clos_id {
        Some(class) => rdt::tasks(&ground.tools.mechanisms.config.get(), &class.value, ground.name).map(Some),
        None => Ok(wanted.remove.then(PathBuf::new)),
    }
}

/// All that runs in a container's cgroup ends with it, so that nobody else may be there.
fn own_cgroup(path: &str, ground: &Ground) -> Result<String> {
    let wrong = |why: String| Error::Invalid(format!("NRI: cgroups_path {path:?}: {why}"));
    if !path.starts_with('/') {
        return Err(wrong("not an absolute path below the root of the cgroups".to_owned()));
    }
    let cgroup = Cgroup::new(&ground.tools.mechanisms.cgroups, path).map_err(|error| wrong(error.to_string()))?;
    match cgroup.exists() {
        true => Err(wrong("this cgroup is there already".to_owned())),
        false => Ok(path.to_owned()),
    }
}

fn devices(wanted: &[LinuxDevice], spec: &mut Spec) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let linux = spec.linux_mut().get_or_insert_default();
    for device in wanted {
        let path = Path::new(unmarked(&device.path).unwrap_or(&device.path));
        if !path.is_absolute() {
            return Err(Error::Invalid(format!(
                "NRI: device {:?} is not an absolute path",
                device.path
            )));
        }
        linux
            .devices_mut()
            .get_or_insert_default()
            .retain(|known| known.path() != path);
        if unmarked(&device.path).is_some() {
            continue;
        }
        let kind = parts::device_type(&device.r#type)
            .filter(|kind| *kind != oci::LinuxDeviceType::A)
            .ok_or_else(|| {
                Error::Invalid(format!(
                    "NRI: device {:?} of the unknown type {:?}",
                    device.path, device.r#type
                ))
            })?;
        let mut node = oci::LinuxDevice::default();
        node.set_path(path.to_owned())
            .set_typ(kind)
            .set_major(device.major)
            .set_minor(device.minor)
            .set_file_mode(device.file_mode.map(|mode| mode.value))
            .set_uid(device.uid.map(|uid| uid.value))
            .set_gid(device.gid.map(|gid| gid.value));
        if kind != oci::LinuxDeviceType::P {
            let mut rule = LinuxDeviceCgroup::from(&node);
            rule.set_access(Some("rwm".to_owned()));
            let resources = linux.resources_mut().get_or_insert_default();
            resources.devices_mut().get_or_insert_default().push(rule);
        }
        linux.devices_mut().get_or_insert_default().push(node);
    }
    Ok(())
}

fn io_priority(wanted: &LinuxIoPriority, ground: &Ground, spec: &mut Spec) -> Result<()> {
    let class = match wanted.class() {
        IoPrioClass::IoprioClassNone => None,
        IoPrioClass::IoprioClassRt => Some(oci::IOPriorityClass::IoprioClassRt),
        IoPrioClass::IoprioClassBe => Some(oci::IOPriorityClass::IoprioClassBe),
        IoPrioClass::IoprioClassIdle => Some(oci::IOPriorityClass::IoprioClassIdle),
    };
    if class.is_some() && !ground.builtin && !ground.runtime.priorities() {
        return unsupported("io_priority: the pod's runtime does not know it, by its features");
    }
    if !(0..8).contains(&wanted.priority) {
        return Err(Error::Invalid(format!(
            "NRI: io_priority {} is not 0 to 7",
            wanted.priority
        )));
    }
    let priority = class.map(|class| {
        oci::LinuxIOPriorityBuilder::default()
            .class(class)
            .priority(i64::from(wanted.priority))
            .build()
            .map_err(|error| Error::Invalid(format!("NRI: io_priority: {error}")))
    });
    if let Some(process) = spec.process_mut() {
        process.set_io_priority(priority.transpose()?);
    }
    Ok(())
}

/// No policy at all is the one that the process would have anyway.
fn schedule(wanted: &LinuxScheduler, ground: &Ground, spec: &mut Spec) -> Result<()> {
    let scheduler = parts::to_scheduler(wanted).map_err(|error| Error::Invalid(format!("NRI: scheduler: {error}")))?;
    if scheduler.is_some() && !ground.builtin && !ground.runtime.priorities() {
        return unsupported("scheduler: the pod's runtime does not know it, by its features");
    }
    if let Some(process) = spec.process_mut() {
        process.set_scheduler(scheduler);
    }
    Ok(())
}

fn namespaces(wanted: &LinuxContainerAdjustment, linux: &mut oci::Linux) -> Result<()> {
    for namespace in &wanted.namespaces {
        let name = unmarked(&namespace.r#type).unwrap_or(&namespace.r#type);
        let kind = LinuxNamespaceType::try_from(name)
            .map_err(|_| Error::Invalid(format!("NRI: a namespace of the unknown type {name:?}")))?;
        let list = linux.namespaces_mut().get_or_insert_default();
        list.retain(|known| known.typ() != kind);
        if unmarked(&namespace.r#type).is_none() {
            let mut added = LinuxNamespace::default();
            added.set_typ(kind);
            added.set_path(Some(PathBuf::from(&namespace.path)).filter(|path| !path.as_os_str().is_empty()));
            list.push(added);
        }
    }
    Ok(())
}

/// As the node's mounts allow: what is shared with a container must be shared on the node.
fn mounts(wanted: &ContainerAdjustment, ground: &Ground, spec: &mut Spec) -> Result<()> {
    if wanted.mounts.is_empty() {
        return Ok(());
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &wanted.mounts {
        let target = Path::new(unmarked(&mount.destination).unwrap_or(&mount.destination));
        let wrong = |why: String| Error::Invalid(format!("NRI: mount at {}: {why}", mount.destination));
        if !target.is_absolute() || target == Path::new("/") {
            return Err(wrong("not an absolute path below the root".to_owned()));
        }
        mounts.retain(|known| known.destination() != target);
        if unmarked(&mount.destination).is_some() {
            continue;
        }
        let has = |option: &str| mount.options.iter().any(|known| known == option);
        let source = Path::new(&mount.source);
        for (option, strong) in [("rshared", true), ("rslave", false)] {
            if !has(option) {
                continue;
            }
            host::check_propagation(source, strong).map_err(|error| wrong(error.to_string()))?;
            let linux = spec.linux_mut().get_or_insert_default();
            if strong || linux.rootfs_propagation().as_deref() != Some("rshared") {
                linux.set_rootfs_propagation(Some(option.to_owned()));
            }
        }
        if has("relabel")
            && let Some(labels) = ground.labels.filter(|labels| !labels.unconfined)
        {
            lsm::selinux::relabel(source, &labels.files).map_err(|error| wrong(error.to_string()))?;
        }
        let options = mount.options.iter().filter(|option| *option != "relabel").cloned();
        let mut added = Mount::default();
        added
            .set_destination(target.to_owned())
            .set_typ(Some(mount.r#type.clone()).filter(|kind| !kind.is_empty()))
            .set_source(Some(source.to_owned()).filter(|source| !source.as_os_str().is_empty()))
            .set_options(Some(options.collect()));
        mounts.push(added);
    }
    // A shallower target first, so that none hides another.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn rlimits(wanted: &[PosixRlimit], spec: &mut Spec) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let Some(process) = spec.process_mut() else {
        return Ok(());
    };
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for limit in wanted {
        let kind: oci::PosixRlimitType = limit
            .r#type
            .parse()
            .map_err(|_| Error::Invalid(format!("NRI: rlimit {:?} does not exist", limit.r#type)))?;
        limits.retain(|known| known.typ() != kind);
        let built = oci::PosixRlimitBuilder::default()
            .typ(kind)
            .hard(limit.hard)
            .soft(limit.soft)
            .build()
            .map_err(|error| Error::Invalid(format!("NRI: rlimit {}: {error}", limit.r#type)))?;
        limits.push(built);
    }
    process.set_rlimits(Some(limits));
    Ok(())
}
