//! OCI runtimes: turns a bundle into a running container and runs further processes in it.
//!
//! Owns the [`Handler`] seam and its two implementations: [`builtin`], Wharf's own runtime, and [`command`], which
//! drives runc, crun or any other OCI runtime program. Both are used by a pod's monitor, which is single-threaded:
//! each operation forks a short-lived helper, so that neither parsing nor allocation happens in the monitor, and
//! returns a [`Pending`] to poll. Init and exec'd processes become children of the monitor, which waits for them.
//! Must never be called from a process with more than one thread, and knows nothing of pods. May ask `cgroups`. Only
//! [`features`], what a handler can do, what is left word of in [`prepared`], and [`forget`] are for the daemon.

mod affinity;
pub mod builtin;
pub mod checkpoint;
mod class;
pub mod command;
mod error;
pub mod features;
pub mod prepared;
mod report;
pub mod seccomp_compile;
mod streams;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use checkpoint::{CheckpointRequest, RestoreRequest};
pub use error::{Error, Result};

/// Where a process's standard streams go.
#[derive(Clone, Copy)]
pub enum Stdio<'a> {
    /// Standard input, output and error, in this order.
    Streams([BorrowedFd<'a>; 3]),
    /// A pseudo-terminal is made in the container; its master comes back with the result.
    Terminal,
}

/// What [`Handler::create`] needs.
pub struct CreateRequest<'a> {
    pub id: &'a str,
    /// Directory with config.json.
    pub bundle: &'a Path,
    pub stdio: Stdio<'a>,
    /// Filter made by [`seccomp_compile`] from this spec's profile; `None`: compiled on the spot if the spec has one.
    pub seccomp_filter: Option<&'a Path>,
    /// Class of cache and memory bandwidth, see [`class`].
    pub class: Option<&'a Path>,
}

/// What [`Handler::exec`] needs.
pub struct ExecRequest<'a> {
    /// The container.
    pub id: &'a str,
    pub bundle: &'a Path,
    /// Pid of its init: a child of the caller that has not been waited for.
    pub init_pid: i32,
    /// OCI process object.
    pub process_json: &'a [u8],
    pub stdio: Stdio<'a>,
    /// As for [`CreateRequest`]: the filter of the container's profile.
    pub seccomp_filter: Option<&'a Path>,
    /// As for [`CreateRequest`].
    pub class: Option<&'a Path>,
}

/// What [`Handler::kill`] and [`Handler::delete`] need.
pub struct ContainerRef<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    /// 0 when init has ended and has been waited for.
    pub init_pid: i32,
    /// Below the hierarchies' roots, as in the spec.
    pub cgroup_path: &'a str,
}

/// An operation under way. Its descriptor becomes readable when the result is there; then call the handler's
/// `finish_` function of the same name. The helper is a child of the caller and ends by itself; whoever waits for
/// children will see its pid and may ignore it. The same goes for an init or exec'd process whose operation fails; it
/// must be waited for, because a PID namespace's init cannot end before everything in it has been.
pub struct Pending {
    /// `None` when the operation needed no helper.
    pub helper: Option<i32>,
    pub result: OwnedFd,
}

impl AsFd for Pending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.result.as_fd()
    }
}

/// A container whose init waits to be started.
pub struct Created {
    /// A child of the caller.
    pub init_pid: i32,
    /// Built-in: what init waits on. Hand it to [`Handler::start`].
    pub gate: Option<OwnedFd>,
    /// Master of the terminal.
    pub console: Option<OwnedFd>,
    /// Built-in: something is to be run when the program runs.
    pub hooks: bool,
}

/// A process started by [`Handler::exec`].
pub struct Executed {
    /// A child of the caller.
    pub pid: i32,
    /// Master of the terminal.
    pub console: Option<OwnedFd>,
}

/// An OCI runtime. No function blocks; each `finish_` function is called once its [`Pending`] is readable.
pub trait Handler {
    /// Build the container up to the point where init would execute its program.
    fn create(&self, request: &CreateRequest) -> Result<Pending>;
    fn finish_create(&self, pending: Pending) -> Result<Created>;
    /// Let init execute its program. Takes the gate out of `created`.
    fn start(&self, container: &ContainerRef, created: &mut Created) -> Result<Pending>;
    /// [`Error::StartFailed`] when the program could not be executed; init has ended or is about to.
    fn finish_start(&self, pending: Pending) -> Result<()>;
    /// Run a process in the container.
    fn exec(&self, request: &ExecRequest) -> Result<Pending>;
    /// [`Error::StartFailed`] when the program could not be executed.
    fn finish_exec(&self, pending: Pending) -> Result<Executed>;
    /// Send a signal to init, or with `all` to each process of the container. `None`: done.
    fn kill(&self, container: &ContainerRef, signal: i32, all: bool) -> Result<Option<Pending>>;
    fn finish_kill(&self, pending: Pending) -> Result<()>;
    /// Freeze a running container and have CRIU dump it. Frozen it stays when that succeeds.
    fn checkpoint(&self, request: &CheckpointRequest) -> Result<Pending>;
    fn finish_checkpoint(&self, pending: Pending) -> Result<()> {
        report::finish(&pending, "checkpoint").map(drop)
    }
    /// Have CRIU make a container from what was dumped. It runs at once; there is nothing to start.
    fn restore(&self, request: &CreateRequest, restore: &RestoreRequest) -> Result<Pending>;
    fn finish_restore(&self, pending: Pending) -> Result<Created> {
        let report = report::finish(&pending, "restore")?;
        Ok(Created {
            init_pid: report.pid,
            gate: None,
            console: report.fds.into_iter().next(),
            hooks: false,
        })
    }
    /// Kill what is left and release cgroup and state. Repeatable: nothing there is success. `None`: done.
    fn delete(&self, container: &ContainerRef) -> Result<Option<Pending>>;
    fn finish_delete(&self, pending: Pending) -> Result<()>;
}

/// Releases what a handler keeps of a container whose monitor has ended, once its processes are gone: a program's state,
/// and due poststop hooks. For the daemon: it may have threads. Blocks. Nothing there is fine.
///
/// # Errors
/// When the program or a hook fails.
pub fn forget(path: &str, root: &str, arguments: Vec<String>, id: &str, bundle: &Path) -> Result<()> {
    if path.is_empty() {
        return builtin::forget(id, bundle);
    }
    let root = (!root.is_empty()).then(|| PathBuf::from(root));
    command::Command::new(PathBuf::from(path), root, arguments).forget(id, bundle)
}

/// The handler for a monitor request: an empty path is the built-in one.
pub fn handler(path: &str, root: &str, arguments: Vec<String>) -> Box<dyn Handler> {
    if path.is_empty() {
        Box::new(builtin::Builtin::new())
    } else {
        Box::new(command::Command::new(
            PathBuf::from(path),
            (!root.is_empty()).then(|| PathBuf::from(root)),
            arguments,
        ))
    }
}
