//! Which namespaces are new, joined, or the host's.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use wharf_proto::cri::{self, NamespaceMode};

use super::{Result, SpecInput, invalid};

fn options<'a>(input: &SpecInput<'a>) -> Option<&'a cri::NamespaceOption> {
    input
        .config
        .linux
        .as_ref()?
        .security_context
        .as_ref()?
        .namespace_options
        .as_ref()
}

fn pod_options(input: &SpecInput) -> cri::NamespaceOption {
    let context = input
        .pod
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    context
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

fn mode(value: i32, what: &str) -> Result<NamespaceMode> {
    NamespaceMode::try_from(value).or_else(|_| invalid(format!("{what} namespace mode {value} does not exist")))
}

/// True if the container shares the host's IPC objects.
pub(super) fn host_ipc(input: &SpecInput) -> bool {
    options(input).is_some_and(|o| o.ipc == NamespaceMode::Node as i32)
}

/// True if the container shares the node's network, by its own wish or its pod's.
pub(super) fn host_network(input: &SpecInput) -> bool {
    options(input).is_some_and(|o| o.network == NamespaceMode::Node as i32)
        || pod_options(input).network() == NamespaceMode::Node
}

/// The file systems that show processes and message queues can be mounted by those only who own their namespaces.
fn refuse_foreign(input: &SpecInput) -> Result<()> {
    if input.policy.builtin || input.users().is_none() {
        return Ok(());
    }
    let pod = pod_options(input);
    let own = options(input);
    let shared = |of_container: Option<i32>, of_pod: NamespaceMode| {
        of_pod == NamespaceMode::Node || of_container == Some(NamespaceMode::Node as i32)
    };
    for (kind, shared) in [
        ("PID", shared(own.map(|o| o.pid), pod.pid())),
        ("IPC", shared(own.map(|o| o.ipc), pod.ipc())),
    ] {
        if shared {
            return invalid(format!(
                "only the built-in runtime handler can share the node's {kind} namespace with a pod that has a user namespace"
            ));
        }
    }
    Ok(())
}

pub(super) fn generate(input: &SpecInput) -> Result<Vec<LinuxNamespace>> {
    refuse_foreign(input)?;
    let none = cri::NamespaceOption::default();
    let options = options(input).unwrap_or(&none);
    let mut out = vec![new(LinuxNamespaceType::Mount)];
    let pod = pod_options(input);
    let shared = |out: &mut Vec<_>, kind, name, value, of_pod, pin: &Option<PathBuf>| -> Result<()> {
        match mode(value, name)? {
            NamespaceMode::Node => {}
            // What the pod has is the node's.
            NamespaceMode::Pod if of_pod == NamespaceMode::Node => {}
            NamespaceMode::Pod => out.push(join(kind, name, pin)?),
            other => return invalid(format!("{name} namespace mode {} is not possible", other.as_str_name())),
        }
        Ok(())
    };
    let pins = input.namespaces;
    if pins.user.is_some() {
        out.push(join(LinuxNamespaceType::User, "user", &pins.user)?);
    }
    shared(
        &mut out,
        LinuxNamespaceType::Network,
        "network",
        options.network,
        pod.network(),
        &pins.net,
    )?;
    shared(
        &mut out,
        LinuxNamespaceType::Ipc,
        "IPC",
        options.ipc,
        pod.ipc(),
        &pins.ipc,
    )?;
    // With the host's network goes the host's name.
    shared(
        &mut out,
        LinuxNamespaceType::Uts,
        "UTS",
        options.network,
        pod.network(),
        &pins.uts,
    )?;
    match mode(options.pid, "PID")? {
        NamespaceMode::Node => {}
        NamespaceMode::Pod if pod.pid() == NamespaceMode::Node => {}
        NamespaceMode::Container => out.push(new(LinuxNamespaceType::Pid)),
        NamespaceMode::Pod | NamespaceMode::Target => out.push(join(LinuxNamespaceType::Pid, "PID", &pins.pid)?),
    }
    if input.host.cgroup_v2 && !input.privileged() {
        out.push(new(LinuxNamespaceType::Cgroup));
    }
    Ok(out)
}

fn new(kind: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace
}

fn join(kind: LinuxNamespaceType, name: &str, pin: &Option<PathBuf>) -> Result<LinuxNamespace> {
    let Some(path) = pin else {
        return invalid(format!("the pod has no {name} namespace to share"));
    };
    let mut namespace = new(kind);
    namespace.set_path(Some(path.clone()));
    Ok(namespace)
}
