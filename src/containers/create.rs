//! Creating a container: image, root filesystem, spec. Nothing runs yet.

use std::{path::PathBuf, sync::Arc};

use wharf_proto::{
    cri::{ContainerConfig, NamespaceMode, PodSandboxConfig},
    record::{self, ContainerState},
};

use super::{
    Container, Error, Result, Tools, access, asked,
    bundle::{self, Bundle},
    cpus, disk_limit, ending,
    image_volumes::{self, View},
    lazy, restore,
};
use crate::{
    images::{
        self, Mounted,
        rootfs::{self, Owners, Root},
    },
    sandbox::{self, Labels},
    store,
};

/// Creates the container whose record (state CREATING) is published, and makes it CREATED.
///
/// `others` are the pod's other containers. `pod_config` is what the caller says of the pod; it must name the same pod as the one on record, which counts.
///
/// `part` is its part of a pod's checkpoint, from which it then comes.
///
/// # Errors
/// When the pod is not ready, the image is not on the node, or the config can't be met; what was made by then is for
/// [`undo`].
pub async fn create(
    tools: &Arc<Tools>,
    container: &Arc<Container>,
    pod_config: Option<PodSandboxConfig>,
    others: &[Arc<Container>],
    part: Option<restore::Part>,
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
    let (image, dumped) = restore::find(tools, container, named.clone(), part).await?;
    asked::may_run(tools, &image, &named, &config).await?;
    // What was dumped is put into a root filesystem by the daemon, which must not wait for itself.
    let image = match &dumped {
        None => image,
        Some(_) => tools.images.whole(image).await.map_err(|source| Error::Rootfs {
            id: container.id.clone(),
            source,
        })?,
    };
    let log_path = asked::log_path(container, &on_record, &config)?;
    let stop_signal = asked::stop_signal(&config, &image)?;

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
    let disk_limit = disk_limit::of(daemon, &pod, &on_record, &config)?;
    container.stage.enter("root filesystem");
    let label = labels.as_ref().map(|labels| labels.files.clone());
    let mounted = tools
        .images
        .mount_rootfs(&image, &container.dir, owners.clone(), label.clone(), disk_limit)
        .await
        .map_err(|source| match source {
            // Nothing is wrong with the node but what it was asked for.
            images::Error::RootFs(error @ (rootfs::Error::NoQuota { .. } | rootfs::Error::NoProject { .. })) => {
                Error::State(format!("container {}: {error}", container.id))
            }
            source => Error::Rootfs {
                id: container.id.clone(),
                source,
            },
        })?;
    let mounted = lazy::hand_over(tools, container, &image, mounted, owners.clone(), label, disk_limit).await?;
    let Mounted {
        rootfs,
        project,
        served,
    } = mounted;
    if let Some(dumped) = &dumped {
        dumped.apply(container, &rootfs, &log_path, builtin).await?;
    }
    let restored = dumped.as_ref().map(|dumped| (dumped.name(), dumped.made_at()));
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
    let bundle = Bundle {
        image: Arc::clone(&image),
        pod: on_record,
        pid_namespace: pid_namespace(container, &config, others)?,
        config,
        views,
        owners,
        root: Root::new(&rootfs, served),
        project,
        labels,
        cgroup_path: cgroup.in_spec.clone(),
        dumped,
        cpus,
        runtime: bundle::runtime_features(tools, container).await,
    };
    // A volume that does not answer is waited for here.
    container.stage.enter("volumes and spec");
    let written = bundle::write(tools, container, bundle).await?;
    container.fail_point("create.bundle").await?;
    let reference = image.digests.first().cloned().unwrap_or_else(|| image.id.clone());
    let record = container.record.get();
    let spec = record.config.as_ref().and_then(|config| config.image.as_ref());
    let name = image
        .name_like(spec.map_or("", asked::written))
        .unwrap_or_default()
        .to_owned();
    container
        .record
        .change(|record| {
            record.image_name = name;
            record.image_id.clone_from(&image.id);
            record.image_ref = reference;
            record.log_path = log_path;
            record.user = Some(written.user);
            record.resources = written.resources;
            record.stop_signal = stop_signal;
            // A plugin may have wanted another.
            record.cgroup_path = if written.cgroup_path == cgroup.in_spec {
                cgroup.path
            } else {
                written.cgroup_path
            };
            record.restore = restored.is_some();
            if let Some((archive, made_at)) = restored {
                record.checkpoint_archive = archive;
                record.checkpointed_at = made_at;
            }
            record.isolation = isolation;
            record.net_devices = written.net_devices;
            record.rdt_tasks = written
                .rdt_tasks
                .map(|path| path.display().to_string())
                .unwrap_or_default();
            record.seccomp_notifier = written
                .notifier
                .map(|action| action.name().to_owned())
                .unwrap_or_default();
            record.mounted_images = mounted_images;
            record.project = project;
            record.disk_limit = disk_limit;
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
    ending::remove_files(container).await
}

/// The images that are mounted as volumes, by place in the config's mounts, as the record has them.
fn mounted_images(views: &[Option<View>]) -> Vec<String> {
    if views.iter().all(Option::is_none) {
        return Vec::new();
    }
    let id = |view: &Option<View>| view.as_ref().map(|view| view.image_id.clone());
    views.iter().map(|view| id(view).unwrap_or_default()).collect()
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
