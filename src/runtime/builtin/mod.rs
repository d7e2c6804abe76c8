//! The built-in OCI runtime.
//!
//! An operation runs in two processes. The helper, forked from the monitor, stays in the host's world: it reads the
//! bundle, opens everything the container will need, and turns each host path into a detached mount. Then it forks
//! init (or an exec'd process) as a child of the monitor, which enters the container's world with nothing but
//! descriptors and code that trusts nothing it finds there. Neither can be traced or read through /proc by the
//! container. `create` and `init` are the two halves of create; `exec` has both of its own; `hooks` runs the programs
//! that a spec wants run in between.

mod attach;
mod caps;
mod console;
mod create;
mod criu;
mod devices;
mod exec;
mod hooks;
mod idmap;
mod init;
mod labels;
mod listener;
mod options;
mod paths;
mod prepare;
mod process;
mod rlimits;
mod sched;
mod spec;
mod sysctl;

pub(super) use create::set_oom_score;
pub use spec::check;

use super::checkpoint::{self, CheckpointRequest, RestoreRequest};
use super::error::Context;
use super::report::{self, Report};
use super::{ContainerRef, CreateRequest, Created, Error, ExecRequest, Executed, Handler, Pending, Result};
use crate::cgroups::{self, Cgroup};
use crate::sys;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// The built-in runtime. Keeps no state: the bundle and the kernel have it all.
#[derive(Default)]
pub struct Builtin;

impl Builtin {
    pub fn new() -> Builtin {
        Builtin
    }
}

/// See [`super::forget`].
pub(super) fn forget(id: &str, bundle: &Path) -> Result<()> {
    hooks::pay_poststop(id, bundle)
}

impl Handler for Builtin {
    fn create(&self, request: &CreateRequest) -> Result<Pending> {
        report::spawn_helper(&create::kept(&request.stdio), || create::run(request))
    }

    fn finish_create(&self, pending: Pending) -> Result<Created> {
        let mut report = report::finish(&pending, "create")?;
        if report.fds.is_empty() {
            return Err(Error::Failed("create: the helper sent no gate".into()));
        }
        let gate = Some(report.fds.remove(0));
        Ok(Created {
            init_pid: report.pid,
            gate,
            console: report.fds.pop(),
            hooks: report.hooks,
        })
    }

    fn start(&self, container: &ContainerRef, created: &mut Created) -> Result<Pending> {
        let gate = created
            .gate
            .take()
            .ok_or_else(|| Error::Failed(format!("container {} has been started", container.id)))?;
        if created.hooks {
            return report::spawn_helper(&[gate.as_raw_fd()], || {
                start_with_hooks(container, created.init_pid, &gate)
            });
        }
        report::send(gate.as_fd(), &Ok(Report::default()));
        Ok(Pending {
            helper: None,
            result: gate,
        })
    }

    fn finish_start(&self, pending: Pending) -> Result<()> {
        if pending.helper.is_some() {
            return report::finish(&pending, "start").map(drop);
        }
        // The program runs when its execution has closed the gate.
        report::receive(pending.as_fd()).map(drop)
    }

    fn exec(&self, request: &ExecRequest) -> Result<Pending> {
        // Opened here, where init cannot be waited for in between: the number is surely init's.
        let init = sys::pidfd_open(request.init_pid).context(|| format!("open init of container {}", request.id))?;
        let mut keep = create::kept(&request.stdio);
        keep.push(init.as_raw_fd());
        report::spawn_helper(&keep, || exec::run(request, init))
    }

    fn finish_exec(&self, pending: Pending) -> Result<Executed> {
        let mut report = report::finish(&pending, "exec")?;
        Ok(Executed {
            pid: report.pid,
            console: report.fds.pop(),
        })
    }

    fn kill(&self, container: &ContainerRef, signal: i32, all: bool) -> Result<Option<Pending>> {
        if all {
            return report::helped(|| kill_all(container, signal));
        }
        if container.init_pid <= 0 {
            return Ok(None);
        }
        send_signal(container.init_pid, signal).map(|()| None)
    }

    fn finish_kill(&self, pending: Pending) -> Result<()> {
        report::finish(&pending, "kill").map(drop)
    }

    fn checkpoint(&self, request: &CheckpointRequest) -> Result<Pending> {
        report::spawn_helper(&[], || {
            checkpoint::frozen(&request.container, |cgroup| criu::dump(request, cgroup))
        })
    }

    fn restore(&self, request: &CreateRequest, restore: &RestoreRequest) -> Result<Pending> {
        report::spawn_helper(&create::kept(&request.stdio), || criu::restore(request, restore))
    }

    fn delete(&self, container: &ContainerRef) -> Result<Option<Pending>> {
        report::helped(|| remove(container))
    }

    fn finish_delete(&self, pending: Pending) -> Result<()> {
        report::finish(&pending, "delete").map(drop)
    }
}

/// Poststart hooks run when the program does.
fn start_with_hooks(container: &ContainerRef, init: i32, gate: &OwnedFd) -> Result<Report> {
    report::send(gate.as_fd(), &Ok(Report::default()));
    report::receive(gate.as_fd())?;
    let bundle = spec::Bundle::load(container.bundle)?;
    let state = hooks::State::new(&bundle, container.id, container.bundle);
    let moment = hooks::Moment::Poststart;
    state.run(hooks::of(&bundle.spec, moment), moment, init)?;
    Ok(Report::default())
}

fn cgroup(container: &ContainerRef) -> Result<Cgroup> {
    let hierarchies = cgroups::detect().map_err(|e| Error::Cgroup(e.to_string()))?;
    Cgroup::new(&hierarchies, container.cgroup_path).map_err(|e| Error::Cgroup(e.to_string()))
}

/// Forks a child that is born in the cgroup, of version 2. None where that can't be: on version 1, before Linux 5.7.
fn fork_in(cgroup: &Cgroup, flags: i32) -> Option<sys::Forked> {
    let dir = std::fs::File::open(cgroup.v2_dir()?).ok()?;
    sys::fork_into(flags, dir.as_fd()).ok()
}

fn kill_all(container: &ContainerRef, signal: i32) -> Result<Report> {
    let cgroup = cgroup(container)?;
    if signal == libc::SIGKILL {
        cgroup.kill_all().map_err(|e| Error::Cgroup(e.to_string()))?;
    } else {
        for pid in cgroup.pids() {
            send_signal(pid, signal)?;
        }
    }
    Ok(Report::default())
}

fn remove(container: &ContainerRef) -> Result<Report> {
    let cgroup = cgroup(container)?;
    cgroup
        .kill_all()
        .and_then(|()| cgroup.remove())
        .map_err(|e| Error::Cgroup(e.to_string()))?;
    hooks::pay_poststop(container.id, container.bundle)?;
    Ok(Report::default())
}

/// A process that is gone has nothing left to be told.
fn send_signal(pid: i32, signal: i32) -> Result<()> {
    let what = || format!("send signal {signal} to process {pid}");
    // SAFETY: no pointers. Numbers beyond the named signals (real-time ones) are passed on as they are.
    match Errno::result(unsafe { libc::kill(pid, signal) }) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::os(what(), e)),
    }
}
