//! What a container writes, counted and limited by the file system itself (ext4, xfs and whoever else has project quotas).
//!
//! The directories that a container fills, `upper` and its image's volumes, and overlayfs' `work`, from which files are renamed,
//! get a project id that no other file has. The rest of the container's directory has none: what Wharf and the monitor note
//! there must not fail when the container has filled its share. Who uses an id is asked of the file system, which
//! knows it over every crash; so ids are free as soon as their files are gone, and there is no list of them. Which one a
//! container has is in its record, and read from `work`, which the container can't reach.
//!
//! overlayfs writes without CAP_SYS_RESOURCE (fs/overlayfs/super.c), so that limits hold for the privileged as well. A process
//! that is root outside of a user namespace may give its files to another project (ioctl_xfs_fssetxattr(2)): against
//! such a one a limit is a fence, no wall.

mod sys;

use std::collections::HashSet;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::{Amount, Error, Result, io_at, usage::mountpoint};

/// What is told where limits are asked for in vain.
const ABSENT: &str =
    "has no project quotas: it must be mounted with prjquota, and ext4 be made with its features quota and project";
const NOT_ENFORCED: &str = "counts what projects take but holds none to a limit";

/// Gives project ids out.
#[derive(Debug)]
pub struct Projects {
    ids: RangeInclusive<u32>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the search begins.
    next: u32,
    /// Given out to containers whose files do not have them yet.
    claimed: HashSet<u32>,
    /// What was found of the file system.
    support: Option<sys::Support>,
}

impl Projects {
    /// Ids will be out of `ids`, which must not have 0.
    #[must_use]
    pub fn new(ids: RangeInclusive<u32>) -> Self {
        let state = State {
            next: *ids.start(),
            claimed: HashSet::new(),
            support: None,
        };
        Self {
            ids,
            state: Mutex::new(state),
        }
    }

    /// Calls `mount` with the project whose the container in `container_dir` shall be, limited to `limit` bytes (0: no limit);
    /// with 0 where the file system does not count. Blocking.
    ///
    /// # Errors
    /// [`Error::NoQuota`] for a limit that can't be set, [`Error::NoProject`] when every id is taken, and those of `mount`.
    pub fn assign<T>(&self, container_dir: &Path, limit: u64, mount: impl FnOnce(u32) -> Result<T>) -> Result<T> {
        let known = self.lock().support;
        // A limit is asked for rarely, and a file system may have been mounted anew.
        if limit == 0 && known.is_some_and(|support| !support.counted) {
            return mount(0);
        }
        let dir = directory(container_dir)?;
        let support = sys::support(dir.as_fd()).unwrap_or(sys::Support {
            counted: false,
            enforced: false,
        });
        self.lock().support = Some(support);
        if limit > 0 && !support.enforced {
            return Err(Error::NoQuota {
                limit,
                mountpoint: mountpoint(container_dir)?,
                why: if support.counted { NOT_ENFORCED } else { ABSENT },
            });
        }
        if !support.counted {
            return mount(0);
        }
        let claim = self.claim(dir.as_fd(), container_dir)?;
        // An id may have a limit from before.
        sys::limit(dir.as_fd(), claim.id, limit).map_err(failed("limit what is written to", container_dir))?;
        let mounted = mount(claim.id);
        if mounted.is_err() && limit > 0 {
            let _ = sys::limit(dir.as_fd(), claim.id, 0);
        }
        mounted
    }

    /// An id that no file has, until it is dropped: by then files have it.
    fn claim(&self, dir: BorrowedFd<'_>, container_dir: &Path) -> Result<Claim<'_>> {
        let mut state = self.lock();
        for _ in self.ids.clone() {
            let id = state.next;
            state.next = if id < *self.ids.end() {
                id + 1
            } else {
                *self.ids.start()
            };
            if state.claimed.contains(&id) {
                continue;
            }
            let taken =
                sys::taken(dir, id).map_err(failed("ask for a free project on the file system of", container_dir))?;
            if taken.inodes == 0 && taken.bytes == 0 {
                state.claimed.insert(id);
                return Ok(Claim { projects: self, id });
            }
        }
        drop(state);
        Err(Error::NoProject {
            first: *self.ids.start(),
            last: *self.ids.end(),
            mountpoint: mountpoint(container_dir)?,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Claim<'a> {
    projects: &'a Projects,
    id: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.projects.lock().claimed.remove(&self.id);
    }
}

/// Gives the directory, and what will be made in it, to the project; 0 is none and does nothing. Blocking.
///
/// # Errors
/// When the file system refuses.
pub fn join_project(directory: &Path, project: u32) -> Result<()> {
    if project == 0 {
        return Ok(());
    }
    let dir = self::directory(directory)?;
    sys::join(dir.as_fd(), project).map_err(failed("give a project to", directory))
}

/// The project of a directory; 0 where it is absent or has none. Blocking.
pub(super) fn project_of(directory: &Path) -> u32 {
    // A file system without projects refuses the question.
    self::directory(directory)
        .ok()
        .and_then(|dir| sys::project(dir.as_fd()).ok())
        .unwrap_or(0)
}

/// Takes the limit of a project back, whose files are in `container_dir` and about to be removed; 0 is none. Blocking.
///
/// # Errors
/// When the file system refuses.
pub fn lift_limit(container_dir: &Path, project: u32) -> Result<()> {
    if project == 0 {
        return Ok(());
    }
    match directory(container_dir) {
        Ok(dir) => sys::limit(dir.as_fd(), project, 0).map_err(failed("lift the limit of", container_dir)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a project takes, as the file system of `container_dir` counts. Blocking.
///
/// # Errors
/// When it does not count.
pub(super) fn project_usage(container_dir: &Path, project: u32) -> Result<Amount> {
    let dir = directory(container_dir)?;
    let taken = sys::taken(dir.as_fd(), project).map_err(failed("ask for the usage of", container_dir))?;
    Ok(Amount {
        bytes: taken.bytes,
        inodes: taken.inodes,
    })
}

/// Whether the file system of `directory` counts what projects take, and holds them to limits. Blocking.
#[must_use]
pub fn has_quotas(directory: &Path) -> (bool, bool) {
    let support = self::directory(directory)
        .ok()
        .and_then(|dir| sys::support(dir.as_fd()).ok());
    support.map_or((false, false), |support| (support.counted, support.enforced))
}

fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(io_at("open", path))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_projects_refuses_a_limit_by_name_and_mounts_without() {
        // tmpfs has no project quotas in any kernel.
        let dir = Path::new("/dev/shm");
        let projects = Projects::new(7..=9);
        for _ in 0..2 {
            assert_eq!(projects.assign(dir, 0, Ok).unwrap(), 0);
        }
        let error = projects.assign(dir, 1 << 20, Ok).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("1048576") && text.contains("/dev/shm") && text.contains("prjquota"),
            "{text}"
        );
        assert_eq!(project_of(dir), 0);
        assert_eq!(project_of(Path::new("/absent")), 0);
        join_project(dir, 0).unwrap();
        lift_limit(Path::new("/absent"), 5).unwrap();
    }
}
