//! AppArmor: whether the kernel enforces it, which profiles are loaded, and a default profile of Wharf's own.
//!
//! A profile must be compiled before the kernel takes it. As with the peers that is left to `apparmor_parser`, which every
//! distribution with AppArmor has: the compiled form changes with the kernel's version, and the parser knows this one's.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

mod profile;

/// Name of the profile that Wharf makes.
pub const OWN_PROFILE: &str = "wharf-default";

/// Where the kernel tells.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Where the parser is looked for, in this order.
const PARSERS: [&str; 4] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
    "/bin/apparmor_parser",
];

/// Why a profile can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not loaded, and Wharf does not make it.
    #[error("AppArmor profile {name:?} is not loaded into the kernel")]
    NotLoaded {
        /// As asked for.
        name: String,
    },
    /// The kernel's list can't be read.
    #[error("read the list of AppArmor profiles {LOADED}: {0}")]
    List(io::Error),
    /// Nothing is there that could compile a profile.
    #[error("AppArmor profile {OWN_PROFILE} can't be loaded: there is no apparmor_parser (package apparmor)")]
    NoParser,
    /// The parser could not be run.
    #[error("run {program}: {source}", program = program.display())]
    Run {
        /// The parser.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The parser refused.
    #[error("{program} did not load AppArmor profile {OWN_PROFILE}: {said}", program = program.display())]
    Refused {
        /// The parser.
        program: PathBuf,
        /// Its words.
        said: String,
    },
}

/// Whether this kernel enforces AppArmor.
#[must_use]
pub fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

/// Makes sure that the profile `name` is loaded, loading it first if it is Wharf's own. Blocks; call it for each container:
/// whoever administers AppArmor may have unloaded it.
///
/// # Errors
/// When it is not loaded and can't be.
pub fn ensure(name: &str) -> Result<(), Error> {
    ensure_with(name, Path::new(LOADED), &PARSERS.map(Path::new))
}

fn ensure_with(name: &str, list: &Path, parsers: &[&Path]) -> Result<(), Error> {
    // One at a time: two parsers that replace the same profile would both succeed, for twice the work.
    static LOADING: Mutex<()> = Mutex::new(());
    let _one = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if is_listed(&fs::read_to_string(list).map_err(Error::List)?, name) {
        return Ok(());
    }
    if name != OWN_PROFILE {
        return Err(Error::NotLoaded { name: name.to_owned() });
    }
    let parser = parsers.iter().find(|parser| parser.exists()).ok_or(Error::NoParser)?;
    load(parser, &profile::text(name, Path::new("/etc/apparmor.d")))
}

/// The list has a line `name (mode)` for each profile; a name may have spaces and parentheses in it.
fn is_listed(list: &str, name: &str) -> bool {
    list.lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

/// Compiles and loads a profile, or replaces it.
fn load(parser: &Path, text: &str) -> Result<(), Error> {
    let failed = |source| Error::Run {
        program: parser.to_owned(),
        source,
    };
    let mut child = Command::new(parser)
        // Not from a cache that an older Wharf may have filled.
        .args(["--replace", "--skip-read-cache"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // Shorter than a pipe holds, so that this waits for nothing. A parser that does not read it says why.
    let written = match child.stdin.take() {
        Some(mut input) => input.write_all(text.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Err(Error::Refused {
            program: parser.to_owned(),
            said: format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        });
    }
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const LIST: &str = "wharf-default-old (enforce)\n/usr/bin/man (complain)\nodd (name) x (enforce)\n";

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("wharf-apparmor-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }

        fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn names_are_compared_as_a_whole() {
        for loaded in ["wharf-default-old", "/usr/bin/man", "odd (name) x"] {
            assert!(is_listed(LIST, loaded), "{loaded}");
        }
        for absent in ["wharf-default", "man", "odd", "", "wharf-default-old (enforce)"] {
            assert!(!is_listed(LIST, absent), "{absent}");
        }
    }

    #[test]
    fn a_profile_of_others_must_be_loaded_and_ones_own_is_loaded_when_it_is_not() {
        let dir = Dir::new("ensure");
        let list = dir.file("profiles", LIST, 0o644);
        ensure_with("/usr/bin/man", &list, &[]).unwrap();
        let error = ensure_with("theirs", &list, &[]).unwrap_err().to_string();
        assert!(error.contains("\"theirs\" is not loaded"), "{error}");
        assert!(matches!(ensure_with(OWN_PROFILE, &list, &[]), Err(Error::NoParser)));
        let (got, arguments) = (dir.0.join("got"), dir.0.join("arguments"));
        let good = dir.file(
            "parser",
            &format!(
                "#!/bin/sh\necho \"$@\" > {}\ncat > {}\n",
                arguments.display(),
                got.display()
            ),
            0o755,
        );
        ensure_with(OWN_PROFILE, &list, &[Path::new("/no/such/parser"), &good]).unwrap();
        assert_eq!(fs::read_to_string(arguments).unwrap(), "--replace --skip-read-cache\n");
        assert!(fs::read_to_string(got).unwrap().contains("profile wharf-default"));
        let bad = dir.file("bad", "#!/bin/sh\necho 'syntax error' >&2\nexit 1\n", 0o755);
        let error = ensure_with(OWN_PROFILE, &list, &[&bad]).unwrap_err().to_string();
        assert!(
            error.contains("syntax error") && error.contains("wharf-default"),
            "{error}"
        );
        let error = ensure_with("x", &dir.0.join("absent"), &[]).unwrap_err();
        assert!(matches!(error, Error::List(_)), "{error}");
    }
}
