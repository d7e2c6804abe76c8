//! Stopping all processes of a cgroup where they stand, and letting them go on.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Cgroup, Error, Result, detect::Layout, fsutil};

/// How long the kernel may take to freeze. A process that waits for a disk freezes when the disk has answered.
const FREEZE_WAIT: Duration = Duration::from_secs(5);

/// Between two looks: of the v1 freezer the kernel announces nothing.
const LOOK: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Freezes every process in this cgroup and below it; returns when all stand still. Blocking.
    ///
    /// # Errors
    /// [`Error::NoController`] without a freezer, [`Error::Busy`] if a process does not freeze in time: all then run on.
    pub fn freeze(&self) -> Result<()> {
        let deadline = Instant::now() + FREEZE_WAIT;
        let freezer = self.freezer()?;
        loop {
            // Written again each time: on v1 a process that was forked meanwhile is only then caught.
            freezer.write(true)?;
            if freezer.is_frozen()? {
                return Ok(());
            }
            if Instant::now() > deadline {
                freezer.write(false)?;
                let mut pids = self.pids();
                pids.truncate(16);
                return Err(Error::Busy {
                    path: freezer.dir,
                    pids,
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets frozen processes go on. Fine if none is frozen, or the cgroup is gone.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn thaw(&self) -> Result<()> {
        let Ok(freezer) = self.freezer() else { return Ok(()) };
        match freezer.write(false) {
            // ENODEV: removed while it was written.
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }

    /// The cgroup's directory where the freezer is, for programs that freeze it themselves.
    ///
    /// # Errors
    /// [`Error::NoController`] without a freezer.
    pub fn freezer_dir(&self) -> Result<PathBuf> {
        self.freezer().map(|freezer| freezer.dir)
    }

    fn freezer(&self) -> Result<Freezer> {
        let path = self.path();
        match &*self.hierarchies.0 {
            Layout::V1 { .. } => match self.hierarchies.v1_root("freezer") {
                Some(root) => Ok(Freezer {
                    dir: root.join(&path[1..]),
                    v2: false,
                }),
                None => Err(Error::NoController {
                    controller: "freezer".to_owned(),
                    file: "freezer.state".to_owned(),
                    path: PathBuf::from(path),
                }),
            },
            Layout::V2 { root } => Ok(Freezer {
                dir: root.join(&path[1..]),
                v2: true,
            }),
        }
    }
}

struct Freezer {
    dir: PathBuf,
    v2: bool,
}

impl Freezer {
    fn write(&self, frozen: bool) -> Result<()> {
        match (self.v2, frozen) {
            (true, true) => fsutil::write(&self.dir.join("cgroup.freeze"), "1"),
            (true, false) => fsutil::write(&self.dir.join("cgroup.freeze"), "0"),
            (false, true) => fsutil::write(&self.dir.join("freezer.state"), "FROZEN"),
            (false, false) => fsutil::write(&self.dir.join("freezer.state"), "THAWED"),
        }
    }

    fn is_frozen(&self) -> Result<bool> {
        if self.v2 {
            let file = self.dir.join("cgroup.events");
            return Ok(fsutil::read_keyed(&file, "frozen") == Some(1));
        }
        Ok(fsutil::read(&self.dir.join("freezer.state"))?.trim() == "FROZEN")
    }
}
