//! Sessions: a process in a container, or the container itself, with a client's streams connected to it.

// Used by what comes next.
#[allow(dead_code)]
mod streams;

pub use streams::{Input, Output};

use super::{Error, Result};

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
    /// The container has a terminal.
    pub tty: bool,
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
}

impl Session {
    /// Gives the session's terminal a size in characters. The last size is never lost; sizes with a zero mean nothing.
    ///
    /// # Errors
    /// When there is no terminal.
    pub fn resize(&self, _width: u16, _height: u16) -> Result<()> {
        Err(Error::Unsupported("a terminal can't be resized yet".into()))
    }

    /// Exit code of the exec (0 to 255) or of the attached container. Cancel-safe. Output may still hold unread bytes.
    ///
    /// # Errors
    /// When the end could not be seen.
    pub async fn wait(&mut self) -> Result<i32> {
        Err(Error::Unsupported("sessions are not implemented yet".into()))
    }
}
