//! What may wait for a file system that this daemon serves is done by a process of its own.
//!
//! Who asks a FUSE file system can't be killed before it has its answer. A thread of the daemon that were killed while it waits for
//! the daemon's own answer would keep the whole process, with the lock of the state and the other files that are open in it,
//! where nobody can start another. So no thread of the daemon ever touches such a tree: a child does, which has nothing of the
//! daemon's open, and gives back what it has found. If the daemon is killed meanwhile, the child has its answer from the one that
//! comes next, or an error when nobody holds the device any more, and then dies too.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wharf_proto::cri::IdMapping;

use super::{Error, Owners, Result, inside, overlay};

/// The word that makes the program such a child.
pub const WORD: &str = "apart";

/// What a child is to do.
#[derive(Serialize, Deserialize)]
enum Order {
    Mount {
        layers: Vec<PathBuf>,
        directory: PathBuf,
        owners: Option<OwnersText>,
        label: Option<String>,
        project: u32,
    },
    Read {
        root: PathBuf,
        files: Vec<String>,
        most: u64,
    },
    Open {
        root: PathBuf,
        path: PathBuf,
    },
}

/// [`Owners`], with mappings as inside, outside and length.
#[derive(Serialize, Deserialize)]
struct OwnersText {
    namespace: PathBuf,
    uids: (u32, u32, u32),
    gids: (u32, u32, u32),
}

/// An [`io::Error`]: its number, if it has one, and its text.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Failure {
    errno: Option<i32>,
    text: String,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error(),
            text: error.to_string(),
        }
    }
}

impl From<&Failure> for io::Error {
    fn from(failure: &Failure) -> Self {
        match failure.errno {
            Some(errno) => Self::from_raw_os_error(errno),
            None => Self::other(failure.text.clone()),
        }
    }
}

type Outcome<T> = std::result::Result<T, Failure>;

/// As [`super::mount_labelled`], of layers some of which this daemon serves. Blocking.
///
/// # Errors
/// As there, as text; and when no child can be made.
pub fn mount_served(
    layers: &[PathBuf],
    directory: &Path,
    owners: Option<&Owners>,
    label: Option<&str>,
    project: u32,
) -> Result<PathBuf> {
    let numbers = |ids: IdMapping| (ids.container_id, ids.host_id, ids.length);
    let order = Order::Mount {
        layers: layers.to_vec(),
        directory: directory.to_owned(),
        owners: owners.map(|owners| OwnersText {
            namespace: owners.namespace.clone(),
            uids: numbers(owners.uids),
            gids: numbers(owners.gids),
        }),
        label: label.map(str::to_owned),
        project,
    };
    let failed = |source| Error::Io {
        what: "mount the root filesystem of",
        path: directory.to_owned(),
        source,
    };
    let done: Outcome<PathBuf> = ask(&order).map_err(failed)?;
    done.map_err(|failure| failed(io::Error::from(&failure)))
}

/// A container's root filesystem, to look at.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    /// Set if a part of it is served by this daemon; with what was read.
    served: Option<OnceLock<Vec<Outcome<String>>>>,
}

/// What [`Root::read`] can read.
const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];
/// Larger files are refused rather than read in part, which could hide an entry.
const MAX_FILE: u64 = 16 << 20;

impl Root {
    /// What is at `path`; `served` if a part of it is served by this daemon.
    #[must_use]
    pub fn new(path: &Path, served: bool) -> Self {
        Self {
            path: path.to_owned(),
            served: served.then(OnceLock::new),
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of `/etc/passwd` or `/etc/group`; empty if it is not there. Symbolic links resolve inside of the root.
    /// Blocking.
    ///
    /// # Errors
    /// When it is no file, too large, or can't be read.
    pub fn read(&self, file: &str) -> io::Result<String> {
        let Some(known) = &self.served else {
            return inside::read_text_in(&self.path, file, MAX_FILE);
        };
        let place = FILES.iter().position(|known| *known == file);
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        // One child for all.
        let all = match known.get() {
            Some(all) => all,
            None => {
                let order = Order::Read {
                    root: self.path.clone(),
                    files: FILES.map(str::to_owned).to_vec(),
                    most: MAX_FILE,
                };
                let all = ask(&order)?;
                known.get_or_init(|| all)
            }
        };
        match all.get(place) {
            Some(Ok(text)) => Ok(text.clone()),
            Some(Err(failure)) => Err(failure.into()),
            None => Err(io::Error::other("the child has not said")),
        }
    }

    /// Whether the directory `path` can be opened in it; see [`super::open_directory_in`]. Blocking.
    ///
    /// # Errors
    /// As there.
    pub fn has_directory(&self, path: &Path) -> io::Result<()> {
        if self.served.is_none() {
            return inside::open_directory_in(&self.path, path).map(drop);
        }
        let done: Outcome<()> = ask(&Order::Open {
            root: self.path.clone(),
            path: path.to_owned(),
        })?;
        done.map_err(|failure| (&failure).into())
    }
}

/// Has a child do `order`.
fn ask<T: DeserializeOwned>(order: &Order) -> io::Result<T> {
    let order = serde_json::to_vec(order)?;
    // Without `pre_exec` the child is made by posix_spawn. What the daemon has open is closed in it, as all of it is.
    let mut child = Command::new("/proc/self/exe")
        .args([WORD, &std::process::id().to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let given = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(&order));
    let done = child.wait_with_output()?;
    given?;
    if !done.status.success() {
        return Err(io::Error::other(format!(
            "the child that does it has ended: {}",
            done.status
        )));
    }
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// The child's whole life: takes an order from standard input and writes what came of it. `arguments` is the daemon's process id.
#[must_use]
pub fn main(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let parent = arguments.next().and_then(|text| text.to_str()?.parse().ok());
    let done = parent.ok_or_else(|| io::ErrorKind::InvalidInput.into()).and_then(obey);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wharf {WORD}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn obey(parent: i32) -> io::Result<()> {
    // What nobody waits for any more must not come late.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() != parent {
        return Err(io::Error::other("only the daemon runs this"));
    }
    let mut order = Vec::new();
    io::stdin().read_to_end(&mut order)?;
    let done = match serde_json::from_slice(&order)? {
        Order::Mount {
            layers,
            directory,
            owners,
            label,
            project,
        } => {
            let mapping = |(container_id, host_id, length)| IdMapping {
                container_id,
                host_id,
                length,
            };
            let owners = owners.map(|owners| Owners {
                namespace: owners.namespace,
                uids: mapping(owners.uids),
                gids: mapping(owners.gids),
            });
            let mounted = overlay::mount_labelled(&layers, &directory, owners.as_ref(), label.as_deref(), project);
            let mounted: Outcome<PathBuf> = mounted.map_err(|error| Failure {
                errno: None,
                text: error.to_string(),
            });
            serde_json::to_vec(&mounted)
        }
        Order::Read { root, files, most } => {
            let read = files.iter().map(|file| inside::read_text_in(&root, file, most));
            let read: Vec<Outcome<String>> = read.map(|read| read.map_err(Failure::from)).collect();
            serde_json::to_vec(&read)
        }
        Order::Open { root, path } => {
            let opened: Outcome<()> = inside::open_directory_in(&root, &path).map(drop).map_err(Failure::from);
            serde_json::to_vec(&opened)
        }
    }?;
    io::stdout().write_all(&done)
}
