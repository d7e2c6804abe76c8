//! gRPC's health service, on the same socket: for whoever watches over the daemon with the field's own tools. It says what
//! systemd's watchdog is told: whether the calls by which kubelet judges a node are answered.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, async_trait};
use wharf_proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use super::Face;

/// How often a watcher's answer is looked at anew.
const INTERVAL: Duration = Duration::from_secs(5);

/// What can be asked for; the empty name is the whole server.
const SERVICES: [&str; 4] = [
    "",
    "runtime.v1.RuntimeService",
    "runtime.v1.ImageService",
    "wharf.v1.Wharf",
];

impl Face {
    fn health(&self, service: &str) -> ServingStatus {
        match (SERVICES.contains(&service), self.is_well()) {
            (false, _) => ServingStatus::ServiceUnknown,
            (true, true) => ServingStatus::Serving,
            (true, false) => ServingStatus::NotServing,
        }
    }
}

fn told(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[async_trait]
impl Health for Face {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match self.health(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!(
                "no service {:?} is served here",
                request.get_ref().service
            ))),
            status => Ok(Response::new(told(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (face, service) = (self.clone(), request.into_inner().service);
        let mut turns = tokio::time::interval(INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let changes = stream::unfold((face, turns, None), move |(face, mut turns, before)| {
            let service = service.clone();
            async move {
                loop {
                    tokio::select! {
                        () = face.ending() => return None,
                        _ = turns.tick() => {}
                    }
                    let now = face.health(&service);
                    if before != Some(now) {
                        return Some((Ok::<_, Status>(told(now)), (face, turns, Some(now))));
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
