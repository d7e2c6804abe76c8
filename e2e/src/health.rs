//! A container's server that is well, by gRPC's health service, for kubelet's gRPC probes.

use std::net::SocketAddr;
use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, async_trait, transport::Server};
use wharf_proto::health::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::Result;

/// Serves until the process ends.
///
/// # Errors
/// When the address can't be listened at.
pub async fn serve(address: SocketAddr) -> Result {
    Ok(Server::builder()
        .add_service(HealthServer::new(Well))
        .serve(address)
        .await?)
}

struct Well;

#[async_trait]
impl Health for Well {
    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> std::result::Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = std::result::Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> std::result::Result<Response<Self::WatchStream>, Status> {
        let now = self.check(request).await?.into_inner();
        Ok(Response::new(Box::pin(stream::iter([Ok(now)]))))
    }
}
