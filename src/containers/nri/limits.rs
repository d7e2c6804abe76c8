//! Limits that plugins want: in the spec of a container that is created, and of one that is there.

use oci_spec::runtime as oci;
use wharf_proto::{
    cri::{self, LinuxContainerResources},
    nri::{LinuxDeviceCgroup, LinuxMemory, LinuxResources},
};

use super::parts;
use crate::containers::{Error, Result, host::Host, spec};

/// Puts what CRI can say, too, into `limits`.
pub fn take(limits: &mut LinuxContainerResources, wanted: &LinuxResources) {
    if let Some(memory) = &wanted.memory {
        if let Some(limit) = memory.limit {
            limits.memory_limit_in_bytes = limit.value;
            // The limit of the sum was one for the old limit.
            if memory.swap.is_none() {
                limits.memory_swap_limit_in_bytes = 0;
            }
        }
        if let Some(swap) = memory.swap {
            limits.memory_swap_limit_in_bytes = swap.value;
        }
    }
    if let Some(cpu) = &wanted.cpu {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if let Some(shares) = cpu.shares {
            limits.cpu_shares = signed(shares.value);
        }
        if let Some(quota) = cpu.quota {
            limits.cpu_quota = quota.value;
        }
        if let Some(period) = cpu.period {
            limits.cpu_period = signed(period.value);
        }
        if !cpu.cpus.is_empty() {
            limits.cpuset_cpus.clone_from(&cpu.cpus);
        }
        if !cpu.mems.is_empty() {
            limits.cpuset_mems.clone_from(&cpu.mems);
        }
    }
    for limit in &wanted.hugepage_limits {
        limits
            .hugepage_limits
            .retain(|known| known.page_size != limit.page_size);
        limits.hugepage_limits.push(cri::HugepageLimit {
            page_size: limit.page_size.clone(),
            limit: limit.limit,
        });
    }
    limits.unified.extend(wanted.unified.clone());
}

/// What a plugin wants of a container that is there, as an update of CRI's.
///
/// # Errors
/// [`Error::Unsupported`] for what CRI can not say, by name.
pub fn wanted(update: &LinuxResources) -> Result<LinuxContainerResources> {
    let memory = update.memory.unwrap_or_default();
    let cpu = update.cpu.clone().unwrap_or_default();
    let beyond = [
        (memory.reservation.is_some(), "memory.reservation"),
        (memory.kernel.is_some(), "memory.kernel"),
        (memory.kernel_tcp.is_some(), "memory.kernel_tcp"),
        (memory.swappiness.is_some(), "memory.swappiness"),
        (memory.disable_oom_killer.is_some(), "memory.disable_oom_killer"),
        (memory.use_hierarchy.is_some(), "memory.use_hierarchy"),
        (cpu.realtime_runtime.is_some(), "cpu.realtime_runtime"),
        (cpu.realtime_period.is_some(), "cpu.realtime_period"),
        (update.blockio_class.is_some(), "blockio_class"),
        (update.rdt_class.is_some(), "rdt_class"),
        (update.pids.is_some(), "pids"),
        (!update.devices.is_empty(), "devices"),
    ];
    if let Some((_, name)) = beyond.iter().find(|(asked, _)| *asked) {
        return Err(Error::Unsupported(format!(
            "NRI: {name} of a container can be set when it is created only"
        )));
    }
    let mut limits = LinuxContainerResources::default();
    take(&mut limits, update);
    Ok(limits)
}

/// Sets in a spec what plugins want. `merged` are the limits in CRI's words with theirs taken in; the machine and the
/// runtime have been asked whether they can be.
///
/// # Errors
/// For what this machine can't do, by name.
pub(super) fn apply(
    wanted: &LinuxResources,
    merged: &LinuxContainerResources,
    host: &Host,
    builtin: bool,
    out: &mut oci::LinuxResources,
) -> Result<()> {
    let whole = spec::resources_to_oci(merged, host, builtin)?;
    if let Some(cpu) = &wanted.cpu {
        let new = whole.cpu().clone().unwrap_or_default();
        let old = out.cpu_mut().get_or_insert_default();
        if cpu.shares.is_some() {
            old.set_shares(new.shares());
        }
        if cpu.quota.is_some() {
            old.set_quota(new.quota());
        }
        if cpu.period.is_some() {
            old.set_period(new.period());
        }
        if !cpu.cpus.is_empty() {
            old.set_cpus(new.cpus().clone());
        }
        if !cpu.mems.is_empty() {
            old.set_mems(new.mems().clone());
        }
        if let Some(runtime) = cpu.realtime_runtime {
            old.set_realtime_runtime(Some(runtime.value));
        }
        if let Some(period) = cpu.realtime_period {
            old.set_realtime_period(Some(period.value));
        }
    }
    if let Some(wanted) = &wanted.memory {
        memory(
            wanted,
            whole.memory().unwrap_or_default(),
            host,
            out.memory_mut().get_or_insert_default(),
        )?;
    }
    if !wanted.hugepage_limits.is_empty() {
        out.set_hugepage_limits(whole.hugepage_limits().clone());
    }
    if !wanted.unified.is_empty() {
        out.set_unified(whole.unified().clone());
    }
    if let Some(pids) = wanted.pids {
        let mut limit = oci::LinuxPids::default();
        limit.set_limit(pids.limit);
        out.set_pids(Some(limit));
    }
    for rule in &wanted.devices {
        out.devices_mut().get_or_insert_default().push(device_rule(rule)?);
    }
    spec::no_limits(out);
    Ok(())
}

fn memory(wanted: &LinuxMemory, new: oci::LinuxMemory, host: &Host, old: &mut oci::LinuxMemory) -> Result<()> {
    let beyond = [
        (wanted.kernel.is_some(), "kernel: Linux has no such limit any more"),
        (wanted.kernel_tcp.is_some(), "kernel_tcp: it is not supported"),
        (wanted.use_hierarchy.is_some(), "use_hierarchy: it is always in use"),
        (
            wanted.swappiness.is_some() && host.cgroup_v2,
            "swappiness: cgroup version 2 has none",
        ),
        (
            wanted.disable_oom_killer.is_some_and(|disable| disable.value) && host.cgroup_v2,
            "disable_oom_killer: cgroup version 2 does not allow it",
        ),
    ];
    if let Some((_, why)) = beyond.iter().find(|(asked, _)| *asked) {
        return Err(Error::Unsupported(format!("NRI: memory.{why}")));
    }
    if wanted.limit.is_some() || wanted.swap.is_some() {
        old.set_limit(new.limit()).set_swap(new.swap());
    }
    if let Some(reservation) = wanted.reservation {
        old.set_reservation(Some(reservation.value));
    }
    if let Some(swappiness) = wanted.swappiness {
        old.set_swappiness(Some(swappiness.value));
    }
    if let Some(disable) = wanted.disable_oom_killer {
        old.set_disable_oom_killer(Some(disable.value));
    }
    Ok(())
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Result<oci::LinuxDeviceCgroup> {
    let kind = match rule.r#type.as_str() {
        "" => oci::LinuxDeviceType::A,
        name => parts::device_type(name)
            .ok_or_else(|| Error::Invalid(format!("NRI: a device rule of the unknown type {name:?}")))?,
    };
    let mut out = oci::LinuxDeviceCgroup::default();
    out.set_allow(rule.allow)
        .set_typ(Some(kind))
        .set_major(rule.major.map(|major| major.value))
        .set_minor(rule.minor.map(|minor| minor.value))
        .set_access(Some(rule.access.clone()));
    Ok(out)
}
