//! Metrics of pods and containers (KEP-2371): kubelet serves them in place of cAdvisor's.

mod descriptors;
mod values;

use bytes::BytesMut;
use prost::Message as _;
use tonic::{Request, Status};
use wharf_proto::cri::{MetricDescriptor, PodSandboxMetrics};

use super::{
    Face,
    lists::{Holder, Item as _},
};

/// All metrics that there are.
pub(super) fn all() -> Vec<MetricDescriptor> {
    descriptors::ALL.iter().map(descriptors::Descriptor::to_cri).collect()
}

impl Face {
    /// Metrics of ready pods and their running containers, encoded.
    pub(super) async fn encoded_metrics<T>(&self, request: &Request<T>) -> Result<Vec<Holder>, Status> {
        let pods = self.ready_pods(request)?;
        Ok(self.node()?.pod_metrics(pods).await.iter().map(values::pod).collect())
    }

    /// As [`Face::encoded_metrics`], decoded.
    pub(super) async fn sandbox_metrics<T>(&self, request: &Request<T>) -> Result<Vec<PodSandboxMetrics>, Status> {
        let encoded = self.encoded_metrics(request).await?;
        let decode = |item: &Holder| {
            let mut bytes = BytesMut::with_capacity(item.len());
            item.put(&mut bytes);
            PodSandboxMetrics::decode(bytes).map_err(|error| Status::internal(error.to_string()))
        };
        encoded.iter().map(decode).collect()
    }
}
