//! The socket at which plugins connect that somebody else has started.

use std::{
    io,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_socket, listen, socket};
use tokio::{net::UnixListener, sync::Semaphore};

use super::{Error, Inner, Result};

/// Plugins that are on their way in at a time.
const ENTERING: usize = 32;

/// How long to wait when the system has no descriptor left.
const BREATH: Duration = Duration::from_millis(100);

/// Opens the socket, for root alone. A socket file that nobody listens on is replaced.
///
/// # Errors
/// When somebody serves it, as another runtime of this node may, or the system refuses.
pub fn bind(path: &Path) -> Result<UnixListener> {
    open(path).map_err(|error| Error::Listen {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

fn open(path: &Path) -> io::Result<UnixListener> {
    if StdUnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process serves this socket",
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        std::fs::create_dir_all(parent)?;
        std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o700))?;
    }
    // Nobody can connect before it listens, so that nobody has until the mode is set.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    use std::os::fd::AsRawFd as _;
    bind_socket(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listen(&listener, Backlog::new(ENTERING as i32)?)?;
    UnixListener::from_std(StdUnixListener::from(listener))
}

/// Lets plugins in until the daemon ends; then the socket goes.
pub async fn serve(inner: Arc<Inner>, listener: UnixListener) {
    let entering = Arc::new(Semaphore::new(ENTERING));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = inner.ending.cancelled() => break,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::error!(%error, "can't accept NRI plugins");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&entering).try_acquire_owned() else {
            tracing::error!("too many NRI plugins connect at a time; one is turned away");
            continue;
        };
        let owner = Arc::clone(&inner);
        inner.tasks.spawn(async move {
            owner.admit(socket).await;
            drop(place);
        });
    }
    let path = inner.settings.socket.clone();
    if let Err(error) = tokio::fs::remove_file(&path).await {
        tracing::warn!(socket = %path.display(), %error, "can't remove the socket of NRI plugins");
    }
}
