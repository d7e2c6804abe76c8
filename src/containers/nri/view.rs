//! A container as plugins see it: its spec, with what is known of it beside.

use std::{collections::BTreeMap, fs};

use oci_spec::runtime::Spec;
use wharf_proto::{
    nri::{
        self, ContainerState, Image, LinuxContainer, LinuxIoPriority, LinuxNetDevice, LinuxRdt, OptionalBool,
        OptionalInt, OptionalRepeatedString, OptionalString, PosixRlimit, SecurityProfile, User,
        security_profile::ProfileType,
    },
    record,
};

use super::parts;
use crate::{
    config::SeccompDefault,
    containers::{Container, asked::written, spec},
};

/// An image's names as plugins see them: as asked for, by its digest, and its own id.
#[must_use]
pub fn image_of(record: &record::Container) -> Image {
    let asked = record.config.as_ref().and_then(|config| config.image.as_ref());
    Image {
        name: asked.map_or("", written).to_owned(),
        digest: record
            .image_ref
            .split_once('@')
            .map(|(_, digest)| digest.to_owned())
            .unwrap_or_default(),
        config_digest: record.image_id.clone(),
    }
}

/// The container as it is now. Its spec is read from its bundle; without one, what is known of it otherwise must do.
/// Blocking.
#[must_use]
pub fn read(container: &Container, unset: SeccompDefault) -> nri::Container {
    let text = fs::read(container.dir.join("config.json")).ok();
    let spec = text.and_then(|text| serde_json::from_slice::<Spec>(&text).ok());
    let record = container.record.get();
    let pairs = record.net_devices.iter();
    let net_devices = pairs.map(|device| (device.host_name.clone(), device.name.clone()));
    message(
        container,
        spec.as_ref(),
        image_of(&record),
        &net_devices.collect(),
        unset,
    )
}

/// The container with this spec and image, and network devices by their names on the node. `unset` is what one gets that
/// asks for no seccomp profile.
#[must_use]
pub fn message(
    container: &Container,
    spec: Option<&Spec>,
    image: Image,
    net_devices: &BTreeMap<String, String>,
    unset: SeccompDefault,
) -> nri::Container {
    let record = container.record.get();
    let config = record.config.clone().unwrap_or_default();
    let exit = record.exit.clone().unwrap_or_default();
    let mut annotations = spec.and_then(|spec| spec.annotations().clone()).unwrap_or_default();
    annotations.extend(config.annotations.clone());
    let mut message = nri::Container {
        id: container.id.clone(),
        pod_sandbox_id: record.pod_id.clone(),
        name: config.metadata.clone().unwrap_or_default().name,
        state: state(&record).into(),
        labels: config.labels.clone(),
        annotations,
        pid: u32::try_from(container.pid()).unwrap_or(0),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.finished_at,
        exit_code: exit.code,
        status_reason: exit.reason,
        status_message: exit.message,
        image: Some(image),
        ..Default::default()
    };
    let Some(spec) = spec else { return message };
    message.mounts = spec.mounts().iter().flatten().map(parts::mount).collect();
    message.hooks = spec.hooks().as_ref().map(parts::hooks);
    message.linux = spec.linux().as_ref().map(linux);
    if let Some(process) = spec.process() {
        let user = process.user();
        message.args = process.args().clone().unwrap_or_default();
        message.env = process.env().clone().unwrap_or_default();
        message.user = Some(User {
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
        });
        let limits = process.rlimits().iter().flatten().map(|limit| PosixRlimit {
            r#type: limit.typ().to_string(),
            hard: limit.hard(),
            soft: limit.soft(),
        });
        message.rlimits = limits.collect();
        if let Some(linux) = &mut message.linux {
            linux.oom_score_adj = process.oom_score_adj().map(|score| OptionalInt { value: score.into() });
            linux.io_priority = process.io_priority().map(|priority| LinuxIoPriority {
                class: parts::io_class(priority.class()).into(),
                priority: i32::try_from(priority.priority()).unwrap_or(0),
            });
            linux.scheduler = process.scheduler().as_ref().map(parts::scheduler);
        }
    }
    if let Some(linux) = &mut message.linux {
        linux.seccomp_profile = profile(&config, unset);
        let devices = net_devices.iter();
        let devices = devices.map(|(host_name, name)| (host_name.clone(), LinuxNetDevice { name: name.clone() }));
        linux.net_devices = devices.collect();
    }
    message
}

fn state(record: &record::Container) -> ContainerState {
    match record.state() {
        record::ContainerState::ContainerCreating => ContainerState::ContainerUnknown,
        record::ContainerState::ContainerCreated | record::ContainerState::ContainerStarting => {
            ContainerState::ContainerCreated
        }
        record::ContainerState::ContainerRunning if record.paused => ContainerState::ContainerPaused,
        record::ContainerState::ContainerRunning => ContainerState::ContainerRunning,
        record::ContainerState::ContainerExited | record::ContainerState::ContainerRemoving => {
            ContainerState::ContainerStopped
        }
    }
}

/// The seccomp profile that the container asks for, or gets without asking.
fn profile(config: &wharf_proto::cri::ContainerConfig, unset: SeccompDefault) -> Option<SecurityProfile> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let chosen = match context {
        Some(context) if context.privileged => spec::ProfileChoice::Unconfined,
        Some(context) => spec::seccomp_choice(context),
        None => spec::ProfileChoice::Unset,
    };
    let (kind, localhost_ref) = match chosen {
        spec::ProfileChoice::Unset => match unset {
            SeccompDefault::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
            SeccompDefault::Unconfined => (ProfileType::Unconfined, String::new()),
        },
        spec::ProfileChoice::Unconfined => (ProfileType::Unconfined, String::new()),
        spec::ProfileChoice::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        spec::ProfileChoice::Localhost(path) => (ProfileType::Localhost, path),
    };
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref,
    })
}

fn linux(linux: &oci_spec::runtime::Linux) -> LinuxContainer {
    LinuxContainer {
        namespaces: linux.namespaces().iter().flatten().map(parts::namespace).collect(),
        devices: linux.devices().iter().flatten().map(parts::device).collect(),
        resources: linux.resources().as_ref().map(parts::resources),
        cgroups_path: linux
            .cgroups_path()
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        seccomp_policy: linux.seccomp().as_ref().map(parts::seccomp),
        sysctl: linux.sysctl().clone().unwrap_or_default(),
        rdt: linux.intel_rdt().as_ref().map(|rdt| LinuxRdt {
            clos_id: rdt.clos_id().clone().map(|value| OptionalString { value }),
            schemata: rdt.schemata().clone().map(|value| OptionalRepeatedString { value }),
            enable_monitoring: rdt.enable_monitoring().map(|value| OptionalBool { value }),
            remove: false,
        }),
        ..Default::default()
    }
}
