//! Traces, taken by a collector.

use std::path::{Path, PathBuf};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use wharf_e2e::{Daemon, Options};
use wharf_proto::cri as pb;

/// Passes on the spans that come, each with its service's name.
struct Taker(mpsc::UnboundedSender<(String, Span)>);

#[tonic::async_trait]
impl TraceService for Taker {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_service in request.into_inner().resource_spans {
            let service = text(&of_service.resource.unwrap_or_default().attributes, "service.name");
            for span in of_service.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                // The test may have ended.
                let _ = self.0.send((service.clone(), span));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// A collector at a socket.
struct Collector {
    dir: TempDir,
    spans: mpsc::UnboundedReceiver<(String, Span)>,
    task: JoinHandle<()>,
}

impl Collector {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(Self::socket(dir.path())).unwrap();
        let (sender, spans) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Taker(sender)));
            server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { dir, spans, task }
    }

    fn socket(dir: &Path) -> PathBuf {
        dir.join("otlp.sock")
    }

    fn tables(&self, more: &str) -> String {
        let socket = Self::socket(self.dir.path());
        format!("[tracing]\nendpoint = 'unix://{}'\n{more}\n", socket.display())
    }

    /// All that has come once the daemon has ended.
    fn all(mut self) -> Vec<(String, Span)> {
        self.task.abort();
        let mut all = Vec::new();
        while let Ok(span) = self.spans.try_recv() {
            all.push(span);
        }
        all
    }
}

#[tokio::test]
async fn a_traced_call_has_its_operation_and_stages_below_it() {
    let collector = Collector::start();
    // Only what the caller wants traced is.
    let tables = collector.tables("service_name = 'node-7'\nsamples_per_million = 0");
    let daemon = Daemon::with(Options {
        tables,
        ..Default::default()
    })
    .await;
    let config = daemon.pod("traced");
    let mut runtime = daemon.cri.runtime.clone();
    let mut request = Request::new(pb::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    });
    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let parent = format!("00-{trace}-{caller}-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let pod = runtime
        .run_pod_sandbox(request)
        .await
        .unwrap()
        .into_inner()
        .pod_sandbox_id;
    let mut missing = Request::new(pb::StartContainerRequest {
        container_id: "0123".into(),
    });
    missing.metadata_mut().insert("traceparent", parent.parse().unwrap());
    runtime.start_container(missing).await.unwrap_err();
    daemon.gone(&pod).await;
    // At its end the daemon sends what is left.
    daemon.finish().await;

    let spans = collector.all();
    let find = |name: &str| {
        let mut found = spans.iter().filter(|(_, span)| span.name == name);
        let (service, span) = found.next().unwrap_or_else(|| panic!("no span {name} in {spans:?}"));
        assert!(found.next().is_none(), "{name} twice");
        assert_eq!(
            (service.as_str(), hex::encode(&span.trace_id).as_str()),
            ("node-7", trace)
        );
        span
    };
    let call = find("runtime.v1.RuntimeService/RunPodSandbox");
    assert_eq!(hex::encode(&call.parent_span_id), caller);
    assert_eq!(text(&call.attributes, "rpc.grpc.status_code"), "0");
    let operation = find("RunPodSandbox");
    assert_eq!(operation.parent_span_id, call.span_id);
    assert_eq!(text(&operation.attributes, "wharf.object.id"), pod);
    let network = find("network");
    assert_eq!(network.parent_span_id, operation.span_id);
    let length = |span: &Span| Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano);
    assert!(length(network) > Duration::ZERO && length(network) <= length(operation));
    // A call that fails by the caller's fault is no error of the server's.
    let wrong = find("runtime.v1.RuntimeService/StartContainer");
    assert_eq!(text(&wrong.attributes, "rpc.grpc.status_code"), "5");
    assert_ne!(wrong.status.clone().unwrap_or_default().code, StatusCode::Error as i32);
    assert!(!spans.iter().any(|(_, span)| span.name.contains("StopPodSandbox")));
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_nobody_anything() {
    let collector = Collector::start();
    let tables = collector.tables("");
    let nobody = collector.all();
    assert!(nobody.is_empty());
    let daemon = Daemon::with(Options {
        tables,
        ..Default::default()
    })
    .await;
    let (pod, _) = daemon.running("untraced", "sleep 1000").await;
    daemon.gone(&pod).await;
    daemon.finish().await;
}
