//! The terminal of a container's process.

use super::paths::Root;
use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{fstat, makedev};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A pseudo-terminal of the container's own devpts.
pub struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Open a new terminal. The container may have put anything at /dev/pts/ptmx: opening it must not block, must not take
/// a controlling terminal, and what is there must prove to be a terminal multiplexer. The caller is in the container's
/// cgroup, whose rules say which devices it may open at all.
pub fn open(root: &Root) -> Result<Terminal> {
    let what = || "open a terminal in the container's /dev/pts".to_string();
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let master = root.open(Path::new("/dev/pts/ptmx"), flags).context(what)?;
    let stat = fstat(&master).context(what)?;
    let is_device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == makedev(5, 2);
    if !is_device || fstatfs(&master).context(what)?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return Err(Error::Failed(
            "the container's /dev/pts/ptmx is not a terminal multiplexer".into(),
        ));
    }
    fcntl(&master, FcntlArg::F_SETFL(OFlag::empty())).context(what)?;
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
