//! CPUs that a container has for itself (row E14): no CPU quota, no load balancing by the scheduler, no interrupts, no
//! deep sleep, a frequency governor of its choice, and beside them some that it shares with others.
//!
//! Pods ask by annotations, which their handler must allow ([`crate::config::RuntimeHandler`]). `wishes` reads them,
//! `plan` decides, both pure; what is changed on the node stands in the [`Ledger`] until it is taken back.

mod ledger;
mod masks;
mod plan;
#[cfg(test)]
mod tests;
mod wishes;

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use ledger::Step;
pub use ledger::{Error as LedgerError, Ledger};
use masks::Format;
use oci_spec::runtime::{ExecCPUAffinityBuilder, Spec};
use wharf_proto::{
    cri::{ContainerConfig, LinuxContainerResources},
    record,
};
use wishes::Wishes;

use super::{Container, Error, Result, Tools};
use crate::{
    cgroups::Cgroup,
    config::{Config, CpuSet, RuntimeHandler},
};

/// How long irqbalance's restart may take.
const RESTART_LIMIT: Duration = Duration::from_secs(10);

/// What is decided for a container before it is made.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// For its record.
    pub isolation: Option<record::CpuIsolation>,
    exec: Option<u32>,
}

impl Prepared {
    /// Adds what a spec has of it.
    pub fn add(&self, spec: &mut Spec) -> Result<()> {
        let (Some(cpu), Some(process)) = (self.exec, spec.process_mut()) else {
            return Ok(());
        };
        let cpu = cpu.to_string();
        let affinity = ExecCPUAffinityBuilder::default()
            .initial(cpu.clone())
            .cpu_affinity_final(cpu)
            .build();
        let affinity = affinity.map_err(|error| Error::Invalid(error.to_string()))?;
        process.set_exec_cpu_affinity(Some(affinity));
        Ok(())
    }
}

/// Decides what the annotations of the pod ask for, and changes the config's limits and environment accordingly. Reads
/// which CPUs are threads of one core.
///
/// # Errors
/// [`Error::Invalid`], which names the annotation.
pub(super) fn prepare(
    daemon: &Config,
    handler: &RuntimeHandler,
    of_pod: &HashMap<String, String>,
    cgroup_parent: &str,
    config: &mut ContainerConfig,
) -> Result<Prepared> {
    let name = config.metadata.clone().unwrap_or_default().name;
    let wishes = Wishes::read(&handler.effective(of_pod), &name)?;
    let node = plan::Node {
        shared: daemon.cpu_isolation.shared_cpuset.as_deref(),
        exec: handler.exec_cpu_affinity,
        siblings: |cpu| siblings(&daemon.cpu_isolation.cpu_dir, cpu),
    };
    let plan::Plan { isolation, exec } = plan::plan(&wishes, &node, cgroup_parent, config)?;
    Ok(Prepared { isolation, exec })
}

/// A CPU without the file is the only thread of its core.
fn siblings(cpu_dir: &Path, cpu: u32) -> CpuSet {
    let file = cpu_dir.join(format!("cpu{cpu}/topology/thread_siblings_list"));
    let read = std::fs::read_to_string(file).ok().and_then(|text| CpuSet::parse(&text));
    read.filter(|set| !set.is_empty())
        .unwrap_or_else(|| [cpu].into_iter().collect())
}

/// Changes the node for a container that is about to run. What fails is taken back.
///
/// # Errors
/// [`Error::Invalid`] when this node can't do it, with the annotation; else the file.
pub(super) async fn begin(tools: &Tools, container: &Container) -> Result<()> {
    let record = container.record.get();
    let Some(isolation) = record.isolation.clone() else {
        return Ok(());
    };
    let (ledger, owner) = (Arc::clone(&tools.cpus), container.id.clone());
    let hierarchies = tools.mechanisms.cgroups.clone();
    let settings = tools.mechanisms.config.get().cpu_isolation.clone();
    let has_parent = {
        let pod = container.sandbox.record.get();
        let linux = pod.config.as_ref().and_then(|config| config.linux.as_ref());
        linux.is_some_and(|linux| !linux.cgroup_parent.is_empty())
    };
    let failed = move |error: &dyn std::fmt::Display| {
        Error::State(format!(
            "container {owner}: what its pod's annotations ask of the node's CPUs: {error}"
        ))
    };
    let id = container.id.clone();
    let interrupts = container
        .blocking(move || {
            let cgroup = Cgroup::new(&hierarchies, &record.cgroup_path).map_err(|error| failed(&error))?;
            let above = parent(&record.cgroup_path).filter(|_| has_parent);
            let pod = above.and_then(|path| Cgroup::new(&hierarchies, path).ok());
            let mut steps = of_cpus(&isolation, &settings.cpu_dir)?;
            steps.extend(of_quota(&isolation, pod.as_ref()));
            if !isolation.no_interrupts.is_empty() {
                steps.push(Step::Cpus {
                    file: settings.irq_affinity_file.clone(),
                    format: Format::Mask,
                    cpus: known(&isolation.no_interrupts),
                    add: false,
                });
            }
            if isolation.no_balance {
                balance_is_possible(&isolation, &cgroup)?;
                let files = cgroup.exclusive_files();
                steps.extend(files.into_iter().map(|file| Step::Cpus {
                    file,
                    format: Format::List,
                    cpus: known(&isolation.cpus),
                    add: true,
                }));
            }
            if isolation.no_balance {
                // The cgroups above must be there to be changed.
                cgroup.create().map_err(|error| failed(&error))?;
            }
            let interrupts = ledger.claim(&id, &steps).map_err(|error| failed(&error))?;
            if isolation.no_balance
                && let Err(error) = cgroup.isolate(&isolation.cpus)
            {
                ledger.release(&id).map_err(|error| failed(&error))?;
                cgroup.remove_if_empty();
                return Err(failed(&format!("annotation {}: {error}", wishes::BALANCE)));
            }
            Ok(interrupts)
        })
        .await?;
    if interrupts {
        restart_irqbalance(tools).await;
    }
    Ok(())
}

/// Takes back what was changed for a container. Done already: nothing to do.
///
/// # Errors
/// When the ledger can't be written.
pub(super) async fn end(tools: &Tools, container: &Container) -> Result<()> {
    if container.record.get().isolation.is_none() {
        return Ok(());
    }
    let (ledger, id) = (Arc::clone(&tools.cpus), container.id.clone());
    let released = container.blocking(move || ledger.release(&id).map_err(|error| Error::State(error.to_string())));
    if released.await? {
        restart_irqbalance(tools).await;
    }
    Ok(())
}

/// Takes back what was changed for containers that are not among `ids`. At the daemon's start.
///
/// # Errors
/// When the ledger can't be written.
pub async fn end_others(tools: &Tools, ids: Vec<String>) -> Result<()> {
    let ledger = Arc::clone(&tools.cpus);
    let work = move || ledger.release_others(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let released = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::State(error.to_string()))?;
    if released.map_err(|error| Error::State(error.to_string()))? {
        restart_irqbalance(tools).await;
    }
    Ok(())
}

/// Holds an update to what the annotations ask for: no quota stays none, shared CPUs stay, and CPUs of its own do not
/// change while the node is set up for them.
///
/// # Errors
/// [`Error::Invalid`] for other CPUs.
pub(super) fn hold(isolation: Option<&record::CpuIsolation>, wanted: &mut LinuxContainerResources) -> Result<()> {
    let Some(isolation) = isolation else { return Ok(()) };
    if isolation.no_quota && wanted.cpu_quota != 0 {
        wanted.cpu_quota = -1;
    }
    if !wanted.cpuset_cpus.is_empty() {
        let (own, shared) = (known(&isolation.cpus), known(&isolation.shared));
        let new = CpuSet::parse(&wanted.cpuset_cpus).map(|new| new.union(&shared));
        let all = own.union(&shared);
        // Whoever asked for no quota alone may have any CPUs.
        let asked = [
            &isolation.no_interrupts,
            &isolation.idle_latency,
            &isolation.governor,
            &isolation.shared,
        ];
        let free = !isolation.no_balance && asked.iter().all(|text| text.is_empty());
        if !free && new.as_ref() != Some(&all) {
            return Err(Error::Invalid(format!(
                "cpuset_cpus {:?}: the node is set up for the container's CPUs {all}, as its pod's annotations ask",
                wanted.cpuset_cpus
            )));
        }
        if !free {
            wanted.cpuset_cpus = all.to_string();
        }
    }
    Ok(())
}

fn of_cpus(isolation: &record::CpuIsolation, cpu_dir: &Path) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for cpu in known(&isolation.cpus).iter() {
        let dir = cpu_dir.join(format!("cpu{cpu}"));
        if !isolation.idle_latency.is_empty() {
            let file = dir.join("power/pm_qos_resume_latency_us");
            there(&file, wishes::IDLE)?;
            steps.push(Step::Value {
                file,
                value: isolation.idle_latency.clone(),
            });
        }
        if !isolation.governor.is_empty() {
            let known = dir.join("cpufreq/scaling_available_governors");
            there(&known, wishes::GOVERNOR)?;
            let names = std::fs::read_to_string(&known).unwrap_or_default();
            if !names.split_whitespace().any(|name| name == isolation.governor) {
                return Err(Error::Invalid(format!(
                    "annotation {}: CPU {cpu} has no governor {:?}, only {}",
                    wishes::GOVERNOR,
                    isolation.governor,
                    names.split_whitespace().collect::<Vec<_>>().join(", ")
                )));
            }
            steps.push(Step::Value {
                file: dir.join("cpufreq/scaling_governor"),
                value: isolation.governor.clone(),
            });
        }
    }
    Ok(steps)
}

fn there(file: &Path, key: &str) -> Result<()> {
    match file.exists() {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "annotation {key}: this node can't do that, there is no {}",
            file.display()
        ))),
    }
}

/// The pod's quota would bind its containers as well.
fn of_quota(isolation: &record::CpuIsolation, pod: Option<&Cgroup>) -> Option<Step> {
    let file = pod?.quota_file().filter(|file| file.exists())?;
    let now = std::fs::read_to_string(&file).ok()?;
    let mut words = now.split_whitespace();
    let quota = words.next()?.parse::<i64>().ok().filter(|quota| *quota > 0)?;
    let (none, rest) = match words.next() {
        Some(period) => ("max", format!(" {period}")),
        None => ("-1", String::new()),
    };
    let value = match isolation.no_quota {
        true => format!("{none}{rest}"),
        false if isolation.more_quota > 0 => format!("{}{rest}", quota.saturating_add(isolation.more_quota)),
        false => return None,
    };
    Some(Step::Value { file, value })
}

/// On version 2 a partition has its CPUs alone: none of a cgroup's can be shared ones.
fn balance_is_possible(isolation: &record::CpuIsolation, cgroup: &Cgroup) -> Result<()> {
    match isolation.shared.is_empty() || cgroup.v2_dir().is_none() {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "annotations {} and {}: with cgroup v2 a container has either CPUs without load balancing or shared ones",
            wishes::BALANCE,
            wishes::SHARED
        ))),
    }
}

/// Best effort: whoever keeps interrupts away by the mask alone needs no irqbalance.
async fn restart_irqbalance(tools: &Tools) {
    let config = tools.mechanisms.config.get();
    let settings = &config.cpu_isolation;
    let Some((program, arguments)) = settings.irqbalance_restart.split_first() else {
        return;
    };
    if !settings.irqbalance_config.exists() {
        return;
    }
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null());
    let why = match tokio::time::timeout(RESTART_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => return,
        Ok(Ok(output)) => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("took longer than {} s", RESTART_LIMIT.as_secs()),
    };
    tracing::warn!(program, why, "irqbalance was not told that its settings changed");
}

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/')
        .map(|(parent, _)| parent)
        .filter(|parent| !parent.is_empty())
}

/// A list of our own making.
fn known(list: &str) -> CpuSet {
    CpuSet::parse(list).unwrap_or_default()
}
