//! An OCI runtime program as a handler: runc, crun, or any other with runc's command line.
//!
//! The program runs in a helper, which waits for it; what it starts is orphaned when it ends and so becomes the
//! monitor's child, because the monitor is a child subreaper (prctl(2)).

mod console;
mod criu;
mod program;

use std::{
    fs,
    os::fd::{AsRawFd as _, RawFd},
    path::PathBuf,
};

use program::Invocation;

use super::{
    ContainerRef, CreateRequest, Created, Error, ExecRequest, Executed, Handler, Pending, Result, Stdio,
    affinity::Affinity,
    checkpoint::{self, CheckpointRequest, DUMP_LOG, RESTORE_LOG, RestoreRequest},
    class,
    error::Context as _,
    prepared,
    report::{self, Report, spawn_helper},
    streams,
};
use crate::cgroups;

/// An OCI runtime program such as runc.
#[derive(Debug)]
pub struct Command {
    path: PathBuf,
    root: Option<PathBuf>,
    arguments: Vec<String>,
}

impl Command {
    /// The program at `path`, which keeps its state below `root` (its own default if `None`) and gets `arguments` before
    /// all others.
    #[must_use]
    pub fn new(path: PathBuf, root: Option<PathBuf>, arguments: Vec<String>) -> Command {
        Command { path, root, arguments }
    }

    /// See [`super::forget`].
    pub(super) fn forget(&self, id: &str, bundle: &std::path::Path) -> Result<()> {
        // Most runtimes keep nothing of a container that they never came to make.
        if self.root.as_ref().is_some_and(|root| !root.join(id).exists()) {
            return Ok(());
        }
        let mut invocation = self.invocation(bundle);
        invocation.arguments(["delete", "--force", id]);
        let result = invocation.run();
        invocation.tidy();
        match result {
            Err(error) if !is_gone(&error.to_string(), id) => Err(error),
            _ => Ok(()),
        }
    }

    /// Has systemd know the limits that the program has set, where it was to ask systemd for the cgroup: crun 1.8 writes them
    /// to the kernel's files alone, and systemd's next reload would take them back.
    fn tell_limits(&self, bundle: &std::path::Path) -> Result<()> {
        if !self.arguments.iter().any(|argument| argument == "--systemd-cgroup") {
            return Ok(());
        }
        let path = bundle.join("config.json");
        let spec = oci_spec::runtime::Spec::load(&path)
            .map_err(|error| Error::InvalidSpec(format!("{}: {error}", path.display())))?;
        let Some(linux) = spec.linux() else { return Ok(()) };
        let (Some(cgroup), Some(limits)) = (linux.cgroups_path(), linux.resources()) else {
            return Ok(());
        };
        cgroups::detect()
            .and_then(|detected| cgroups::Cgroup::of_spec(&detected, &cgroup.to_string_lossy())?.tell(limits))
            .map_err(|error| Error::Cgroup(error.to_string()))
    }

    fn invocation(&self, bundle: &std::path::Path) -> Invocation {
        Invocation::new(&self.path, self.root.as_deref(), &self.arguments, bundle)
    }
}

fn kept(stdio: &Stdio) -> Vec<RawFd> {
    match stdio {
        Stdio::Streams(streams) => streams.iter().map(|stream| stream.as_raw_fd()).collect(),
        Stdio::Terminal => Vec::new(),
    }
}

impl Handler for Command {
    fn create(&self, request: &CreateRequest) -> Result<Pending> {
        spawn_helper(&kept(&request.stdio), || {
            class::join(request.class)?;
            begin(request.bundle, &request.stdio)?;
            prepared::make(request.bundle)?;
            let mut invocation = self.invocation(request.bundle);
            invocation.arguments(["create", "--bundle", ".", "--pid-file", program::PID_FILE]);
            let (pid, console) = invocation.run_detached(&request.stdio, request.id)?;
            if let Err(error) = self.tell_limits(request.bundle) {
                let mut undo = self.invocation(request.bundle);
                undo.arguments(["delete", "--force", request.id]);
                let _ = undo.run();
                undo.tidy();
                return Err(error);
            }
            Ok(Report {
                pid,
                fds: console.into_iter().collect(),
                ..Report::default()
            })
        })
    }

    fn finish_create(&self, pending: Pending) -> Result<Created> {
        let report = report::finish(&pending, "create")?;
        Ok(Created {
            init_pid: report.pid,
            gate: None,
            console: report.fds.into_iter().next(),
            hooks: false,
        })
    }

    fn start(&self, container: &ContainerRef, _created: &mut Created) -> Result<Pending> {
        spawn_helper(&[], || {
            let mut invocation = Invocation::without_bundle(&self.path, self.root.as_deref(), &self.arguments);
            invocation.arguments(["start", container.id]);
            invocation
                .run()
                .map_err(|error| Error::StartFailed(error.to_string()))?;
            Ok(Report::default())
        })
    }

    fn finish_start(&self, pending: Pending) -> Result<()> {
        report::finish(&pending, "start").map(drop)
    }

    fn exec(&self, request: &ExecRequest) -> Result<Pending> {
        spawn_helper(&kept(&request.stdio), || {
            class::join(request.class)?;
            // What the program starts inherits it, whether it knows of such a wish or not.
            let process = serde_json::from_slice(request.process_json);
            let process = process.map_err(|error| Error::InvalidSpec(format!("process to execute: {error}")))?;
            Affinity::of(&process)?.begin()?;
            begin(request.bundle, &request.stdio)?;
            let process = request.bundle.join(format!("exec-{}.json", std::process::id()));
            fs::write(&process, request.process_json)
                .context(|| format!("write the process of an exec to {}", process.display()))?;
            let mut invocation = self.invocation(request.bundle);
            invocation.pid_file(format!("exec-{}.pid", std::process::id()));
            let pid_file = invocation.pid_file_name().to_owned();
            invocation.arguments(["exec", "--detach", "--pid-file", &pid_file, "--process"]);
            invocation.arguments([&process]);
            let result = invocation.run_detached(&request.stdio, request.id);
            let _ = fs::remove_file(&process);
            let (pid, console) = result.map_err(|error| Error::StartFailed(error.to_string()))?;
            Ok(Report {
                pid,
                fds: console.into_iter().collect(),
                ..Report::default()
            })
        })
    }

    fn finish_exec(&self, pending: Pending) -> Result<Executed> {
        let report = report::finish(&pending, "exec")?;
        Ok(Executed {
            pid: report.pid,
            console: report.fds.into_iter().next(),
        })
    }

    fn kill(&self, container: &ContainerRef, signal: i32, all: bool) -> Result<Option<Pending>> {
        if all {
            return report::helped(|| {
                for pid in cgroup(container)?.pids() {
                    signal_process(pid, signal)?;
                }
                Ok(Report::default())
            });
        }
        if container.init_pid > 0 {
            signal_process(container.init_pid, signal)?;
        }
        Ok(None)
    }

    fn finish_kill(&self, pending: Pending) -> Result<()> {
        report::finish(&pending, "kill").map(drop)
    }

    fn checkpoint(&self, request: &CheckpointRequest) -> Result<Pending> {
        spawn_helper(&[], || {
            checkpoint::frozen(&request.container, |_| {
                checkpoint::write_descriptors(request.container.init_pid, request.images)?;
                criu::enter_shared(request.container.bundle)?;
                let mut invocation = self.invocation(request.container.bundle);
                invocation.arguments(["checkpoint", "--leave-running", "--file-locks", "--ext-unix-sk"]);
                invocation.arguments(["--image-path".as_ref(), request.images.as_os_str()]);
                invocation.arguments(["--work-path".as_ref(), request.work.as_os_str()]);
                invocation.arguments([request.container.id]);
                invocation.search_path(checkpoint::search_path(request.criu));
                criu_says(invocation.run(), &request.work.join(DUMP_LOG))
            })
        })
    }

    fn restore(&self, request: &CreateRequest, restore: &RestoreRequest) -> Result<Pending> {
        spawn_helper(&kept(&request.stdio), || {
            if matches!(request.stdio, Stdio::Terminal) {
                return Err(Error::Unsupported("restoring a container with a terminal".into()));
            }
            class::join(request.class)?;
            criu::write_options(restore.work)?;
            criu::enter_cgroup(request.bundle, restore.cgroup_path)?;
            criu::enter_shared(request.bundle)?;
            prepared::make(request.bundle)?;
            let mut invocation = self.invocation(request.bundle);
            invocation.arguments(["restore", "--detach", "--file-locks", "--ext-unix-sk"]);
            invocation.arguments(["--bundle", ".", "--pid-file", program::PID_FILE]);
            invocation.arguments(["--image-path".as_ref(), restore.images.as_os_str()]);
            invocation.arguments(["--work-path".as_ref(), restore.work.as_os_str()]);
            invocation.search_path(checkpoint::search_path(restore.criu));
            let restored = invocation.run_detached(&request.stdio, request.id);
            let (pid, _) = criu_says(restored, &restore.work.join(RESTORE_LOG))?;
            Ok(Report {
                pid,
                ..Report::default()
            })
        })
    }

    fn delete(&self, container: &ContainerRef) -> Result<Option<Pending>> {
        spawn_helper(&[], || {
            let mut invocation = self.invocation(container.bundle);
            // Plain delete is a tenth of a second faster, and right for what has ended.
            let force = container.init_pid > 0;
            invocation.arguments(
                ["delete"]
                    .into_iter()
                    .chain(force.then_some("--force"))
                    .chain([container.id]),
            );
            match invocation.run() {
                Err(error) if !is_gone(&error.to_string(), container.id) => return Err(error),
                _ => {}
            }
            let cgroup = cgroup(container)?;
            cgroup
                .kill_all()
                .and_then(|()| cgroup.remove())
                .map_err(|error| Error::Cgroup(error.to_string()))?;
            invocation.tidy();
            Ok(Report::default())
        })
        .map(Some)
    }

    fn finish_delete(&self, pending: Pending) -> Result<()> {
        report::finish(&pending, "delete").map(drop)
    }
}

/// Gives this helper the container's standing with the OOM killer, for the program to inherit: crun sets none where the
/// spec says 0, and the monitor's own must not be a container's. The streams become the container's.
fn begin(bundle: &std::path::Path, stdio: &Stdio) -> Result<()> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).context(|| format!("read {}", path.display()))?;
    let spec: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| Error::InvalidSpec(format!("{}: {error}", path.display())))?;
    streams::give(stdio, streams::root_in(&spec))?;
    let score = spec["process"]["oomScoreAdj"].as_i64();
    super::builtin::set_oom_score(score.and_then(|score| i32::try_from(score).ok()))
}

/// What CRIU's log says of a failure tells more than that there was one.
fn criu_says<T>(result: Result<T>, log: &std::path::Path) -> Result<T> {
    result.map_err(|error| match checkpoint::complaints(log) {
        Some(complaints) => Error::Failed(format!("{error}; criu: {complaints}")),
        None => error,
    })
}

/// Whether a program's words on deletion mean that it knows no such container: runc says so, crun misses the
/// container's directory.
fn is_gone(text: &str, id: &str) -> bool {
    text.contains("does not exist") || text.contains(id) && text.ends_with("No such file or directory")
}

fn cgroup(container: &ContainerRef) -> Result<cgroups::Cgroup> {
    let detected = cgroups::detect().map_err(|error| Error::Cgroup(error.to_string()))?;
    cgroups::Cgroup::new(&detected, container.cgroup_path).map_err(|error| Error::Cgroup(error.to_string()))
}

/// A process that has ended already is no error.
fn signal_process(pid: i32, signal: i32) -> Result<()> {
    let signal = nix::sys::signal::Signal::try_from(signal).ok().map_or_else(
        || send_number(pid, signal),
        |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal),
    );
    match signal {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(Error::os(format!("signal process {pid}"), errno)),
    }
}

/// For real-time signals, which nix does not name.
fn send_number(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    nix::errno::Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_programs_words_for_an_unknown_container_are_known() {
        assert!(is_gone("runc: container does not exist", "c1"));
        assert!(is_gone(
            "crun: cannot open directory '/run/crun/c1': No such file or directory",
            "c1"
        ));
        assert!(!is_gone(
            "crun: cannot open directory '/sys/x': No such file or directory",
            "c1"
        ));
        assert!(!is_gone("run /opt/runc: No such file or directory (os error 2)", "c1"));
    }
}
