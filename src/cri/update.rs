//! Changed limits in CRI's words.

use tonic::Status;
use wharf_proto::cri::{UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest};

use super::{Face, status::status};
use crate::node::Limits;

impl Face {
    pub(super) async fn update_container(&self, request: UpdateContainerResourcesRequest) -> Result<(), Status> {
        if request.windows.is_some() {
            return Err(Status::invalid_argument("windows resources on a Linux node"));
        }
        self.node()?
            .update_container(
                &request.container_id,
                request.linux.unwrap_or_default(),
                request.annotations,
            )
            .await
            .map_err(|error| status(&error))
    }

    pub(super) async fn update_sandbox(&self, request: UpdatePodSandboxResourcesRequest) -> Result<(), Status> {
        let limits = Limits {
            overhead: request.overhead,
            resources: request.resources,
        };
        self.node()?
            .update_sandbox(&request.pod_sandbox_id, limits)
            .await
            .map_err(|error| status(&error))
    }
}
