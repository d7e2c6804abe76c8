//! What the daemon counts of its own work for Prometheus, and traces for OpenTelemetry. Below all rooms, as [`crate::sys`] is: whoever does something
//! counts it here, and knows nothing of who reads it.
//!
//! Without `[metrics] address` nothing is counted and nothing kept, without `[tracing] endpoint` nothing traced. What can be looked up (pods, containers, memory) is not
//! counted but asked for when somebody reads: see `observe`. Names and labels are documented in docs/metrics.md, where a
//! test looks for them.

mod families;
pub mod process;
#[cfg_attr(not(feature = "otlp"), path = "untraced.rs")]
mod traces;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use families::Families;
pub use families::{Gauge, describe};
use http::HeaderMap;
use traces::Traces;
pub use traces::{Error, Parent, carried};

/// What the stages of an operation took, in their order.
pub type Stages<'a> = &'a [(&'static str, Duration)];

/// Where traces are sent.
#[derive(Debug, Clone)]
pub struct Export {
    /// A collector that speaks OTLP/gRPC: `http://` or `https://`, host and port.
    pub endpoint: String,
    /// `service.name`, by which spans are told apart from others'.
    pub service_name: String,
    /// Of a million calls whose caller does not say, so many are traced.
    pub samples_per_million: u32,
}

/// Where things are counted and traced; cheap to clone. The default does nothing.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    counted: Option<Arc<Families>>,
    traces: Option<Traces>,
}

/// A call that has not been answered.
#[derive(Debug)]
pub struct Call {
    began: Instant,
    traced: Option<traces::Call>,
}

impl Call {
    /// How long ago it has come.
    #[must_use]
    pub fn taken(&self) -> Duration {
        self.began.elapsed()
    }

    /// Does `begin` so that the operation that it begins belongs to this call.
    pub fn within<T>(&self, begin: impl FnOnce() -> T) -> T {
        match &self.traced {
            Some(call) => call.within(begin),
            None => begin(),
        }
    }
}

impl Telemetry {
    /// One that counts.
    #[must_use]
    pub fn on() -> Self {
        Self {
            counted: Some(Arc::new(Families::new())),
            traces: None,
        }
    }

    /// Traces too. To be called on the async runtime.
    ///
    /// # Errors
    /// When the endpoint is no URL that spans can be sent to, or this build has no traces.
    pub fn traced(mut self, export: &Export) -> Result<Self, Error> {
        self.traces = Some(Traces::open(export)?);
        Ok(self)
    }

    /// Whether anything is counted or traced.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.counted.is_some() || self.traces.is_some()
    }

    /// A gRPC call has come. `path` is `/runtime.v1.RuntimeService/Version`, `headers` may name the caller's span.
    #[must_use]
    pub fn begin(&self, path: &str, headers: &HeaderMap) -> Call {
        Call {
            began: Instant::now(),
            traced: self.traces.as_ref().map(|traces| traces.call(path, headers)),
        }
    }

    /// It has been answered; `code` is gRPC's number.
    pub fn end(&self, call: Call, path: &str, code: u16) {
        if let Some(families) = &self.counted {
            families.call(path, code, call.taken());
        }
        if let Some(call) = call.traced {
            call.end(code);
        }
    }

    /// An operation (`RunPodSandbox`) on an object (its id and name) has ended, with what each of its stages took.
    pub fn operation(
        &self,
        parent: &Parent,
        call: &'static str,
        object: (&str, &str),
        taken: Duration,
        stages: Stages<'_>,
    ) {
        if let Some(families) = &self.counted {
            families.operation(call, taken, stages);
        }
        if let Some(traces) = &self.traces {
            traces.operation(parent, call, object, taken, stages);
        }
    }

    /// Sends the traces that are left. Blocks, for some seconds at most.
    pub fn shut_down(&self) {
        if let Some(traces) = &self.traces {
            traces.shut_down();
        }
    }

    /// An image was pulled, or not.
    pub fn pull(&self, success: bool, taken: Duration) {
        if let Some(families) = &self.counted {
            families.pull(success, taken);
        }
    }

    /// A container has ended, for the reason that CRI tells (`OOMKilled`).
    pub fn container_exit(&self, reason: &str) {
        if let Some(families) = &self.counted {
            families.container_exit(reason);
        }
    }

    /// All that was counted and `gauges`, in the text format of OpenMetrics; None if nothing is counted.
    ///
    /// # Errors
    /// When it can't be put into words.
    pub fn render(&self, gauges: &[Gauge]) -> Option<Result<String, std::fmt::Error>> {
        self.counted.as_ref().map(|families| families.render(gauges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_with_its_labels() {
        let telemetry = Telemetry::on();
        let second = Duration::from_secs(1);
        let none = HeaderMap::new();
        for (path, code) in [
            ("/runtime.v1.RuntimeService/Version", 0),
            ("/runtime.v1.RuntimeService/StopContainer", 5),
        ] {
            telemetry.end(telemetry.begin(path, &none), path, code);
        }
        telemetry.operation(
            &Parent::present(),
            "RunPodSandbox",
            ("0123", "web"),
            second,
            &[("network", second)],
        );
        telemetry.pull(true, second);
        telemetry.container_exit("OOMKilled");
        let gauge = Gauge {
            name: "wharf_pods",
            labels: vec![("state", "ready".to_owned())],
            value: 3.0,
        };
        let text = telemetry.render(&[gauge]).unwrap().unwrap();
        for line in [
            "wharf_rpc_total{method=\"Version\",code=\"OK\"} 1",
            "wharf_rpc_total{method=\"StopContainer\",code=\"NotFound\"} 1",
            "wharf_rpc_duration_seconds_count{method=\"Version\"} 1",
            "wharf_operation_duration_seconds_count{operation=\"RunPodSandbox\"} 1",
            "wharf_operation_stage_duration_seconds_sum{operation=\"RunPodSandbox\",stage=\"network\"} 1",
            "wharf_image_pulls_total{result=\"success\"} 1",
            "wharf_container_exits_total{reason=\"OOMKilled\"} 1",
            "wharf_pods{state=\"ready\"} 3",
            "# EOF",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn one_that_is_off_keeps_and_tells_nothing() {
        let telemetry = Telemetry::default();
        telemetry.end(telemetry.begin("/a/B", &HeaderMap::new()), "/a/B", 0);
        assert!(telemetry.render(&[]).is_none());
    }

    #[test]
    fn every_name_is_documented() {
        let page = include_str!("../../docs/metrics.md");
        let missing: Vec<_> = describe()
            .filter(|(name, _)| !page.contains(&format!("`{name}`")))
            .collect();
        assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    }
}
