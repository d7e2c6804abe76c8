//! Fail points: named places where a test makes the daemon fail, hang or die.
//!
//! They exist in debug builds only, which is what the end-to-end tests run; in a release build [`reach`] is empty. The
//! environment variable `WHARF_FAILPOINTS` names a directory. A file `NAME` in it arms the point of that name; what it
//! says is done: `error` lets the step fail, `hang` holds it up until the file goes, `kill` ends the daemon by SIGKILL. Who
//! arms a point learns from the file `NAME.reached` that it was reached. Every point is in the table that
//! `e2e/tests/promises/fail_points.rs` prints.

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

    fn directory() -> Option<&'static Path> {
        static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
        DIRECTORY
            .get_or_init(|| std::env::var_os("WHARF_FAILPOINTS").map(PathBuf::from))
            .as_deref()
    }

    /// Does what the test wants at the point `name`.
    ///
    /// # Errors
    /// When the test wants one.
    pub async fn reach(name: &str) -> io::Result<()> {
        let Some(directory) = directory() else { return Ok(()) };
        let file = directory.join(name);
        // Reading a small file on a runtime's thread: this is no code that anybody but a test runs.
        while let Ok(wanted) = fs::read_to_string(&file) {
            fs::write(directory.join(format!("{name}.reached")), "")?;
            match wanted.trim() {
                "error" => return Err(io::Error::other(format!("fail point {name}"))),
                "kill" => {
                    fs::remove_file(&file)?;
                    nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL)?;
                }
                "hang" => {}
                other => return Err(io::Error::other(format!("fail point {name} can't {other:?}"))),
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

#[cfg(debug_assertions)]
pub use armed::reach;

/// Nothing: see the module.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[expect(clippy::unused_async, reason = "as in a debug build")]
pub async fn reach(_name: &str) -> std::io::Result<()> {
    Ok(())
}
