//! Hooks: programs that a spec wants run at points of a container's life, with its state on their standard input.
//!
//! Those of the runtime's own namespaces (prestart, createRuntime) run before the helper has changed its own, in a
//! process that is forked early for them; createContainer and startContainer hooks run in init; poststart and poststop
//! hooks in the helpers of start and delete. Order, states and failures are runc's.

use super::spec::Bundle;
use crate::runtime::error::Context;
use crate::runtime::report::{self, Report};
use crate::runtime::{Error, Result};
use crate::sys::{self, Forked};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Spec};
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

const ALL: [Moment; 6] = [
    Moment::Prestart,
    Moment::CreateRuntime,
    Moment::CreateContainer,
    Moment::StartContainer,
    Moment::Poststart,
    Moment::Poststop,
];

impl Moment {
    /// As the spec calls it.
    fn name(self) -> &'static str {
        match self {
            Moment::Prestart => "prestart",
            Moment::CreateRuntime => "createRuntime",
            Moment::CreateContainer => "createContainer",
            Moment::StartContainer => "startContainer",
            Moment::Poststart => "poststart",
            Moment::Poststop => "poststop",
        }
    }

    /// What the hook is told of the container.
    fn status(self) -> &'static str {
        match self {
            Moment::Prestart | Moment::CreateRuntime | Moment::CreateContainer => "creating",
            Moment::StartContainer => "created",
            Moment::Poststart => "running",
            Moment::Poststop => "stopped",
        }
    }
}

/// The hooks of one moment.
pub fn of(spec: &Spec, moment: Moment) -> &[Hook] {
    let Some(hooks) = spec.hooks() else { return &[] };
    let list = match moment {
        #[allow(deprecated)] // Still what older drivers use.
        Moment::Prestart => hooks.prestart(),
        Moment::CreateRuntime => hooks.create_runtime(),
        Moment::CreateContainer => hooks.create_container(),
        Moment::StartContainer => hooks.start_container(),
        Moment::Poststart => hooks.poststart(),
        Moment::Poststop => hooks.poststop(),
    };
    list.as_deref().unwrap_or_default()
}

/// Whether the root file system must be seen at its path on the host while hooks run.
pub fn before_pivot(spec: &Spec) -> bool {
    wants_runner(spec) || !of(spec, Moment::CreateContainer).is_empty()
}

/// Whether there are hooks for the runtime's own namespaces.
pub fn wants_runner(spec: &Spec) -> bool {
    [Moment::Prestart, Moment::CreateRuntime]
        .into_iter()
        .any(|moment| !of(spec, moment).is_empty())
}

/// Refuses what can't be run.
pub fn check(spec: &Spec) -> Result<()> {
    for moment in ALL {
        for hook in of(spec, moment) {
            let shown = || format!("{} hook {}", moment.name(), hook.path().display());
            if !hook.path().is_absolute() {
                return Err(Error::InvalidSpec(format!("{}: the path is not absolute", shown())));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(Error::InvalidSpec(format!(
                    "{}: the timeout is not above zero",
                    shown()
                )));
            }
        }
    }
    Ok(())
}

/// What hooks and seccomp listeners are told, but for the moment and the process.
pub struct State {
    version: String,
    id: String,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

impl State {
    pub fn new(bundle: &Bundle, id: &str, dir: &Path) -> State {
        State {
            version: bundle.spec.version().clone(),
            id: id.to_owned(),
            bundle: dir.to_owned(),
            annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        }
    }

    fn json(&self, moment: Moment, pid: i32) -> Vec<u8> {
        self.value(moment.status(), pid).to_string().into_bytes()
    }

    /// The specification's state (runtime.md); 0: its process has no number yet.
    pub fn value(&self, status: &str, pid: i32) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        if pid > 0 {
            state["pid"] = pid.into();
        }
        state
    }

    /// Runs the hooks of a moment, one after the other; the first failure ends it.
    pub fn run(&self, hooks: &[Hook], moment: Moment, pid: i32) -> Result<()> {
        if hooks.is_empty() {
            return Ok(());
        }
        let state = self.json(moment, pid);
        // In the container the bundle's path may not exist, or be another thing.
        let inside = matches!(moment, Moment::CreateContainer | Moment::StartContainer);
        let dir = (!inside).then_some(self.bundle.as_path());
        hooks
            .iter()
            .try_for_each(|hook| run(hook, &state, dir).map_err(|why| failed(moment, hook, &why)))
    }

    /// Runs poststop hooks, of which none keeps the others from running.
    pub fn run_poststop(&self, hooks: &[Hook]) -> Result<()> {
        let state = self.json(Moment::Poststop, 0);
        let mut result = Ok(());
        for hook in hooks {
            if let Err(why) = run(hook, &state, Some(&self.bundle)) {
                result = result.and(Err(failed(Moment::Poststop, hook, &why)));
            }
        }
        result
    }
}

fn failed(moment: Moment, hook: &Hook, why: &str) -> Error {
    Error::Failed(format!("{} hook {}: {why}", moment.name(), hook.path().display()))
}

/// Most of a failed hook's output that goes into the error, bytes.
const MAX_OUTPUT: u64 = 2048;

fn run(hook: &Hook, state: &[u8], dir: Option<&Path>) -> std::result::Result<(), String> {
    let io = |what: &'static str| move |error: std::io::Error| format!("{what}: {}", super::process::text(&error));
    // Files in memory: no hook can make us wait, or end us, by not reading or by writing much.
    let memory = || memory_file().map_err(io("make a stream"));
    let (mut input, mut output) = (memory()?, memory()?);
    input.write_all(state).map_err(io("write the state"))?;
    input.rewind().map_err(io("write the state"))?;
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for (name, value) in hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')) {
        command.env(name, value);
    }
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    let copy = || output.try_clone().map_err(io("make a stream"));
    command.stdin(input).stdout(copy()?).stderr(copy()?).process_group(0);
    let mut child = command.spawn().map_err(io("start"))?;
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    let pid = child.id() as i32;
    let ended = wait(pid, limit.map(Duration::from_secs)).map_err(io("wait"))?;
    if !ended {
        // The hook and what it has started.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let status = child.wait().map_err(io("wait"))?;
    if !ended {
        return Err(format!(
            "killed after its timeout of {} seconds",
            limit.unwrap_or_default()
        ));
    }
    if status.success() {
        return Ok(());
    }
    let said = tail(&mut output).unwrap_or_default();
    Err(match said.trim() {
        "" => words(status),
        said => format!("{}: {said}", words(status)),
    })
}

fn words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn memory_file() -> std::io::Result<File> {
    Ok(File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC)?))
}

fn tail(output: &mut File) -> std::io::Result<String> {
    let length = output.seek(SeekFrom::End(0))?;
    output.seek(SeekFrom::Start(length.saturating_sub(MAX_OUTPUT)))?;
    let mut bytes = Vec::new();
    output.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the child ends within the time given. It is not yet waited for afterwards.
fn wait(pid: i32, limit: Option<Duration>) -> std::io::Result<bool> {
    let pidfd = sys::pidfd_open(pid)?;
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let timeout = match end {
            None => PollTimeout::NONE,
            Some(end) => {
                let rest = end.saturating_duration_since(Instant::now());
                PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
            }
        };
        let ready = match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        if ready > 0 {
            return Ok(true);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
    }
}

/// A process that stays in the runtime's namespaces and cgroup, for the hooks that run there. It ends when it has run
/// them, or when the helper drops this.
pub struct Runner {
    channel: OwnedFd,
    pid: i32,
}

impl Runner {
    /// `None` when the spec has no such hooks. To be called before the helper changes anything of itself.
    pub fn start(bundle: &Bundle, state: &State) -> Result<Option<Runner>> {
        if !wants_runner(&bundle.spec) {
            return Ok(None);
        }
        let (ours, theirs) = report::channel()?;
        match sys::fork(0).context(|| "fork for hooks".into())? {
            Forked::Parent { pid, .. } => Ok(Some(Runner { channel: ours, pid })),
            Forked::Child => {
                drop(ours);
                let closed = sys::close_all_but(&[0, 1, 2, theirs.as_raw_fd()]);
                let result = closed
                    .context(|| "close descriptors".into())
                    .and_then(|()| report::receive(theirs.as_fd()));
                let result = match result {
                    Ok(None) => sys::exit_now(0),
                    Ok(Some(init)) => [Moment::Prestart, Moment::CreateRuntime]
                        .into_iter()
                        .try_for_each(|moment| state.run(of(&bundle.spec, moment), moment, init.pid)),
                    Err(error) => Err(error),
                };
                report::send(theirs.as_fd(), &result.map(|()| Report::default()));
                sys::exit_now(0)
            }
        }
    }

    /// Has the hooks run for the container with this init.
    pub fn run(self, init: i32) -> Result<()> {
        let go = Report {
            pid: init,
            ..Report::default()
        };
        report::send(self.channel.as_fd(), &Ok(go));
        let result = report::receive(self.channel.as_fd());
        // It ends at once when it has sent that, or has died already.
        let _ = nix::sys::wait::waitpid(Pid::from_raw(self.pid), None);
        result?.ok_or(Error::HelperDied("hooks")).map(drop)
    }
}

/// In the bundle while poststop hooks are due.
const DUE: &str = "poststop-due";

/// Notes that poststop hooks are to be run, if there are any.
pub fn owe_poststop(bundle: &Bundle, dir: &Path) -> Result<()> {
    if of(&bundle.spec, Moment::Poststop).is_empty() {
        return Ok(());
    }
    let path = dir.join(DUE);
    File::create(&path)
        .map(drop)
        .context(|| format!("make {}", path.display()))
}

/// Runs the poststop hooks, once, however often the container is deleted. Who comes while they run waits for their end.
pub fn pay_poststop(id: &str, dir: &Path) -> Result<()> {
    let path = dir.join(DUE);
    let what = || format!("take {}", path.display());
    let file = match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        result => result.context(what)?,
    };
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| Error::os(what(), e))?;
    if nix::sys::stat::fstat(&*lock).context(what)?.st_nlink == 0 {
        return Ok(());
    }
    let result = Bundle::load(dir).and_then(|bundle| {
        let state = State::new(&bundle, id, dir);
        state.run_poststop(of(&bundle.spec, Moment::Poststop))
    });
    std::fs::remove_file(&path).context(what)?;
    drop(lock);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(line: &str, timeout: Option<i64>) -> Hook {
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into())
            .set_args(Some(["sh", "-c", line].map(str::to_owned).to_vec()))
            .set_env(Some(vec!["WORD=hello".into(), "PATH=/usr/bin:/bin".into()]))
            .set_timeout(timeout);
        hook
    }

    fn state() -> State {
        State {
            version: "1.0.2".into(),
            id: "abc".into(),
            bundle: std::env::temp_dir(),
            annotations: HashMap::from([("key".to_owned(), "value".to_owned())]),
        }
    }

    fn run_one(line: &str, timeout: Option<i64>, pid: i32) -> std::result::Result<(), String> {
        let moment = Moment::Poststart;
        state()
            .run(&[hook(line, timeout)], moment, pid)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_gets_the_state_and_only_its_own_environment() {
        run_one(
            r#"s=$(cat); case "$s" in *'"id":"abc"'*) ;; *) echo "$s"; exit 1;; esac
               case "$s" in *'"status":"running"'*) ;; *) echo "$s"; exit 2;; esac
               case "$s" in *'"pid":77'*'"key":"value"'*|*'"key":"value"'*'"pid":77'*) ;; *) echo "$s"; exit 3;; esac
               [ "$WORD" = hello ] && [ -z "$HOME" ]"#,
            None,
            77,
        )
        .unwrap();
    }

    #[test]
    fn a_failure_names_moment_program_status_and_words() {
        let text = run_one("echo some words >&2; exit 3", Some(20), 1).unwrap_err();
        assert!(
            text.contains("poststart hook /bin/sh: exit status 3: some words"),
            "{text}"
        );
    }

    #[test]
    fn a_hook_is_killed_with_what_it_started_when_its_time_is_over() {
        let began = Instant::now();
        let text = run_one("sleep 600 & sleep 600", Some(1), 1).unwrap_err();
        assert!(text.contains("timeout of 1 seconds"), "{text}");
        assert!(began.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn a_state_that_nobody_reads_and_much_output_do_no_harm() {
        let mut state = state();
        state.annotations.insert("large".into(), "x".repeat(1 << 20));
        let hook = hook("head -c 1000000 /dev/zero", Some(60));
        state.run(&[hook], Moment::Poststart, 1).unwrap();
    }
}
