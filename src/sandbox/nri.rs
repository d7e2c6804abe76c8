//! Pods as NRI plugins see them.

use std::path::Path;

use wharf_proto::{
    cri::LinuxContainerResources,
    nri::{
        HugepageLimit, LinuxCpu, LinuxMemory, LinuxNamespace, LinuxPodSandbox, LinuxResources, OptionalInt64,
        OptionalUInt64, PodSandbox,
    },
};

use super::Sandbox;

/// The pod, as it is now.
#[must_use]
pub fn message(pod: &Sandbox) -> PodSandbox {
    let record = pod.record.get();
    let config = record.config.clone().unwrap_or_default();
    let metadata = config.metadata.unwrap_or_default();
    let linux = config.linux.unwrap_or_default();
    let pins = pod.paths.namespaces();
    let namespaces = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("user", "user")];
    let namespaces = namespaces
        .into_iter()
        .filter_map(|(kind, name)| namespace(kind, &pins.join(name)));
    let newer = |new: &Option<LinuxContainerResources>, old: &Option<LinuxContainerResources>| {
        new.as_ref().or(old.as_ref()).map(limits)
    };
    PodSandbox {
        id: pod.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: record.runtime_handler.clone(),
        linux: Some(LinuxPodSandbox {
            pod_overhead: newer(&record.overhead, &linux.overhead),
            pod_resources: newer(&record.resources, &linux.resources),
            cgroup_parent: linux.cgroup_parent,
            cgroups_path: String::new(),
            namespaces: namespaces.collect(),
            resources: None,
        }),
        // There is no process but the init of a shared PID namespace.
        pid: pod
            .processes()
            .and_then(|processes| u32::try_from(processes.init).ok())
            .unwrap_or(0),
        ips: record
            .network
            .as_ref()
            .map(|network| network.ips.clone())
            .unwrap_or_default(),
    }
}

/// A namespace that is pinned.
fn namespace(kind: &str, pin: &Path) -> Option<LinuxNamespace> {
    pin.exists().then(|| LinuxNamespace {
        r#type: kind.to_owned(),
        path: pin.display().to_string(),
    })
}

/// Limits in NRI's words; what CRI leaves unset is unset.
#[must_use]
pub fn limits(limits: &LinuxContainerResources) -> LinuxResources {
    let signed = |value: i64| Some(OptionalInt64 { value }).filter(|_| value != 0);
    let unsigned = |value: i64| {
        let value = u64::try_from(value).ok().filter(|value| *value > 0)?;
        Some(OptionalUInt64 { value })
    };
    let pages = limits.hugepage_limits.iter().map(|limit| HugepageLimit {
        page_size: limit.page_size.clone(),
        limit: limit.limit,
    });
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(limits.memory_limit_in_bytes),
            swap: signed(limits.memory_swap_limit_in_bytes),
            ..Default::default()
        }),
        cpu: Some(LinuxCpu {
            shares: unsigned(limits.cpu_shares),
            quota: signed(limits.cpu_quota),
            period: unsigned(limits.cpu_period),
            cpus: limits.cpuset_cpus.clone(),
            mems: limits.cpuset_mems.clone(),
            ..Default::default()
        }),
        hugepage_limits: pages.collect(),
        unified: limits.unified.clone(),
        ..Default::default()
    }
}
