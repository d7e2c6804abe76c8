//! What the daemon is at, for a person who wonders.

use tonic::Status;
use wharf_proto::{
    api::{self, DebugFigure, DebugResponse, DebugThread},
    record::Owner,
};

use crate::{
    node::{Node, Operation},
    telemetry::process,
};

/// An operation as it is told.
pub(super) fn operation(one: Operation) -> api::Operation {
    api::Operation {
        call: one.call.to_owned(),
        id: one.id,
        name: one.name,
        stage: one.stage.to_owned(),
        seconds: one.taken.as_secs_f64(),
        stage_seconds: one.at_stage.as_secs_f64(),
    }
}

/// Operations, threads and sizes.
///
/// # Errors
/// When /proc can't be read.
pub(super) async fn response(node: &Node) -> Result<DebugResponse, Status> {
    let look = || (process::own(), process::threads());
    let looked = tokio::task::spawn_blocking(look).await;
    let (own, threads) = looked.map_err(|error| Status::internal(format!("look at the process: {error}")))?;
    let own = own.ok_or_else(|| Status::internal("look at the process: /proc is not readable"))?;
    let everybody = &[Owner::Cri, Owner::User];
    let pods = node.pods(everybody);
    let runtime = tokio::runtime::Handle::current();
    let tasks = runtime.metrics();
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let mut figures = vec![
        ("pods", count(pods.len()), false),
        (
            "pods with a monitor",
            count(pods.iter().filter(|pod| pod.monitor().is_some()).count()),
            false,
        ),
        ("containers", count(node.containers(everybody).len()), false),
        ("images", count(node.images().list().len()), false),
        ("listeners to events", count(node.listeners()), false),
        ("tasks of the async runtime", count(tasks.num_alive_tasks()), false),
        ("tasks that wait for a thread", count(tasks.global_queue_depth()), false),
        ("tasks of the node", count(node.tasks()), false),
        ("memory resident", own.resident_bytes, true),
    ];
    figures.extend(own.allocated_bytes.map(|bytes| ("memory allocated", bytes, true)));
    figures.extend([
        ("file descriptors", own.open_fds, false),
        ("file descriptors at most", own.max_fds, false),
    ]);
    Ok(DebugResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: (own.started * 1e9) as i64,
        operations: node.operations().into_iter().map(operation).collect(),
        threads: threads
            .into_iter()
            .map(|thread| DebugThread {
                id: thread.id,
                name: thread.name,
                state: thread.state,
                waits_in: thread.waits_in,
            })
            .collect(),
        figures: figures
            .into_iter()
            .map(|(name, value, bytes)| DebugFigure {
                name: name.to_owned(),
                value,
                bytes,
            })
            .collect(),
    })
}
