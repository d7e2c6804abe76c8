//! Limits.

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxResources};
use wharf_proto::cri;

use super::{Result, SpecInput, devices, invalid};
use crate::containers::host::Host;

fn requested<'a>(input: &SpecInput<'a>) -> Option<&'a cri::LinuxContainerResources> {
    input.config.linux.as_ref()?.resources.as_ref()
}

pub(super) fn generate(input: &SpecInput) -> Result<LinuxResources> {
    let none = cri::LinuxContainerResources::default();
    let mut out = to_oci(requested(input).unwrap_or(&none), input.host, input.policy.builtin)?;
    no_limits(&mut out);
    let rules: Vec<LinuxDeviceCgroup> = devices::rules(input)?;
    out.set_devices(Some(rules));
    Ok(out)
}

/// Takes out what a new cgroup has anyway: crun 1.8 writes a quota of -1 as a number that the kernel does not take.
pub fn no_limits(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut()
        && cpu.quota().is_some_and(|quota| quota < 0)
    {
        cpu.set_quota(None);
    }
}

/// CRI's limits as the spec's and the cgroups room's, without device rules. Zero means unset, as CRI says; also serves
/// UpdateContainerResources. `builtin`: for the built-in runtime, which limits huge pages on hybrid machines as well.
///
/// # Errors
/// A negative value where none can be, or huge page limits on a machine that cannot set them.
pub fn to_oci(r: &cri::LinuxContainerResources, host: &Host, builtin: bool) -> Result<LinuxResources> {
    let mut out = LinuxResources::default();
    // The type's default denies every device, which is for `generate` to say.
    out.set_devices(None);
    let positive = |what: &str, value: i64| match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => invalid(format!("{what} {value}: less than zero")),
    };
    let text = |t: &String| Some(t.clone()).filter(|t| !t.is_empty());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive("cpu_shares", r.cpu_shares)?)
        .set_period(positive("cpu_period", r.cpu_period)?)
        .set_quota(Some(r.cpu_quota).filter(|q| *q != 0))
        .set_cpus(text(&r.cpuset_cpus))
        .set_mems(text(&r.cpuset_mems));
    if cpu != LinuxCpu::default() {
        out.set_cpu(Some(cpu));
    }
    let limit = Some(r.memory_limit_in_bytes).filter(|l| *l != 0);
    // Without a wish for swap there is none: the sum is limited to the memory limit (row E5).
    let swap = match r.memory_swap_limit_in_bytes {
        0 => limit.filter(|_| host.swap_limit),
        swap if host.swap_limit => Some(swap),
        // What can't be set need not be where it forbids nothing, or where kubelet says "no swap" as it always does.
        swap if swap < 0 || Some(swap) == limit => None,
        swap => {
            return invalid(format!(
                "memory_swap_limit_in_bytes {swap}: this machine can't limit swap"
            ));
        }
    };
    if let (Some(limit @ 1..), Some(swap @ 1..)) = (limit, swap)
        && swap < limit
    {
        return invalid(format!(
            "memory_swap_limit_in_bytes {swap}: less than memory_limit_in_bytes {limit}"
        ));
    }
    if limit.is_some() || swap.is_some() {
        let mut memory = LinuxMemory::default();
        memory.set_limit(limit).set_swap(swap);
        out.set_memory(Some(memory));
    }
    let hugepages = hugepages(r, host.hugetlb || builtin && host.hugetlb_beside)?;
    out.set_hugepage_limits(Some(hugepages).filter(|h| !h.is_empty()));
    if let Some(key) = r.unified.keys().min().filter(|_| !host.cgroup_v2) {
        return invalid(format!("unified resource {key:?} needs cgroup v2, this machine has v1"));
    }
    out.set_unified(Some(r.unified.clone()).filter(|u| !u.is_empty()));
    Ok(out)
}

/// kubelet names every page size of the machine, mostly with zero: on a machine that cannot limit them that is no reason
/// to refuse a container, a real limit is (row E7).
fn hugepages(r: &cri::LinuxContainerResources, possible: bool) -> Result<Vec<LinuxHugepageLimit>> {
    let mut out = Vec::new();
    for wanted in r.hugepage_limits.iter().filter(|h| possible || h.limit != 0) {
        if !possible {
            let size = &wanted.page_size;
            return invalid(format!(
                "huge page limit for {size}: the hugetlb cgroup controller is not available"
            ));
        }
        let mut limit = LinuxHugepageLimit::default();
        let bytes = i64::try_from(wanted.limit);
        let bytes = bytes.or_else(|_| invalid(format!("huge page limit {}: too large", wanted.limit)))?;
        limit.set_page_size(wanted.page_size.clone()).set_limit(bytes);
        out.push(limit);
    }
    Ok(out)
}

/// As asked for, but no lower than the daemon may go: a value out of reach would fail every container on a machine that
/// withholds CAP_SYS_RESOURCE.
pub(super) fn oom_score_adj(input: &SpecInput) -> i32 {
    let wanted = requested(input).map_or(0, |r| r.oom_score_adj).clamp(-1000, 1000) as i32;
    wanted.max(input.host.min_oom_score_adj)
}
