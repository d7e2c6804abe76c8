//! Fail points: named places where a test makes the daemon fail, hang or die.
//!
//! They exist in debug builds only, which is what the end-to-end tests run; in a release build [`reach`] is empty. The
//! environment variable `WHARF_FAILPOINTS` names a directory. A file `NAME` in it arms the point of that name; what it
//! says is done: `error` lets the step fail, `hang` holds it up until the file goes, `kill` ends the daemon by SIGKILL. Who
//! arms a point learns from the file `NAME.reached` that it was reached. Every point is in the table that
//! `e2e/tests/promises/fail_points.rs` prints, those of the monitor, which has no async runtime and inherits the variable,
//! in that of `monitor_points.rs`.

#[cfg(debug_assertions)]
mod armed {
    use std::{
        fs, io,
        path::{Path, PathBuf},
        sync::OnceLock,
        time::Duration,
    };

    /// How often a point that hangs looks whether it still shall.
    const LOOK: Duration = Duration::from_millis(10);

    const VARIABLE: &str = "WHARF_FAILPOINTS";

    fn directory() -> Option<&'static Path> {
        static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
        DIRECTORY
            .get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from))
            .as_deref()
    }

    /// What a monitor must find in its environment to have fail points as well.
    pub fn environment() -> Option<(&'static str, &'static Path)> {
        Some((VARIABLE, directory()?))
    }

    /// Does what the test wants at the point `name`.
    ///
    /// # Errors
    /// When the test wants one.
    pub async fn reach(name: &str) -> io::Result<()> {
        let Some(directory) = directory() else { return Ok(()) };
        while step(directory, name)? {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// As [`reach`], where waiting is done by the whole process.
    ///
    /// # Errors
    /// When the test wants one.
    pub fn reach_now(name: &str) -> io::Result<()> {
        let Some(directory) = directory() else { return Ok(()) };
        while step(directory, name)? {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether the point still hangs. Reading a small file on a runtime's thread: nobody but a test runs this.
    fn step(directory: &Path, name: &str) -> io::Result<bool> {
        let file = directory.join(name);
        let Ok(wanted) = fs::read_to_string(&file) else {
            return Ok(false);
        };
        fs::write(directory.join(format!("{name}.reached")), "")?;
        match wanted.trim() {
            "error" => Err(io::Error::other(format!("fail point {name}"))),
            "kill" => {
                fs::remove_file(&file)?;
                nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL)?;
                Ok(true)
            }
            "hang" => Ok(true),
            other => Err(io::Error::other(format!("fail point {name} can't {other:?}"))),
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::{environment, reach, reach_now};

/// Nothing: see the module.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[expect(clippy::unused_async, reason = "as in a debug build")]
pub async fn reach(_name: &str) -> std::io::Result<()> {
    Ok(())
}

/// Nothing: see the module.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
pub fn reach_now(_name: &str) -> std::io::Result<()> {
    Ok(())
}

/// Nothing: see the module.
#[cfg(not(debug_assertions))]
pub fn environment() -> Option<(&'static str, &'static std::path::Path)> {
    None
}
