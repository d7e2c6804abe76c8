//! The socket on which an OCI runtime program hands over the master of a terminal.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use super::super::{Error, Result, error::Context as _};

/// A listening socket in the bundle, removed when dropped.
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    name: String,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Binds a socket in `bundle`. Changes the process's directory, as a socket's path must be short (unix(7): 108
    /// bytes): only for a helper.
    pub(super) fn bind(bundle: &Path) -> Result<Self> {
        let name = format!("console-{}.sock", std::process::id());
        std::env::set_current_dir(bundle).context(|| format!("enter {}", bundle.display()))?;
        let listener = UnixListener::bind(&name).context(|| format!("listen on {name} in {}", bundle.display()))?;
        Ok(Self {
            listener,
            path: bundle.join(&name),
            name,
        })
    }

    /// Its name in the bundle.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The master, after the program has succeeded: it has connected and sent by then.
    pub(super) fn receive(&self) -> Result<OwnedFd> {
        self.listener
            .set_nonblocking(true)
            .context(|| "set the console socket up".into())?;
        let (stream, _) = self
            .listener
            .accept()
            .context(|| "accept the runtime's console connection".into())?;
        let mut text = [0u8; 256];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [io::IoSliceMut::new(&mut text)];
        let message = recvmsg::<UnixAddr>(
            stream.as_fd().as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .context(|| "receive the terminal".into())?;
        for part in message.cmsgs().context(|| "receive the terminal".into())? {
            if let ControlMessageOwned::ScmRights(fds) = part
                && let Some(fd) = fds.first()
            {
                // SAFETY: the kernel has just put this descriptor into our table, and nothing else knows it.
                return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
        Err(Error::Failed("the runtime sent no terminal".into()))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
