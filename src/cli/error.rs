//! What a command says when it fails, and the exit code it ends with.

use std::fmt;
use std::io;
use std::process::ExitCode;

use tonic::{Code, Status};

/// A command's own exit code, or why it failed.
pub type Outcome = Result<u8, Error>;
/// What the helpers of commands return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit code of `run` when it wasn't the container that failed, as Docker has it.
pub const DAEMON_FAILED: u8 = 125;
/// Exit code for a command that is there and can't be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit code for a command that isn't there.
pub const NOT_FOUND: u8 = 127;

/// One sentence about what went wrong, and where possible one about what to do.
#[derive(Debug)]
pub struct Error {
    message: String,
    hint: Option<String>,
    code: u8,
    status: Option<Code>,
    /// The reader of our output has gone; there is nobody to tell.
    silent: bool,
}

impl Error {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            code: 1,
            status: None,
            silent: false,
        }
    }

    /// A failed call: `attempt` says what was tried, for example "stop container web".
    pub fn call(attempt: &str, endpoint: &str, status: &Status) -> Self {
        if let Some(source) = connect_error(status) {
            return Self {
                status: Some(Code::Unavailable),
                ..unreachable(endpoint, &source)
            };
        }
        let text = match status.code() {
            Code::DeadlineExceeded => "took longer than --timeout allows".to_owned(),
            Code::Cancelled if status.message() == "Timeout expired" => "took longer than --timeout allows".to_owned(),
            Code::Unimplemented if status.message().is_empty() || status.message().starts_with("unknown ") => {
                format!("the runtime at {endpoint} can't do that")
            }
            // With a source it is the connection that broke; without one the daemon itself says so.
            Code::Unavailable if std::error::Error::source(status).is_some() => {
                format!("the daemon went away: {}", status.message())
            }
            code if status.message().is_empty() => code.description().to_owned(),
            _ => status.message().to_owned(),
        };
        Self {
            status: Some(status.code()),
            ..Self::new(format!("{attempt}: {text}"))
        }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Ends the command with this exit code.
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The gRPC code, when a call failed.
    pub fn status(&self) -> Option<Code> {
        self.status
    }

    /// The exit code that a shell gives for a command that could not be started, if the text says so.
    ///
    /// CRI has no field for this; runc, crun and Wharf put the kernel's words into the message.
    pub fn exec_failure(&self) -> Option<u8> {
        let text = self.message.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if !has(&["exec", "start container process", "start command", "run command"]) {
            return None;
        }
        if has(&[
            "executable file not found",
            "not found in $path",
            "no such file or directory",
        ]) {
            return Some(NOT_FOUND);
        }
        has(&["permission denied", "is a directory", "exec format error"]).then_some(NOT_EXECUTABLE)
    }

    /// Writes the message to stderr and returns the exit code.
    pub fn report(&self) -> ExitCode {
        if self.silent {
            return ExitCode::SUCCESS;
        }
        super::output::note(format_args!("wharf: {self}"));
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message.trim_end())?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

/// Output that can't be written.
impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        let silent = source.kind() == io::ErrorKind::BrokenPipe;
        Self {
            silent,
            ..Self::new(format!("write output: {source}"))
        }
    }
}

fn unreachable(endpoint: &str, source: &io::Error) -> Error {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::new(format!("no permission to use the socket {path}"))
            .hint("Run the command as root, or join the group that owns the socket."),
        io::ErrorKind::NotFound => Error::new(format!("no daemon is running: there is no socket {path}"))
            .hint("Start it with `wharf serve`, or name another socket with --endpoint."),
        io::ErrorKind::ConnectionRefused => {
            Error::new(format!("no daemon is running: nobody answers at the socket {path}"))
                .hint("Start it with `wharf serve`; `journalctl -u wharf` tells why it ended.")
        }
        _ => Error::new(format!("connect to {path}: {source}")),
    }
}

fn connect_error(status: &Status) -> Option<io::Error> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error().map(io::Error::from_raw_os_error);
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_could_not_start_gets_the_shells_code() {
        let code = |text: &str| Error::new(text).exec_failure();
        let runc = "start container web: OCI runtime create failed: unable to start container process: exec: \"nope\": \
                    executable file not found in $PATH";
        assert_eq!(code(runc), Some(NOT_FOUND));
        assert_eq!(
            code("start container web: exec /etc/passwd: permission denied"),
            Some(NOT_EXECUTABLE)
        );
        assert_eq!(code("start container web: mount /x: no such file or directory"), None);
    }

    #[test]
    fn a_hint_stands_on_its_own_line() {
        let error = Error::new("it failed").hint("Do that.");
        assert_eq!(error.to_string(), "it failed\n  Do that.");
    }
}
