//! User namespaces of pods: a process that does nothing holds one while it is pinned.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use wharf_proto::cri::IdMapping;

use super::{Error, Result};
use crate::sys::{self, Forked};

/// Which ids of the node a pod's ids are: one range each, as in kubelet's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// Users.
    pub uids: IdMapping,
    /// Groups.
    pub gids: IdMapping,
}

/// A process in a new user namespace, and in further new namespaces that belong to it. Dropping it ends the process.
pub(super) struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    /// Makes the namespaces in one step, so that the user namespace owns the others, and maps its ids.
    ///
    /// # Errors
    /// When the kernel refuses the namespaces or the mappings.
    pub(super) fn start(others: CloneFlags, users: &Users) -> Result<Self> {
        let flags = (others | CloneFlags::CLONE_NEWUSER).bits();
        // This process has other threads, so the child may do nothing but system calls: it waits to be killed.
        let forked = sys::fork(flags).map_err(|source| Error::kernel("make a user namespace", source))?;
        let Forked::Parent { pid, pidfd } = forked else {
            wait_for_the_end()
        };
        let holder = Self { pid, pidfd };
        for (kind, mapping) in [("uid", users.uids), ("gid", users.gids)] {
            let path = PathBuf::from(format!("/proc/{pid}/{kind}_map"));
            let line = format!("{} {} {}\n", mapping.container_id, mapping.host_id, mapping.length);
            OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| file.write_all(line.as_bytes()))
                .map_err(|source| Error::io("map the ids of a user namespace in", &path, source))?;
        }
        Ok(holder)
    }

    /// Where a namespace of the process can be opened while it lives.
    pub(super) fn namespace(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }

    /// Puts the calling thread into one of the namespaces; not the user namespace, which takes a single-threaded process.
    pub(super) fn enter(&self, kind: &str) -> Result<()> {
        let path = self.namespace(kind);
        let handle = File::open(&path).map_err(|source| Error::io("open namespace", &path, source))?;
        setns(handle, CloneFlags::empty()).map_err(|errno| Error::io("enter namespace", &path, errno.into()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It waits for nothing else and can't have ended by itself.
        if sys::pidfd_kill(self.pidfd.as_fd(), libc::SIGKILL).is_ok() {
            let _ = waitpid(Pid::from_raw(self.pid), None);
        }
    }
}

/// The child's part. It ends with the thread that made it, should that be killed first.
fn wait_for_the_end() -> ! {
    // SAFETY: prctl with these arguments touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        nix::unistd::pause();
    }
}
