//! Bringing a pod up: directories and files, then namespaces with network beside the monitor, then READY.

use std::{collections::HashMap, io, net::IpAddr, path::PathBuf, sync::Arc, time::Instant};

use nix::mount::{MsFlags, mount};
use wharf_proto::{
    cri::{DnsConfig, NamespaceMode, PodSandboxConfig, Protocol, SupplementalGroupsPolicy},
    record,
};

use super::{
    Error, Mechanisms, PodPaths, Result, Sandbox, cgroup, files, host_ipc, host_network, labels, membership,
    namespace_options, security, users,
};
use crate::{
    cgroups::Cgroup,
    config::{SHM_SIZE, parse_size},
    lsm,
    monitor::client::{Client, Events, SpawnOptions},
    netns::{self, Users, Want},
    store,
};

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
        cgroup::slice(mechanisms, config)?;
    }
    netns::Bandwidth::of(&config.annotations).map_err(|error| Error::Invalid(error.to_string()))?;
    users(config)?;
    check_user(config)?;
    files::check_hostname(&config.hostname).map_err(|error| Error::Invalid(error.to_string()))?;
    // Its processes would see the node's name all the same.
    if files::host_network(config) && !config.hostname.is_empty() {
        return Err(Error::Invalid(format!(
            "hostname {:?}: a pod on the node's network has the node's name",
            config.hostname
        )));
    }
    let logs = &config.log_directory;
    let upwards = |part| part == std::path::Component::ParentDir;
    if !logs.is_empty()
        && (!logs.starts_with('/') || logs.contains('\0') || std::path::Path::new(logs).components().any(upwards))
    {
        return Err(Error::Invalid(format!(
            "log directory {logs:?} is not an absolute path without \"..\""
        )));
    }
    for (namespace, mode) in [("network", options.network), ("PID", options.pid), ("IPC", options.ipc)] {
        let shown = match NamespaceMode::try_from(mode) {
            Ok(NamespaceMode::Pod | NamespaceMode::Node) => continue,
            // Each container its own, which is the default.
            Ok(NamespaceMode::Container) if namespace == "PID" => continue,
            Ok(other) => other.as_str_name().to_owned(),
            Err(_) => mode.to_string(),
        };
        return Err(Error::Invalid(format!(
            "{namespace} namespace mode {shown} is not possible for a pod sandbox"
        )));
    }
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str());
    if let Some(parent) = parent.filter(|parent| !parent.is_empty()) {
        Cgroup::new(&mechanisms.cgroups, parent).map_err(|error| Error::Invalid(error.to_string()))?;
    }
    for mapping in &config.port_mappings {
        if Protocol::try_from(mapping.protocol).is_err() {
            return Err(Error::Invalid(format!(
                "port mapping {} to {} has protocol {}, which is not known",
                mapping.host_port, mapping.container_port, mapping.protocol
            )));
        }
        if !(0..=65535).contains(&mapping.host_port) || !(0..=65535).contains(&mapping.container_port) {
            return Err(Error::Invalid(format!(
                "port mapping {} to {} is out of range 0..65535",
                mapping.host_port, mapping.container_port
            )));
        }
    }
    Ok(())
}

/// What the pod would have its own process be, if it had one: the API wants contradictions to be refused all the same.
fn check_user(config: &PodSandboxConfig) -> Result<()> {
    let Some(context) = security(Some(config)) else {
        return Ok(());
    };
    if context.run_as_group.is_some() && context.run_as_user.is_none() {
        return Err(Error::Invalid(
            "run_as_group of a pod sandbox without its run_as_user".into(),
        ));
    }
    match SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Invalid(format!(
            "supplemental_groups_policy {} of a pod sandbox is not known",
            context.supplemental_groups_policy
        ))),
    }
}

/// The sysctls of a pod: what both peers set by default, then the node's settings (`NAME=value`), then what was asked
/// for, without those that would reach the node because the pod shares that namespace with it (kubelet refuses them,
/// CRI-O skips them).
fn sysctls(config: &PodSandboxConfig, users: Option<&Users>, settings: &[String]) -> Vec<(String, String)> {
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
    let settings = settings.iter().filter_map(|setting| setting.split_once('='));
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in settings.chain(asked) {
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

/// Brings up the pod whose record (state CREATING) has just been published, and whose config passed [`check`]. Returns
/// its monitor's events. `deadline` is when whoever asked for it will not wait any more.
///
/// # Errors
/// At any step; what has been made by then is for [`super::tear_down`] to find.
pub async fn bring_up(mechanisms: &Mechanisms, sandbox: &Arc<Sandbox>, deadline: Option<Instant>) -> Result<Events> {
    let record = sandbox.record.get();
    let config = record.config.clone().unwrap_or_default();
    sandbox.fail_point("run.begin").await?;
    sandbox.stage.enter("files");
    if let Some(level) = selinux_level(mechanisms, &sandbox.id, &config)? {
        // Written with the rest of the record, by the next step.
        sandbox.record.publish_unwritten(|pod| pod.selinux_level = level);
    }
    let label = labels(mechanisms, &sandbox.record.get(), None)?.map(|labels| labels.files);
    membership::networks(&record)?;
    let network = sandbox.pod_network(&mechanisms.config.get());
    let names = Names {
        resolver: mechanisms.networks.resolver(&network),
        hosts: membership::hosts(&record, mechanisms.networks.gateway(&network))?,
    };
    let pod = Arc::clone(sandbox);
    let pod_config = config.clone();
    let shm_size = shm_size(mechanisms, &record.runtime_handler, &config)?;
    blocking(sandbox, move || {
        prepare_files(&pod, &pod_config, &names, label.as_deref(), shm_size)
    })
    .await?;
    sandbox.fail_point("run.files").await?;

    sandbox.stage.enter("namespaces");
    let (network, monitor) = if owns_processes(&config)? {
        // The monitor makes the namespace of processes in the pod's user namespace, which must be there.
        make_namespaces(mechanisms, sandbox, &config).await?;
        tokio::join!(
            attach(mechanisms, sandbox, &config, deadline),
            start_monitor(
                mechanisms,
                sandbox,
                &config,
                Some(sandbox.paths.namespaces().join("user"))
            )
        )
    } else {
        let network = async {
            let network = match make_namespaces(mechanisms, sandbox, &config).await {
                Ok(()) => attach(mechanisms, sandbox, &config, deadline).await,
                Err(error) => Err(error),
            };
            // What is waited for then, if anything.
            sandbox.stage.enter("monitor");
            network
        };
        tokio::join!(network, start_monitor(mechanisms, sandbox, &config, None))
    };
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

/// Bytes of the pod's /dev/shm: as its annotation says, where its handler lets it, else as configured.
fn shm_size(mechanisms: &Mechanisms, handler: &str, config: &PodSandboxConfig) -> Result<u64> {
    let daemon = mechanisms.config.get();
    let settings = daemon.handler_settings(handler);
    let effective = settings.effective(&config.annotations);
    let Some((key, text)) = SHM_SIZE.iter().find_map(|key| Some((key, effective.get(*key)?))) else {
        return Ok(daemon.containers.shm_size);
    };
    match parse_size(text) {
        Some(bytes) if (4096..=i64::MAX.cast_unsigned()).contains(&bytes) => Ok(bytes),
        _ => Err(Error::Invalid(format!(
            "annotation {key}: {text:?} is not a size such as \"64MiB\", at least 4096 bytes"
        ))),
    }
}

/// The pod's SELinux level: the one that it asks for, or one that no other pod has.
fn selinux_level(mechanisms: &Mechanisms, id: &str, config: &PodSandboxConfig) -> Result<Option<String>> {
    let Some(selinux) = &mechanisms.selinux else {
        return Ok(None);
    };
    let context = security(Some(config));
    let privileged = context.is_some_and(|context| context.privileged);
    if privileged || host_ipc(config) || namespace_options(config).pid() == NamespaceMode::Node {
        return Ok(None);
    }
    let asked = context.and_then(|context| context.selinux_options.as_ref());
    match asked
        .map(|asked| asked.level.as_str())
        .filter(|level| !level.is_empty())
    {
        None => Ok(Some(selinux.allocate(id)?)),
        Some(level) => {
            lsm::selinux::check_level(level)?;
            selinux.reserve(level);
            Ok(Some(level.to_owned()))
        }
    }
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

/// What a pod's networks say about names.
struct Names {
    /// Who is asked; none for whom the configuration or the node names.
    resolver: Option<IpAddr>,
    /// More lines of /etc/hosts.
    hosts: String,
}

/// Directories, record, the files that containers see in /etc, and shared memory.
fn prepare_files(
    sandbox: &Sandbox,
    config: &PodSandboxConfig,
    names: &Names,
    label: Option<&str>,
    shm_size: u64,
) -> Result<()> {
    let paths = &sandbox.paths;
    store::create_dir(&paths.containers())?;
    store::write_record(&paths.record(), &*sandbox.record.get())?;
    store::create_dir(&paths.namespaces())?;
    if !config.log_directory.is_empty() {
        std::fs::create_dir_all(&config.log_directory)
            .map_err(sandbox.io(format!("create log directory {}", config.log_directory)))?;
    }
    write_etc(paths, config, names).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => Error::Invalid(error.to_string()),
        _ => sandbox.io("write hosts, hostname and resolv.conf")(error),
    })?;
    if let Some(label) = label {
        for name in ["hosts", "hostname", "resolv.conf"] {
            lsm::selinux::relabel(&paths.etc(name), label)?;
        }
    }
    if !host_ipc(config) {
        let shm = paths.shm();
        store::create_dir(&shm)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        // Quoted: a level has commas in it.
        let context = label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
        let options = format!("mode=1777,size={shm_size}{context}");
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

/// Writes what containers see as /etc/hostname, /etc/hosts and /etc/resolv.conf. Any user in a container reads them, so
/// they are world-readable; the directory around them is root's.
fn write_etc(paths: &PodPaths, config: &PodSandboxConfig, names: &Names) -> io::Result<()> {
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
    put("hosts", &(files::hosts_file(hosts.as_deref(), &name) + &names.hosts))?;
    let node = node_resolv_conf(host_network(config))?;
    put(
        "resolv.conf",
        &resolv_conf(names.resolver, config.dns_config.as_ref(), &node)?,
    )?;
    Ok(())
}

/// Contents of /etc/resolv.conf: by the network's resolver if there is one, else what is asked for or the node's.
pub(super) fn resolv_conf(resolver: Option<IpAddr>, dns: Option<&DnsConfig>, node: &str) -> io::Result<String> {
    let text = match resolver {
        Some(resolver) => files::resolv_conf_by(resolver, dns, node),
        None => files::resolv_conf(dns, node),
    };
    text.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The node's resolv.conf. One that names the node's own localhost alone is of no use in another network: there stands what
/// systemd-resolved asks itself, if it is that which listens.
pub(super) fn node_resolv_conf(host_network: bool) -> io::Result<String> {
    let text = read_if_there("/etc/resolv.conf")?;
    if host_network || !files::asks_localhost_alone(&text) {
        return Ok(text);
    }
    let behind = read_if_there("/run/systemd/resolve/resolv.conf")?;
    let names_one = files::name_servers(&behind).next().is_some();
    Ok(if names_one { behind } else { text })
}

fn read_if_there(path: &str) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The pod's containers share a PID namespace, which the pod's own user namespace owns.
fn owns_processes(config: &PodSandboxConfig) -> Result<bool> {
    Ok(namespace_options(config).pid() == NamespaceMode::Pod && users(config)?.is_some())
}

async fn make_namespaces(mechanisms: &Mechanisms, sandbox: &Sandbox, config: &PodSandboxConfig) -> Result<()> {
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
            &sysctls(config, users.as_ref(), &mechanisms.config.get().containers.sysctls),
        )
        .await
        .map_err(sandbox.network_error())?;
    sandbox.fail_point("run.namespaces").await
}

async fn attach(
    mechanisms: &Mechanisms,
    sandbox: &Arc<Sandbox>,
    config: &PodSandboxConfig,
    deadline: Option<Instant>,
) -> Result<Option<record::Network>> {
    if host_network(config) {
        return Ok(None);
    }
    let pod = sandbox.pod_network(&mechanisms.config.get());
    if !mechanisms.networks.is_usable(&pod) {
        sandbox.stage.enter("wait for the network to be ready");
    }
    let ready = mechanisms
        .networks
        .ready(&pod, deadline)
        .await
        .map_err(sandbox.network_error())?;
    sandbox.stage.enter("network");
    // A detach is due from the moment an attach was begun, whatever happens to this process in between.
    let note = |pending: record::Network| async move {
        let edit = |pod: &mut record::Pod| pod.network = Some(pending.clone());
        sandbox.record.change_regardless(edit).await;
    };
    let network = mechanisms
        .networks
        .attach(&pod, ready, note)
        .await
        .map_err(sandbox.network_error())?;
    sandbox.fail_point("run.attached").await?;
    Ok(Some(network))
}

async fn start_monitor(
    mechanisms: &Mechanisms,
    sandbox: &Arc<Sandbox>,
    config: &PodSandboxConfig,
    user_namespace: Option<PathBuf>,
) -> Result<Events> {
    let monitors = cgroup::of_monitors(mechanisms);
    let options = SpawnOptions {
        pod_id: &sandbox.id,
        socket: &sandbox.paths.monitor(),
        pid_namespace: namespace_options(config).pid() == NamespaceMode::Pod,
        user_namespace: user_namespace.as_deref(),
        cgroup: Some(&monitors),
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
