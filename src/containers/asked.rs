//! Parts of a container's config that are checked as they are taken over: image, log path, working directory, stop signal.

use std::path::Path;

use oci_spec::runtime::Spec;
use wharf_proto::cri::{self, ContainerConfig, PodSandboxConfig};

use super::{Container, Error, Result, Tools, signals};
use crate::images::{Image, rootfs::Root};

/// The image's name as somebody has written it; for clients that do not tell that, what they ask for, mostly an id.
pub(super) fn written(image: &cri::ImageSpec) -> &str {
    match image.user_specified_image.as_str() {
        "" => &image.image,
        written => written,
    }
}

/// Refuses what is no image, and images that the node's policy does not trust. `named` is what was asked for, mostly an id; what
/// the person has written counts more.
pub(super) async fn may_run(tools: &Tools, image: &Image, named: &str, config: &ContainerConfig) -> Result<()> {
    if let Some(artifact) = &image.artifact {
        return Err(Error::Invalid(format!(
            "{named:?} is an artifact of type {:?}, not an image: it can be mounted as a volume, not run",
            artifact.kind
        )));
    }
    let written = config.image.as_ref().map(|image| image.user_specified_image.as_str());
    let name = written.filter(|name| !name.is_empty()).unwrap_or(named);
    tools.images.vouch(image, name).await.map_err(Error::Image)
}

/// Refuses a working directory that the image has as something else. One that is not there is made at the start, and what
/// mounts cover is seen then.
pub(super) fn check_directory(container: &Container, root: &Root, spec: &Spec) -> Result<()> {
    let Some(process) = spec.process() else { return Ok(()) };
    let covered = |mount: &oci_spec::runtime::Mount| process.cwd().starts_with(mount.destination());
    if spec.mounts().iter().flatten().any(covered) {
        return Ok(());
    }
    match root.has_directory(process.cwd()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Err(Error::Invalid(format!(
            "working directory {} of container {}: not a directory",
            process.cwd().display(),
            container.id
        ))),
        _ => Ok(()),
    }
}

/// The log's absolute path. Where a client names no directory or file, it is in the pod's own directory, and goes with it
/// (row A14).
pub(super) fn log_path(container: &Container, pod: &PodSandboxConfig, config: &ContainerConfig) -> Result<String> {
    let own = container.sandbox.paths.logs();
    let directory = match pod.log_directory.as_str() {
        "" => own.as_path(),
        given => Path::new(given),
    };
    if config.log_path.is_empty() {
        return Ok(directory.join(format!("{}.log", container.id)).display().to_string());
    }
    let relative = Path::new(&config.log_path);
    let inside = |part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir);
    if !relative.components().all(inside) || config.log_path.contains('\0') {
        return Err(Error::Invalid(format!(
            "log path {:?} leaves the pod's log directory",
            config.log_path
        )));
    }
    Ok(directory.join(relative).display().to_string())
}

/// The signal that StopContainer sends first: the container's, else the image's, else SIGTERM (feature row B7).
pub(super) fn stop_signal(config: &ContainerConfig, image: &Image) -> Result<String> {
    let asked = cri::Signal::try_from(config.stop_signal)
        .map_err(|_| Error::Invalid(format!("stop_signal {} is not known", config.stop_signal)))?;
    if let Some(name) = signals::from_cri(asked) {
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
