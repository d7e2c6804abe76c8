//! What strace sees of a process, all its threads, and all that these start.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Result;

/// A tracer, which ends with this.
pub struct Trace {
    tracer: Child,
    file: PathBuf,
    read: usize,
}

/// One line of what it has seen.
pub struct Call<'a> {
    /// Of the system call.
    pub name: &'a str,
    /// False for the rest of one that another thread's has cut in two.
    pub begins: bool,
    /// The line behind the thread's number.
    pub text: &'a str,
}

impl Trace {
    /// Begins, and writes to `file`.
    ///
    /// # Errors
    /// When strace can't be started.
    pub fn attach(pid: i32, file: PathBuf) -> Result<Self> {
        let tracer = Command::new("strace")
            .args(["--follow-forks", "--quiet=all", "--signal=none", "--string-limit=0"])
            .arg("--syscall-times=us")
            .arg("--output")
            .arg(&file)
            .args(["--attach", &pid.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("start strace, which `make setup` installs: {error}"))?;
        Ok(Self { tracer, file, read: 0 })
    }

    /// The lines since the last time, once none has come for as long as `rest`. What goes on after an answer belongs to it:
    /// there is no event that says that a process does nothing.
    pub async fn since(&mut self, rest: Duration) -> String {
        let mut length = 0;
        loop {
            tokio::time::sleep(rest).await;
            let now = std::fs::metadata(&self.file).map_or(0, |meta| meta.len());
            if now == length {
                break;
            }
            length = now;
        }
        let bytes = std::fs::read(&self.file).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes.get(self.read..).unwrap_or_default()).into_owned();
        self.read = bytes.len();
        text
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.tracer.id().cast_signed()), Signal::SIGTERM);
        let _ = self.tracer.wait();
    }
}

/// The call of a line: `12 openat(AT_FDCWD, ...) = 3 <0.000015>`, or, cut in two by another's,
/// `12 openat(AT_FDCWD, ... <unfinished ...>` and `12 <... openat resumed>) = 3 <0.000015>`.
#[must_use]
pub fn call(line: &str) -> Option<Call<'_>> {
    let (_, rest) = line.trim_start().split_once(' ')?;
    let text = rest.trim_start();
    let (name, begins) = match text.strip_prefix("<... ") {
        Some(rest) => (rest.split(' ').next()?, false),
        None => (text.split_once('(')?.0, true),
    };
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some(Call { name, begins, text })
}
