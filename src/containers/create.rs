//! Creating a container: image, root filesystem, spec. Nothing runs yet.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use oci_spec::runtime::Spec;
use wharf_proto::{
    cri::{ContainerConfig, LinuxContainerUser, NamespaceMode, PodSandboxConfig},
    record::{self, ContainerState},
};

use super::{
    Container, Error, Result, Tools, access, base, cdi, cpus, ending, hooks, host,
    image_volumes::{self, View},
    limits, passwd, restore,
    seccomp::{self, notify},
    signals, spec, users, volumes,
};
use crate::{
    config::{ImageVolumes, SECCOMP_NOTIFIER},
    images::{Image, rootfs::Owners},
    lsm,
    runtime::features::Features,
    sandbox::{self, Labels, PodPaths, host_ipc, host_network},
    store,
};

/// Creates the container whose record (state CREATING) is published, and makes it CREATED.
///
/// `others` are the pod's other containers. `pod_config` is what the caller says of the pod; it must name the same pod as the one on record, which counts.
///
/// # Errors
/// When the pod is not ready, the image is not on the node, or the config can't be met; what was made by then is for
/// [`undo`].
pub async fn create(
    tools: &Arc<Tools>,
    container: &Arc<Container>,
    pod_config: Option<PodSandboxConfig>,
    others: &[Arc<Container>],
) -> Result<()> {
    let pod = container.sandbox.record.get();
    if !container.sandbox.is_ready() {
        return Err(Error::State(format!(
            "pod sandbox {} is not ready",
            container.sandbox.id
        )));
    }
    let mut config = container.record.get().config.clone().unwrap_or_default();
    let on_record = pod.config.clone().unwrap_or_default();
    if let Some(given) = pod_config
        && given.metadata.is_some()
        && given.metadata != on_record.metadata
    {
        return Err(Error::Invalid(format!(
            "the given sandbox config is not that of pod sandbox {}",
            pod.id
        )));
    }
    let named = config
        .image
        .as_ref()
        .map(|image| image.image.clone())
        .unwrap_or_default();
    let (image, dumped) = match restore::archive(&named) {
        Some(archive) => {
            restore::supported(tools, container)?;
            let dumped = Arc::new(restore::read(container, archive).await?);
            (dumped.image(tools).await?, Some(dumped))
        }
        None => (tools.images.find(&named).ok_or(Error::NoImage(named))?, None),
    };
    let log_path = log_path(&on_record, &config)?;
    let stop_signal = stop_signal(&config, &image)?;

    container.stage.enter("record");
    let directory = Arc::clone(container);
    container
        .blocking(move || {
            store::create_dir(&directory.dir)?;
            Ok(store::write_record(
                &directory.dir.join("record"),
                &*directory.record.get(),
            )?)
        })
        .await?;
    container.fail_point("create.record").await?;
    let owners = owners(container, &on_record, &config)?;
    let labels = labels(tools, &pod, &config)?;
    let daemon = &tools.mechanisms.config.get();
    let builtin = daemon.handler(&container.record.get().runtime_handler).is_none();
    if let Some(owners) = owners.as_ref().filter(|_| !builtin) {
        let (owner, state_dir, gid) = (Arc::clone(container), daemon.state_dir.clone(), owners.gids.host_id);
        container
            .blocking(move || access::grant(&owner, &state_dir, gid))
            .await?;
    }
    container.stage.enter("root filesystem");
    let rootfs = tools
        .images
        .mount_rootfs(
            &image,
            &container.dir,
            owners.clone(),
            labels.as_ref().map(|labels| labels.files.clone()),
        )
        .await
        .map_err(|source| Error::Rootfs {
            id: container.id.clone(),
            source,
        })?;
    if let Some(dumped) = &dumped {
        dumped.apply(container, &rootfs, &log_path).await?;
    }
    let restore = dumped.is_some();
    container.fail_point("create.rootfs").await?;
    container.stage.enter("image volumes");
    let views = image_volumes::mount(tools, container, &config, owners.as_ref(), labels.as_ref()).await?;
    let mounted_images = mounted_images(&views);
    container.fail_point("create.volumes").await?;
    let cgroup = sandbox::container_cgroup(&container.sandbox.record.get(), &container.id)
        .map_err(|error| Error::Invalid(error.to_string()))?;
    let handler = tools.mechanisms.config.get().handler_settings(&pod.runtime_handler);
    handler.command(&on_record.annotations).map_err(Error::Invalid)?;
    let parent = on_record.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
    let cpus = cpus::prepare(
        &tools.mechanisms.config.get(),
        &handler,
        &on_record.annotations,
        parent,
        &mut config,
    )?;
    let isolation = cpus.isolation.clone();
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
    let bundle = Bundle {
        image: Arc::clone(&image),
        pod: on_record,
        pid_namespace: pid_namespace(container, &config, others)?,
        config,
        views,
        owners,
        rootfs,
        labels,
        cgroup_path: cgroup.in_spec,
        dumped,
        cpus,
        runtime: runtime_features(tools, container).await,
    };
    // A volume that does not answer is waited for here.
    container.stage.enter("volumes and spec");
    let written = write_bundle(tools, container, bundle).await?;
    container.fail_point("create.bundle").await?;
    let reference = image.digests.first().cloned().unwrap_or_else(|| image.id.clone());
    container
        .record
        .change(|record| {
            record.image_id.clone_from(&image.id);
            record.image_ref = reference;
            record.log_path = log_path;
            record.user = Some(written.user);
            record.resources = resources;
            record.stop_signal = stop_signal;
            record.cgroup_path = cgroup.path;
            record.restore = restore;
            record.isolation = isolation;
            record.rdt_tasks = written
                .rdt_tasks
                .map(|path| path.display().to_string())
                .unwrap_or_default();
            record.seccomp_notifier = written
                .notifier
                .map(|action| action.name().to_owned())
                .unwrap_or_default();
            record.mounted_images = mounted_images;
            record.state = ContainerState::ContainerCreated.into();
        })
        .await?;
    container.fail_point("create.created").await
}

/// Takes down what [`create`] made of a container that did not become whole, or that was being removed.
///
/// # Errors
/// When a step fails; call again.
pub async fn undo(tools: &Tools, container: &Arc<Container>) -> Result<()> {
    ending::release(tools, container).await?;
    let dir = container.dir.clone();
    container.blocking(move || Ok(store::remove_dir(&dir)?)).await
}

/// The images that are mounted as volumes, by place in the config's mounts, as the record has them.
fn mounted_images(views: &[Option<View>]) -> Vec<String> {
    if views.iter().all(Option::is_none) {
        return Vec::new();
    }
    let id = |view: &Option<View>| view.as_ref().map(|view| view.image_id.clone());
    views.iter().map(|view| id(view).unwrap_or_default()).collect()
}

/// What a bundle is made from.
struct Bundle {
    image: Arc<Image>,
    pod: PodSandboxConfig,
    config: ContainerConfig,
    /// By place in the config's mounts.
    views: Vec<Option<View>>,
    /// The pod's users, if it has its own.
    owners: Option<Owners>,
    rootfs: PathBuf,
    /// SELinux.
    labels: Option<Labels>,
    cgroup_path: String,
    /// What is restored, if it is not created.
    dumped: Option<Arc<restore::Dumped>>,
    /// What its pod's annotations ask of the node's CPUs.
    cpus: cpus::Prepared,
    /// The PID namespace to join, if the config asks for one.
    pid_namespace: Option<PathBuf>,
    /// What the pod's handler can do.
    runtime: Arc<Features>,
}

async fn runtime_features(tools: &Tools, container: &Container) -> Arc<Features> {
    let mechanisms = &tools.mechanisms;
    let record = container.record.get();
    let settings = mechanisms.config.get();
    let handler = settings.resolve_handler(&record.runtime_handler);
    mechanisms.runtime_features.current(handler).await
}

/// What came of a bundle, for the record.
struct Written {
    /// The user that the process will run as.
    user: LinuxContainerUser,
    /// Of its RDT class.
    rdt_tasks: Option<PathBuf>,
    /// What becomes of blocked system calls.
    notifier: Option<notify::Action>,
}

/// Writes config.json.
async fn write_bundle(tools: &Arc<Tools>, container: &Arc<Container>, bundle: Bundle) -> Result<Written> {
    let (tools, owner) = (Arc::clone(tools), Arc::clone(container));
    container
        .blocking(move || {
            let Bundle {
                image,
                pod,
                config,
                views,
                owners,
                rootfs,
                labels,
                cgroup_path,
                dumped,
                cpus,
                pid_namespace,
                runtime,
            } = &bundle;
            let daemon = &tools.mechanisms.config.get();
            let handler = daemon.handler_settings(&owner.record.get().runtime_handler);
            if let Some(wanted) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
                limits::check(wanted, handler.min_memory)?;
            }
            let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
            let user = users::resolve(rootfs, context, &image.config.user)?;
            let mut facts = host::inspect(config, &daemon.containers)?;
            facts.add_views(views.iter().map(|view| view.as_ref().map(|view| view.path.as_path())));
            if daemon.containers.image_volumes == ImageVolumes::Bind {
                facts.volumes = volumes::make(
                    &owner.id,
                    &image.config.volumes,
                    &config.mounts,
                    rootfs,
                    &owner.dir.join("volumes"),
                    owners.as_ref(),
                )?;
                if let Some(labels) = labels {
                    for volume in &facts.volumes {
                        lsm::selinux::relabel(&volume.source, &labels.files)
                            .map_err(|error| Error::State(error.to_string()))?;
                    }
                }
            }
            let devices = tools.cdi.resolve(&cdi::requested(config)?)?;
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
            let entries = match daemon.passwd_entries {
                true => passwd::write_missing(&owner.dir, rootfs, &user, config, &image.config)?,
                false => passwd::Written::default(),
            };
            let base = handler.base_runtime_spec.as_deref().map(base::load).transpose()?;
            let default_seccomp = handler.seccomp_profile.as_deref().map(seccomp::load).transpose();
            let default_seccomp = default_seccomp.map_err(|error| Error::State(error.to_string()))?;
            let mut spec = spec::generate(&spec::SpecInput {
                pod_id: &owner.sandbox.id,
                pod,
                config,
                image: &image.config,
                rootfs,
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
                runtime,
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
            add_hooks(&daemon.containers.hooks_dirs, pod, config, &mut spec)?;
            if let Some(dumped) = dumped {
                dumped.adopt(&mut spec)?;
            }
            let notifier = tell_blocked(&handler.effective(&pod.annotations), runtime, &owner, &mut spec)?;
            let json = serde_json::to_vec(&spec).map_err(|error| Error::Invalid(error.to_string()))?;
            store::write_file(&owner.dir.join("config.json"), &json, 0o600)?;
            Ok(Written {
                user: user.to_cri(),
                rdt_tasks,
                notifier,
            })
        })
        .await
}

/// Has the profile tell of what it blocks, where the pod asks for that and the container has a profile.
fn tell_blocked(
    annotations: &HashMap<String, String>,
    runtime: &Features,
    container: &Container,
    spec: &mut Spec,
) -> Result<Option<notify::Action>> {
    let Some(action) = notify::Action::read(annotations).map_err(Error::Invalid)? else {
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

/// Whose the root filesystem's files are: the pod's users, where it has its own. A container's must be the pod's.
pub(super) fn owners(
    container: &Container,
    pod: &PodSandboxConfig,
    config: &ContainerConfig,
) -> Result<Option<Owners>> {
    let users = sandbox::users(pod).map_err(|error| Error::Invalid(error.to_string()))?;
    let options = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.as_ref());
    let own = options.and_then(|options| options.userns_options.as_ref());
    if !sandbox::same_users(users.as_ref(), own) {
        return Err(Error::Invalid(format!(
            "the user namespace of a container must be that of its pod sandbox {}",
            container.sandbox.id
        )));
    }
    Ok(users.map(|users| Owners {
        namespace: container.sandbox.paths.namespaces().join("user"),
        uids: users.uids,
        gids: users.gids,
    }))
}

/// The SELinux labels of a container; none for a privileged one, which nothing confines.
fn labels(tools: &Tools, pod: &record::Pod, config: &ContainerConfig) -> Result<Option<Labels>> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if context.is_some_and(|context| context.privileged) {
        return Ok(None);
    }
    let asked = context.and_then(|context| context.selinux_options.as_ref());
    sandbox::labels(&tools.mechanisms, pod, asked).map_err(|error| Error::Invalid(error.to_string()))
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

/// The PID namespace that the config asks to share: the pod's, or that of another container of the same pod, which must
/// run (contract rule 45).
pub(super) fn pid_namespace(
    container: &Container,
    config: &ContainerConfig,
    others: &[Arc<Container>],
) -> Result<Option<PathBuf>> {
    let options = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default();
    let pid = match options.pid() {
        NamespaceMode::Pod => container.sandbox.processes().map_or(0, |processes| processes.init),
        NamespaceMode::Target => {
            let target = others
                .iter()
                .find(|other| other.id == options.target_id)
                .ok_or_else(|| {
                    Error::Invalid(format!("target container {:?} is not in this pod", options.target_id))
                })?;
            match target.pid() {
                0 => return Err(Error::State(format!("target container {} does not run", target.id))),
                pid => pid,
            }
        }
        NamespaceMode::Container | NamespaceMode::Node => return Ok(None),
    };
    Ok((pid > 0).then(|| PathBuf::from(format!("/proc/{pid}/ns/pid"))))
}

/// The log's absolute path; empty when none is wanted.
fn log_path(pod: &PodSandboxConfig, config: &ContainerConfig) -> Result<String> {
    if pod.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(String::new());
    }
    let relative = Path::new(&config.log_path);
    let inside = |part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir);
    if !relative.components().all(inside) || config.log_path.contains('\0') {
        return Err(Error::Invalid(format!(
            "log path {:?} leaves the pod's log directory",
            config.log_path
        )));
    }
    Ok(Path::new(&pod.log_directory).join(relative).display().to_string())
}

/// The signal that StopContainer sends first: the container's, else the image's, else SIGTERM (feature row B7).
fn stop_signal(config: &ContainerConfig, image: &Image) -> Result<String> {
    if let Some(name) = signals::from_cri(config.stop_signal()) {
        return Ok(name);
    }
    let name = image.config.stop_signal.trim();
    if name.is_empty() {
        return Ok("SIGTERM".to_owned());
    }
    match signals::number(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err(Error::Invalid(format!(
            "image {} has an unknown stop signal {name:?}",
            image.id
        ))),
    }
}
