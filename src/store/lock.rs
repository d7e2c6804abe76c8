//! One daemon per state directory.

use std::{
    fs,
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::kill,
    unistd::Pid,
};

use super::{Error, Result, failed};

/// How long the lock of a daemon that has died is waited for.
const ORPHANED: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

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
        let mut lock = match lock(file, pid.trim()) {
            Ok(lock) => lock,
            Err(nix::errno::Errno::EWOULDBLOCK) => {
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
            Err(errno) => return Err(failed("lock", &path)(errno.into())),
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

/// Locks the file. One whose holder has died is waited for: a process that it was just starting may share its files until
/// it runs its own program.
fn lock(mut file: fs::File, holder: &str) -> nix::Result<Flock<fs::File>> {
    let end = Instant::now() + ORPHANED;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if !is_alive(holder) && Instant::now() < end => {
                file = back;
                // The kernel tells nobody when another process lets go of a file; a blocking lock could wait for ever.
                std::thread::sleep(LOOK);
            }
            Err((_, errno)) => return Err(errno),
        }
    }
}

fn is_alive(pid: &str) -> bool {
    let pid = pid.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw);
    pid.is_some_and(|pid| kill(pid, None) != Err(nix::errno::Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_whose_holder_has_died_is_waited_for_and_a_living_ones_is_not() {
        let dir = std::env::temp_dir().join(format!("wharf-store-orphaned-lock-{}", std::process::id()));
        super::super::create_dir(&dir).unwrap();
        let held = StateLock::acquire(&dir).unwrap();
        let begun = Instant::now();
        StateLock::acquire(&dir).expect_err("this process lives");
        assert!(begun.elapsed() < ORPHANED, "it was waited for");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        fs::write(dir.join("lock"), ended.id().to_string()).unwrap();
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(LOOK * 3);
            drop(held);
        });
        StateLock::acquire(&dir).unwrap();
        letting_go.join().unwrap();
        super::super::remove_dir(&dir).unwrap();
    }
}
