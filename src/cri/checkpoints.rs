//! Checkpoints in CRI's words.

use std::{collections::HashMap, time::Duration};

use tonic::{Request, Status};
use wharf_proto::cri::{
    CheckpointContainerRequest, CheckpointPodRequest, RestorePodRequest, RestorePodResponse, RestoredContainer,
};

use super::{Face, deadline, owner, status::status};
use crate::node::RestoreOrder;

impl Face {
    pub(super) async fn checkpoint(&self, request: CheckpointContainerRequest) -> Result<(), Status> {
        let Ok(seconds) = u64::try_from(request.timeout) else {
            return Err(Status::invalid_argument(format!(
                "the timeout of a checkpoint can't be {} s",
                request.timeout
            )));
        };
        self.node()?
            .checkpoint(&request.container_id, request.location, Duration::from_secs(seconds))
            .await
            .map_err(|error| status(&error))
    }

    pub(super) async fn checkpoint_sandbox(&self, request: Request<CheckpointPodRequest>) -> Result<(), Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        no_options(&request.options)?;
        self.node()?
            .checkpoint_pod(
                &request.pod_sandbox_id,
                request.output_path,
                &request.container_ids,
                deadline,
            )
            .await
            .map_err(|error| status(&error))
    }

    pub(super) async fn restore_sandbox(
        &self,
        request: Request<RestorePodRequest>,
    ) -> Result<RestorePodResponse, Status> {
        let (owner, deadline) = (owner(&request), deadline(&request));
        let request = request.into_inner();
        no_options(&request.options)?;
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("the request has no pod sandbox config"))?;
        if config.windows.is_some() || request.container_configs.iter().any(|one| one.windows.is_some()) {
            return Err(Status::invalid_argument(
                "a config of the request has windows options, on a Linux node",
            ));
        }
        let order = RestoreOrder {
            checkpoint: request.checkpoint_path,
            config,
            handler: request.runtime_handler,
            containers: request.container_configs,
        };
        let restored = self.node()?.restore_pod(order, owner, deadline).await;
        let restored = restored.map_err(|error| status(&error))?;
        let containers = restored.containers.into_iter();
        Ok(RestorePodResponse {
            pod_sandbox_id: restored.pod,
            restored_containers: containers
                .map(|(name, container_id)| RestoredContainer { name, container_id })
                .collect(),
        })
    }
}

/// No handler has options for checkpoints.
fn no_options(options: &HashMap<String, String>) -> Result<(), Status> {
    if options.is_empty() {
        return Ok(());
    }
    let mut keys: Vec<_> = options.keys().map(String::as_str).collect();
    keys.sort_unstable();
    Err(Status::invalid_argument(format!(
        "unknown options for the checkpoint: {} (there are none)",
        keys.join(", ")
    )))
}

/// RFC 3339, of nanoseconds since 1970; 0 as Go writes a time that is not set.
pub(super) fn time(nanos: i64) -> String {
    match jiff::Timestamp::from_nanosecond(nanos.into()) {
        Ok(time) if nanos != 0 => time.to_string(),
        _ => "0001-01-01T00:00:00Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_refused_by_name() {
        assert!(no_options(&HashMap::new()).is_ok());
        let options = HashMap::from([("leave-stopped".to_owned(), "true".to_owned())]);
        let error = no_options(&options).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.message().contains("leave-stopped"));
    }

    #[test]
    fn a_time_that_is_not_set_is_that_of_go() {
        assert_eq!(time(0), "0001-01-01T00:00:00Z");
        assert_eq!(time(1_500_000_000), "1970-01-01T00:00:01.5Z");
    }
}
