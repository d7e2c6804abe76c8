//! Run a further process in a container: all of its namespaces, its cgroup, its seccomp filter.

use super::paths::Root;
use super::spec::{self, Bundle};
use super::{console, create, fork_in, hooks, init, process};
use crate::cgroups::{self, Cgroup, Joiner};
use crate::runtime::affinity::Affinity;
use crate::runtime::class;
use crate::runtime::error::Context;
use crate::runtime::report::{self, Report};
use crate::runtime::streams;
use crate::runtime::{Error, ExecRequest, Result, Stdio};
use crate::sys::{self, Forked};
use nix::sys::stat::{Mode, fstat, stat, umask};
use nix::unistd::{Gid, Uid, setresgid, setresuid, setsid};
use oci_spec::runtime::Process;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// What the child needs, opened and parsed on the host.
struct Plan {
    setup: process::Setup,
    affinity: Affinity,
    process: Process,
    procfs: OwnedFd,
    init: OwnedFd,
    /// Joined by the child, unless it is born there.
    cgroup: Joiner,
    inside: bool,
    userns: bool,
    terminal: bool,
    keyring: CString,
}

/// Kinds of namespaces that the child joins; the PID namespace is joined by the fork, the user namespace if there is
/// one.
const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Runs in the helper. `pidfd` is the container's init.
pub fn run(request: &ExecRequest, pidfd: OwnedFd) -> Result<Report> {
    class::join(request.class)?;
    umask(Mode::empty());
    let bundle = Bundle::load(request.bundle)?;
    let linux = bundle.linux()?;
    let process = read_process(request.process_json, bundle.process()?)?;
    let mut setup = process::Setup::new(&process, linux, request.seccomp_filter)?;
    if let Some(listener) = &mut setup.listener {
        let state = hooks::State::new(&bundle, request.id, request.bundle);
        listener.describe(&state, Some(request.init_pid));
    }
    let userns = in_other_userns(request.init_pid)?;
    setup.own_limits = !userns;

    let cgroup_error = |e: cgroups::Error| Error::Cgroup(e.to_string());
    let path = linux
        .cgroups_path()
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned());
    let path = path
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| format!("/{}", request.id));
    let hierarchies = cgroups::detect().map_err(cgroup_error)?;
    let place = Cgroup::of_spec(&hierarchies, &path).map_err(cgroup_error)?;
    let cgroup = place.joiner().map_err(cgroup_error)?;

    let affinity = Affinity::of(&process)?;
    affinity.begin()?;
    create::set_oom_score(process.oom_score_adj().or(bundle.process()?.oom_score_adj()))?;
    let mut plan = Plan {
        setup,
        affinity,
        procfs: File::open("/proc").context(|| "open /proc".into())?.into(),
        init: pidfd,
        cgroup,
        inside: false,
        userns,
        terminal: matches!(request.stdio, Stdio::Terminal),
        keyring: create::keyring_name(request.id)?,
        process,
    };
    streams::give(&request.stdio, streams::root(linux))?;
    create::take_stdio(&request.stdio)?;
    sys::setns(plan.init.as_fd(), libc::CLONE_NEWPID).context(|| "join the container's PID namespace".into())?;
    let (ours, theirs) = report::channel()?;
    // A child must know before it is one.
    plan.inside = true;
    let forked = match fork_in(&place, libc::CLONE_PARENT) {
        Some(forked) => forked,
        None => {
            plan.inside = false;
            sys::fork(libc::CLONE_PARENT).context(|| "fork into the container".into())?
        }
    };
    match forked {
        Forked::Child => {
            drop(ours);
            child(plan, &theirs)
        }
        Forked::Parent { pid, pidfd } => {
            drop(theirs);
            let result = supervise(&plan, pid, &ours);
            if result.is_err() {
                let _ = sys::pidfd_kill(pidfd.as_fd(), libc::SIGKILL);
            }
            Ok(Report {
                pid,
                fds: result?.into_iter().collect(),
                ..Report::default()
            })
        }
    }
}

/// What the object leaves out is as for the container's init.
fn read_process(json: &[u8], init: &Process) -> Result<Process> {
    let mut process: Process =
        serde_json::from_slice(json).map_err(|e| Error::InvalidSpec(format!("process to execute: {e}")))?;
    spec::check_process(&process)?;
    if process.capabilities().is_none() {
        process.set_capabilities(init.capabilities().clone());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(init.exec_cpu_affinity().clone());
    }
    if process.rlimits().is_none() {
        process.set_rlimits(init.rlimits().clone());
    }
    if process.apparmor_profile().is_none() {
        process.set_apparmor_profile(init.apparmor_profile().clone());
    }
    if process.selinux_label().is_none() {
        process.set_selinux_label(init.selinux_label().clone());
    }
    Ok(process)
}

fn in_other_userns(init: i32) -> Result<bool> {
    let what = || "compare user namespaces".to_string();
    let theirs = stat(format!("/proc/{init}/ns/user").as_str()).context(what)?;
    let own = File::open("/proc/self/ns/user").context(what)?;
    let own = fstat(&own).context(what)?;
    Ok((theirs.st_dev, theirs.st_ino) != (own.st_dev, own.st_ino))
}

/// Returns the terminal's master once the program runs.
fn supervise(plan: &Plan, pid: i32, child: &OwnedFd) -> Result<Option<OwnedFd>> {
    if plan.userns {
        plan.setup.limit(pid)?;
        report::send(child.as_fd(), &Ok(Report::default()));
    }
    let ready = report::receive(child.as_fd())?.ok_or(Error::HelperDied("exec"))?;
    // Executing closes the child's end without a word.
    report::receive(child.as_fd())?;
    Ok(ready.fds.into_iter().next())
}

fn child(plan: Plan, gate: &OwnedFd) -> ! {
    let result = enter(plan, gate).map(|(setup, console)| {
        report::send(
            gate.as_fd(),
            &Ok(Report {
                pid: 0,
                fds: console.into_iter().collect(),
                ..Report::default()
            }),
        );
        setup.execute()
    });
    let error = match result {
        Ok(error) | Err(error) => error,
    };
    report::send(gate.as_fd(), &Err(error));
    sys::exit_now(1)
}

fn enter(plan: Plan, gate: &OwnedFd) -> Result<(process::Setup, Option<OwnedFd>)> {
    let Plan {
        mut setup,
        affinity,
        process,
        procfs,
        init,
        cgroup,
        inside,
        userns,
        terminal,
        keyring,
    } = plan;
    if userns {
        // Limits are being set with the host's privileges.
        report::receive(gate.as_fd())?.ok_or(Error::HelperDied("exec"))?;
    }
    if !inside {
        cgroup.join().map_err(|e| Error::Cgroup(e.to_string()))?;
    }
    drop(cgroup);
    affinity.settle()?;
    setup.open_labels(procfs.as_fd())?;
    drop(procfs);
    let kinds = NAMESPACES | if userns { libc::CLONE_NEWUSER } else { 0 };
    sys::setns(init.as_fd(), kinds).context(|| "join the container's namespaces".into())?;
    drop(init);
    if userns {
        let what = || "become root of the user namespace".to_string();
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        setresgid(gid, gid, gid).context(what)?;
        setresuid(uid, uid, uid).context(what)?;
        sys::set_undumpable().context(what)?;
    }
    setsid().context(|| "start a session".into())?;
    // Descendants that lose their parent come to this process, where whoever must end the exec finds them (row G14).
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).context(|| "adopt what the command leaves behind".into())?;
    let _ = sys::new_session_keyring(&keyring);
    let root = Root::own().context(|| "open the container's root".into())?;
    let mut master = None;
    if terminal {
        let opened = console::open(&root)?;
        init::use_terminal(&opened, process.console_size().as_ref())?;
        master = Some(opened.master);
    }
    setup.settle(&root)?;
    Ok((setup, master))
}
