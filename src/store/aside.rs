//! Where broken things go that may still be worth something to somebody.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Result, create_dir, failed, now};

/// Name of the directory of what was set aside, in the state directory.
pub const SET_ASIDE: &str = "set-aside";

/// Moves `path`, which lies below `state_dir`, to `state_dir/set-aside`, where no version of Wharf looks for anything; returns
/// where it is then. Its name there is the time (Unix, seconds) and where it was.
///
/// # Errors
/// When it can't be moved, for example because it is not there.
pub fn set_aside(state_dir: &Path, path: &Path) -> Result<PathBuf> {
    let directory = state_dir.join(SET_ASIDE);
    create_dir(&directory)?;
    let was = path.strip_prefix(state_dir).unwrap_or(path).to_string_lossy();
    // The longest name that file systems take is 255 bytes; an id at the end tells more than the beginning.
    let was = was.trim_matches('/').replace('/', ".");
    let was: String = was
        .chars()
        .rev()
        .take(200)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    let seconds = now() / 1_000_000_000;
    for number in 0..1000 {
        let again = if number == 0 {
            String::new()
        } else {
            format!("-{number}")
        };
        let target = directory.join(format!("{seconds}{again}-{was}"));
        if target.symlink_metadata().is_ok() {
            continue;
        }
        fs::rename(path, &target).map_err(failed("set aside", path))?;
        return Ok(target);
    }
    Err(failed("set aside", path)(io::ErrorKind::AlreadyExists.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_keeps_its_content_and_its_name() {
        let state = std::env::temp_dir().join(format!("wharf-aside-{}", std::process::id()));
        for content in ["one", "two"] {
            create_dir(&state.join("pods/a")).unwrap();
            fs::write(state.join("pods/a/record"), content).unwrap();
            let now_at = set_aside(&state, &state.join("pods/a")).unwrap();
            assert!(now_at.display().to_string().ends_with("-pods.a"), "{now_at:?}");
            assert_eq!(fs::read_to_string(now_at.join("record")).unwrap(), content);
            assert!(!state.join("pods/a").exists());
        }
        assert_eq!(fs::read_dir(state.join(SET_ASIDE)).unwrap().count(), 2);
        assert!(set_aside(&state, &state.join("pods/a")).is_err());
        fs::remove_dir_all(&state).unwrap();
    }
}
