//! Processes of a cgroup: list, kill, wait for their end, remove what is left.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Error, Result, fsutil};

/// Passes over a cgroup in which processes keep appearing. Each pass kills all that it sees, and a process with SIGKILL
/// pending cannot fork, so a handful is enough unless something outside keeps moving processes in.
const KILL_PASSES: usize = 200;

/// Processes in `dir` and below.
pub(super) fn pids(dir: &Path) -> Vec<i32> {
    let mut out = Vec::new();
    walk(dir, &mut |dir| {
        // ENODEV: removed while reading. EOPNOTSUPP: a threaded cgroup, whose processes are listed at its domain.
        if let Ok(text) = fsutil::read_raw(&dir.join("cgroup.procs")) {
            out.extend(
                text.lines()
                    .filter_map(|l| l.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            );
        }
    });
    out.sort_unstable();
    out.dedup();
    out
}

/// Calls `f` with `dir` and each cgroup below it, parents first.
fn walk(dir: &Path, f: &mut impl FnMut(&Path)) {
    f(dir);
    for child in fsutil::children(dir) {
        walk(&child, f);
    }
}

pub(super) fn kill_all(dir: &Path) -> Result<()> {
    // Since Linux 5.14: one write kills the whole subtree, forks included.
    match fsutil::write_raw(&dir.join("cgroup.kill"), "1") {
        Ok(()) => return Ok(()),
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EACCES | libc::EPERM)
            ) => {}
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(e) => return Err(Error::io("kill processes by writing to", dir.join("cgroup.kill"), e)),
    }
    let mut killed = HashSet::new();
    for _ in 0..KILL_PASSES {
        let fresh: Vec<_> = pids(dir).into_iter().filter(|pid| !killed.contains(pid)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let handles: Vec<_> = fresh
            .into_iter()
            .filter_map(|pid| Some((pid, pidfd_open(pid)?)))
            .collect();
        // A pid may have been given away between listing and opening; it is still ours if it is still listed.
        let still: HashSet<_> = pids(dir).into_iter().collect();
        for (pid, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
            match pidfd_kill(handle) {
                Ok(()) => {
                    killed.insert(*pid);
                }
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => return Err(Error::io(format!("kill process {pid} of cgroup"), dir, e)),
            }
        }
    }
    Err(Error::Busy {
        path: dir.to_owned(),
        pids: some(pids(dir)),
    })
}

pub(super) fn remove(dirs: &[PathBuf], wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    for dir in dirs {
        while let Err(e) = remove_tree(dir) {
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) {
                return Err(Error::io("remove cgroup", dir, e));
            }
            if left.is_zero() {
                return Err(Error::Busy {
                    path: dir.clone(),
                    pids: some(pids(dir)),
                });
            }
            wait_for_change(dir, left);
        }
    }
    Ok(())
}

/// Children first. The attempt to remove `dir` itself comes before the listing, because mostly there are no children.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if !matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => return Err(e),
        Err(_) => {}
    }
    for child in fsutil::children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns when a process of the cgroup has ended, or after `limit`.
fn wait_for_change(dir: &Path, limit: Duration) {
    let handles: Vec<_> = pids(dir).into_iter().take(64).filter_map(pidfd_open).collect();
    // A process that has just ended still counts for a moment, and the kernel has no event for the end of that moment.
    let limit = if handles.is_empty() {
        limit.min(Duration::from_millis(1))
    } else {
        limit
    };
    let mut fds: Vec<_> = handles
        .iter()
        .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
        .collect();
    let millis = limit.as_millis().clamp(1, i32::MAX as u128) as i32;
    // A poll cut short by a signal means one more round of the caller's loop.
    let _ = poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::ZERO));
}

fn some(mut pids: Vec<i32>) -> Vec<i32> {
    pids.truncate(16);
    pids
}

fn pidfd_open(pid: i32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open takes a pid and flags by value.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: a non-negative result is a new descriptor that nobody else owns; pidfds are made close-on-exec.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn pidfd_kill(handle: &OwnedFd) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for the call; a null siginfo means the kernel fills in its own.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), libc::SIGKILL, info, 0) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
