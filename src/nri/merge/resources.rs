//! Limits.

use wharf_proto::nri::{Field, LinuxResources};

use super::owners::Owners;

/// Sets what is set in `wanted` in each of `targets`.
///
/// # Errors
/// When another plugin has set one of them.
pub fn take(
    owners: &mut Owners,
    container: &str,
    plugin: &str,
    wanted: &LinuxResources,
    targets: &mut [&mut LinuxResources],
) -> Result<(), String> {
    macro_rules! part {
        ($part:ident: $($name:ident => $field:ident),*) => {
            if let Some(wanted) = &wanted.$part {
                $(if let Some(value) = &wanted.$name {
                    owners.claim(container, Field::$field, plugin)?;
                    for target in targets.iter_mut() {
                        target.$part.get_or_insert_default().$name = Some(value.clone());
                    }
                })*
            }
        };
    }
    part!(memory:
        limit => MemLimit, reservation => MemReservation, swap => MemSwapLimit, kernel => MemKernelLimit,
        kernel_tcp => MemTcpLimit, swappiness => MemSwappiness, disable_oom_killer => MemDisableOomKiller,
        use_hierarchy => MemUseHierarchy
    );
    part!(cpu:
        shares => CpuShares, quota => CpuQuota, period => CpuPeriod, realtime_runtime => CpuRealtimeRuntime,
        realtime_period => CpuRealtimePeriod
    );
    if let Some(cpu) = &wanted.cpu {
        if !cpu.cpus.is_empty() {
            owners.claim(container, Field::CpuSetCpUs, plugin)?;
            for target in targets.iter_mut() {
                target.cpu.get_or_insert_default().cpus.clone_from(&cpu.cpus);
            }
        }
        if !cpu.mems.is_empty() {
            owners.claim(container, Field::CpuSetMems, plugin)?;
            for target in targets.iter_mut() {
                target.cpu.get_or_insert_default().mems.clone_from(&cpu.mems);
            }
        }
    }
    for limit in &wanted.hugepage_limits {
        owners.claim_entry(container, Field::HugepageLimits, &limit.page_size, plugin)?;
        for target in targets.iter_mut() {
            target
                .hugepage_limits
                .retain(|known| known.page_size != limit.page_size);
            target.hugepage_limits.push(limit.clone());
        }
    }
    for (key, value) in &wanted.unified {
        owners.claim_entry(container, Field::CgroupsUnified, key, plugin)?;
        for target in targets.iter_mut() {
            target.unified.insert(key.clone(), value.clone());
        }
    }
    if let Some(class) = &wanted.blockio_class {
        owners.claim(container, Field::BlockioClass, plugin)?;
        for target in targets.iter_mut() {
            target.blockio_class = Some(class.clone());
        }
    }
    if let Some(class) = &wanted.rdt_class {
        owners.claim(container, Field::RdtClass, plugin)?;
        for target in targets.iter_mut() {
            target.rdt_class = Some(class.clone());
        }
    }
    if let Some(pids) = wanted.pids {
        owners.claim(container, Field::PidsLimit, plugin)?;
        for target in targets.iter_mut() {
            target.pids = Some(pids);
        }
    }
    // Rules add up; nobody owns one.
    for target in targets.iter_mut() {
        target.devices.extend(wanted.devices.iter().cloned());
    }
    Ok(())
}
