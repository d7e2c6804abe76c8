//! What happens to pods and containers, as CRI's stream of events (contract rule 34). As with both peers a pod has events
//! of its own, with its own id in the place of a container's.

use futures_util::{StreamExt as _, stream};
use tonic::{Request, Status};
use wharf_proto::cri::{ContainerEventResponse, ContainerEventType, GetEventsRequest};

use super::{Face, containers, owners, pods, status::status, streams::Stream};
use crate::node::{Event, Step};

impl Face {
    /// Events from now on. No history; a listener that falls too far behind gets an error, after which it lists anew.
    pub(super) fn container_events(
        &self,
        request: &Request<GetEventsRequest>,
    ) -> Result<Stream<ContainerEventResponse>, Status> {
        let subscription = self.node()?.events(owners(request));
        let events = stream::unfold(Some(subscription), |subscription| async move {
            let mut subscription = subscription?;
            Some(match subscription.next().await {
                Ok(event) => (Ok(translated(&event)), Some(subscription)),
                Err(error) => (Err(status(&error)), None),
            })
        });
        Ok(events.boxed())
    }
}

fn translated(event: &Event) -> ContainerEventResponse {
    let kind = match event.step {
        Step::Created => ContainerEventType::ContainerCreatedEvent,
        Step::Started => ContainerEventType::ContainerStartedEvent,
        Step::Stopped => ContainerEventType::ContainerStoppedEvent,
        Step::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.moment.at,
        pod_sandbox_status: Some(pods::pod_status(&event.moment.pod)),
        containers_statuses: event
            .moment
            .containers
            .iter()
            .map(|one| containers::full(one))
            .collect(),
    }
}
