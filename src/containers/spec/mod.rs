//! The OCI spec of a container, as a pure function of what CRI asked for and what is known of the machine.
//!
//! Owns: every decision of what a container may see and do. Must never: read the machine, the clock or the environment;
//! [`super::host`] has done so before. May ask: `caps`, `seccomp`, `users` for their tables.

mod command;
mod devices;
mod mounts;
mod namespaces;
mod resources;
mod security;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, path::Path, path::PathBuf};

use oci_spec::runtime::{Linux, Process, Root, Spec, User};
use wharf_proto::cri;

pub use resources::to_oci as resources_to_oci;
pub use security::{ProfileChoice, seccomp_choice};

use super::{
    caps,
    host::{Facts, Host},
    users::ResolvedUser,
};
use crate::{config::SeccompDefault, images::ImageConfig};

/// Why a config cannot become a spec.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request contradicts itself or the machine.
    #[error("{0}")]
    Invalid(String),
    /// Valid in CRI, but not yet there.
    #[error("{0}")]
    Unsupported(String),
    /// kubelet looks for this word at the head.
    #[error("RROUnsupported: mount at {0} cannot be made recursively read-only: {1}")]
    RroUnsupported(String, &'static str),
    /// A capability that does not exist.
    #[error(transparent)]
    Capability(#[from] caps::UnknownCapability),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(text.into()))
}

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
    /// `default_capabilities` of the configuration.
    pub default_capabilities: Option<&'a [String]>,
    /// `unset_seccomp` of the configuration.
    pub unset_seccomp: SeccompDefault,
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
    /// The PID namespace to join: the pod's for POD mode, the target container's for TARGET mode.
    pub pid: Option<PathBuf>,
}

impl SpecInput<'_> {
    fn context(&self) -> Option<&cri::LinuxContainerSecurityContext> {
        self.config.linux.as_ref()?.security_context.as_ref()
    }

    fn privileged(&self) -> bool {
        self.context().is_some_and(|c| c.privileged)
    }

    fn read_only_root(&self) -> bool {
        self.context().is_some_and(|c| c.readonly_rootfs)
    }
}

/// Makes the spec.
///
/// # Errors
/// The first thing in the config that is wrong or not supported, by name.
pub fn generate(input: &SpecInput) -> Result<Spec> {
    refuse(input)?;
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned())
        .set_readonly(Some(input.read_only_root()));
    let mounts = mounts::generate(input)?;

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::generate(input)?))
        .set_resources(Some(resources::generate(input)?))
        .set_cgroups_path(Some(PathBuf::from(input.cgroup_path)))
        .set_devices(Some(devices::nodes(input)?).filter(|d| !d.is_empty()))
        .set_rootfs_propagation(mounts.rootfs_propagation)
        .set_seccomp(security::seccomp(input)?)
        .set_masked_paths(security::paths(input, |c| &c.masked_paths))
        .set_readonly_paths(security::paths(input, |c| &c.readonly_paths))
        // The pod's sysctls are in force in its namespaces already; a container must not set them anew.
        .set_sysctl(None)
        .set_uid_mappings(None)
        .set_gid_mappings(None);

    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts.mounts))
        .set_process(Some(process(input)?))
        // The pod's host name lives in its pinned namespace.
        .set_hostname(None)
        .set_annotations(Some(annotations(input)))
        .set_linux(Some(linux));
    Ok(spec)
}

/// What is refused as a whole, before anything is decided.
fn refuse(input: &SpecInput) -> Result<()> {
    let sandbox = input.pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
    if input.privileged() && !sandbox.is_some_and(|s| s.privileged) {
        return invalid("a privileged container needs a privileged pod sandbox");
    }
    if let Some(device) = input.config.cdi_devices.first() {
        return Err(Error::Unsupported(format!(
            "CDI device {}: CDI is not supported yet",
            device.name
        )));
    }
    let context = input.context();
    if let Some(c) = context
        && let (Some(group), None, "") = (&c.run_as_group, &c.run_as_user, c.run_as_username.as_str())
    {
        return invalid(format!(
            "run_as_group {} is set without run_as_user or run_as_username",
            group.value
        ));
    }
    security::refuse_selinux(context, input.host)
}

fn process(input: &SpecInput) -> Result<Process> {
    let mut user = User::default();
    user.set_uid(input.user.uid)
        .set_gid(input.user.gid)
        .set_additional_gids(Some(input.user.groups.clone()));
    let context = input.context();
    let capabilities = caps::of_container(
        input.privileged(),
        context.and_then(|c| c.capabilities.as_ref()),
        input.default_capabilities,
        input.host.capabilities,
    )?;
    let mut process = Process::default();
    process
        .set_terminal(Some(input.config.tty))
        .set_user(user)
        .set_args(Some(command::args(input)?))
        .set_env(Some(command::env(input)?))
        .set_cwd(command::cwd(input)?)
        .set_capabilities(Some(capabilities.to_oci()))
        .set_rlimits(None)
        .set_no_new_privileges(Some(context.is_some_and(|c| c.no_new_privs)))
        .set_apparmor_profile(security::apparmor(input)?)
        .set_oom_score_adj(Some(resources::oom_score_adj(input)));
    Ok(process)
}

/// What tools that look at running specs know from other runtimes; nothing here changes how the container runs.
fn annotations(input: &SpecInput) -> HashMap<String, String> {
    let pod = input.pod.metadata.clone().unwrap_or_default();
    let name = input.config.metadata.clone().unwrap_or_default().name;
    let image = input.config.image.clone().unwrap_or_default();
    let image = if image.user_specified_image.is_empty() {
        image.image
    } else {
        image.user_specified_image
    };
    let pairs = [
        ("container-type", "container".to_owned()),
        ("container-name", name),
        ("image-name", image),
        ("sandbox-id", input.pod_id.to_owned()),
        ("sandbox-name", pod.name),
        ("sandbox-namespace", pod.namespace),
        ("sandbox-uid", pod.uid),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value))
        .collect()
}
