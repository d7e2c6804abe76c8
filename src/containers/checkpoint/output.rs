//! The file that a checkpoint becomes: without a name until it is whole, never written to after its time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    unistd::linkat,
};

use super::Patience;
use crate::store;

/// A file on its way to its place.
pub struct Output {
    file: File,
    location: PathBuf,
    /// Beside its place. Where the file system can't have nameless files, the file has this name from the beginning.
    passing: PathBuf,
    named: bool,
}

impl Output {
    /// A new file, for nobody but root: memory holds secrets.
    pub fn create(location: &Path) -> io::Result<Self> {
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file");
        let (dir, name) = location.parent().zip(location.file_name()).ok_or_else(no_name)?;
        let id = store::new_id().map_err(io::Error::other)?;
        let mut passing = std::ffi::OsString::from(".");
        passing.push(name);
        passing.push(format!(".{}", &id[..12]));
        let passing = dir.join(passing);
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        let (file, named) = match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
            Ok(file) => (file, false),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
                ) =>
            {
                (options.create_new(true).open(&passing)?, true)
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            file,
            location: location.to_owned(),
            passing,
            named,
        })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in its place, in place of what may be there.
    pub fn publish(mut self) -> io::Result<()> {
        if !self.named {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(
                AT_FDCWD,
                own.as_str(),
                AT_FDCWD,
                &self.passing,
                AtFlags::AT_SYMLINK_FOLLOW,
            )?;
            self.named = true;
        }
        fs::rename(&self.passing, &self.location)?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.named {
            let _ = fs::remove_file(&self.passing);
        }
    }
}

/// A writer that stops when nobody waits any longer.
pub struct Limited<W> {
    inner: W,
    patience: Patience,
}

impl<W> Limited<W> {
    pub fn new(inner: W, patience: &Patience) -> Self {
        let patience = patience.clone();
        Self { inner, patience }
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.patience.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn a_file_has_no_name_before_it_is_whole() {
        let dir = std::env::temp_dir().join(format!("wharf-output-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let count = || fs::read_dir(&dir).unwrap().count();
        let place = dir.join("c.tar");
        let output = Output::create(&place).unwrap();
        output.file().write_all(b"half").unwrap();
        drop(output);
        assert_eq!(count(), 0);
        for text in ["first", "second"] {
            let output = Output::create(&place).unwrap();
            output.file().write_all(text.as_bytes()).unwrap();
            assert!(fs::read(&place).map_or(true, |old| old == b"first"));
            output.publish().unwrap();
            assert_eq!(fs::read(&place).unwrap(), text.as_bytes());
        }
        assert_eq!(count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nothing_is_written_when_the_time_is_over() {
        let mut limited = Limited::new(Vec::new(), &Patience::until(Instant::now(), CancellationToken::new()));
        assert_eq!(limited.write(b"x").unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
