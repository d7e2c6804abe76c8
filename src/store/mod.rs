//! Durable records: one file per object, one protobuf message per file, replaced by rename.
//!
//! A record is written whole or not at all, and survives the death of the daemon because the kernel has it. It is not
//! synced: a pod does not survive a power loss either (design decision 4). What must survive one (images) is made
//! durable by its owner with one `syncfs`. The room knows files and messages and asks no other room.

mod aside;
mod bell;
mod lock;
mod published;
mod rendering;
mod schema;

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

pub use aside::{SET_ASIDE, set_aside};
pub use bell::{Bell, Kept};
pub use lock::StateLock;
use prost::Message;
pub use published::Published;
pub use rendering::{Rendering, Same};
pub use schema::{SCHEMA, Versioned, read_versioned, schema, schema_on_disk, take_over};

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{attempt} {}: {source}", path.display())]
    Io {
        /// What was tried, for example "write record".
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else than the expected message.
    #[error("read record {}: {source}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: prost::DecodeError,
    },
    /// A newer daemon has written it.
    #[error(
        "{} has schema {schema}, wharf {} knows {known}: run the newer version again, or see \"Upgrade and downgrade\" in README.md",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        schema: u32,
        /// The newest that this version knows.
        known: u32,
    },
    /// It is a message, but says no schema: no version has written it so.
    #[error("record {} says no schema", path.display())]
    Unversioned {
        /// The file.
        path: PathBuf,
    },
    /// Another daemon uses the directory.
    #[error("state directory {} is in use by another wharf daemon (pid {pid}); give this one its own state_dir", path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
        /// The other daemon's process id, or "unknown".
        pid: String,
    },
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { attempt, path, source }
}

/// Writes `message` as the record at `path`, replacing what was there in one step. Not synced.
///
/// # Errors
/// When the temporary file beside `path` can't be written or renamed; the old record is then intact.
pub fn write_record<M: Message>(path: &Path, message: &M) -> Result<()> {
    write_file(path, &message.encode_to_vec(), 0o600)
}

/// Writes `content` to `path` by rename, with the permission bits `mode`. Not synced.
///
/// # Errors
/// As [`write_record`].
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed("write", path)(error)
    })
}

/// Reads the record at `path`, which has no schema; `None` when there is none. See [`read_versioned`] for the others.
///
/// # Errors
/// When the file can't be read or is not such a record.
pub fn read_record<M: Message + Default>(path: &Path) -> Result<Option<M>> {
    match fs::read(path) {
        Ok(bytes) => M::decode(bytes.as_slice()).map(Some).map_err(|source| Error::Decode {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read record", path)(error)),
    }
}

/// Creates `path` and its parents, readable by root only. Existing directories are left as they are.
///
/// # Errors
/// When a directory can't be made.
pub fn create_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create directory", path))
}

/// Removes the directory `path` with everything in it; absent is fine.
///
/// # Errors
/// When something in it can't be removed.
pub fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove directory", path)(error)),
        _ => Ok(()),
    }
}

/// Names of the directories directly in `path`; none when `path` is absent.
///
/// # Errors
/// When `path` can't be listed.
pub fn list_dirs(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list directory", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list directory", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// A new object id: 64 hexadecimal digits from the kernel's random source.
///
/// # Errors
/// When the random source fails.
pub fn new_id() -> Result<String> {
    let mut bytes = [0u8; 32];
    let path = Path::new("/dev/urandom");
    io::Read::read_exact(&mut fs::File::open(path).map_err(failed("open", path))?, &mut bytes)
        .map_err(failed("read", path))?;
    Ok(hex::encode(bytes))
}

/// The kernel's id of this boot; it changes with each reboot. In debug builds, which is what the end-to-end tests run,
/// `WHARF_BOOT_ID` in the environment replaces it, so that a test can reboot.
///
/// # Errors
/// When /proc does not show it.
pub fn boot_id() -> Result<String> {
    #[cfg(debug_assertions)]
    if let Ok(id) = std::env::var("WHARF_BOOT_ID") {
        return Ok(id);
    }
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path)
        .map(|id| id.trim().to_owned())
        .map_err(failed("read", path))
}

/// Unix time in nanoseconds, the unit of every time in CRI.
#[must_use]
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use wharf_proto::record::Exit;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("wharf-store-{name}-{}", std::process::id()));
        create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn a_record_comes_back_as_written_and_is_replaced_whole() {
        let dir = scratch("replace");
        let path = dir.join("record");
        assert!(read_record::<Exit>(&path).unwrap().is_none());
        for code in [1, 2] {
            let exit = Exit {
                code,
                reason: "Error".into(),
                ..Default::default()
            };
            write_record(&path, &exit).unwrap();
            assert_eq!(read_record::<Exit>(&path).unwrap(), Some(exit));
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file stays behind");
        remove_dir(&dir).unwrap();
        remove_dir(&dir).unwrap();
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = scratch("damaged");
        let path = dir.join("record");
        fs::write(&path, [0xff; 7]).unwrap();
        let error = read_record::<Exit>(&path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        remove_dir(&dir).unwrap();
    }

    #[test]
    fn ids_are_64_hexadecimal_digits_and_differ() {
        let (one, two) = (new_id().unwrap(), new_id().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, two);
    }

    #[test]
    fn a_second_lock_on_a_directory_is_refused_with_the_holders_pid() {
        let dir = scratch("lock");
        let held = StateLock::acquire(&dir).unwrap();
        let error = StateLock::acquire(&dir).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        StateLock::acquire(&dir).unwrap();
        remove_dir(&dir).unwrap();
    }
}
