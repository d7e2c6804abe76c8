//! Pid 1 of a pod whose containers share a PID namespace: a fork of the monitor that reaps orphans and nothing else.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::AsFd as _,
    path::Path,
};

use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        wait::waitpid,
    },
    unistd::{Gid, Pid, Uid, pipe2, setgroups, setresgid, setresuid},
};

use super::sys;
use crate::sys::{self as kernel, Forked};

/// Starts the init; gives its pid. It dies with the monitor, and the pod's processes with it: without a monitor
/// nobody would know of them.
///
/// # Errors
/// When the kernel gives no new namespace.
pub fn start() -> io::Result<i32> {
    match sys::fork_into_pid_namespace()? {
        Some(pid) => Ok(pid),
        None => run(),
    }
}

/// As [`start`], with a PID namespace that belongs to the user namespace pinned at `owner`, and as its root: on the node
/// the init is nobody. A helper goes there first, because no process can come back from another user namespace.
///
/// # Errors
/// When the user namespace can't be entered or has no root, or the kernel gives no new namespace.
pub fn start_in(owner: &Path) -> io::Result<i32> {
    let owner = File::open(owner)?;
    let (answer, sender) = pipe2(OFlag::O_CLOEXEC)?;
    let helper = match kernel::fork(0)? {
        Forked::Parent { pid, .. } => Pid::from_raw(pid),
        Forked::Child => {
            let result = fork_in(&owner).unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO));
            let _ = File::from(sender).write_all(&result.to_ne_bytes());
            kernel::exit_now(0)
        }
    };
    drop(sender);
    let mut result = [0; size_of::<i32>()];
    let read = File::from(answer).read_exact(&mut result);
    let _ = waitpid(helper, None);
    read?;
    match i32::from_ne_bytes(result) {
        pid if pid > 0 => Ok(pid),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

/// The helper's part: the init becomes the monitor's child, not the helper's.
fn fork_in(owner: &File) -> io::Result<i32> {
    setns(owner.as_fd(), CloneFlags::CLONE_NEWUSER)?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // A change of users may have made it dumpable again: the pod's root must not reach what the init was forked from.
    sys::prctl(libc::PR_SET_DUMPABLE, 0)?;
    match kernel::fork(libc::CLONE_NEWPID | libc::CLONE_PARENT)? {
        Forked::Parent { pid, .. } => Ok(pid),
        Forked::Child => run(),
    }
}

/// The init's life. Allocates nothing.
fn run() -> ! {
    sys::close_all();
    sys::set_name(c"wharf-pod-init");
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize);
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    let _ = nix::unistd::setsid();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
    loop {
        while sys::reap().is_some() {}
        if let Ok(Signal::SIGTERM | Signal::SIGINT) = signals.wait() {
            break;
        }
    }
    // SAFETY: ends the process without running what the monitor registered for its own end.
    unsafe { libc::_exit(0) }
}
