//! Traces by OpenTelemetry: a span for each gRPC call, below it one for the operation that the call has begun, and below
//! that one for each of its stages. They go to a collector over OTLP/gRPC.
//!
//! Spans are gathered and sent by a thread of the SDK's; a collector that does not answer costs spans, never a call. Whether
//! a call is traced decides its caller (W3C Trace Context, `traceparent`), else a share of all by chance.

use std::{
    fmt,
    future::Future,
    time::{Duration, SystemTime},
};

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{FutureExt as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tonic::transport::ClientTlsConfig;

use super::{Export, Stages};

/// How long a collector may take to accept spans.
const PATIENCE: Duration = Duration::from_secs(5);

/// gRPC's codes that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
/// (OpenTelemetry's semantic conventions for gRPC servers).
const FAULTS: [u16; 6] = [2, 4, 12, 13, 14, 15];

/// Traces can't be sent to the collector that was named.
#[derive(Debug, thiserror::Error)]
#[error("send traces to tracing.endpoint {endpoint}: {why}")]
pub struct Error {
    endpoint: String,
    why: String,
}

/// Where spans go; clones share it.
#[derive(Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

/// The span of a call that has not been answered yet, or what is told of its parent if it is not sampled.
#[derive(Debug)]
pub struct Call(Context);

/// What an operation belongs to: the call that has begun it.
#[derive(Debug)]
pub struct Parent(Context);

impl Traces {
    /// Sends to a collector from now on; whether it is there shows later. To be called on the async runtime.
    ///
    /// # Errors
    /// When the endpoint is no URL that spans can be sent to.
    pub fn open(export: &Export) -> Result<Self, Error> {
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&export.endpoint)
            .with_timeout(PATIENCE);
        if export.endpoint.starts_with("https:") {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let exporter = exporter.build().map_err(|error| Error {
            endpoint: export.endpoint.clone(),
            why: error.to_string(),
        })?;
        Ok(Self::through(exporter, export))
    }

    fn through(exporter: impl opentelemetry_sdk::trace::SpanExporter + 'static, export: &Export) -> Self {
        let share = f64::from(export.samples_per_million) / 1e6;
        let resource = Resource::builder()
            .with_service_name(export.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("wharf");
        Self { provider, tracer }
    }

    /// A call has come. `path` is gRPC's (`/runtime.v1.RuntimeService/Version`), `headers` may name the caller's span.
    pub fn call(&self, path: &str, headers: &HeaderMap) -> Call {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let name = path.trim_start_matches('/').to_owned();
        let (service, method) = name.split_once('/').unwrap_or(("", &name));
        let attributes = [
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service.to_owned()),
            KeyValue::new("rpc.method", method.to_owned()),
        ];
        let span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &parent);
        Call(parent.with_span(span))
    }

    /// An operation has ended now, after `taken`, and its stages one after the other.
    pub fn operation(
        &self,
        parent: &Parent,
        call: &'static str,
        object: (&str, &str),
        taken: Duration,
        stages: Stages<'_>,
    ) {
        let Parent(parent) = parent;
        let ended = SystemTime::now();
        let mut at = ended - taken;
        let attributes = [
            KeyValue::new("wharf.object.id", object.0.to_owned()),
            KeyValue::new("wharf.object.name", object.1.to_owned()),
        ];
        let span = SpanBuilder::from_name(call)
            .with_start_time(at)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, parent);
        let whole = parent.with_span(span);
        if whole.span().is_recording() {
            for (stage, taken) in stages {
                let step = SpanBuilder::from_name(*stage).with_start_time(at);
                let step = Context::new().with_span(step.start_with_context(&self.tracer, &whole));
                at += *taken;
                step.span().end_with_timestamp(at);
            }
        }
        whole.span().end_with_timestamp(ended);
    }

    /// Sends what is left. Blocks, for some seconds at most.
    pub fn shut_down(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

impl Call {
    /// Does `begin` with this call as the present one, so that what it begins belongs to it.
    pub fn within<T>(&self, begin: impl FnOnce() -> T) -> T {
        let _present = self.0.clone().attach();
        begin()
    }

    /// The call has been answered with gRPC's `code`.
    pub fn end(self, code: u16) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code)));
        if FAULTS.contains(&code) {
            span.set_status(Status::error(super::families::code_name(code)));
        }
        span.end();
    }
}

impl Parent {
    /// The present call's; nobody's if there is none.
    pub fn present() -> Self {
        Self(Context::current())
    }
}

/// `work` belongs to the present call wherever it is done.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    work.with_context(Context::current())
}

/// Headers of a request, as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        mem,
        sync::{Arc, Mutex},
        time::Instant,
    };

    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SpanData, SpanExporter},
    };

    use super::*;

    /// Keeps what it is to send.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    fn traces(samples_per_million: u32) -> (Traces, Kept) {
        let exporter = Kept::default();
        let export = Export {
            endpoint: String::new(),
            service_name: "node".into(),
            samples_per_million,
        };
        (Traces::through(exporter.clone(), &export), exporter)
    }

    fn sent(traces: &Traces, exporter: &Kept) -> Vec<SpanData> {
        traces.provider.force_flush().unwrap();
        mem::take(&mut *exporter.0.lock().unwrap())
    }

    const PATH: &str = "/runtime.v1.RuntimeService/RunPodSandbox";

    fn asked(flags: &str) -> HeaderMap {
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), parent.parse().unwrap())])
    }

    #[tokio::test]
    async fn a_call_an_operation_and_its_stages_are_one_below_the_other_and_below_the_callers() {
        let (traces, exporter) = traces(0);
        let call = traces.call(PATH, &asked("01"));
        let work = {
            let traces = traces.clone();
            async move {
                let parent = Parent::present();
                let stages = [
                    ("network", Duration::from_millis(3)),
                    ("monitor", Duration::from_millis(2)),
                ];
                traces.operation(
                    &parent,
                    "RunPodSandbox",
                    ("0123", "web"),
                    Duration::from_millis(5),
                    &stages,
                );
            }
        };
        let task = call.within(|| tokio::spawn(carried(work)));
        task.await.unwrap();
        call.end(13);
        let spans = sent(&traces, &exporter);
        let find = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
        let (rpc, whole) = (find(&PATH[1..]), find("RunPodSandbox"));
        assert_eq!(rpc.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(rpc.status, Status::error("Internal"));
        assert_eq!(whole.parent_span_id, rpc.span_context.span_id());
        let (network, monitor) = (find("network"), find("monitor"));
        for step in [network, monitor] {
            assert_eq!(step.parent_span_id, whole.span_context.span_id());
            assert_eq!(
                step.span_context.trace_id().to_string(),
                "0af7651916cd43dd8448eb211c80319c"
            );
        }
        assert_eq!(
            (network.start_time, network.end_time),
            (whole.start_time, monitor.start_time)
        );
        assert_eq!(monitor.end_time, whole.end_time);
    }

    #[tokio::test]
    async fn the_caller_decides_and_without_one_the_share() {
        for (share, headers, wanted) in [
            (1_000_000, HeaderMap::new(), 2),
            (0, HeaderMap::new(), 0),
            (1_000_000, asked("00"), 0),
            (0, asked("01"), 2),
        ] {
            let (traces, exporter) = traces(share);
            let call = traces.call(PATH, &headers);
            let parent = call.within(Parent::present);
            traces.operation(&parent, "StopPodSandbox", ("0123", "web"), Duration::ZERO, &[]);
            call.end(0);
            assert_eq!(sent(&traces, &exporter).len(), wanted, "{share} {headers:?}");
        }
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_refused_by_name() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let export = Export {
            endpoint: "http://[".into(),
            service_name: "node".into(),
            samples_per_million: 1,
        };
        let error = Traces::open(&export).unwrap_err().to_string();
        assert!(
            error.starts_with("send traces to tracing.endpoint http://[: "),
            "{error}"
        );
    }

    #[test]
    fn nobody_waits_for_a_collector_that_is_not_there() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let export = Export {
            endpoint: "http://127.0.0.1:1".into(),
            service_name: "node".into(),
            samples_per_million: 1_000_000,
        };
        let traces = Traces::open(&export).unwrap();
        let began = Instant::now();
        for _ in 0..10_000 {
            traces.call(PATH, &HeaderMap::new()).end(0);
        }
        traces.shut_down();
        assert!(began.elapsed() < PATIENCE * 3);
    }
}
