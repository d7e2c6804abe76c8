//! User namespace mappings: for a container's own namespace, and for mounts whose ids are mapped.

use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys::{self, Forked};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIdMapping;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The text of a `uid_map` or `gid_map` file.
pub fn text(mappings: &[LinuxIdMapping]) -> String {
    let line = |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
    mappings.iter().map(line).collect()
}

/// Write the mappings of a new user namespace, whose first process is `pid`. Opening the files first keeps both on
/// one process.
pub fn write(pid: i32, uids: Option<&Vec<LinuxIdMapping>>, gids: Option<&Vec<LinuxIdMapping>>) -> Result<()> {
    for (name, mappings) in [("uid", uids), ("gid", gids)] {
        let mappings = mappings.filter(|m| !m.is_empty());
        let mappings =
            mappings.ok_or_else(|| Error::InvalidSpec(format!("a user namespace without {name} mappings")))?;
        let path = format!("/proc/{pid}/{name}_map");
        std::fs::write(&path, text(mappings)).context(|| format!("write {name} mappings of the user namespace"))?;
    }
    Ok(())
}

/// A user namespace with nobody in it, for `MOUNT_ATTR_IDMAP`.
pub fn namespace(uids: Option<&Vec<LinuxIdMapping>>, gids: Option<&Vec<LinuxIdMapping>>) -> Result<OwnedFd> {
    match sys::fork(libc::CLONE_NEWUSER).context(|| "make a user namespace for a mount".into())? {
        Forked::Child => loop {
            nix::unistd::pause();
        },
        Forked::Parent { pid, pidfd } => {
            let namespace = write(pid, uids, gids).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                File::open(&path).context(|| format!("open {path}"))
            });
            let killed = sys::pidfd_kill(pidfd.as_fd(), libc::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), None);
            killed.context(|| "end the holder of a user namespace".into())?;
            Ok(namespace?.into())
        }
    }
}

/// A descriptor as `mount_attr` carries it.
pub fn number(fd: &OwnedFd) -> u64 {
    fd.as_raw_fd() as u64
}
