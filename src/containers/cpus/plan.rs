//! From wishes to limits: which CPUs a container gets, and what is to be done with them. Pure.

use wharf_proto::{
    cri::{ContainerConfig, KeyValue, LinuxContainerResources},
    record,
};

use super::wishes::{self, Interrupts, Wishes};
use crate::{
    config::{CpuSet, ExecCpuAffinity},
    containers::{Error, Result},
};

/// CFS period where none is asked for, in microseconds (the kernel's default).
const PERIOD: i64 = 100_000;

/// What the node decides.
pub(super) struct Node<'a, F: Fn(u32) -> CpuSet> {
    /// CPUs that can be shared.
    pub shared: Option<&'a str>,
    /// Where commands begin to run.
    pub exec: ExecCpuAffinity,
    /// The threads of a CPU's core, itself among them.
    pub siblings: F,
}

/// What is decided for a container.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// For the record; `None` when nothing is to be done on the node.
    pub isolation: Option<record::CpuIsolation>,
    /// Where commands begin to run.
    pub exec: Option<u32>,
}

/// Whether the container is one that has CPUs of its own: whole ones, in a pod of the class Guaranteed, as kubelet's
/// cgroup names tell it. CRI-O leaves all others as they are, whatever their pod's annotations say, because a pod has
/// helpers beside the container that is meant.
fn has_own_cpus(resources: &LinuxContainerResources, cgroup_parent: &str) -> bool {
    let other_class = cgroup_parent.contains("burstable") || cgroup_parent.contains("besteffort");
    !other_class && resources.cpu_shares > 0 && resources.cpu_shares % 1024 == 0
}

/// Decides, and changes the config's limits and environment accordingly.
///
/// # Errors
/// [`Error::Invalid`], with the annotation, when the container or the node lacks what it needs.
pub(super) fn plan<F: Fn(u32) -> CpuSet>(
    wishes: &Wishes,
    node: &Node<F>,
    cgroup_parent: &str,
    config: &mut ContainerConfig,
) -> Result<Plan> {
    let resources = config.linux.as_mut().and_then(|linux| linux.resources.as_mut());
    let Some(resources) = resources.filter(|resources| has_own_cpus(resources, cgroup_parent)) else {
        return Ok(Plan::default());
    };
    let own = CpuSet::parse(&resources.cpuset_cpus).ok_or_else(|| {
        Error::Invalid(format!(
            "cpuset_cpus {:?}: not a list such as \"0-2,4\"",
            resources.cpuset_cpus
        ))
    })?;
    let first = wishes.first();
    if let Some(key) = first.filter(|key| *key != wishes::QUOTA && own.is_empty()) {
        return Err(Error::Invalid(format!(
            "annotation {key}: the container has no CPUs of its own, its cpuset_cpus is empty (kubelet's static CPU \
             manager fills it)"
        )));
    }
    let mut env = Vec::new();
    let shared = match (wishes.shared, node.shared.and_then(CpuSet::parse)) {
        (false, _) => CpuSet::default(),
        (true, Some(shared)) if !shared.is_empty() => {
            env.push(("OPENSHIFT_ISOLATED_CPUS", own.to_string()));
            env.push(("OPENSHIFT_SHARED_CPUS", shared.to_string()));
            shared
        }
        (true, _) => {
            return Err(Error::Invalid(format!(
                "annotation {}: this node has no shared CPUs (cpu_isolation.shared_cpuset)",
                wishes::SHARED
            )));
        }
    };
    let own = own.without(&shared);
    let all = own.union(&shared);
    let mut isolation = record::CpuIsolation {
        cpus: own.to_string(),
        shared: shared.to_string(),
        no_balance: wishes.no_balance,
        no_quota: wishes.no_quota,
        idle_latency: wishes.idle_latency.clone().unwrap_or_default(),
        governor: wishes.governor.clone().unwrap_or_default(),
        ..Default::default()
    };
    if wishes.interrupts != Interrupts::Anywhere {
        let mut kept = CpuSet::default();
        if wishes.interrupts == Interrupts::Housekeeping {
            kept = own.first().map(&node.siblings).unwrap_or_default().both(&own);
            env.push(("OPENSHIFT_HOUSEKEEPING_CPUS", kept.to_string()));
        }
        isolation.no_interrupts = own.without(&kept).to_string();
    }
    if !shared.is_empty() {
        resources.cpuset_cpus = all.to_string();
    }
    let period = Some(resources.cpu_period)
        .filter(|period| *period > 0)
        .unwrap_or(PERIOD);
    let of = |cpus: &CpuSet| i64::try_from(cpus.len()).map_or(i64::MAX, |count| count.saturating_mul(period));
    if wishes.no_quota {
        resources.cpu_quota = -1;
    } else if !shared.is_empty() && resources.cpu_quota > 0 {
        resources.cpu_quota = of(&all);
        isolation.more_quota = of(&shared);
    }
    let env = env.into_iter().map(|(key, value)| KeyValue {
        key: key.to_owned(),
        value: value.into(),
    });
    config.envs.extend(env);
    let exec = match node.exec {
        ExecCpuAffinity::Any => None,
        ExecCpuAffinity::First => shared.first().or(own.first()),
    };
    Ok(Plan {
        isolation: first.map(|_| isolation),
        exec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cpus: &str, shares: i64, quota: i64) -> ContainerConfig {
        let mut config = ContainerConfig::default();
        let linux = config.linux.get_or_insert_default();
        linux.resources = Some(LinuxContainerResources {
            cpuset_cpus: cpus.into(),
            cpu_shares: shares,
            cpu_quota: quota,
            ..Default::default()
        });
        config
    }

    fn resources(config: &ContainerConfig) -> &LinuxContainerResources {
        config.linux.as_ref().unwrap().resources.as_ref().unwrap()
    }

    fn node(shared: Option<&str>, exec: ExecCpuAffinity) -> Node<'_, impl Fn(u32) -> CpuSet> {
        Node {
            shared,
            exec,
            // Two threads a core: 0 and 4, 1 and 5, and so on.
            siblings: |cpu| [cpu % 4, cpu % 4 + 4].into_iter().collect(),
        }
    }

    fn env(config: &ContainerConfig) -> Vec<String> {
        let text = |pair: &KeyValue| format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value));
        config.envs.iter().map(text).collect()
    }

    #[test]
    fn no_quota_is_asked_of_the_limits_and_of_the_node() {
        let mut main = config("2-3", 2048, 200_000);
        let wishes = Wishes {
            no_quota: true,
            ..Default::default()
        };
        let plan = plan(&wishes, &node(None, ExecCpuAffinity::Any), "/kubepods/pod1", &mut main).unwrap();
        assert_eq!(resources(&main).cpu_quota, -1);
        assert_eq!(resources(&main).cpuset_cpus, "2-3");
        assert!(plan.isolation.unwrap().no_quota);
        assert_eq!(plan.exec, None);
    }

    #[test]
    fn shared_cpus_come_beside_the_own_ones_with_their_time() {
        let mut main = config("2-3", 2048, 200_000);
        let wishes = Wishes {
            shared: true,
            ..Default::default()
        };
        let plan = plan(
            &wishes,
            &node(Some("0"), ExecCpuAffinity::First),
            "/kubepods/pod1",
            &mut main,
        )
        .unwrap();
        assert_eq!(resources(&main).cpuset_cpus, "0,2-3");
        assert_eq!(resources(&main).cpu_quota, 300_000);
        assert_eq!(env(&main), ["OPENSHIFT_ISOLATED_CPUS=2-3", "OPENSHIFT_SHARED_CPUS=0"]);
        let isolation = plan.isolation.unwrap();
        assert_eq!((isolation.cpus.as_str(), isolation.shared.as_str()), ("2-3", "0"));
        assert_eq!(isolation.more_quota, 100_000);
        assert_eq!(plan.exec, Some(0));
    }

    #[test]
    fn interrupts_stay_on_the_first_core_where_that_is_asked_for() {
        for (interrupts, expected, kept) in [
            (Interrupts::Elsewhere, "1-3,5", None),
            (Interrupts::Housekeeping, "2-3", Some("OPENSHIFT_HOUSEKEEPING_CPUS=1,5")),
        ] {
            let mut main = config("1-3,5", 4096, 0);
            let wishes = Wishes {
                interrupts,
                ..Default::default()
            };
            let plan = plan(&wishes, &node(None, ExecCpuAffinity::First), "", &mut main).unwrap();
            assert_eq!(plan.isolation.unwrap().no_interrupts, expected);
            assert_eq!(env(&main).first().map(String::as_str), kept);
            assert_eq!(plan.exec, Some(1));
        }
    }

    #[test]
    fn other_containers_of_the_pod_are_left_as_they_are() {
        let wishes = Wishes {
            no_quota: true,
            no_balance: true,
            ..Default::default()
        };
        for (shares, parent) in [
            (512, "/kubepods/pod1"),
            (0, "/kubepods/pod1"),
            (1024, "/kubepods/burstable/pod1"),
            (1024, "/kubepods/besteffort/pod1"),
        ] {
            let mut main = config("0-1", shares, 50_000);
            let before = main.clone();
            let plan = plan(&wishes, &node(None, ExecCpuAffinity::First), parent, &mut main).unwrap();
            assert!(plan.isolation.is_none() && plan.exec.is_none(), "{shares} {parent}");
            assert_eq!(main, before);
        }
    }

    #[test]
    fn what_is_missing_is_said_with_the_annotation() {
        let balance = Wishes {
            no_balance: true,
            ..Default::default()
        };
        let shared = Wishes {
            shared: true,
            ..Default::default()
        };
        for (wishes, cpus, key, why) in [
            (&balance, "", wishes::BALANCE, "cpuset_cpus is empty"),
            (&shared, "1", wishes::SHARED, "shared_cpuset"),
        ] {
            let mut main = config(cpus, 1024, 0);
            let error = plan(wishes, &node(None, ExecCpuAffinity::Any), "", &mut main)
                .unwrap_err()
                .to_string();
            assert!(error.contains(key) && error.contains(why), "{error}");
        }
    }
}
