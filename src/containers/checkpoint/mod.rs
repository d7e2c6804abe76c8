//! Checkpoints: the state of a running container, its processes included, as one archive. The container runs on.
//!
//! CRIU dumps the processes while the container is frozen; before it goes on, what it has changed of its root file system
//! is read. `archive` says what an archive holds, `program` finds CRIU, `pod` does the same for several containers in one
//! moment.

pub(super) mod archive;
mod output;
pub mod patience;
pub mod pod;
pub(super) mod program;
pub(super) mod volumes;

use std::{
    collections::HashSet,
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use wharf_proto::{
    monitor,
    record::{self, ContainerState},
};

use super::{Container, Error, Result, Tools, pause};
use crate::{sandbox, store};
use output::{Limited, Output};
pub use patience::Patience;

/// How long the end of a checkpoint that was given up is awaited.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What every container has of its own, wherever it is restored: paths below the root.
const NOT_CONTENT: [&str; 5] = ["dev", "proc", "run/.containerenv", "run/secrets", "sys"];

/// Writes a checkpoint of a running container to a file, which is there whole or not at all. A `timeout` of zero means
/// ten minutes. Whatever happens the container runs on.
///
/// # Errors
/// [`Error::Invalid`] for a location that can't be written, [`Error::State`] when the container does not run, is being
/// checkpointed already or CRIU is not installed, [`Error::Unsupported`] for what CRIU can't bring back,
/// [`Error::Checkpoint`] with CRIU's own words, [`Error::Deadline`].
pub async fn checkpoint(tools: &Tools, container: &Arc<Container>, location: &str, timeout: Duration) -> Result<()> {
    let patience = Patience::new(timeout);
    let _one_at_a_time = claim(container)?;
    let record = container.record.get();
    pause::check(container)?;
    let location = check_location(location)?;
    supported(container, &record)?;
    let criu = program::find(container)?;
    let monitor = container.monitor()?;
    let dir = container.dir.join("checkpoint");
    let request = monitor::Checkpoint {
        container_id: container.id.clone(),
        criu: criu.display().to_string(),
        images: dir.join(archive::IMAGES).display().to_string(),
        work: dir.display().to_string(),
        frozen: false,
    };
    prepare(container, &dir).await?;
    let made = async {
        dump(container, &monitor, request, &patience).await?;
        let changed = changes(tools, container, &dir, &patience).await;
        let thawed = monitor.thaw(&container.id).await.map_err(container.monitor_error());
        let contents = archive::Contents::of(container, &record, &handler(tools, &record), changed?);
        thawed?;
        let time = contents.time();
        write(container, &dir, location, contents, &patience).await?;
        note(container, time).await;
        Ok(())
    }
    .await;
    if made.is_err() {
        monitor.thaw_soon(&container.id);
    }
    let cleaned = clean(container, &dir).await;
    let made = made.map_err(|error| patience.explain(&format!("container {}", container.id), error));
    made.and(cleaned)
}

/// One checkpoint of a container at a time.
fn claim(container: &Container) -> Result<tokio::sync::MutexGuard<'_, ()>> {
    container.checkpointing.try_lock().map_err(|_| {
        Error::State(format!(
            "a checkpoint of container {} is being made already",
            container.id
        ))
    })
}

/// Its status tells when it was checkpointed last.
async fn note(container: &Container, time: i64) {
    // The checkpoint is there all the same.
    container
        .record
        .change_regardless(|record| record.checkpointed_at = time)
        .await;
}

fn handler(tools: &Tools, record: &record::Container) -> String {
    match record.runtime_handler.as_str() {
        "" => tools.mechanisms.config.get().default_runtime.clone(),
        name => name.to_owned(),
    }
}

fn check_location(location: &str) -> Result<PathBuf> {
    let path = PathBuf::from(location);
    let problem = match () {
        () if location.is_empty() => "is empty",
        () if !path.is_absolute() => "is not absolute",
        () if path.file_name().is_none() || path.is_dir() => "is a directory",
        () if !path.parent().is_some_and(Path::is_dir) => "is in a directory that does not exist",
        () => return Ok(path),
    };
    Err(Error::Invalid(format!(
        "the location {location:?} for the checkpoint {problem}"
    )))
}

/// What CRIU can't bring back as it was is not dumped either.
fn supported(container: &Container, record: &record::Container) -> Result<()> {
    let pod = container.sandbox.record.get().config.clone().unwrap_or_default();
    let config = record.config.as_ref();
    let what = match () {
        () if matches!(sandbox::users(&pod), Ok(Some(_))) => "in a user namespace",
        () if config.is_some_and(|config| config.tty) => "with a terminal",
        () => return Ok(()),
    };
    Err(Error::Unsupported(format!(
        "container {}: a checkpoint of a container {what} is not supported",
        container.id
    )))
}

/// Makes the directory that the dump goes to; what a checkpoint that was cut off has left goes first.
async fn prepare(container: &Container, dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    container
        .blocking(move || {
            store::remove_dir(&dir)?;
            store::create_dir(&dir)?;
            Ok(store::create_dir(&dir.join(archive::IMAGES))?)
        })
        .await
}

async fn clean(container: &Container, dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    container.blocking(move || Ok(store::remove_dir(&dir)?)).await
}

/// Has the processes dumped; the container stands still afterwards.
async fn dump(
    container: &Container,
    monitor: &crate::monitor::client::Client,
    request: monitor::Checkpoint,
    patience: &Patience,
) -> Result<()> {
    let mut asked = pin!(monitor.checkpoint(request));
    let answer = tokio::select! {
        answer = &mut asked => answer,
        () = patience.over() => {
            monitor.thaw(&container.id).await.map_err(container.monitor_error())?;
            // Not before CRIU has ended can its files be removed.
            let _ = tokio::time::timeout(END_LIMIT, asked).await;
            return Err(Error::Deadline(String::new()));
        }
    };
    answer.map_err(refused(container))
}

/// What a monitor's refusal to freeze or dump a container means.
fn refused(container: &Container) -> impl FnOnce(crate::monitor::Error) -> Error + '_ {
    |error| match error {
        _ if container.state() != ContainerState::ContainerRunning => Error::State(format!(
            "container {} ended while it was being checkpointed",
            container.id
        )),
        crate::monitor::Error::Refused {
            kind: monitor::ErrorKind::UnknownOperation,
            ..
        } => Error::Unsupported(format!(
            "the monitor of container {} is older than this daemon and makes no checkpoints",
            container.id
        )),
        crate::monitor::Error::Refused { message, .. } => Error::Checkpoint {
            id: container.id.clone(),
            message,
        },
        other => container.monitor_error()(other),
    }
}

/// Writes what the container has changed of its root file system and what is in its own volumes to `dir`, and returns the
/// rest.
async fn changes(tools: &Tools, container: &Container, dir: &Path, patience: &Patience) -> Result<archive::Changed> {
    let changes = tools.images.changes(&container.dir).ok_or_else(|| {
        Error::State(format!(
            "container {} has no root file system any more, or its image is not complete yet",
            container.id
        ))
    })?;
    let (dir, own, patience) = (dir.to_owned(), container.dir.clone(), patience.clone());
    let failed = container.io("write the changes of the root file system");
    let volumes_failed = container.io("write what is in its volumes");
    container
        .blocking(move || {
            let spec = archive::read_spec(&own.join("config.json"))?;
            let without = not_content(&spec);
            let deleted = File::create(dir.join(archive::ROOTFS_DIFF))
                .and_then(|file| changes.write(&without, BufWriter::new(Limited::new(file, &patience))))
                .map_err(failed)?;
            let volumes = volumes::dump(&spec, &own.join("volumes"), &dir, &patience).map_err(volumes_failed)?;
            Ok(archive::Changed { deleted, volumes })
        })
        .await
}

/// Paths that are mount points, or the runtime's.
fn not_content(spec: &oci_spec::runtime::Spec) -> HashSet<PathBuf> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let points = mounts
        .iter()
        .filter_map(|mount| mount.destination().strip_prefix("/").ok().map(Path::to_owned));
    points.chain(NOT_CONTENT.map(PathBuf::from)).collect()
}

/// Writes the archive; it gets its name when it is whole.
async fn write(
    container: &Container,
    dir: &Path,
    location: PathBuf,
    contents: archive::Contents,
    patience: &Patience,
) -> Result<()> {
    let (dir, patience) = (dir.to_owned(), patience.clone());
    let failed = container.io(&format!("write the checkpoint {}", location.display()));
    container
        .blocking(move || {
            let write = || {
                let output = Output::create(&location)?;
                contents.write(&dir, BufWriter::new(Limited::new(output.file(), &patience)))?;
                output.publish()
            };
            write().map_err(failed)
        })
        .await
}
