//! What is looked up when figures are read.

use std::collections::BTreeMap;

use wharf_proto::record::{ContainerState, Owner};

use crate::{
    node::Node,
    telemetry::{Gauge, process},
};

/// All of them, now.
pub(super) async fn gauges(node: &Node) -> Vec<Gauge> {
    let mut all = Vec::new();
    let mut add = |name, labels: &[(&'static str, &str)], value: f64| {
        let labels = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        all.push(Gauge { name, labels, value });
    };
    add("wharf_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    const EVERYBODY: &[Owner] = &[Owner::Cri, Owner::User];
    let pods = node.pods(EVERYBODY);
    let ready = pods.iter().filter(|pod| pod.is_ready()).count();
    add("wharf_pods", &[("state", "ready")], ready as f64);
    add("wharf_pods", &[("state", "notready")], (pods.len() - ready) as f64);
    let mut states = BTreeMap::from([("created", 0), ("running", 0), ("exited", 0)]);
    for container in node.containers(EVERYBODY) {
        let state = match container.state() {
            ContainerState::ContainerCreating
            | ContainerState::ContainerCreated
            | ContainerState::ContainerStarting => "created",
            ContainerState::ContainerRunning => "running",
            ContainerState::ContainerExited | ContainerState::ContainerRemoving => "exited",
        };
        *states.entry(state).or_insert(0_u32) += 1;
    }
    for (state, count) in states {
        add("wharf_containers", &[("state", state)], count.into());
    }
    add("wharf_images", &[], node.images().list().len() as f64);
    let mut operations: BTreeMap<&str, (u32, f64)> = BTreeMap::new();
    for operation in node.operations() {
        let (count, oldest) = operations.entry(operation.call).or_default();
        *count += 1;
        *oldest = oldest.max(operation.taken.as_secs_f64());
    }
    for (call, (count, oldest)) in operations {
        add("wharf_operations", &[("operation", call)], count.into());
        add("wharf_operation_oldest_seconds", &[("operation", call)], oldest);
    }
    add("wharf_runtime_ready", &[], 1.0);
    add(
        "wharf_network_ready",
        &[],
        f64::from(u8::from(node.network_status().ready)),
    );
    // Files of /proc; not a disk's.
    let process = tokio::task::spawn_blocking(process::own).await.ok().flatten();
    if let Some(process) = process {
        add("process_cpu_seconds_total", &[], process.cpu_seconds);
        add("process_resident_memory_bytes", &[], process.resident_bytes as f64);
        add("process_open_fds", &[], process.open_fds as f64);
        add("process_max_fds", &[], process.max_fds as f64);
        add("process_threads", &[], process.threads as f64);
        add("process_start_time_seconds", &[], process.started);
    }
    all
}
