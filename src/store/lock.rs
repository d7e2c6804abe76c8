//! One daemon per state directory.

use std::{
    fs,
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};

use super::{Error, Result, failed};

/// Holds a state directory for this process until dropped. The kernel lets go of it when the process dies.
#[derive(Debug)]
pub struct StateLock(#[allow(dead_code, reason = "held for its Drop")] Flock<fs::File>);

impl StateLock {
    /// Takes the lock file in `state_dir`, which must exist.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it.
    pub fn acquire(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join("lock");
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open lock", &path))?;
        let mut pid = String::new();
        file.read_to_string(&mut pid).map_err(failed("read lock", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = if pid.trim().is_empty() {
                    "unknown".to_owned()
                } else {
                    pid.trim().to_owned()
                };
                return Err(Error::Locked {
                    path: state_dir.to_owned(),
                    pid,
                });
            }
            Err((_, errno)) => return Err(failed("lock", &path)(errno.into())),
        };
        let mut note = || {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        note().map_err(failed("write lock", &path))?;
        Ok(Self(lock))
    }
}
