//! The face for Prometheus: `GET /metrics` at `[metrics] address`.
//!
//! What the daemon counts is `telemetry`'s; how many pods there are, and what the process takes, is looked up when somebody
//! reads. No state, no mechanism. It is read a few times a minute by one or two readers, so connections are few and end
//! when they rest.

mod lookup;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{node::Node, telemetry::Telemetry};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 16;
/// How long a request may take to come, and its answer to go.
const LIMIT: Duration = Duration::from_secs(10);
/// What tells a reader that this is OpenMetrics' text form.
const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("listen for readers of metrics on {address}: {source}")]
pub struct Error {
    address: SocketAddr,
    source: io::Error,
}

/// The server while it serves.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Server {
    /// Serves at `address` until it is shut down.
    ///
    /// # Errors
    /// When that address can't be listened on.
    pub async fn start(address: SocketAddr, node: Node, telemetry: Telemetry) -> Result<Self, Error> {
        let failed = |source| Error { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let server = Self {
            address: listener.local_addr().map_err(failed)?,
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        };
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "anyone who reaches this address can read the daemon's metrics");
        }
        let (tasks, ending) = (server.tasks.clone(), server.ending.clone());
        server.tasks.spawn(async move {
            let room = Arc::new(Semaphore::new(CONNECTIONS));
            let source = Arc::new((node, telemetry));
            loop {
                let next = async {
                    let place = Arc::clone(&room).acquire_owned().await;
                    (place, listener.accept().await)
                };
                let (place, accepted) = tokio::select! {
                    () = ending.cancelled() => return,
                    next = next => next,
                };
                match accepted {
                    Ok((stream, _)) => {
                        let (source, ending) = (Arc::clone(&source), ending.clone());
                        tasks.spawn(async move {
                            serve(stream, source, ending).await;
                            drop(place);
                        });
                    }
                    // Out of descriptors: those that are open end first.
                    Err(error) => {
                        tracing::warn!(%error, "accept a reader of metrics");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(server)
    }

    /// Where it listens, with the port that the system has chosen if none was given.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and waits for that.
    pub async fn shut_down(&self) {
        self.ending.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn serve(stream: TcpStream, source: Arc<(Node, Telemetry)>, ending: CancellationToken) {
    let service = service_fn(move |request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let mut builder = http1::Builder::new();
    // One request each: nobody keeps a connection without a need.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(LIMIT)
        .keep_alive(false)
        .max_buf_size(16 << 10);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = ending.cancelled() => {}
        // Whoever is slower than that, or speaks something else, is cut off; there is nobody to be told.
        _ = tokio::time::timeout(LIMIT * 2, connection) => {}
    }
}

async fn answer(request: &Request<Incoming>, (node, telemetry): &(Node, Telemetry)) -> Response<Full<Bytes>> {
    let plain = |status, text: &str| {
        let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "GET /metrics\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n");
    }
    let gauges = lookup::gauges(node).await;
    match telemetry.render(&gauges) {
        Some(Ok(text)) => {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            let kind = header::HeaderValue::from_static(KIND);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Some(Err(_)) | None => plain(StatusCode::INTERNAL_SERVER_ERROR, "nothing is counted\n"),
    }
}
