//! Pod sandboxes in CRI's words.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use tonic::{Request, Status};
use wharf_proto::{
    cri::{
        LinuxContainerResources, LinuxPodSandboxStatus, ListPodSandboxRequest, Namespace, PodIp, PodSandbox,
        PodSandboxConfig, PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
        PodSandboxStatusResponse, RunPodSandboxRequest,
    },
    json, record,
};

use super::{
    Face, containers, deadline,
    filters::{id_matches, labels_match},
    owner, owners,
    status::status,
};
use crate::sandbox::{Sandbox, host_ipc, host_network, namespace_options, users};

/// A pod and the state of it that a list tells.
type Listed = (Arc<Sandbox>, Arc<record::Pod>);

impl Face {
    pub(super) async fn run_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Result<String, Status> {
        let (owner, deadline) = (owner(&request), deadline(&request));
        let request = request.into_inner();
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("the request has no pod sandbox config"))?;
        if config.windows.is_some() {
            return Err(Status::invalid_argument(
                "the pod sandbox config has windows options, on a Linux node",
            ));
        }
        self.node()?
            .run_sandbox(config, request.runtime_handler, owner, deadline)
            .await
            .map_err(|error| status(&error))
    }

    pub(super) fn list_sandboxes(&self, request: &Request<ListPodSandboxRequest>) -> Result<Vec<PodSandbox>, Status> {
        let wanted = self.wanted_sandboxes(request)?;
        Ok(wanted.iter().map(|(_, record)| item(record)).collect())
    }

    /// As [`Face::list_sandboxes`], each item encoded.
    pub(super) fn encoded_sandboxes(&self, request: &Request<ListPodSandboxRequest>) -> Result<Vec<Bytes>, Status> {
        let encode = |record: &Arc<record::Pod>| item(record).encode_to_vec();
        let wanted = self.wanted_sandboxes(request)?;
        Ok(wanted
            .iter()
            .map(|(pod, record)| pod.listed.of(record, encode))
            .collect())
    }

    /// Pods that the filter lets through, the newest first.
    fn wanted_sandboxes(&self, request: &Request<ListPodSandboxRequest>) -> Result<Vec<Listed>, Status> {
        let filter = request.get_ref().filter.clone().unwrap_or_default();
        let mut wanted: Vec<_> = self
            .node()?
            .pods(owners(request))
            .into_iter()
            .map(|pod| {
                let record = pod.record.get();
                (pod, record)
            })
            .filter(|(_, record)| {
                let wanted = filter.state.as_ref().map(|wanted| wanted.state);
                id_matches(&filter.id, &record.id)
                    && wanted.is_none_or(|wanted| wanted == i32::from(state(record)))
                    && record
                        .config
                        .as_ref()
                        .is_none_or(|config| labels_match(&filter.label_selector, &config.labels))
            })
            .collect();
        wanted.sort_unstable_by_key(|(pod, _)| std::cmp::Reverse(pod.created_at));
        Ok(wanted)
    }

    pub(super) fn sandbox_status(&self, request: &PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse, Status> {
        let pod = self
            .node()?
            .pod(&request.pod_sandbox_id)
            .map_err(|error| status(&error))?;
        let info = if request.verbose {
            verbose(&pod, self.node()?.first_pid(&pod))
        } else {
            HashMap::new()
        };
        let moment = self.node()?.moment(&pod);
        Ok(PodSandboxStatusResponse {
            status: Some(pod_status(&moment.pod)),
            info,
            containers_statuses: moment.containers.iter().map(|one| containers::full(one)).collect(),
            timestamp: moment.at,
        })
    }
}

fn state(record: &record::Pod) -> PodSandboxState {
    match record.state() {
        record::PodState::PodReady => PodSandboxState::SandboxReady,
        _ => PodSandboxState::SandboxNotready,
    }
}

fn item(record: &record::Pod) -> PodSandbox {
    let none = PodSandboxConfig::default();
    let config = record.config.as_ref().unwrap_or(&none);
    PodSandbox {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: state(record).into(),
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn pod_status(record: &record::Pod) -> PodSandboxStatus {
    let config = record.config.clone().unwrap_or_default();
    let options = namespace_options(&config);
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: config.metadata,
        state: state(record).into(),
        created_at: record.created_at,
        network: Some(network(record)),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(options) }),
        }),
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// Addresses of a ready pod; none for a stopped one or for the host's network (contract rules 10 to 12).
fn network(record: &record::Pod) -> PodSandboxNetworkStatus {
    let ips = match (&record.network, record.state()) {
        (Some(network), record::PodState::PodReady) => network.ips.as_slice(),
        _ => &[],
    };
    let mut ips = ips.iter().cloned();
    PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    }
}

/// The keys that users of crictl script against (feature row A13). `pid` is a process in the pod's namespaces, which
/// nsenter and its like can be given: the pod's init, else the first container's, else there is none.
fn verbose(pod: &Sandbox, first_pid: i32) -> HashMap<String, String> {
    let record = pod.record.get();
    let config = record.config.clone().unwrap_or_default();
    let limits = |limits: Option<&LinuxContainerResources>| {
        let json = |limits| json::to_value("runtime.v1.LinuxContainerResources", limits, false).unwrap_or_default();
        limits.map(json)
    };
    // As they are now, or as they were asked for at first.
    let linux = config.linux.clone().unwrap_or_default();
    let overhead = record.overhead.as_ref().or(linux.overhead.as_ref());
    let resources = record.resources.as_ref().or(linux.resources.as_ref());
    let processes = pod.processes();
    let init = processes.map_or(0, |processes| processes.init);
    let cni_result = |network: &record::Network| {
        serde_json::from_slice::<serde_json::Value>(&network.cni_result).unwrap_or_default()
    };
    let info = serde_json::json!({
        "config": json::to_value("runtime.v1.PodSandboxConfig", &config, false).unwrap_or_default(),
        "runtimeHandler": record.runtime_handler,
        "runtimeSpec": runtime_spec(pod, &config),
        "overhead": limits(overhead),
        "resources": limits(resources),
        "resourcesApplied": record.limits_applied,
        "pid": if init > 0 { init } else { first_pid },
        "monitorPid": processes.map_or(0, |processes| processes.monitor),
        // Null while the monitor answers.
        "monitorSilentSeconds": pod.monitor_silent_for().map(|silent| silent.as_secs_f64()),
        "namespaces": pod.paths.namespaces(),
        "cniResult": record.network.as_ref().map(super::cni_result::told),
        "netNamespaceClosed": !pod.is_ready(),
        "sandboxMetadata": {
            "ID": pod.id,
            "NetNSPath": record.network.as_ref().map_or("", |network| network.netns.as_str()),
            "RuntimeHandler": record.runtime_handler,
        },
        "network": record.network.as_ref().map(|network| serde_json::json!({
            "kind": network.kind,
            "ips": network.ips,
            "netns": network.netns,
            "hostDevice": network.host_device,
            "cniResult": cni_result(network),
        })),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// The pod as the spec of a process that would hold its namespaces: where scripts look for their paths.
fn runtime_spec(pod: &Sandbox, config: &PodSandboxConfig) -> serde_json::Value {
    let ready = pod.is_ready();
    let own = [
        ("network", "net", !host_network(config)),
        ("uts", "uts", !host_network(config)),
        ("ipc", "ipc", !host_ipc(config)),
        ("user", "user", matches!(users(config), Ok(Some(_)))),
    ];
    let namespaces: Vec<_> = own
        .into_iter()
        .filter(|(_, _, own)| *own && ready)
        .map(|(kind, name, _)| serde_json::json!({"type": kind, "path": pod.paths.namespaces().join(name)}))
        .collect();
    let linux = config.linux.clone().unwrap_or_default();
    serde_json::json!({
        "hostname": config.hostname,
        "annotations": config.annotations,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": linux.cgroup_parent,
            "sysctl": linux.sysctls,
        },
    })
}
