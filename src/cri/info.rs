//! Version, Status and runtime configuration.

use std::collections::HashMap;

use tonic::Status;
use wharf_proto::cri::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigResponse, RuntimeFeatures, RuntimeHandler,
    RuntimeHandlerFeatures, RuntimeStatus, StatusResponse, UpdateRuntimeConfigRequest, VersionResponse,
};

use super::Face;
use crate::node::Operation;

/// Version of the kubelet's runtime API, as every peer answers it.
const KUBELET_API_VERSION: &str = "0.1.0";

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBELET_API_VERSION.into(),
        runtime_name: "wharf".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

impl Face {
    /// Conditions, handlers and features. Takes no lock and touches no disk (contract rule 35).
    pub(super) fn runtime_status(&self, verbose: bool) -> Result<StatusResponse, Status> {
        let node = self.node()?;
        let network = node.network_status();
        let conditions = vec![
            RuntimeCondition {
                r#type: "RuntimeReady".into(),
                status: true,
                ..Default::default()
            },
            RuntimeCondition {
                r#type: "NetworkReady".into(),
                status: network.ready,
                reason: network.reason,
                message: network.message,
            },
        ];
        // The empty name stands for the default handler.
        let features = |name: &str| RuntimeHandlerFeatures {
            recursive_read_only_mounts: node.has_recursive_read_only(),
            user_namespaces: node.has_user_namespaces(name),
        };
        let config = node.config();
        let runtime_handlers = std::iter::once("")
            .chain(config.handler_names())
            .map(|name| RuntimeHandler {
                name: name.to_owned(),
                features: Some(features(name)),
            })
            .collect();
        let mut info = HashMap::new();
        if verbose {
            let longest = config.max_log_line;
            let mut config = serde_json::to_value(&*config).unwrap_or_default();
            // By the name that containerd gives it, for clients who look for it there.
            config["maxContainerLogLineSize"] = longest.into();
            info.insert("config".to_owned(), config.to_string());
            let operations = node.operations();
            let json = |one: &Operation| {
                serde_json::json!({
                    "call": one.call,
                    "kind": one.makes(),
                    "id": one.id,
                    "name": one.name,
                    "stage": one.stage,
                    "seconds": one.taken.as_secs_f64(),
                    "stageSeconds": one.at_stage.as_secs_f64(),
                })
            };
            let creations: Vec<_> = operations
                .iter()
                .filter(|one| one.makes().is_some())
                .map(json)
                .collect();
            info.insert("creations".to_owned(), serde_json::Value::from(creations).to_string());
            let operations: Vec<_> = operations.iter().map(json).collect();
            info.insert("operations".to_owned(), serde_json::Value::from(operations).to_string());
            let silent = node.silent_monitors();
            let silent = silent.iter().map(|one| {
                serde_json::json!({
                    "podId": one.pod,
                    "podName": one.name,
                    "pid": one.pid,
                    "silentSeconds": one.since.as_secs_f64(),
                })
            });
            let silent = serde_json::Value::Array(silent.collect());
            info.insert("silentMonitors".to_owned(), silent.to_string());
            let daemon = serde_json::json!({
                "lazyImages": node.images().lazy_state(),
                "tasks": node.alive_tasks(),
                "streamingUrls": self.urls()?.outstanding(),
            });
            info.insert("daemon".to_owned(), daemon.to_string());
        }
        Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers,
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: node
                    .config()
                    .handler_names()
                    .into_iter()
                    .any(|name| node.has_user_namespaces(name)),
                mount_options: true,
            }),
        })
    }

    /// The cgroup driver in force.
    pub(super) fn runtime_config(&self) -> Result<RuntimeConfigResponse, Status> {
        let driver = match self.node()?.has_systemd_cgroups() {
            true => CgroupDriver::Systemd,
            false => CgroupDriver::Cgroupfs,
        };
        Ok(RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration {
                cgroup_driver: driver.into(),
            }),
        })
    }

    /// Kubelet tells the node's pod CIDR.
    pub(super) async fn update_runtime_config(&self, request: UpdateRuntimeConfigRequest) -> Result<(), Status> {
        let node = self.node()?;
        let cidr = request
            .runtime_config
            .and_then(|config| config.network_config)
            .map(|network| network.pod_cidr)
            .unwrap_or_default();
        if !cidr.is_empty() {
            let set = node.set_pod_cidr(&cidr).await;
            set.map_err(|error| super::status::status(&error))?;
        }
        Ok(())
    }
}
