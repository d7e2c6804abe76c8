//! What is noted of each call: how long its answer took and what it was part of (`telemetry`), and who asked for what (`audit`).

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::Value;
use tonic::{Status, body::Body, server::NamedService, transport::server::UdsConnectInfo};
use tower::Service;

use super::{
    audit::{self, Audit, Call},
    elsewhere::{Answer, READS},
    server::MESSAGE_LIMIT,
};
use crate::telemetry::Telemetry;

/// Calls that send more than one message: what they are about is not looked for.
const STREAMS: [&str; 3] = [
    "/wharf.v1.Wharf/LoadImages",
    "/wharf.v1.Wharf/ImportImage",
    "/wharf.v1.Wharf/MigrateImages",
];
/// Calls of Wharf's own that change nothing, beside those of [`READS`].
const OWN_READS: [&str; 12] = [
    "/runtime.v1.RuntimeService/ContainerStats",
    "/runtime.v1.RuntimeService/PodSandboxStats",
    "/runtime.v1.RuntimeService/GetContainerEvents",
    "/runtime.v1.ImageService/StreamImages",
    "/wharf.v1.Wharf/Doctor",
    "/wharf.v1.Wharf/Debug",
    "/wharf.v1.Wharf/DiskUsage",
    "/wharf.v1.Wharf/Events",
    "/wharf.v1.Wharf/ListOperations",
    "/wharf.v1.Wharf/ListIncomplete",
    "/wharf.v1.Wharf/ListNetworks",
    "/wharf.v1.Wharf/ListPaused",
];

/// Who notes.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers {
    pub telemetry: Telemetry,
    pub audit: Option<Audit>,
    /// Calls that only read are told too.
    pub audit_reads: bool,
}

/// A service whose calls are noted.
#[derive(Debug, Clone)]
pub(super) struct Watched<S> {
    watchers: Watchers,
    service: S,
}

impl<S> Watched<S> {
    pub(super) fn new(watchers: Watchers, service: S) -> Self {
        Self { watchers, service }
    }
}

impl<S: NamedService> NamedService for Watched<S> {
    const NAME: &'static str = S::NAME;
}

fn only_reads(path: &str) -> bool {
    READS.contains(&path) || OWN_READS.contains(&path)
}

/// gRPC's code of an answer: in its headers if there is nothing else in it, else it will be well as far as is known.
fn code(answer: &http::Response<Body>) -> u16 {
    let code = answer.headers().get("grpc-status").and_then(|code| code.to_str().ok());
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

impl<S> Service<http::Request<Body>> for Watched<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future = Answer>
        + Clone
        + Send
        + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let telemetry = self.watchers.telemetry.clone();
        let path = request.uri().path().to_owned();
        let wanted = |_: &&Audit| self.watchers.audit_reads || !only_reads(&path);
        let audit = self.watchers.audit.as_ref().filter(wanted).cloned();
        if !telemetry.is_on() && audit.is_none() {
            return self.service.call(request);
        }
        let call = telemetry.begin(&path, request.headers());
        let Some(audit) = audit else {
            let answer = call.within(|| self.service.call(request));
            return Box::pin(async move {
                let answer = answer.await?;
                telemetry.end(call, &path, code(&answer));
                Ok(answer)
            });
        };
        let connection = request.extensions().get::<UdsConnectInfo>();
        let peer = connection.and_then(|connection| connection.peer_cred);
        let mut service = self.service.clone();
        Box::pin(async move {
            let (request, object) = match STREAMS.contains(&path.as_str()) {
                true => (request, Value::Null),
                false => match whole(request).await {
                    Ok((request, bytes)) => (request, audit::object(&path, &bytes)),
                    Err(status) => return Ok(status.into_http()),
                },
            };
            let answer = call.within(|| service.call(request)).await?;
            let (code, taken) = (code(&answer), call.taken());
            telemetry.end(call, &path, code);
            audit.tell(Call {
                peer,
                path,
                object,
                code,
                taken,
            });
            Ok(answer)
        })
    }
}

/// The request once all of it has come, with its bytes.
async fn whole(request: http::Request<Body>) -> Result<(http::Request<Body>, Bytes), Status> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MESSAGE_LIMIT + 1024).collect().await;
    let bytes = body
        .map_err(|error| Status::cancelled(format!("the request did not come: {error}")))?
        .to_bytes();
    let body = Body::new(Full::new(bytes.clone()));
    Ok((http::Request::from_parts(parts, body), bytes))
}
