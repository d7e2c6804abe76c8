//! What a runtime handler can do: asked of its program by `features`, whose answer the OCI runtime specification lays
//! down (features.md). A program that does not know the command, as runc before 1.1, can do nothing that needs asking.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use tokio::{io::AsyncReadExt as _, process::Command};

/// How long a program may think about what it can do.
const LIMIT: Duration = Duration::from_secs(5);
/// No sane answer is longer, bytes.
const ANSWER: u64 = 1 << 20;
/// How much of a complaint is shown, in characters.
const SHOWN: usize = 200;

/// What a handler can do. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// Options of mounts that it knows itself; those of file systems are not among them.
    mount_options: BTreeSet<String>,
    /// Kinds of namespaces, in the specification's words: `user`, `network` and so on.
    namespaces: BTreeSet<String>,
    /// It maps the owners of files in a mount.
    pub idmapped_mounts: bool,
    /// It says that it makes and restores checkpoints: it has been built with CRIU.
    pub restores: bool,
    /// Actions of seccomp profiles; `None` where it does not say.
    seccomp_actions: Option<BTreeSet<String>>,
    /// It sets the I/O priority and the scheduling policy of a process.
    priorities: bool,
    /// It sets where a container's memory comes from.
    pub memory_policy: bool,
}

impl Features {
    /// Of the built-in runtime; the kernel may know less.
    #[must_use]
    pub fn builtin() -> Self {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            mount_options: set(&["rro", "ro", "noexec", "nodev", "nosuid"]),
            namespaces: set(&["cgroup", "ipc", "mount", "network", "pid", "user", "uts"]),
            idmapped_mounts: true,
            restores: true,
            seccomp_actions: None,
            priorities: true,
            memory_policy: true,
        }
    }

    /// A program's answer.
    ///
    /// # Errors
    /// When it is not a features document.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let document: Document = serde_json::from_slice(json)?;
        let linux = document.linux.unwrap_or_default();
        Ok(Self {
            mount_options: document.mount_options.unwrap_or_default(),
            namespaces: linux.namespaces.unwrap_or_default(),
            idmapped_mounts: linux
                .mount_extensions
                .and_then(|extensions| extensions.idmap)
                .and_then(|idmap| idmap.enabled)
                .unwrap_or(false),
            // runc's and crun's own: `org.opencontainers.runc.checkpoint.enabled`, `run.oci.crun.checkpoint.enabled`.
            restores: document
                .annotations
                .unwrap_or_default()
                .iter()
                .any(|(key, value)| key.ends_with(".checkpoint.enabled") && value == "true"),
            seccomp_actions: linux.seccomp.and_then(|seccomp| seccomp.actions),
            memory_policy: linux.memory_policy.is_some_and(|policy| policy.modes.is_some()),
            priorities: document.oci_version_max.is_some_and(|version| since_1_1(&version)),
        })
    }

    /// Whether it knows this option of mounts, such as `rro`.
    #[must_use]
    pub fn mount_option(&self, name: &str) -> bool {
        self.mount_options.contains(name)
    }

    /// Whether it says that it can't hand over blocked system calls. Runtimes without a features document may.
    #[must_use]
    pub fn lacks_notifier(&self) -> bool {
        let actions = self.seccomp_actions.as_ref();
        actions.is_some_and(|actions| !actions.contains("SCMP_ACT_NOTIFY"))
    }

    /// Whether it sets the I/O priority and the scheduling policy of a process, which the specification has since version 1.1.
    #[must_use]
    pub fn priorities(&self) -> bool {
        self.priorities
    }

    /// Whether containers can be in a user namespace. That they see files as their own is done for them where the program
    /// does not know how: [`super::prepared`].
    #[must_use]
    pub fn user_namespaces(&self) -> bool {
        self.namespaces.contains("user")
    }

    /// Of a program that is older than the command, by what it says of its version: runc before 1.1 and crun before 1.9 have
    /// all kinds of namespaces. What else they can do does not count.
    fn of_version(text: &str) -> Option<Self> {
        let (name, version) = text.lines().next()?.split_once(" version ")?;
        let major = version.split('.').next()?.parse::<u32>().ok()?;
        let known = matches!(name, "runc" | "crun") && major >= 1;
        known.then(|| Self {
            namespaces: Self::builtin().namespaces,
            ..Self::default()
        })
    }
}

/// Whether a version of the specification, such as `1.0.2-dev`, is 1.1 or newer.
fn since_1_1(version: &str) -> bool {
    let mut numbers = version
        .split(['.', '-'])
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (1, 1)
}

/// The part of the document that counts here. Absent means unknown there, and so "no" here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    oci_version_max: Option<String>,
    mount_options: Option<BTreeSet<String>>,
    linux: Option<Linux>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Option<BTreeSet<String>>,
    mount_extensions: Option<MountExtensions>,
    seccomp: Option<Seccomp>,
    memory_policy: Option<MemoryPolicy>,
}

#[derive(Deserialize)]
struct MemoryPolicy {
    modes: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct Seccomp {
    actions: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct MountExtensions {
    idmap: Option<Idmap>,
}

#[derive(Deserialize)]
struct Idmap {
    enabled: Option<bool>,
}

/// Why a program's features are not known.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// It could not be run.
    #[error("run {program} features: {source}")]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It refused, as one does that does not know the command.
    #[error("{program} features: {said}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// Its end and its words.
        said: String,
    },
    /// It answered something else.
    #[error("{program} features: the answer is no features document: {source}")]
    Answer {
        /// The program.
        program: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// It did not answer in time.
    #[error("{program} features: no answer within {} s", limit.as_secs())]
    Timeout {
        /// The program.
        program: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
}

/// Asks `program` what it can do.
///
/// # Errors
/// When it can't be run, refuses, answers something else, or not within `limit`; it is killed then.
pub async fn ask(program: &Path, limit: Duration) -> Result<Features, FeaturesError> {
    match run(program, "features", limit).await {
        Ok(answer) => Features::parse(&answer).map_err(|source| FeaturesError::Answer {
            program: program.to_owned(),
            source,
        }),
        // One that does not know the command may be known itself.
        Err(error @ FeaturesError::Refused { .. }) => {
            let version = run(program, "--version", limit).await.unwrap_or_default();
            Features::of_version(&String::from_utf8_lossy(&version)).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// What `program` answers to `argument`.
async fn run(program: &Path, argument: &str, limit: Duration) -> Result<Vec<u8>, FeaturesError> {
    let failed = |source| FeaturesError::Run {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let conversation = async {
        let (answer, complaint) = tokio::join!(read(stdout), read(stderr));
        child.wait().await.map(|status| (status, answer, complaint))
    };
    let (status, answer, complaint) = tokio::time::timeout(limit, conversation)
        .await
        .map_err(|_| FeaturesError::Timeout {
            program: program.to_owned(),
            limit,
        })?
        .map_err(failed)?;
    // Its number may belong to others from now on.
    group.0 = None;
    if !status.success() {
        let text = String::from_utf8_lossy(&complaint);
        let text: String = text.trim().chars().take(SHOWN).collect();
        return Err(FeaturesError::Refused {
            program: program.to_owned(),
            said: format!("{status}: {text}"),
        });
    }
    Ok(answer)
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let mut all = Vec::new();
    if let Some(from) = from {
        // What was read before an error is what there is.
        let _ = from.take(ANSWER).read_to_end(&mut all).await;
    }
    all
}

/// The process group of a program that was not waited for; killed when nobody waits any more.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// What each handler can do, asked when the daemon starts and again when a handler's program has changed.
#[derive(Debug, Default)]
pub struct Catalog(RwLock<BTreeMap<String, Entry>>);

#[derive(Debug, Clone)]
struct Entry {
    /// `None`: the built-in runtime.
    program: Option<PathBuf>,
    /// The program's file when it was asked; `None`: there was no answer, or not yet.
    stamp: Option<Stamp>,
    features: Arc<Features>,
}

/// Tells one file of a program from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    async fn of(program: &Path) -> Option<Self> {
        let file = tokio::fs::metadata(program).await.ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

impl Catalog {
    /// Asks all handlers at once: their names, and their programs; none for the built-in one. A program that does not
    /// answer is logged, and can do nothing until it is asked again.
    pub async fn open<'a>(handlers: impl IntoIterator<Item = (&'a str, Option<&'a Path>)>) -> Self {
        let entries = handlers.into_iter().map(|(name, program)| async move {
            let entry = match program {
                None => Entry {
                    program: None,
                    stamp: None,
                    features: Arc::new(Features::builtin()),
                },
                Some(program) => asked(name, program).await,
            };
            (name.to_owned(), entry)
        });
        Self(RwLock::new(join_all(entries).await.into_iter().collect()))
    }

    /// What handler `name` could do when it was last asked; nothing for an unknown one. Waits for nothing.
    #[must_use]
    pub fn known(&self, name: &str) -> Arc<Features> {
        self.entry(name).map(|entry| entry.features).unwrap_or_default()
    }

    /// As [`Catalog::known`], but asks again if the program's file is another by now, or has not answered yet: a
    /// runtime can be upgraded below the daemon.
    pub async fn current(&self, name: &str) -> Arc<Features> {
        let Some(entry) = self.entry(name) else {
            return Arc::default();
        };
        let Some(program) = &entry.program else {
            return entry.features;
        };
        if entry.stamp.is_some() && entry.stamp == Stamp::of(program).await {
            return entry.features;
        }
        let entry = asked(name, program).await;
        let features = Arc::clone(&entry.features);
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), entry);
        features
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(name).cloned()
    }
}

async fn asked(name: &str, program: &Path) -> Entry {
    // Looked at before it is run: a file that changes in between is asked again.
    let stamp = Stamp::of(program).await;
    let (features, stamp) = match ask(program, LIMIT).await {
        Ok(features) => (features, stamp),
        // The same file will refuse again.
        Err(error @ (FeaturesError::Refused { .. } | FeaturesError::Answer { .. })) => {
            tracing::warn!(handler = name, %error, "the runtime does not say what it can do");
            (Features::default(), stamp)
        }
        Err(error) => {
            tracing::warn!(handler = name, %error, "the runtime could not be asked what it can do");
            (Features::default(), None)
        }
    };
    Entry {
        program: Some(program.to_owned()),
        stamp,
        features: Arc::new(features),
    }
}

#[cfg(test)]
mod tests;
