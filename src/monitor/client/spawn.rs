//! Starting a monitor process.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixListener, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::{Child, Command};

use super::{Program, SpawnOptions};
use crate::failpoint;

/// Longest path that a unix socket address takes, bytes.
const LONGEST: usize = 107;

/// A way to name `socket` in a socket address however long its path is; the descriptor must live as long as it is used.
fn address(socket: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if socket.as_os_str().len() <= LONGEST {
        return Ok((socket.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = OwnedFd::from(fs::File::open(dir)?);
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((short, Some(dir)))
}

/// Connects to the monitor that listens at `socket`. Does not wait: a unix socket takes a connection at once or not.
pub(super) fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (address, _dir) = address(socket)?;
    let stream = UnixStream::connect(address)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Binds the socket, hands it to a new monitor as its standard input, and connects to it: the connection waits in the
/// socket's queue until the monitor serves, so nobody has to ask whether it is ready. Needs a tokio runtime around it.
pub(super) fn start(program: &Path, options: SpawnOptions) -> io::Result<(Child, UnixStream)> {
    match fs::remove_file(options.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = {
        let (address, _dir) = address(options.socket)?;
        UnixListener::bind(address)?
    };
    fs::set_permissions(options.socket, fs::Permissions::from_mode(0o600))?;
    // No pre_exec here: without it the child is made by posix_spawn, which does not copy the daemon's page tables.
    let mut command = Command::new(program);
    command.arg0("wharf");
    command
        .args(["monitor", "--pod", options.pod_id, "--socket"])
        .arg(options.socket);
    if options.pid_namespace {
        command.arg("--pid-namespace");
    }
    if let Some(owner) = options.user_namespace {
        command.arg("--user-namespace").arg(owner);
    }
    if let Some(cgroup) = options.cgroup {
        command.args(["--cgroup", cgroup]);
    }
    command
        .env_clear()
        .envs(failpoint::environment())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let stream = connect(options.socket)?;
    let child = command.spawn()?;
    Ok((child, stream))
}

/// What [`start`] needs, owned, for a thread that may wait.
pub(super) struct Order {
    pub program: PathBuf,
    pod_id: String,
    pub socket: PathBuf,
    pid_namespace: bool,
    user_namespace: Option<PathBuf>,
    cgroup: Option<String>,
}

impl Order {
    pub fn new(program: &Program, options: SpawnOptions) -> Order {
        Order {
            program: program.path().to_owned(),
            pod_id: options.pod_id.to_owned(),
            socket: options.socket.to_owned(),
            pid_namespace: options.pid_namespace,
            user_namespace: options.user_namespace.map(Path::to_owned),
            cgroup: options.cgroup.map(str::to_owned),
        }
    }

    pub fn run(&self) -> io::Result<(Child, UnixStream)> {
        let options = SpawnOptions {
            pod_id: &self.pod_id,
            socket: &self.socket,
            pid_namespace: self.pid_namespace,
            user_namespace: self.user_namespace.as_deref(),
            cgroup: self.cgroup.as_deref(),
        };
        start(&self.program, options)
    }
}
