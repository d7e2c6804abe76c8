//! Turns the process that the daemon started into a monitor: arguments, listener, standing in the system.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
    stat::{Mode, umask},
};

use super::{cgroup::Roots, sys};

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub pod_id: String,
    pub socket: PathBuf,
    pub pid_namespace: bool,
    /// The user namespace that shall own the PID namespace; the monitor's own without one.
    pub user_namespace: Option<PathBuf>,
    pub cgroup: String,
}

/// cgroup of all monitors, outside of every pod's limits.
pub const CGROUP: &str = "/wharf-monitors";

impl Options {
    /// # Errors
    /// A sentence that says what is wrong with the arguments.
    pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
        let (mut pod_id, mut socket, mut user_namespace) = (None, None, None);
        let (mut pid_namespace, mut cgroup) = (false, CGROUP.to_owned());
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{} needs a value", name.display()));
            let text = |value: OsString| {
                value
                    .into_string()
                    .map_err(|value| format!("{}: not UTF-8", value.display()))
            };
            match name.to_str() {
                Some("--pod") => pod_id = Some(text(value()?)?),
                Some("--socket") => socket = Some(PathBuf::from(value()?)),
                Some("--cgroup") => cgroup = text(value()?)?,
                Some("--pid-namespace") => pid_namespace = true,
                Some("--user-namespace") => user_namespace = Some(PathBuf::from(value()?)),
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        Ok(Options {
            pod_id: pod_id.ok_or("--pod is missing")?,
            socket: socket.ok_or("--socket is missing")?,
            pid_namespace,
            user_namespace,
            cgroup,
        })
    }
}

/// Where the monitor says what it can't tell anyone: a file beside its socket, made when there is something to say.
#[derive(Clone, Debug)]
pub struct Notes(PathBuf);

impl Notes {
    pub fn beside(socket: &Path) -> Notes {
        Notes(socket.with_extension("log"))
    }

    /// Best effort; the file does not grow beyond 64 KiB.
    pub fn say(&self, what: &str) {
        let Ok(mut file) = OpenOptions::new().append(true).create(true).open(&self.0) else {
            return;
        };
        if file.metadata().is_ok_and(|meta| meta.len() < 64 << 10) {
            let _ = file.write_all(format!("{} {what}\n", crate::store::now()).as_bytes());
        }
    }
}

/// The socket the daemon handed over as standard input, or one bound here.
///
/// # Errors
/// When the socket can't be bound.
pub fn listener(socket: &Path) -> io::Result<OwnedFd> {
    if let Some(listener) = sys::inherited_listener(0) {
        return Ok(listener);
    }
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener.into())
}

/// Leaves the daemon's session, terminal, descriptors and cgroup.
///
/// # Errors
/// When the process could not be the parent of containers.
pub fn detach(options: &Options, roots: &Roots) -> io::Result<()> {
    let _ = nix::unistd::setsid();
    sys::set_name(c"wharf-monitor");
    // Orphans of containers come here instead of to pid 1.
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0)?;
    umask(Mode::from_bits_truncate(0o022));
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for standard in 0..=2 {
        sys::replace_standard(null.as_fd(), standard)?;
    }
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGPIPE,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ] {
        sys::disregard(signal);
    }
    roots.join(&options.cgroup);
    spare_from_oom();
    Ok(())
}

/// Asks the OOM killer to look elsewhere first. Without the right to lower its score, the process keeps what it has.
fn spare_from_oom() {
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
}

/// A descriptor that becomes readable when a child ends.
///
/// # Errors
/// When the kernel gives none.
pub fn child_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(
        &signals,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_read_and_mistakes_named() {
        assert_eq!(
            parse(&[
                "--pod",
                "p",
                "--socket",
                "/s",
                "--pid-namespace",
                "--user-namespace",
                "/u",
                "--cgroup",
                "/m"
            ]),
            Ok(Options {
                pod_id: "p".into(),
                socket: "/s".into(),
                pid_namespace: true,
                user_namespace: Some("/u".into()),
                cgroup: "/m".into()
            })
        );
        assert_eq!(parse(&["--pod", "p", "--socket", "/s"]).unwrap().cgroup, CGROUP);
        for (args, message) in [
            (&["--pod"][..], "--pod needs a value"),
            (&["--pod", "p"], "--socket is missing"),
            (&["--socket", "s"], "--pod is missing"),
            (&["--what"], "unknown argument --what"),
        ] {
            assert_eq!(parse(args).unwrap_err(), message);
        }
    }
}
