//! What happens to pods and containers, as CRI's stream of events (contract rule 34). As with both peers a pod has events
//! of its own, with its own id in the place of a container's.

use futures_util::{StreamExt as _, stream};
use tonic::{Request, Status};
use wharf_proto::{
    api::{EventsBegin, EventsMessage, EventsRequest, events_message::Message},
    cri::{ContainerEventResponse, ContainerEventType, GetEventsRequest},
    record::Owner,
};

use super::{Face, containers, owners, pods, status::status, streams::Stream};
use crate::node::{Ask, Event, Node, Step};

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

/// All that happens on the node, with what was missed.
pub(super) fn history(
    node: &Node,
    request: EventsRequest,
    owners: &'static [Owner],
) -> Result<Stream<EventsMessage>, Status> {
    let ask = Ask {
        cursor: request.cursor,
        since: request.since,
        until: request.until,
        filters: request.filters,
    };
    let listener = node.listen(ask, owners).map_err(|error| status(&error))?;
    let begin = Message::Begin(EventsBegin {
        cursor: listener.cursor.clone(),
        kept_since: listener.kept_since,
    });
    let wrap = |message| EventsMessage { message: Some(message) };
    let events = stream::unfold(Some(listener), move |listener| async move {
        let mut listener = listener?;
        match listener.next().await {
            Ok(Some(event)) => Some((Ok(wrap(Message::Event(event))), Some(listener))),
            Ok(None) => None,
            Err(error) => Some((Err(status(&error)), None)),
        }
    });
    Ok(stream::once(std::future::ready(Ok(wrap(begin)))).chain(events).boxed())
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
