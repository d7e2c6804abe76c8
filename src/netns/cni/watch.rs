//! Noticing when the directory of CNI configurations changes.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use crate::netns::{Error, Result};

/// A watch on one directory, or, while that does not exist, on the nearest one above it that does.
pub(super) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Begins to watch. What happens from then on is not missed.
    ///
    /// # Errors
    /// When the kernel gives no watch.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let wrong = |errno: nix::Error| Error::io("watch", dir, errno.into());
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(wrong)?;
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let mut place = dir;
        while inotify.add_watch(place, changes).is_err() {
            place = place.parent().ok_or_else(|| wrong(nix::Error::ENOENT))?;
        }
        // SAFETY: the descriptor is owned by the value that is registered, which neither closes nor exchanges it while it
        // lives.
        unsafe { AsyncFd::register(OwnedFd::from(inotify)) }
            .map(Self)
            .map_err(|source| Error::io("watch", dir, source.into()))
    }

    /// Waits until something changes.
    ///
    /// # Errors
    /// When the watch can't be waited for.
    pub(super) async fn changed(&self) -> std::io::Result<()> {
        self.0.readable().await?.retain_ready();
        Ok(())
    }
}
