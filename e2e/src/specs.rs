//! Pod and container configurations as kubelet would send them, with the least in them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use wharf_proto::cri as pb;

use crate::cri::image_spec;

/// A pod named `name` with a uid of its own, whose containers log below `logs`.
pub fn pod(name: &str, logs: &Path) -> pb::PodSandboxConfig {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let uid = format!("uid-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    pb::PodSandboxConfig {
        metadata: Some(pb::PodSandboxMetadata {
            name: name.into(),
            uid: uid.clone(),
            namespace: "e2e".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: logs.join(format!("{name}-{uid}")).to_string_lossy().into_owned(),
        linux: Some(pb::LinuxPodSandboxConfig {
            security_context: Some(pb::LinuxSandboxSecurityContext {
                namespace_options: Some(pb::NamespaceOption {
                    network: pb::NamespaceMode::Pod.into(),
                    pid: pb::NamespaceMode::Container.into(),
                    ipc: pb::NamespaceMode::Pod.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same with the host's network.
pub fn host_network_pod(name: &str, logs: &Path) -> pb::PodSandboxConfig {
    let mut config = pod(name, logs);
    config.hostname = String::new();
    namespaces(&mut config).network = pb::NamespaceMode::Node.into();
    config
}

/// The namespace options of a pod's configuration.
pub fn namespaces(config: &mut pb::PodSandboxConfig) -> &mut pb::NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    linux
        .security_context
        .get_or_insert_default()
        .namespace_options
        .get_or_insert_default()
}

/// The security context of a container's configuration.
pub fn security(config: &mut pb::ContainerConfig) -> &mut pb::LinuxContainerSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

/// A container from `image`, with a shell line as its command; an empty line leaves the image's own.
pub fn container(name: &str, image: &str, line: &str) -> pb::ContainerConfig {
    let command = if line.is_empty() {
        vec![]
    } else {
        vec!["/bin/sh".into(), "-c".into(), line.into()]
    };
    pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(image_spec(image)),
        command,
        log_path: format!("{name}.log"),
        linux: Some(pb::LinuxContainerConfig {
            resources: Some(pb::LinuxContainerResources::default()),
            security_context: Some(pb::LinuxContainerSecurityContext {
                namespace_options: Some(pb::NamespaceOption {
                    pid: pb::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// An environment variable.
pub fn env(key: &str, value: &str) -> pb::KeyValue {
    pb::KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

/// A bind mount.
pub fn mount(host: &str, container: &str, readonly: bool) -> pb::Mount {
    pb::Mount {
        host_path: host.into(),
        container_path: container.into(),
        readonly,
        ..Default::default()
    }
}

/// One label or annotation.
pub fn map(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}
