//! Pid 1 of a pod whose containers share a PID namespace: a fork of the monitor that reaps orphans and nothing else.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use super::sys;

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
