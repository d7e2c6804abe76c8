//! A container's bundle: its spec, made of what was asked for and what was found, adjusted by plugins, and written.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use oci_spec::runtime::Spec;
use wharf_proto::{
    cri::{ContainerConfig, IdMapping, LinuxContainerResources, LinuxContainerUser, PodSandboxConfig},
    nri::ContainerAdjustment,
    record::{self, NetDevice},
};

use super::{
    Container, Error, Result, Tools, asked, base, bound, cdi, cpus, hooks, host,
    image_volumes::View,
    limits, nri, passwd, restore,
    seccomp::{self, notify},
    spec, users, volumes,
};
use crate::{
    config::{DEVICES, ImageVolumes, SECCOMP_NOTIFIER, UMASK},
    images::{
        Image,
        rootfs::{Owners, Root},
    },
    lsm,
    nri::Nri,
    runtime::{features::Features, prepared},
    sandbox::{self, Labels, PodPaths, host_ipc, host_network},
    store,
};

/// What a bundle is made from.
pub(super) struct Bundle {
    pub image: Arc<Image>,
    pub pod: PodSandboxConfig,
    pub config: ContainerConfig,
    /// By place in the config's mounts.
    pub views: Vec<Option<View>>,
    /// The pod's users, if it has its own.
    pub owners: Option<Owners>,
    pub root: Root,
    /// The project whose all is that it writes; 0 without.
    pub project: u32,
    /// SELinux.
    pub labels: Option<Labels>,
    pub cgroup_path: String,
    /// What is restored, if it is not created.
    pub dumped: Option<Arc<restore::Dumped>>,
    /// What its pod's annotations ask of the node's CPUs.
    pub cpus: cpus::Prepared,
    /// The PID namespace to join, if the config asks for one.
    pub pid_namespace: Option<PathBuf>,
    /// What the pod's handler can do.
    pub runtime: Arc<Features>,
}

/// What the container's handler can do.
pub(super) async fn runtime_features(tools: &Tools, container: &Container) -> Arc<Features> {
    let mechanisms = &tools.mechanisms;
    let record = container.record.get();
    let settings = mechanisms.config.get();
    let handler = settings.resolve_handler(&record.runtime_handler);
    mechanisms.runtime_features.current(handler).await
}

/// What came of a bundle, for the record.
pub(super) struct Written {
    /// The user that the process will run as.
    pub user: LinuxContainerUser,
    /// Of its RDT class.
    pub rdt_tasks: Option<PathBuf>,
    /// Its limits, where CRI has words for them.
    pub resources: Option<LinuxContainerResources>,
    /// Its cgroup.
    pub cgroup_path: String,
    /// What becomes of blocked system calls.
    pub notifier: Option<notify::Action>,
    /// Network devices of the node's for its pod.
    pub net_devices: Vec<NetDevice>,
}

/// A spec that is not written yet.
struct Made {
    spec: Spec,
    user: LinuxContainerUser,
    rdt_tasks: Option<PathBuf>,
    resources: Option<LinuxContainerResources>,
    cgroup_path: String,
    /// What they are called in the pod, by their names on the node. Not in the spec: the daemon moves them, not the runtime.
    net_devices: BTreeMap<String, String>,
    /// Of its devices.
    places: Vec<bound::Place>,
}

/// Makes the spec, lets plugins adjust it, and writes config.json.
///
/// # Errors
/// When the config can't be met, or a plugin objects.
pub(super) async fn write(tools: &Arc<Tools>, container: &Arc<Container>, bundle: Bundle) -> Result<Written> {
    let (our_tools, owner) = (Arc::clone(tools), Arc::clone(container));
    let Some(plugins) = &tools.nri else {
        return container
            .blocking(move || finish(&our_tools, &owner, &bundle, make(&our_tools, &owner, &bundle)?))
            .await;
    };
    let bundle = Arc::new(bundle);
    let given = Arc::clone(&bundle);
    let made = container.blocking(move || make(&our_tools, &owner, &given)).await?;
    let adjustment = ask(plugins, tools, container, &bundle, &made).await?;
    let (our_tools, owner) = (Arc::clone(tools), Arc::clone(container));
    container
        .blocking(move || {
            let made = adjust(&our_tools, &owner, &bundle, &adjustment, made)?;
            finish(&our_tools, &owner, &bundle, made)
        })
        .await
}

/// What plugins want to be different.
async fn ask(
    plugins: &Nri,
    tools: &Tools,
    container: &Container,
    bundle: &Bundle,
    made: &Made,
) -> Result<ContainerAdjustment> {
    container.stage.enter("NRI plugins");
    let image = nri::image_of(&record::Container {
        image_id: bundle.image.id.clone(),
        image_ref: bundle.image.digests.first().cloned().unwrap_or_default(),
        config: Some(bundle.config.clone()),
        ..Default::default()
    });
    let unset = tools.mechanisms.config.get().unset_seccomp;
    let message = nri::message(container, Some(&made.spec), image, &made.net_devices, unset);
    let pod = sandbox::nri::message(&container.sandbox);
    let wanted = plugins.create_container(pod, message).await;
    container.stage.enter("spec");
    wanted.map_err(|error| Error::State(error.to_string()))
}

/// Changes the spec as plugins want it. Blocking.
fn adjust(
    tools: &Tools,
    owner: &Container,
    bundle: &Bundle,
    adjustment: &ContainerAdjustment,
    mut made: Made,
) -> Result<Made> {
    let daemon = &tools.mechanisms.config.get();
    let record = owner.record.get();
    let name = bundle.config.metadata.clone().unwrap_or_default().name;
    let ground = nri::Ground {
        tools,
        name: &name,
        builtin: daemon.handler(&record.runtime_handler).is_none(),
        runtime: &bundle.runtime,
        labels: bundle.labels.as_ref(),
        min_memory: daemon.handler_settings(&record.runtime_handler).min_memory,
    };
    let mut resources = made.resources.take().unwrap_or_default();
    let adjusted = nri::apply(adjustment, &ground, &mut resources, &mut made.spec)?;
    made.resources = Some(resources);
    if let Some(path) = adjusted.cgroup_path {
        made.cgroup_path = path;
    }
    match adjusted.rdt_tasks {
        Some(path) if path.as_os_str().is_empty() => made.rdt_tasks = None,
        Some(path) => made.rdt_tasks = Some(path),
        None => {}
    }
    for (host_name, name) in adjusted.net_devices {
        match name {
            Some(name) => drop(made.net_devices.insert(host_name, name)),
            None => drop(made.net_devices.remove(&host_name)),
        }
    }
    Ok(made)
}

/// The spec, as the config and the node's settings want it. Blocking.
fn make(tools: &Tools, owner: &Container, bundle: &Bundle) -> Result<Made> {
    let Bundle {
        image,
        pod,
        config,
        views,
        owners,
        root,
        project,
        labels,
        cgroup_path,
        dumped,
        cpus,
        pid_namespace,
        ..
    } = &bundle;
    let daemon = &tools.mechanisms.config.get();
    let handler = daemon.handler_settings(&owner.record.get().runtime_handler);
    if let Some(wanted) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
        limits::check(wanted, handler.min_memory)?;
    }
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let mut user = users::resolve(root, context, &image.config.user)?;
    if let Some(dumped) = dumped {
        user = dumped.user(&user)?;
        dumped.make_sources(config, &daemon.containers)?;
    }
    let mut facts = host::inspect(config, &daemon.containers)?;
    let annotations = handler.effective(&pod.annotations);
    if let Some(devices) = DEVICES.iter().find_map(|key| annotations.get(*key)) {
        facts.add_annotated(devices, &daemon.containers.allowed_devices)?;
    }
    facts.add_views(views.iter().map(|view| view.as_ref().map(|view| view.path.as_path())));
    if daemon.containers.image_volumes == ImageVolumes::Bind {
        facts.volumes = volumes::make(
            &owner.id,
            &image.config.volumes,
            &config.mounts,
            root.path(),
            &owner.dir.join("volumes"),
            owners.as_ref(),
            *project,
        )?;
        if let Some(dumped) = dumped {
            dumped.fill(owner, &facts.volumes)?;
        }
        if let Some(labels) = labels {
            for volume in &facts.volumes {
                lsm::selinux::relabel(&volume.source, &labels.files)
                    .map_err(|error| Error::State(error.to_string()))?;
            }
        }
    }
    let devices = tools.cdi.resolve(&cdi::requested(config)?)?;
    let own = facts.host_devices.iter().chain(&facts.devices);
    let own = own.map(|node| (node.path.clone(), node.host_path.clone()));
    let places = own.chain(devices.places()).collect();
    let paths = &owner.sandbox.paths;
    let policy = spec::Policy {
        apparmor_profile: daemon.apparmor_profile.clone(),
        device_ownership: daemon.device_ownership_from_security_context,
        privileged_devices: (&handler).into(),
        cgroup_writable: handler.cgroup_writable,
        builtin: daemon.handler(&owner.record.get().runtime_handler).is_none(),
        selinux: tools.mechanisms.selinux.is_some(),
        labels: labels.clone(),
    };
    relabel(config, &facts, labels.as_ref())?;
    let had_entries = dumped.as_ref().is_some_and(|dumped| dumped.had_entries());
    let entries = match daemon.passwd_entries || had_entries {
        true => passwd::write_missing(&owner.dir, root, &user, config, &image.config)?,
        false => passwd::Written::default(),
    };
    let base = handler.base_runtime_spec.as_deref().map(base::load).transpose()?;
    let listeners = &daemon.containers.seccomp_listeners;
    let load = |path| seccomp::load(path, listeners);
    let default_seccomp = handler.seccomp_profile.as_deref().map(load).transpose();
    let default_seccomp = default_seccomp.map_err(|error| Error::State(error.to_string()))?;
    let mut spec = spec::generate(&spec::SpecInput {
        pod_id: &owner.sandbox.id,
        pod,
        config,
        image: &image.config,
        rootfs: root.path(),
        user: &user,
        files: &spec::PodFiles {
            hosts: Some(paths.etc("hosts")),
            hostname: Some(paths.etc("hostname")),
            resolv_conf: Some(paths.etc("resolv.conf")),
            passwd: entries.passwd,
            group: entries.group,
            shm: (!host_ipc(pod)).then(|| paths.shm()),
        },
        namespaces: &pins(paths, pod, pid_namespace.clone()),
        cgroup_path,
        facts: &facts,
        host: &tools.host,
        base: base.as_ref(),
        settings: &daemon.containers,
        default_capabilities: daemon.default_capabilities.as_deref(),
        unset_seccomp: daemon.unset_seccomp,
        default_seccomp: default_seccomp.as_ref(),
        policy: &policy,
    })?;
    if let Some(base) = &base {
        base::add(base, &mut spec);
    }
    set_umask(&annotations, &mut spec)?;
    if let Some(profile) = spec
        .process()
        .as_ref()
        .and_then(|process| process.apparmor_profile().as_ref())
    {
        lsm::apparmor::ensure(profile).map_err(|error| Error::State(error.to_string()))?;
    }
    cdi::apply(&devices, &mut spec);
    cpus.add(&mut spec)?;
    let name = config.metadata.clone().unwrap_or_default().name;
    let rdt_tasks = limits::apply(daemon, &name, &config.annotations, &pod.annotations, &mut spec)?;
    let passed = handler.passed(&pod.annotations, &config.annotations);
    spec.annotations_mut().get_or_insert_default().extend(passed);
    if !owner.sandbox.record.get().slice.is_empty() {
        // Else crun makes a cgroup below the scope, which updates would not reach.
        spec.annotations_mut()
            .get_or_insert_default()
            .insert("run.oci.systemd.subgroup".to_owned(), String::new());
    }
    add_hooks(&daemon.containers.hooks_dirs, pod, config, &mut spec)?;
    if let Some(dumped) = dumped {
        dumped.adopt(&mut spec, &owner.dir)?;
        if daemon.handler(&owner.record.get().runtime_handler).is_some() {
            restore::point_to_options(owner, &mut spec);
        }
    }
    Ok(Made {
        spec,
        user: user.to_cri(),
        rdt_tasks,
        resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
        cgroup_path: cgroup_path.clone(),
        net_devices: devices.net_devices().collect(),
        places,
    })
}

/// Writes the spec. Blocking.
fn finish(tools: &Tools, owner: &Container, bundle: &Bundle, mut made: Made) -> Result<Written> {
    let daemon = &tools.mechanisms.config.get();
    let handler = daemon.handler_settings(&owner.record.get().runtime_handler);
    let annotations = handler.effective(&bundle.pod.annotations);
    asked::check_directory(owner, &bundle.root, &made.spec)?;
    let notifier = tell_blocked(&annotations, &bundle.runtime, owner, &mut made.spec)?;
    if bundle.owners.is_some() {
        bound::mount_devices(&mut made.spec, &made.places).map_err(Error::Invalid)?;
    }
    let prepared = prepared::plan(&mut made.spec, &owner.dir, &bundle.runtime, pod_users(bundle).as_ref());
    let prepared = prepared.map_err(Error::Unsupported)?;
    prepared::write(&owner.dir, &prepared).map_err(|error| Error::State(error.to_string()))?;
    let json = serde_json::to_vec(&made.spec).map_err(|error| Error::Invalid(error.to_string()))?;
    store::write_file(&owner.dir.join("config.json"), &json, 0o600)?;
    Ok(Written {
        user: made.user,
        rdt_tasks: made.rdt_tasks,
        resources: made.resources,
        cgroup_path: made.cgroup_path,
        notifier,
        net_devices: in_order(made.net_devices),
    })
}

fn in_order(devices: BTreeMap<String, String>) -> Vec<NetDevice> {
    let devices = devices.into_iter();
    devices.map(|(host_name, name)| NetDevice { host_name, name }).collect()
}

/// The pod's user namespace, for mounts that the runtime can't map.
fn pod_users(bundle: &Bundle) -> Option<prepared::Users> {
    let range = |ids: IdMapping| (ids.container_id, ids.host_id, ids.length);
    bundle.owners.as_ref().map(|owners| prepared::Users {
        namespace: owners.namespace.clone(),
        uids: range(owners.uids),
        gids: range(owners.gids),
    })
}

/// The file creation mask that the pod's annotation asks for.
fn set_umask(annotations: &HashMap<String, String>, spec: &mut Spec) -> Result<()> {
    let Some((key, text)) = UMASK.iter().find_map(|key| Some((key, annotations.get(*key)?))) else {
        return Ok(());
    };
    let mask = u32::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777);
    let Some(mask) = mask else {
        return Err(Error::Invalid(format!(
            "annotation {key}: {text:?} is no file creation mask such as \"077\""
        )));
    };
    if let Some(process) = spec.process_mut() {
        process.user_mut().set_umask(Some(mask));
    }
    Ok(())
}

/// Has the profile tell of what it blocks, where the pod asks for that and the container has a profile.
fn tell_blocked(
    annotations: &HashMap<String, String>,
    runtime: &Features,
    container: &Container,
    spec: &mut Spec,
) -> Result<Option<notify::Action>> {
    let Some(action) = notify::Action::read(annotations) else {
        return Ok(None);
    };
    let Some(linux) = spec.linux_mut() else { return Ok(None) };
    let Some(profile) = linux.seccomp().clone() else {
        return Ok(None);
    };
    if runtime.lacks_notifier() {
        return Err(Error::Unsupported(format!(
            "annotation {}: the pod's runtime can't tell of blocked system calls (SCMP_ACT_NOTIFY)",
            SECCOMP_NOTIFIER[0]
        )));
    }
    if let Some(path) = profile.listener_path() {
        return Err(Error::Invalid(format!(
            "annotation {}: the container's seccomp profile has a listener already, {}",
            SECCOMP_NOTIFIER[0],
            path.display()
        )));
    }
    let mut profile = notify::telling(profile);
    if !notify::tells(&profile) {
        return Ok(None);
    }
    profile.set_listener_path(Some(container.seccomp_socket()));
    linux.set_seccomp(Some(profile));
    Ok(Some(action))
}

/// The hooks that the node's administrator has laid down for such containers.
fn add_hooks(directories: &[PathBuf], pod: &PodSandboxConfig, config: &ContainerConfig, spec: &mut Spec) -> Result<()> {
    let own = spec.annotations().clone().unwrap_or_default();
    let args = spec.process().as_ref().and_then(|process| process.args().clone());
    let pairs = own.iter().chain(&pod.annotations).chain(&config.annotations);
    let subject = hooks::Subject {
        annotations: pairs.map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        command: args.as_ref().and_then(|args| args.first()).map_or("", String::as_str),
        has_bind_mounts: !config.mounts.is_empty(),
    };
    Ok(hooks::add(directories, &subject, spec)?)
}

/// The pod's pinned namespaces, where it has its own.
fn pins(paths: &PodPaths, pod: &PodSandboxConfig, pid: Option<PathBuf>) -> spec::Pins {
    let pin = |name: &str| Some(paths.namespaces().join(name));
    let (net, ipc) = (!host_network(pod), !host_ipc(pod));
    let user = matches!(sandbox::users(pod), Ok(Some(_)));
    spec::Pins {
        user: pin("user").filter(|_| user),
        net: pin("net").filter(|_| net),
        uts: pin("uts").filter(|_| net),
        ipc: pin("ipc").filter(|_| ipc),
        pid,
    }
}

/// Gives the volumes that ask for it the container's label. One that nothing confines can use them with any.
fn relabel(config: &ContainerConfig, facts: &host::Facts, labels: Option<&Labels>) -> Result<()> {
    let Some(labels) = labels.filter(|labels| !labels.unconfined) else {
        return Ok(());
    };
    for (mount, source) in config.mounts.iter().zip(&facts.mounts) {
        // The view of an image has its label from its mount.
        let wanted = mount.selinux_relabel && mount.image.is_none();
        if let Some(source) = source.as_ref().filter(|_| wanted) {
            lsm::selinux::relabel(&source.path, &labels.files).map_err(|error| Error::Invalid(error.to_string()))?;
        }
    }
    Ok(())
}
