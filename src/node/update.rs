//! Changing limits of containers and pods.

use std::{collections::HashMap, sync::Arc};

use wharf_proto::cri::LinuxContainerResources;

use super::{Error, Node, Result};
use crate::{
    containers::{self, spec},
    sandbox::{self, Limits, Sandbox},
};

impl Node {
    /// Changes a container's limits; see [`containers::update`].
    ///
    /// # Errors
    /// As there.
    pub async fn update_container(
        &self,
        id: &str,
        resources: LinuxContainerResources,
        annotations: HashMap<String, String>,
    ) -> Result<()> {
        let container = self.container(id)?;
        let node = self.clone();
        self.own(async move {
            let resources = node.plugins_update(&container, resources).await?;
            containers::update(&node.inner.tools, &container, resources, annotations).await?;
            node.plugins_hear_updated(&container).await;
            Ok(())
        })
        .await
    }

    /// Changes a pod's limits: those of its own cgroup, where its config names one.
    ///
    /// # Errors
    /// When the pod is not ready, or a limit can't be set.
    pub async fn update_sandbox(&self, id: &str, asked: Limits) -> Result<()> {
        let pod = self.pod(id)?;
        if !pod.is_ready() {
            return Err(Error::State(format!("pod sandbox {} is not ready", pod.id)));
        }
        let sum = sum(&asked);
        let limits = spec::resources_to_oci(&sum, &self.inner.tools.host, false).map_err(containers::Error::from)?;
        let cgroup = self.own_cgroup(&pod)?;
        let node = self.clone();
        self.own(async move {
            node.plugins_update_pod(&pod, &asked).await?;
            sandbox::update(node.mechanisms(), &pod, cgroup, asked, limits).await?;
            node.plugins_hear_pod_updated(&pod).await;
            Ok(())
        })
        .await
    }

    /// The cgroup that holds this pod's containers and no others, as kubelet makes one for each pod.
    fn own_cgroup(&self, pod: &Arc<Sandbox>) -> Result<Option<String>> {
        let parent = |pod: &Sandbox| sandbox::cgroup_parent(&pod.record.get());
        let Some(own) = parent(pod) else { return Ok(None) };
        let pods = self
            .inner
            .pods
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match pods
            .values()
            .find(|other| other.id != pod.id && other.is_ready() && parent(other).as_deref() == Some(own.as_str()))
        {
            Some(other) => Err(Error::State(format!(
                "cgroup {own} holds pod sandbox {} too, so it can't be given the limits of pod sandbox {}",
                other.id, pod.id
            ))),
            None => Ok(Some(own)),
        }
    }
}

/// Resources and overhead together. What only one of them names, or what can't be added, is as that one says.
fn sum(asked: &Limits) -> LinuxContainerResources {
    let overhead = asked.overhead.clone().unwrap_or_default();
    let Some(mut sum) = asked.resources.clone() else {
        return overhead;
    };
    // Less than zero is no limit, and no limit stays none.
    let add = |to: &mut i64, more: i64| {
        if *to > 0 && more > 0 {
            *to = to.saturating_add(more);
        }
    };
    add(&mut sum.memory_limit_in_bytes, overhead.memory_limit_in_bytes);
    add(&mut sum.memory_swap_limit_in_bytes, overhead.memory_swap_limit_in_bytes);
    add(&mut sum.cpu_shares, overhead.cpu_shares);
    if sum.cpu_period == overhead.cpu_period {
        add(&mut sum.cpu_quota, overhead.cpu_quota);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_comes_on_top_of_limits_that_are_there() {
        let limits = |memory, shares| {
            Some(LinuxContainerResources {
                memory_limit_in_bytes: memory,
                cpu_shares: shares,
                ..Default::default()
            })
        };
        let asked = |overhead, resources| sum(&Limits { overhead, resources });
        assert_eq!(Some(asked(limits(10, 2), limits(100, 20))), limits(110, 22));
        assert_eq!(Some(asked(limits(10, 2), limits(-1, 0))), limits(-1, 0));
        assert_eq!(Some(asked(limits(10, 2), None)), limits(10, 2));
    }
}
