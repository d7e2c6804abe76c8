//! Sessions: a process in a container, or the container itself, with a client's streams connected to it.
//!
//! The descriptors go from the monitor to the client's streams directly: no byte of a session is copied here, except
//! the input of a client that attached before the container was started.

mod attach;
mod exec;
mod streams;
mod terminal;

use std::os::fd::OwnedFd;

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};

pub use attach::attach;
pub use exec::exec;
pub use streams::{Input, Output};
use terminal::Terminal;
use wharf_proto::record::{ContainerState, Owner};

use super::{Container, Error, Result, pause};

/// What to run in a container, and which of its streams are wanted.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The client sends input.
    pub stdin: bool,
    /// The client wants the output.
    pub stdout: bool,
    /// The client wants the error output, which a terminal does not have.
    pub stderr: bool,
    /// Run it in a terminal.
    pub tty: bool,
}

/// Which streams of a container are wanted.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// The client sends input.
    pub stdin: bool,
    /// The client wants the output.
    pub stdout: bool,
    /// The client wants the error output, which a terminal does not have.
    pub stderr: bool,
    /// The client believes that the container has a terminal. Whether it does is the container's own matter, as with
    /// the peers.
    pub tty: bool,
}

impl ExecOptions {
    /// # Errors
    /// When it could not work in this container now.
    pub fn check(&self, container: &Container) -> Result<()> {
        if self.command.is_empty() {
            return Err(Error::Invalid("the command to run is empty".into()));
        }
        pause::check(container)
    }
}

impl AttachOptions {
    /// A container of a person can be attached to before it is started, so that nothing that it writes is missed.
    ///
    /// # Errors
    /// When it could not work with this container now.
    pub fn check(&self, container: &Container) -> Result<()> {
        match container.state() {
            ContainerState::ContainerRunning => Ok(()),
            ContainerState::ContainerCreated | ContainerState::ContainerStarting if is_persons(container) => Ok(()),
            _ => Err(Error::State(format!("container {} is not running", container.id))),
        }
    }
}

/// A client's connection to a process. Dropping it ends an exec with its whole process tree, or detaches.
#[derive(Debug)]
pub struct Session {
    /// Present when asked for.
    pub stdin: Option<Input>,
    /// Present when asked for.
    pub stdout: Option<Output>,
    /// Present when asked for and there is no terminal.
    pub stderr: Option<Output>,
    terminal: Terminal,
    process: Process,
    persons: bool,
}

#[derive(Debug)]
enum Process {
    Exec(exec::Running),
    Attached(attach::Attached),
}

impl Session {
    /// Whether the container is a person's and not kubelet's.
    #[must_use]
    pub fn is_persons(&self) -> bool {
        self.persons
    }

    /// Gives the session's terminal a size in characters. The last size is never lost, even if the terminal does not
    /// exist yet; sizes with a zero mean nothing.
    ///
    /// # Errors
    /// When there is no terminal.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        if width == 0 || height == 0 {
            return Ok(());
        }
        self.terminal
            .resize(width, height)
            .map_err(|error| Error::State(format!("resize the terminal: {error}")))
    }

    /// Exit code of the exec (0 to 255) or of the attached container; 0 as well when the session has ended because its
    /// stdin has (see [`Input`]). Cancel-safe. Output may still hold unread bytes.
    ///
    /// # Errors
    /// When the end could not be seen, or the client was cut off because it did not read.
    pub async fn wait(&mut self) -> Result<i32> {
        match &mut self.process {
            Process::Exec(running) => running.wait().await,
            Process::Attached(attached) => attached.wait().await,
        }
    }
}

/// Sends a signal to the container's init.
///
/// # Errors
/// [`Error::State`] when it does not run.
pub async fn signal(container: &Container, number: i32) -> Result<()> {
    if container.state() != ContainerState::ContainerRunning {
        return Err(Error::State(format!("container {} is not running", container.id)));
    }
    let sent = container.monitor()?.kill(&container.id, number, false).await;
    sent.map_err(container.monitor_error())
}

/// Whether the container is a person's and not kubelet's.
fn is_persons(container: &Container) -> bool {
    container.sandbox.owner == Owner::User
}

/// The two ends of a pipe, reading end first. It holds more than usual, so that much data needs few turns of both sides;
/// where the system does not allow it, the usual.
fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    const CAPACITY: i32 = 256 << 10;
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY));
    Ok((read, write))
}

/// An output and the descriptor that writes to it.
fn output() -> std::io::Result<(Output, OwnedFd)> {
    let (read, write) = pipe()?;
    Ok((Output::new(streams::reader(read)?), write))
}
