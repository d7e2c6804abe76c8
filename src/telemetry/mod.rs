//! What the daemon counts of its own work, for Prometheus. Below all rooms, as [`crate::sys`] is: whoever does something
//! counts it here, and knows nothing of who reads it.
//!
//! Without `[metrics] address` nothing is counted and nothing kept. What can be looked up (pods, containers, memory) is not
//! counted but asked for when somebody reads: see `observe`. Names and labels are documented in docs/metrics.md, where a
//! test looks for them.

mod families;
pub mod process;

use std::{sync::Arc, time::Duration};

use families::Families;
pub use families::{Gauge, describe};

/// Where things are counted; cheap to clone. The default counts nothing.
#[derive(Debug, Clone, Default)]
pub struct Telemetry(Option<Arc<Families>>);

impl Telemetry {
    /// One that counts.
    #[must_use]
    pub fn on() -> Self {
        Self(Some(Arc::new(Families::new())))
    }

    /// Whether anything is counted.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A gRPC call has been answered. `method` is its path, `/runtime.v1.RuntimeService/Version`; `code` gRPC's number.
    pub fn call(&self, method: &str, code: u16, taken: Duration) {
        if let Some(families) = &self.0 {
            families.call(method, code, taken);
        }
    }

    /// An operation (`RunPodSandbox`) has ended, with what each of its stages took.
    pub fn operation(&self, call: &'static str, taken: Duration, stages: &[(&'static str, Duration)]) {
        if let Some(families) = &self.0 {
            families.operation(call, taken, stages);
        }
    }

    /// An image was pulled, or not.
    pub fn pull(&self, success: bool, taken: Duration) {
        if let Some(families) = &self.0 {
            families.pull(success, taken);
        }
    }

    /// A container has ended, for the reason that CRI tells (`OOMKilled`).
    pub fn container_exit(&self, reason: &str) {
        if let Some(families) = &self.0 {
            families.container_exit(reason);
        }
    }

    /// All that was counted and `gauges`, in the text format of OpenMetrics; None if nothing is counted.
    ///
    /// # Errors
    /// When it can't be put into words.
    pub fn render(&self, gauges: &[Gauge]) -> Option<Result<String, std::fmt::Error>> {
        self.0.as_ref().map(|families| families.render(gauges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_with_its_labels() {
        let telemetry = Telemetry::on();
        let second = Duration::from_secs(1);
        telemetry.call("/runtime.v1.RuntimeService/Version", 0, Duration::from_millis(1));
        telemetry.call("/runtime.v1.RuntimeService/StopContainer", 5, second);
        telemetry.operation("RunPodSandbox", second, &[("network", second)]);
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
        telemetry.call("/a/B", 0, Duration::ZERO);
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
