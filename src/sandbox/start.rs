//! Bringing a pod up: directories and files, then namespaces with network beside the monitor, then READY.

use std::{collections::HashMap, io, sync::Arc};

use nix::mount::{MsFlags, mount};
use wharf_proto::{
    cri::{NamespaceMode, PodSandboxConfig},
    record,
};

use super::{Error, Mechanisms, PodPaths, Result, Sandbox, files, host_ipc, host_network, namespace_options, users};
use crate::{
    cgroups::Cgroup,
    config::NetworkMode,
    monitor::client::{Client, Events, SpawnOptions},
    netns::{self, Users, Want},
    store,
};

/// Size of a pod's /dev/shm, as both peers ship it.
const SHM_SIZE: &str = "size=67108864";

/// Checks what can be checked before anything is made.
///
/// # Errors
/// [`Error::Invalid`] and [`Error::Unsupported`], which name the field.
pub fn check(mechanisms: &Mechanisms, config: &PodSandboxConfig) -> Result<()> {
    let options = namespace_options(config);
    if let Some(parent) = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str())
        && !parent.is_empty()
    {
        // The root is nobody's, what lies below it may be a pod's.
        Cgroup::new(&mechanisms.cgroups, &format!("{parent}/pod"))
            .map_err(|error| Error::Invalid(format!("cgroup_parent {parent:?}: {error}")))?;
    }
    netns::check_bandwidth(&config.annotations).map_err(|error| Error::Invalid(error.to_string()))?;
    let log_directory = &config.log_directory;
    if !log_directory.is_empty() && !std::path::Path::new(log_directory).is_absolute() {
        return Err(Error::Invalid(format!(
            "log_directory {log_directory:?} is not an absolute path"
        )));
    }
    // A file system of processes can only be mounted by who owns their namespace, which is then the node.
    if users(config)?.is_some() && options.pid() != NamespaceMode::Container {
        return Err(Error::Unsupported(format!(
            "PID namespace mode {} together with a user namespace is not supported yet",
            options.pid().as_str_name()
        )));
    }
    if matches!(options.pid(), NamespaceMode::Target) {
        return Err(Error::Invalid(
            "a pod sandbox can't use PID namespace mode TARGET".into(),
        ));
    }
    files::check_hostname(&config.hostname).map_err(|error| Error::Invalid(error.to_string()))?;
    for mapping in &config.port_mappings {
        if !(0..=65535).contains(&mapping.host_port) || !(0..=65535).contains(&mapping.container_port) {
            return Err(Error::Invalid(format!(
                "port mapping {} to {} is out of range 0..65535",
                mapping.host_port, mapping.container_port
            )));
        }
    }
    Ok(())
}

/// The sysctls of a pod: what both peers set by default, then what was asked for, without those that would reach the
/// node because the pod shares that namespace with it (kubelet refuses them, CRI-O skips them).
fn sysctls(config: &PodSandboxConfig, users: Option<&Users>) -> Vec<(String, String)> {
    let mut wanted = HashMap::new();
    if !host_network(config) {
        // Written by the node, which has other numbers for the pod's groups.
        let groups = users.map_or_else(
            || "0 2147483647".to_owned(),
            |users| format!("{} {}", users.gids.host_id, users.gids.host_id + users.gids.length - 1),
        );
        wanted.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        wanted.insert("net.ipv4.ping_group_range".to_owned(), groups);
    }
    let asked = config
        .linux
        .as_ref()
        .map(|linux| linux.sysctls.clone())
        .unwrap_or_default();
    for (name, value) in asked {
        let shared_with_node = if name.starts_with("net.") || name.starts_with("net/") {
            host_network(config)
        } else {
            host_ipc(config)
        };
        if shared_with_node {
            tracing::warn!(
                sysctl = name,
                "skipped: the pod shares the namespace of this sysctl with the node"
            );
        } else {
            wanted.insert(name, value);
        }
    }
    let mut wanted: Vec<_> = wanted.into_iter().collect();
    wanted.sort();
    wanted
}

/// Brings up the pod whose record (state CREATING) has just been published, and returns its monitor's events.
///
/// # Errors
/// At any step; what has been made by then is for [`super::tear_down`] to find.
pub async fn bring_up(mechanisms: &Mechanisms, sandbox: &Arc<Sandbox>) -> Result<Events> {
    let record = sandbox.record.get();
    let config = record.config.clone().unwrap_or_default();
    sandbox.fail_point("run.begin").await?;
    sandbox.stage.enter("files");
    let pod = Arc::clone(sandbox);
    let pod_config = config.clone();
    blocking(sandbox, move || prepare_files(&pod, &pod_config)).await?;
    sandbox.fail_point("run.files").await?;

    sandbox.stage.enter("namespaces");
    let network = async {
        let network = set_up_network(mechanisms, sandbox, &config).await;
        // What is waited for then, if anything.
        sandbox.stage.enter("monitor");
        network
    };
    let (network, monitor) = tokio::join!(network, start_monitor(mechanisms, sandbox, &config));
    let events = monitor?;
    let network = network?;
    sandbox.fail_point("run.parts").await?;
    sandbox
        .record
        .change(|pod| {
            pod.network = network;
            pod.state = record::PodState::PodReady.into();
        })
        .await?;
    sandbox.fail_point("run.ready").await?;
    Ok(events)
}

/// Runs file and mount work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    sandbox: &Sandbox,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(sandbox.io("run a step")(std::io::Error::other(error))),
    }
}

/// Directories, record, the files that containers see in /etc, and shared memory.
fn prepare_files(sandbox: &Sandbox, config: &PodSandboxConfig) -> Result<()> {
    let paths = &sandbox.paths;
    store::create_dir(&paths.containers())?;
    store::write_record(&paths.record(), &*sandbox.record.get())?;
    store::create_dir(&paths.namespaces())?;
    if !config.log_directory.is_empty() {
        std::fs::create_dir_all(&config.log_directory)
            .map_err(sandbox.io(format!("create log directory {}", config.log_directory)))?;
    }
    write_etc(paths, config).map_err(|error| match error {
        EtcError::Invalid(error) => Error::Invalid(error.to_string()),
        EtcError::Io(error) => sandbox.io("write hosts, hostname and resolv.conf")(error),
    })?;
    if !host_ipc(config) {
        let shm = paths.shm();
        store::create_dir(&shm)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = format!("mode=1777,{SHM_SIZE}");
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|errno| sandbox.io("mount /dev/shm")(errno.into()))?;
    }
    Ok(())
}

/// The name that the pod's processes see: the node's when none is asked for.
pub fn visible_hostname(config: &PodSandboxConfig) -> String {
    let name = files::hostname(config);
    if name.is_empty() {
        nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    } else {
        name
    }
}

#[derive(Debug, thiserror::Error)]
enum EtcError {
    #[error(transparent)]
    Invalid(#[from] files::InvalidValue),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes what containers see as /etc/hostname, /etc/hosts and /etc/resolv.conf. Any user in a container reads them, so
/// they are world-readable; the directory around them is root's.
fn write_etc(paths: &PodPaths, config: &PodSandboxConfig) -> std::result::Result<(), EtcError> {
    let put = |name: &str, content: &str| {
        store::write_file(&paths.etc(name), content.as_bytes(), 0o644).map_err(io::Error::other)
    };
    let name = visible_hostname(config);
    put("hostname", &files::hostname_file(&name))?;
    let hosts = if host_network(config) {
        Some(read_if_there("/etc/hosts")?)
    } else {
        None
    };
    put("hosts", &files::hosts_file(hosts.as_deref(), &name))?;
    let resolv_conf = match &config.dns_config {
        Some(_) => String::new(),
        None => read_if_there("/etc/resolv.conf")?,
    };
    put(
        "resolv.conf",
        &files::resolv_conf(config.dns_config.as_ref(), &resolv_conf)?,
    )?;
    Ok(())
}

fn read_if_there(path: &str) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

async fn set_up_network(
    mechanisms: &Mechanisms,
    sandbox: &Arc<Sandbox>,
    config: &PodSandboxConfig,
) -> Result<Option<record::Network>> {
    let host_network = host_network(config);
    let users = users(config)?;
    let want = Want {
        net: !host_network,
        ipc: !host_ipc(config),
        uts: !host_network,
        users,
    };
    let hostname = visible_hostname(config);
    mechanisms
        .networks
        .create_namespaces(
            &sandbox.paths.namespaces(),
            want,
            &hostname,
            &sysctls(config, users.as_ref()),
        )
        .await
        .map_err(sandbox.network_error())?;
    sandbox.fail_point("run.namespaces").await?;
    if host_network {
        return Ok(None);
    }
    sandbox.stage.enter("network");
    if mechanisms.config.network == NetworkMode::Builtin && netns::has_bandwidth(&config.annotations) {
        tracing::warn!(
            pod = sandbox.id,
            "the built-in network does not limit bandwidth: the pod's annotations are not obeyed"
        );
    }
    // A detach is due from the moment an attach was begun, whatever happens to this process in between.
    let note = |pending: record::Network| async move {
        let edit = |pod: &mut record::Pod| pod.network = Some(pending.clone());
        sandbox.record.change_regardless(edit).await;
    };
    let network = mechanisms
        .networks
        .attach(&sandbox.pod_network(), note)
        .await
        .map_err(sandbox.network_error())?;
    sandbox.fail_point("run.attached").await?;
    Ok(Some(network))
}

async fn start_monitor(mechanisms: &Mechanisms, sandbox: &Arc<Sandbox>, config: &PodSandboxConfig) -> Result<Events> {
    let options = SpawnOptions {
        pod_id: &sandbox.id,
        socket: &sandbox.paths.monitor(),
        pid_namespace: namespace_options(config).pid() == NamespaceMode::Pod,
        cgroup: None,
    };
    sandbox.fail_point("run.monitor").await?;
    let (client, hello, events) = Client::spawn(&mechanisms.monitor_program, options)
        .await
        .map_err(|source| Error::Monitor {
            pod: sandbox.id.clone(),
            source,
        })?;
    sandbox.set_monitor(Arc::new(client), &hello);
    sandbox.fail_point("run.monitored").await?;
    Ok(events)
}
