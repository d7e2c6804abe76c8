//! Changing a container's limits, before its start and while it runs: in its cgroup, its spec and its record, or in none
//! of them. It is the same for every handler, because a cgroup is the kernel's and not the runtime's.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc};

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources, Spec};
use wharf_proto::{cri::LinuxContainerResources, record::ContainerState};

use super::{Container, Error, Result, Tools, cpus, limits, spec};
use crate::{
    cgroups::{self, Cgroup},
    store,
};

/// Rounds over a container's processes, which may fork meanwhile.
const ROUNDS: usize = 4;

/// Sets what is set in `wanted`, where zero and empty mean "leave it", and merges `annotations` into the spec's.
///
/// # Errors
/// [`Error::State`] when the container is neither created nor running, [`Error::Invalid`] when the wish contradicts
/// itself, the machine, or what is in use. Nothing is then changed.
pub async fn update(
    tools: &Arc<Tools>,
    container: &Arc<Container>,
    mut wanted: LinuxContainerResources,
    annotations: HashMap<String, String>,
) -> Result<()> {
    // Neither a start nor a removal in between.
    let _one_at_a_time = container.operation.lock().await;
    let record = container.record.get();
    let running = match record.state() {
        ContainerState::ContainerCreated => false,
        ContainerState::ContainerRunning => true,
        state => {
            let state = state.as_str_name().trim_start_matches("CONTAINER_");
            return Err(Error::State(format!(
                "container {} is {state}, only a created or running one can be updated",
                container.id
            )));
        }
    };
    cpus::hold(record.isolation.as_ref(), &mut wanted)?;
    let merged = merge(record.resources.clone().unwrap_or_default(), &wanted);
    let builtin = tools.mechanisms.config.get().handler(&record.runtime_handler).is_none();
    let whole = spec::resources_to_oci(&merged, &tools.host, builtin)?;
    let change = Change {
        wanted: wanted.clone(),
        only_new: only_new(whole.clone(), &wanted),
        whole,
        annotations,
        oom_score_adj: Some(wanted.oom_score_adj)
            .filter(|score| *score != 0)
            .map(|score| (score.clamp(-1000, 1000) as i32).max(tools.host.min_oom_score_adj)),
    };
    let (tools, owner) = (Arc::clone(tools), Arc::clone(container));
    let applied = container
        .blocking(move || change.apply(&tools, &owner, running))
        .await?;
    if let Err(error) = container.record.change(|record| record.resources = Some(merged)).await {
        let owner = Arc::clone(container);
        container
            .blocking(move || {
                applied.take_back(&owner);
                Ok(())
            })
            .await?;
        return Err(error.into());
    }
    Ok(())
}

/// What holds after an update.
fn merge(mut now: LinuxContainerResources, wanted: &LinuxContainerResources) -> LinuxContainerResources {
    macro_rules! take {
        ($($number:ident)*, $($text:ident)*) => {
            $(if wanted.$number != 0 { now.$number = wanted.$number; })*
            $(if !wanted.$text.is_empty() { now.$text.clone_from(&wanted.$text); })*
        };
    }
    take!(
        cpu_period cpu_quota cpu_shares memory_limit_in_bytes memory_swap_limit_in_bytes oom_score_adj,
        cpuset_cpus cpuset_mems
    );
    for limit in &wanted.hugepage_limits {
        now.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        now.hugepage_limits.push(limit.clone());
    }
    now.unified.extend(wanted.unified.clone());
    now
}

/// Of all limits those that an update names, so that an unrelated one is not written anew.
fn only_new(mut whole: LinuxResources, wanted: &LinuxContainerResources) -> LinuxResources {
    if wanted.memory_limit_in_bytes == 0 && wanted.memory_swap_limit_in_bytes == 0 {
        whole.set_memory(None);
    }
    if let Some(cpu) = whole.cpu_mut() {
        if wanted.cpu_shares == 0 {
            cpu.set_shares(None);
        }
        // Both of them: the kernel checks one against the other.
        if wanted.cpu_period == 0 && wanted.cpu_quota == 0 {
            cpu.set_period(None).set_quota(None);
        }
        if wanted.cpuset_cpus.is_empty() {
            cpu.set_cpus(None);
        }
        if wanted.cpuset_mems.is_empty() {
            cpu.set_mems(None);
        }
    }
    if let Some(limits) = whole.hugepage_limits_mut() {
        limits.retain(|limit| {
            wanted
                .hugepage_limits
                .iter()
                .any(|new| new.page_size == *limit.page_size())
        });
    }
    if let Some(unified) = whole.unified_mut() {
        unified.retain(|key, _| wanted.unified.contains_key(key));
    }
    whole
}

/// Memory as it shall be, with what CRI has no words for, which plugins may have set.
fn with_old_memory(whole: &LinuxResources, old: &LinuxResources) -> Option<LinuxMemory> {
    let mut memory = whole.memory().unwrap_or_default();
    let old = old.memory().unwrap_or_default();
    memory
        .set_reservation(old.reservation())
        .set_swappiness(old.swappiness())
        .set_disable_oom_killer(old.disable_oom_killer());
    Some(memory).filter(|memory| *memory != LinuxMemory::default())
}

/// The same for CPUs.
fn with_old_cpu(whole: &LinuxResources, old: &LinuxResources) -> Option<LinuxCpu> {
    let mut cpu = whole.cpu().clone().unwrap_or_default();
    let old = old.cpu().clone().unwrap_or_default();
    cpu.set_realtime_runtime(old.realtime_runtime())
        .set_realtime_period(old.realtime_period());
    Some(cpu).filter(|cpu| *cpu != LinuxCpu::default())
}

struct Change {
    /// As asked for.
    wanted: LinuxContainerResources,
    /// For the spec.
    whole: LinuxResources,
    /// For the cgroup.
    only_new: LinuxResources,
    annotations: HashMap<String, String>,
    oom_score_adj: Option<i32>,
}

/// What takes a change back.
#[derive(Default)]
struct Applied {
    limits: Option<cgroups::Undo>,
    scores: Vec<(PathBuf, String)>,
    spec: Option<Vec<u8>>,
}

impl Change {
    fn apply(self, tools: &Tools, container: &Container, running: bool) -> Result<Applied> {
        let mut applied = Applied::default();
        match self.apply_to(&mut applied, tools, container, running) {
            Ok(()) => Ok(applied),
            Err(error) => {
                applied.take_back(container);
                Err(error)
            }
        }
    }

    fn apply_to(self, applied: &mut Applied, tools: &Tools, container: &Container, running: bool) -> Result<()> {
        let handler = &container.record.get().runtime_handler;
        limits::check(
            &self.wanted,
            tools.mechanisms.config.get().handler_settings(handler).min_memory,
        )?;
        if running {
            let path = container.record.get().cgroup_path.clone();
            let failed = |error: cgroups::Error| match error {
                cgroups::Error::Io { .. } | cgroups::Error::HalfDone { .. } => {
                    container.io("set limits")(io::Error::other(error))
                }
                other => Error::Invalid(format!("container {}: {other}", container.id)),
            };
            let cgroup = Cgroup::new(&tools.mechanisms.cgroups, &path).map_err(failed)?;
            applied.limits = Some(cgroup.update(&self.only_new).map_err(failed)?);
            if let Some(score) = self.oom_score_adj {
                set_scores(&cgroup, score, &mut applied.scores)
                    .map_err(container.io(&format!("set oom_score_adj to {score}")))?;
            }
        }
        let path = container.dir.join("config.json");
        let before = std::fs::read(&path).map_err(container.io("read config.json"))?;
        let wrong = |error: serde_json::Error| container.io("change config.json")(error.into());
        let mut spec: Spec = serde_json::from_slice(&before).map_err(wrong)?;
        self.edit(&mut spec);
        let after = serde_json::to_vec(&spec).map_err(wrong)?;
        applied.spec = Some(before);
        store::write_file(&path, &after, 0o600)?;
        Ok(())
    }

    fn edit(self, spec: &mut Spec) {
        if let Some(linux) = spec.linux_mut() {
            let resources = linux.resources_mut().get_or_insert_default();
            let (cpu, memory) = (
                with_old_cpu(&self.whole, resources),
                with_old_memory(&self.whole, resources),
            );
            resources
                .set_cpu(cpu)
                .set_memory(memory)
                .set_hugepage_limits(self.whole.hugepage_limits().clone())
                .set_unified(self.whole.unified().clone());
            spec::no_limits(resources);
        }
        if let (Some(process), Some(score)) = (spec.process_mut(), self.oom_score_adj) {
            process.set_oom_score_adj(Some(score));
        }
        if !self.annotations.is_empty() {
            spec.annotations_mut().get_or_insert_default().extend(self.annotations);
        }
    }
}

impl Applied {
    /// Best effort: what can't be taken back is logged, because the caller has an error to tell already.
    fn take_back(self, container: &Container) {
        let note = |what: &str, error: &dyn std::fmt::Display| {
            tracing::error!(container = container.id, %error, "an update that failed could not be taken back: {what}");
        };
        if let Some(Err(error)) = self.limits.map(cgroups::Undo::take_back) {
            note("limits", &error);
        }
        for (file, score) in self.scores.iter().rev() {
            let _ = std::fs::write(file, score);
        }
        if let Some(spec) = self.spec
            && let Err(error) = store::write_file(&container.dir.join("config.json"), &spec, 0o600)
        {
            note("config.json", &error);
        }
    }
}

/// Gives every process of the cgroup the score, and notes what each had. One that ends meanwhile needs none.
fn set_scores(cgroup: &Cgroup, score: i32, before: &mut Vec<(PathBuf, String)>) -> io::Result<()> {
    for _ in 0..ROUNDS {
        let mut new = false;
        for pid in cgroup.pids() {
            let file = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
            if before.iter().any(|(known, _)| *known == file) {
                continue;
            }
            new = true;
            let Ok(old) = std::fs::read_to_string(&file) else {
                continue;
            };
            match std::fs::write(&file, score.to_string()) {
                Ok(()) => before.push((file, old)),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {}
                Err(error) => return Err(error),
            }
        }
        if !new {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::host::Host;

    fn resources(memory: i64, swap: i64, shares: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: swap,
            cpu_shares: shares,
            ..Default::default()
        }
    }

    #[test]
    fn zero_and_empty_leave_what_is() {
        let mut now = resources(100, 0, 512);
        now.cpuset_cpus = "0".into();
        let merged = merge(now, &resources(200, 0, 0));
        let mut expected = resources(200, 0, 512);
        expected.cpuset_cpus = "0".into();
        assert_eq!(merged, expected);
    }

    #[test]
    fn only_what_is_asked_for_is_written() {
        let host = Host {
            swap_limit: true,
            ..Default::default()
        };
        let wanted = resources(0, 0, 1024);
        let merged = merge(resources(1 << 30, 0, 512), &wanted);
        let whole = spec::resources_to_oci(&merged, &host, true).unwrap();
        assert!(whole.memory().is_some());
        let new = only_new(whole, &wanted);
        assert!(new.memory().is_none());
        assert_eq!(new.cpu().as_ref().and_then(|cpu| cpu.shares()), Some(1024));
    }

    #[test]
    fn memory_above_an_older_swap_limit_needs_a_new_one() {
        let host = Host {
            swap_limit: true,
            ..Default::default()
        };
        let merged = merge(resources(100 << 20, 200 << 20, 0), &resources(300 << 20, 0, 0));
        assert!(spec::resources_to_oci(&merged, &host, true).is_err());
    }
}
