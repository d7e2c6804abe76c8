//! Reading a log as it grows, through rotation.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;

/// A log file and the place up to which it was read.
pub struct Follower {
    path: PathBuf,
    file: BufReader<File>,
    /// A line whose end isn't written yet.
    line: Vec<u8>,
    /// The kernel's queue of changes.
    changes: Option<Receiver>,
}

impl Follower {
    /// Reads `path` from `offset` on.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn open(path: &Path, offset: impl FnOnce(&File) -> io::Result<u64>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let offset = offset(&file)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(64 * 1024, file),
            line: Vec::new(),
            changes: None,
        })
    }

    /// Begins to watch for changes; call it before the last [`Self::read`] that precedes a [`Self::changed`].
    ///
    /// # Errors
    /// When the kernel refuses a watch.
    pub fn watch(&mut self) -> io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // The directory's watch tells of writes to files in it and of rotation, whatever file has the name now.
        let dir = self
            .path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, events)?;
        // Only that something happened matters, so the queue is read as the stream of bytes that it is.
        let queue = inotify.as_fd().try_clone_to_owned()?;
        self.changes = Some(Receiver::from_owned_fd_unchecked(queue)?);
        Ok(())
    }

    /// Hands every whole line that is there to `each`, also of a file that took this one's place.
    ///
    /// # Errors
    /// When the file can't be read, or what `each` says.
    pub fn read(&mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            // Looked up before reading: the old file gets no more lines once the new one is there.
            let replaced = self.replacement();
            self.read_to_end(&mut each)?;
            let Some(file) = replaced else { return Ok(()) };
            self.file = BufReader::with_capacity(64 * 1024, file);
            self.line.clear();
        }
    }

    fn read_to_end(&mut self, each: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            self.file.read_until(b'\n', &mut self.line)?;
            let Some(line) = self.line.strip_suffix(b"\n") else {
                return Ok(());
            };
            each(line)?;
            self.line.clear();
        }
    }

    /// The file that has the log's name now, if it is another one. An emptied file starts again.
    fn replacement(&self) -> Option<File> {
        let current = self.file.get_ref().metadata().ok()?;
        let file = File::open(&self.path).ok()?;
        let named = file.metadata().ok()?;
        let other = (named.dev(), named.ino()) != (current.dev(), current.ino());
        let read = (&mut self.file.get_ref()).stream_position().ok()?;
        (other || named.len() < read).then_some(file)
    }

    /// Waits for a change in the log's directory. Without [`Self::watch`] it never ends.
    ///
    /// # Errors
    /// When the kernel's queue can't be read.
    pub async fn changed(&self) -> io::Result<()> {
        let Some(changes) = &self.changes else {
            return std::future::pending().await;
        };
        let mut events = [0; 4096];
        loop {
            changes.readable().await?;
            match changes.try_read(&mut events) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn all(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        follower
            .read(|line| {
                lines.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            })
            .unwrap();
        lines
    }

    #[tokio::test]
    async fn a_log_is_followed_through_rotation() {
        let dir = std::env::temp_dir().join(format!("wharf-follow-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let mut log = File::create(&path).unwrap();
        write!(log, "one\ntw").unwrap();
        let mut follower = Follower::open(&path, |_| Ok(0)).unwrap();
        follower.watch().unwrap();
        assert_eq!(all(&mut follower), ["one"]);
        writeln!(log, "o").unwrap();
        follower.changed().await.unwrap();
        assert_eq!(all(&mut follower), ["two"]);
        writeln!(log, "three").unwrap();
        std::fs::rename(&path, dir.join("0.log.1")).unwrap();
        std::fs::write(&path, "four\n").unwrap();
        follower.changed().await.unwrap();
        assert_eq!(all(&mut follower), ["three", "four"]);
        std::fs::write(&path, "a\n").unwrap();
        follower.changed().await.unwrap();
        assert_eq!(all(&mut follower), ["a"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
