//! Monitors that do not answer.

use std::time::Duration;

use futures_util::future::join_all;
use wharf_proto::api::Finding;

use super::{ok, warning};
use crate::node::Node;

/// How long a monitor may take to answer whoever asks for it.
const LIMIT: Duration = Duration::from_secs(2);

/// A monitor that does not answer.
#[derive(Debug, Clone)]
pub struct Silent {
    /// The pod's id.
    pub pod: String,
    /// The pod's name.
    pub name: String,
    /// Its process id; 0 when it was not reached since the daemon's start.
    pub pid: i32,
    /// How long it has not answered.
    pub since: Duration,
}

impl Node {
    /// Monitors that are known not to answer. Waits for nothing.
    #[must_use]
    pub fn silent_monitors(&self) -> Vec<Silent> {
        let pods = self.all_pods();
        let silent = pods.iter().filter_map(|pod| {
            let since = pod.monitor_silent_for()?;
            let config = pod.record.get().config.clone().unwrap_or_default();
            Some(Silent {
                pod: pod.id.clone(),
                name: config.metadata.unwrap_or_default().name,
                pid: pod.processes().map_or(0, |processes| processes.monitor),
                since,
            })
        });
        silent.collect()
    }

    /// Asks every monitor whether it is there, for two seconds at most.
    pub async fn ask_monitors(&self) -> Finding {
        let monitors: Vec<_> = self.all_pods().iter().filter_map(|pod| pod.monitor()).collect();
        join_all(monitors.iter().map(|monitor| monitor.answers(LIMIT))).await;
        judge(monitors.len(), &self.silent_monitors())
    }
}

fn judge(count: usize, silent: &[Silent]) -> Finding {
    const CHECK: &str = "monitors";
    if silent.is_empty() {
        return ok(CHECK, format!("{count}, all of which answer"));
    }
    let names = silent.iter().map(|one| {
        let process = match one.pid {
            0 => String::new(),
            pid => format!(", process {pid}"),
        };
        let id = one.pod.get(..12).unwrap_or(&one.pod);
        format!("of pod {} ({id}{process}) for {} s", one.name, one.since.as_secs())
    });
    let names: Vec<_> = names.collect();
    warning(
        CHECK,
        format!("{} not answering: {}", silent.len(), names.join("; ")),
        "Its containers run on and other pods are not concerned. Was the process stopped (kill -CONT lets it go on), or \
         does it wait for a disk? Stopping the pod ends it.",
    )
}

#[cfg(test)]
mod tests {
    use wharf_proto::api::Severity;

    use super::*;

    #[test]
    fn a_monitor_that_does_not_answer_is_named_with_its_pod_and_process() {
        assert_eq!(judge(3, &[]).severity(), Severity::Ok);
        let silent = Silent {
            pod: "0123456789abcdef".into(),
            name: "web".into(),
            pid: 42,
            since: Duration::from_secs(7),
        };
        let finding = judge(3, &[silent]);
        assert_eq!(finding.severity(), Severity::Warning);
        assert_eq!(
            finding.found,
            "1 not answering: of pod web (0123456789ab, process 42) for 7 s"
        );
    }
}
