//! One run of the runtime program, in a helper that has nothing else to do.

use std::{
    ffi::OsStr,
    fs,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio as Std},
};

use super::{
    super::{Error, Result, Stdio, error::Context as _},
    console::ConsoleSocket,
};
use crate::sys;

/// Where the program writes the pid of a container's init, in the bundle.
pub(super) const PID_FILE: &str = "runtime.pid";

/// Where the program logs, in the bundle.
const LOG_FILE: &str = "runtime.log";

/// The program with its arguments. It runs in the bundle, so that the socket paths that it gets are short.
pub(super) struct Invocation {
    command: Command,
    program: PathBuf,
    bundle: PathBuf,
    pid_file: String,
}

impl Invocation {
    pub(super) fn new(program: &Path, root: Option<&Path>, first: &[String], bundle: &Path) -> Self {
        let _ = fs::remove_file(bundle.join(LOG_FILE));
        let mut invocation = Self::in_directory(program, root, first, bundle);
        invocation.arguments(["--log", LOG_FILE, "--log-format", "json"]);
        invocation
    }

    /// For an operation that is told no bundle: what fails is on stderr.
    pub(super) fn without_bundle(program: &Path, root: Option<&Path>, first: &[String]) -> Self {
        Self::in_directory(program, root, first, Path::new("/"))
    }

    fn in_directory(program: &Path, root: Option<&Path>, first: &[String], bundle: &Path) -> Self {
        let mut command = Command::new(program);
        command.current_dir(bundle).args(first);
        // When the monitor dies its helper does, and then the program: what it made on would be nobody's.
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(|| sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map(drop)) };
        if let Some(root) = root {
            command.arg("--root").arg(root);
        }
        Self {
            command,
            program: program.to_owned(),
            bundle: bundle.to_owned(),
            pid_file: PID_FILE.to_owned(),
        }
    }

    pub(super) fn arguments<S: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = S>) {
        self.command.args(arguments);
    }

    pub(super) fn pid_file(&mut self, name: String) {
        self.pid_file = name;
    }

    /// The program finds others there.
    pub(super) fn search_path(&mut self, path: std::ffi::OsString) {
        self.command.env("PATH", path);
    }

    pub(super) fn pid_file_name(&self) -> &str {
        &self.pid_file
    }

    /// Runs the program to its end, with no streams.
    pub(super) fn run(&mut self) -> Result<()> {
        self.command.stdin(Std::null()).stdout(Std::null()).stderr(Std::piped());
        let output = self
            .command
            .output()
            .context(|| format!("run {}", self.program.display()))?;
        self.check(output.status, &output.stderr)
    }

    /// Runs the program, which leaves a process of the container behind with the given streams; returns its pid and the
    /// master of its terminal.
    pub(super) fn run_detached(&mut self, stdio: &Stdio, id: &str) -> Result<(i32, Option<OwnedFd>)> {
        let console = match stdio {
            Stdio::Streams([input, output, error]) => {
                let copy = |stream: &std::os::fd::BorrowedFd| {
                    stream
                        .try_clone_to_owned()
                        .map(Std::from)
                        .context(|| "copy a stream".into())
                };
                self.command
                    .stdin(copy(input)?)
                    .stdout(copy(output)?)
                    .stderr(copy(error)?);
                None
            }
            Stdio::Terminal => {
                self.command.stdin(Std::null()).stdout(Std::null()).stderr(Std::null());
                let console = ConsoleSocket::bind(&self.bundle)?;
                self.command.arg("--console-socket").arg(console.name());
                Some(console)
            }
        };
        let pid_file = self.bundle.join(&self.pid_file);
        let _ = fs::remove_file(&pid_file);
        self.command.arg(id);
        let status = self
            .command
            .status()
            .context(|| format!("run {}", self.program.display()))?;
        self.check(status, b"")?;
        let text = fs::read_to_string(&pid_file).context(|| format!("read {}", pid_file.display()))?;
        let _ = fs::remove_file(&pid_file);
        let pid = text.trim().parse().map_err(|_| {
            Error::Failed(format!(
                "{} wrote no pid to {}",
                self.program.display(),
                pid_file.display()
            ))
        })?;
        let master = console.map(|console| console.receive()).transpose()?;
        Ok((pid, master))
    }

    fn check(&self, status: ExitStatus, stderr: &[u8]) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        let log = fs::read_to_string(self.bundle.join(LOG_FILE)).unwrap_or_default();
        let message = last_error(&log)
            .or_else(|| Some(String::from_utf8_lossy(stderr).trim().to_owned()).filter(|text| !text.is_empty()))
            .unwrap_or_else(|| status.to_string());
        Err(Error::Failed(format!("{name}: {message}")))
    }

    /// Removes what the program left in the bundle.
    pub(super) fn tidy(&self) {
        for name in [LOG_FILE, PID_FILE] {
            let _ = fs::remove_file(self.bundle.join(name));
        }
    }
}

/// The last message of level "error" in a JSON log.
fn last_error(log: &str) -> Option<String> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|entry| entry["level"] == "error" || entry["level"] == "fatal")
        .filter_map(|entry| entry["msg"].as_str().map(ToOwned::to_owned))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_the_message() {
        let log = "{\"level\":\"warning\",\"msg\":\"w\"}\nnot json\n{\"level\":\"error\",\"msg\":\"first\"}\n\
                   {\"level\":\"error\",\"msg\":\"exec failed\"}\n";
        assert_eq!(last_error(log).as_deref(), Some("exec failed"));
        assert_eq!(last_error(""), None);
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let dir = std::env::temp_dir();
        let error = Invocation::new(Path::new("/no/such/runtime"), None, &[], &dir)
            .run()
            .unwrap_err();
        assert!(error.to_string().contains("/no/such/runtime"), "{error}");
    }
}
