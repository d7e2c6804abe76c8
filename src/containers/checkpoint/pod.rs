//! Checkpoints of several containers of a pod in one moment: all stand still before the first is dumped, and until the last
//! is; then all go on, whatever has happened.
//!
//! ```text
//! pod.dump        which pod, and which containers are in which directory; written last
//! shm.tar         what is in the pod's /dev/shm, where it has its own
//! container-N/    as in the archive of one container; see `archive`
//! ```

use std::{
    collections::HashSet,
    fs,
    io::{self, BufWriter, Write as _},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use wharf_proto::monitor;

use super::{
    Patience,
    archive::{self, Contents, IMAGES},
    changes, claim, dump, handler, note,
    output::{Limited, Output},
    program, refused, supported,
};
use crate::{
    containers::{Container, Error, Result, Tools, pause},
    images::{rootfs::changes::Changes, unpack},
    sandbox::{Sandbox, host_ipc},
    store,
};

/// Which containers there are.
const POD: &str = "pod.dump";
/// Archive of the pod's shared memory.
const SHM: &str = "shm.tar";
/// By which rules a directory is laid out.
const VERSION: u32 = 1;
/// Longest description, bytes.
const MAX_TEXT: u64 = 8 << 20;

/// What `pod.dump` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    version: u32,
    pod_id: String,
    checkpointed_time: String,
    /// Name of the handler, never empty.
    pub runtime_handler: String,
    /// The pod has its /dev/shm to itself, and there is an archive of it.
    shm: bool,
    /// One for each container; names are unique.
    pub containers: Vec<Member>,
}

/// One container of the checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// That of its metadata.
    pub name: String,
    id: String,
    directory: String,
    /// Digest of the configuration of its image.
    pub image_id: String,
}

/// Writes the checkpoint of `containers`, which are all of `pod`, to the empty directory `output`. Whatever happens they
/// run on, and after a failure the directory is as empty as before.
///
/// # Errors
/// As [`super::checkpoint`]; [`Error::Invalid`] when the directory is none, is not empty, or two containers have one name.
pub async fn checkpoint_pod(
    tools: &Tools,
    pod: &Arc<Sandbox>,
    containers: &[Arc<Container>],
    output: &str,
    patience: Patience,
) -> Result<()> {
    let mut claims = Vec::new();
    let mut members = Vec::new();
    for (number, container) in containers.iter().enumerate() {
        claims.push(claim(container)?);
        pause::check(container)?;
        supported(container, &container.record.get())?;
        members.push(Member::of(container, format!("container-{number}")));
    }
    let mut names = HashSet::new();
    if let Some(twice) = members.iter().find(|member| !names.insert(member.name.as_str())) {
        return Err(Error::Invalid(format!(
            "two of the containers have the name {:?}, by which a restore tells them apart",
            twice.name
        )));
    }
    let output = PathBuf::from(output);
    let (directory, wanted) = (output.clone(), members.clone());
    let first = containers
        .first()
        .ok_or_else(|| Error::Invalid("there is no container to checkpoint".into()))?;
    first.blocking(move || prepare(&directory, &wanted)).await?;

    let standing = Standing(containers);
    let captured = capture(tools, pod, containers, &members, &output, &patience).await;
    let thawed = standing.go_on().await;
    let made = match captured.and_then(|contents| thawed.map(|()| contents)) {
        Ok(contents) => complete(tools, pod, containers, members.clone(), contents, &output, &patience).await,
        Err(error) => Err(error),
    };
    let Err(error) = made else { return Ok(()) };
    let cleaned = first.blocking(move || clean(&output, &members)).await;
    if let Err(leftover) = cleaned {
        tracing::error!(pod = pod.id, error = %leftover, "a checkpoint that failed could not be removed whole");
    }
    Err(patience.explain(&format!("pod sandbox {}", pod.id), error))
}

impl Member {
    fn of(container: &Container, directory: String) -> Self {
        let record = container.record.get();
        let metadata = record.config.as_ref().and_then(|config| config.metadata.clone());
        Self {
            name: metadata.unwrap_or_default().name,
            id: container.id.clone(),
            directory,
            image_id: record.image_id.clone(),
        }
    }

    /// Where its files are.
    pub fn place(&self, checkpoint: &Path) -> PathBuf {
        checkpoint.join(&self.directory)
    }
}

/// Containers that stand still, or are about to. They go on when this is dropped, at the latest.
struct Standing<'a>(&'a [Arc<Container>]);

impl Standing<'_> {
    /// Lets all go on. One whose monitor has ended has ended itself.
    async fn go_on(self) -> Result<()> {
        let thaws = self.0.iter().map(|container| async move {
            match container.sandbox.monitor() {
                Some(monitor) => monitor.thaw(&container.id).await.map_err(container.monitor_error()),
                None => Ok(()),
            }
        });
        join_all(thaws).await.into_iter().collect()
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        for container in self.0 {
            if let Some(monitor) = container.sandbox.monitor() {
                monitor.thaw_soon(&container.id);
            }
        }
    }
}

/// What is done while all stand still.
async fn capture(
    tools: &Tools,
    pod: &Sandbox,
    containers: &[Arc<Container>],
    members: &[Member],
    output: &Path,
    patience: &Patience,
) -> Result<Vec<Contents>> {
    freeze(containers, patience).await?;
    let mut contents = Vec::new();
    for (container, member) in containers.iter().zip(members) {
        let work = member.place(output);
        let request = monitor::Checkpoint {
            container_id: container.id.clone(),
            criu: program::find(container)?.display().to_string(),
            images: work.join(IMAGES).display().to_string(),
            work: work.display().to_string(),
            frozen: true,
        };
        let monitor = container.monitor()?;
        dump(container, &monitor, request, patience).await?;
        let changed = changes(tools, container, &work, patience).await?;
        let record = container.record.get();
        contents.push(Contents::of(container, &record, &handler(tools, &record), changed));
    }
    if has_shm(pod)
        && let Some(container) = containers.first()
    {
        let (shm, file, patience) = (pod.paths.shm(), output.join(SHM), patience.clone());
        let failed = failed(&pod.id, "write the shared memory");
        let write = move || {
            let out = BufWriter::new(Limited::new(archive::create(&file)?, &patience));
            Changes::whole(&shm).write(&HashSet::new(), out).map(drop)
        };
        container.blocking(move || write().map_err(failed)).await?;
    }
    Ok(contents)
}

fn has_shm(pod: &Sandbox) -> bool {
    !host_ipc(&pod.record.get().config.clone().unwrap_or_default())
}

async fn freeze(containers: &[Arc<Container>], patience: &Patience) -> Result<()> {
    let freezes = containers.iter().map(|container| async move {
        let monitor = container.monitor()?;
        monitor.freeze(&container.id).await.map_err(refused(container))
    });
    tokio::select! {
        frozen = join_all(freezes) => frozen.into_iter().collect(),
        () = patience.over() => Err(Error::Deadline(String::new())),
    }
}

/// Makes the checkpoint whole, while the containers run on.
async fn complete(
    tools: &Tools,
    pod: &Sandbox,
    containers: &[Arc<Container>],
    members: Vec<Member>,
    contents: Vec<Contents>,
    output: &Path,
    patience: &Patience,
) -> Result<()> {
    let Some(first) = containers.first() else { return Ok(()) };
    let time = contents.iter().map(Contents::time).max().unwrap_or_default();
    let description = Description {
        version: VERSION,
        pod_id: pod.id.clone(),
        checkpointed_time: archive::time(time),
        runtime_handler: handler(tools, &first.record.get()),
        shm: has_shm(pod),
        containers: members,
    };
    let (output, patience) = (output.to_owned(), patience.clone());
    let failed = failed(&pod.id, "complete the checkpoint");
    let write = move || {
        for (contents, member) in contents.iter().zip(&description.containers) {
            contents.complete(&member.place(&output), &patience)?;
        }
        let file = Output::create(&output.join(POD))?;
        Limited::new(file.file(), &patience).write_all(&serde_json::to_vec_pretty(&description)?)?;
        file.publish()
    };
    first.blocking(move || write().map_err(failed)).await?;
    for container in containers {
        note(container, time).await;
    }
    Ok(())
}

fn failed(pod: &str, attempt: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let (id, attempt) = (pod.to_owned(), attempt.to_owned());
    move |source| Error::Pod { attempt, id, source }
}

/// Checks the directory and makes those of the containers in it. Blocks.
fn prepare(output: &Path, members: &[Member]) -> Result<()> {
    let problem = match () {
        () if output.as_os_str().is_empty() => "is empty",
        () if !output.is_absolute() => "is not absolute",
        () if !output.is_dir() => "is not an existing directory",
        () if fs::read_dir(output).map_or(true, |mut entries| entries.next().is_some()) => "is not an empty directory",
        () => {
            let made = members
                .iter()
                .try_for_each(|member| Ok(store::create_dir(&member.place(output).join(IMAGES))?));
            if made.is_err() {
                let _ = clean(output, members);
            }
            return made;
        }
    };
    Err(Error::Invalid(format!(
        "the output path {:?} for the checkpoint {problem}",
        output.display()
    )))
}

/// Removes what a checkpoint has written. Blocks.
fn clean(output: &Path, members: &[Member]) -> Result<()> {
    for name in [POD, SHM] {
        let file = output.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::State(format!("remove {}: {error}", file.display())));
            }
            _ => {}
        }
    }
    members
        .iter()
        .try_for_each(|member| Ok(store::remove_dir(&member.place(output))?))
}

impl Description {
    /// Reads the description of a checkpoint. Blocks.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none, or it makes no sense.
    pub fn read(checkpoint: &Path) -> Result<Self> {
        let invalid =
            |why: &dyn std::fmt::Display| Error::Invalid(format!("the pod checkpoint {}: {why}", checkpoint.display()));
        if !checkpoint.is_absolute() {
            return Err(invalid(&"the path is not absolute"));
        }
        let file = checkpoint.join(POD);
        let size = fs::metadata(&file).map_err(|error| invalid(&format!("{POD}: {error}")))?;
        if !size.is_file() || size.len() > MAX_TEXT {
            return Err(invalid(&format!("{POD} is no description")));
        }
        let text = fs::read(&file).map_err(|error| invalid(&format!("{POD}: {error}")))?;
        Self::parse(&text).map_err(|why| invalid(&why))
    }

    /// Of the text of a description.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> std::result::Result<Self, String> {
        let description: Self = serde_json::from_slice(text).map_err(|error| format!("{POD}: {error}"))?;
        if description.version != VERSION {
            return Err(format!("{POD} has version {}, not {VERSION}", description.version));
        }
        let mut names = HashSet::new();
        for member in &description.containers {
            let mut parts = Path::new(&member.directory).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain || member.directory.contains('\0') {
                return Err(format!("{POD} names the directory {:?}", member.directory));
            }
            if member.name.is_empty() || !names.insert(member.name.as_str()) {
                return Err(format!(
                    "{POD} has two containers {:?}, or one without name",
                    member.name
                ));
            }
        }
        Ok(description)
    }

    /// Gives the pod's /dev/shm at `shm`, in which nothing has run yet, what was in it. Blocks.
    ///
    /// # Errors
    /// [`Error::Pod`] when the archive is broken or does not fit.
    pub fn restore_shm(&self, checkpoint: &Path, pod: &str, shm: &Path) -> Result<()> {
        if !self.shm {
            return Ok(());
        }
        let file = checkpoint.join(SHM);
        let options = unpack::Options {
            layer: file.display().to_string(),
            plain: true,
            hollow: false,
        };
        let unpacked = fs::File::open(&file)
            .and_then(|tar| unpack::unpack_tar(io::BufReader::new(tar), shm, &options).map_err(io::Error::other));
        unpacked.map(drop).map_err(failed(pod, "bring back the shared memory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_that_makes_no_sense_is_refused() {
        let one = |version: u32, containers: &str| {
            format!(
                r#"{{"version":{version},"podId":"p","checkpointedTime":"","runtimeHandler":"builtin","shm":true,
                "containers":[{containers}]}}"#
            )
        };
        let member = |name: &str, directory: &str| {
            format!(r#"{{"name":"{name}","id":"i","directory":"{directory}","imageId":"sha256:0"}}"#)
        };
        let good = one(1, &[member("a", "container-0"), member("b", "container-1")].join(","));
        let description = Description::parse(good.as_bytes()).unwrap();
        assert_eq!(
            description.containers[1].place(Path::new("/c")),
            Path::new("/c/container-1")
        );
        let bad = [
            one(2, ""),
            one(1, &member("a", "../x")),
            one(1, &member("a", "/etc")),
            one(1, &member("a", "")),
            one(1, &member("", "container-0")),
            one(1, &[member("a", "container-0"), member("a", "container-1")].join(",")),
            String::new(),
        ];
        for text in bad {
            assert!(Description::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn only_an_empty_directory_takes_a_checkpoint() {
        let dir = std::env::temp_dir().join(format!("wharf-pod-checkpoint-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let member = Member {
            name: "a".into(),
            id: "i".into(),
            directory: "container-0".into(),
            image_id: String::new(),
        };
        let members = [member];
        for bad in [Path::new(""), Path::new("relative"), &dir.join("absent")] {
            assert!(prepare(bad, &members).is_err(), "{}", bad.display());
        }
        prepare(&dir, &members).unwrap();
        assert!(dir.join("container-0/checkpoint").is_dir());
        let error = prepare(&dir, &members).unwrap_err().to_string();
        assert!(error.contains("empty"), "{error}");
        clean(&dir, &members).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
    }
}
