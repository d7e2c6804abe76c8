//! Metrics of pods and containers (KEP-2371): kubelet serves them in place of cAdvisor's.

mod descriptors;
mod values;

use tonic::{Request, Status};
use wharf_proto::cri::{MetricDescriptor, PodSandboxMetrics};

use super::Face;

/// All metrics that there are.
pub(super) fn all() -> Vec<MetricDescriptor> {
    descriptors::ALL.iter().map(descriptors::Descriptor::to_cri).collect()
}

impl Face {
    /// Metrics of ready pods and their running containers.
    pub(super) async fn sandbox_metrics<T>(&self, request: &Request<T>) -> Result<Vec<PodSandboxMetrics>, Status> {
        let node = self.node()?;
        let pods = self.ready_pods(request)?;
        let (space, metrics) = tokio::join!(node.space(), node.pod_metrics(pods));
        let space = space.as_ref().map(|taken| &taken.value);
        Ok(metrics.iter().map(|pod| values::pod(pod, space)).collect())
    }
}
