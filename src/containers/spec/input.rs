//! What spec generation is given.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use wharf_proto::cri;

use crate::{
    config::{Containers, SeccompDefault},
    containers::{
        host::{Facts, Host},
        seccomp::LocalProfile,
        users::ResolvedUser,
    },
    images::ImageConfig,
    sandbox::Labels,
};

/// Everything that a spec depends on.
#[derive(Debug, Clone, Copy)]
pub struct SpecInput<'a> {
    /// Id of the pod sandbox.
    pub pod_id: &'a str,
    /// As RunPodSandbox got it.
    pub pod: &'a cri::PodSandboxConfig,
    /// As CreateContainer got it.
    pub config: &'a cri::ContainerConfig,
    /// The image's own configuration.
    pub image: &'a ImageConfig,
    /// The container's root, mounted or to be mounted.
    pub rootfs: &'a Path,
    /// Who the process runs as, by [`super::users::resolve`].
    pub user: &'a ResolvedUser,
    /// Files of the pod that the container sees.
    pub files: &'a PodFiles,
    /// The pod's namespaces.
    pub namespaces: &'a Pins,
    /// Path below the hierarchies' roots, absolute.
    pub cgroup_path: &'a str,
    /// What the config refers to on the machine.
    pub facts: &'a Facts,
    /// The machine.
    pub host: &'a Host,
    /// The handler's base spec, if it has one.
    pub base: Option<&'a Spec>,
    /// `[containers]` of the configuration.
    pub settings: &'a Containers,
    /// `default_capabilities` of the configuration.
    pub default_capabilities: Option<&'a [String]>,
    /// `unset_seccomp` of the configuration.
    pub unset_seccomp: SeccompDefault,
    /// The profile RuntimeDefault, where the handler has one of its own.
    pub default_seccomp: Option<&'a LocalProfile>,
    /// What else the configuration and the pod's handler decide.
    pub policy: &'a Policy,
}

/// Settings of the configuration and of the pod's handler, see [`crate::config`].
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The AppArmor profile of containers that name none.
    pub apparmor_profile: String,
    /// Devices belong to who runs the container.
    pub device_ownership: bool,
    /// What a privileged container may do with devices.
    pub privileged_devices: PrivilegedDevices,
    /// The container may write to its own cgroup.
    pub cgroup_writable: bool,
    /// The handler is the built-in one, which has its ways of mounting what a user namespace may not.
    pub builtin: bool,
    /// SELinux confines containers.
    pub selinux: bool,
    /// The container's SELinux labels, if it has any.
    pub labels: Option<Labels>,
}

/// Devices of a privileged container (row C14).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrivilegedDevices {
    /// It has and may use all of the node's.
    #[default]
    All,
    /// It has those that any container has, but may use and make all.
    Allowed,
    /// As for any container.
    Own,
}

impl From<&crate::config::RuntimeHandler> for PrivilegedDevices {
    fn from(handler: &crate::config::RuntimeHandler) -> Self {
        match (
            handler.privileged_without_host_devices,
            handler.privileged_without_host_devices_all_devices_allowed,
        ) {
            (false, _) => Self::All,
            (true, true) => Self::Allowed,
            (true, false) => Self::Own,
        }
    }
}

/// Host paths of what the pod's containers share. None is left out of the container.
#[derive(Debug, Clone, Default)]
pub struct PodFiles {
    /// For /etc/hosts.
    pub hosts: Option<PathBuf>,
    /// For /etc/hostname.
    pub hostname: Option<PathBuf>,
    /// For /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// For /etc/passwd, where the image does not know the user.
    pub passwd: Option<PathBuf>,
    /// For /etc/group, where the image does not know the group.
    pub group: Option<PathBuf>,
    /// Directory for /dev/shm. With the host's IPC namespace the host's is used instead, whatever stands here; with
    /// None the container gets a tmpfs of its own.
    pub shm: Option<PathBuf>,
}

/// Where the pod's namespaces can be entered. None where the pod has none of its own.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    /// Network.
    pub net: Option<PathBuf>,
    /// IPC.
    pub ipc: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
    /// Users; the others belong to it.
    pub user: Option<PathBuf>,
    /// The PID namespace to join: the pod's for POD mode, the target container's for TARGET mode.
    pub pid: Option<PathBuf>,
}

impl SpecInput<'_> {
    pub(super) fn context(&self) -> Option<&cri::LinuxContainerSecurityContext> {
        self.config.linux.as_ref()?.security_context.as_ref()
    }

    /// The pod's user namespace as it was asked for, if it has one.
    pub(super) fn users(&self) -> Option<crate::netns::Users> {
        self.namespaces.user.as_ref()?;
        crate::sandbox::users(self.pod).ok().flatten()
    }

    pub(super) fn privileged(&self) -> bool {
        self.context().is_some_and(|c| c.privileged)
    }

    pub(super) fn read_only_root(&self) -> bool {
        self.settings.read_only_rootfs || self.context().is_some_and(|c| c.readonly_rootfs)
    }
}
