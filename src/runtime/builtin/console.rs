//! The terminal of a container's process.

use super::paths::Root;
use crate::runtime::error::Context;
use crate::runtime::{Error, Result, sys};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, makedev};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A pseudo-terminal of the container's own devpts.
pub struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Open a new terminal. What lies at /dev/pts/ptmx is opened only when it has proved to be a terminal multiplexer:
/// opening an arbitrary file that the container put there could block or do harm. `procfs` is the host's.
pub fn open(root: &Root, procfs: BorrowedFd) -> Result<Terminal> {
    let what = || "open a terminal in the container's /dev/pts".to_string();
    let found = root
        .open(Path::new("/dev/pts/ptmx"), libc::O_PATH | libc::O_NOFOLLOW)
        .context(what)?;
    let stat = fstat(&found).context(what)?;
    let is_device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == makedev(5, 2);
    if !is_device || fstatfs(&found).context(what)?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return Err(Error::Failed(
            "the container's /dev/pts/ptmx is not a terminal multiplexer".into(),
        ));
    }
    let path = format!("self/fd/{}", found.as_raw_fd());
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = openat(procfs, path.as_str(), flags, Mode::empty()).context(what)?;
    let slave = sys::terminal_peer(master.as_fd()).context(what)?;
    Ok(Terminal { master, slave })
}

/// Make the terminal the console of the container.
pub fn mount_console(root: &Root, terminal: &Terminal) -> Result<()> {
    let what = || "mount /dev/console".to_string();
    let target = root.ensure_file(Path::new("/dev/console")).context(what)?;
    let tree = sys::clone_tree_fd(terminal.slave.as_fd(), false).context(what)?;
    sys::move_mount(tree.as_fd(), target.as_fd()).context(what)
}
