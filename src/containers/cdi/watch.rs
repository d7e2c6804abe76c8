//! Noticing that spec directories have changed.

use std::path::{Path, PathBuf};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// A watch on directories, or, while one does not exist, on the nearest above it that does.
#[derive(Debug)]
pub(super) struct Watch(Option<Inotify>);

impl Watch {
    /// Begins to watch. Where the kernel gives no watch, everything counts as changed at all times.
    pub(super) fn new(dirs: &[PathBuf]) -> Self {
        let watch = || -> nix::Result<Inotify> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            dirs.iter().try_for_each(|dir| add(&inotify, dir))?;
            Ok(inotify)
        };
        match watch() {
            Ok(inotify) => Self(Some(inotify)),
            Err(error) => {
                tracing::warn!(%error, "CDI directories can't be watched and are read for each container");
                Self(None)
            }
        }
    }

    /// Whether anything has happened since.
    pub(super) fn changed(&self) -> bool {
        match &self.0 {
            None => true,
            Some(inotify) => !matches!(inotify.read_events(), Err(Errno::EAGAIN)),
        }
    }
}

fn add(inotify: &Inotify, dir: &Path) -> nix::Result<()> {
    let changes = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    let mut place = dir;
    loop {
        match inotify.add_watch(place, changes) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => place = place.parent().ok_or(Errno::ENOENT)?,
            other => return other.map(drop),
        }
    }
}
