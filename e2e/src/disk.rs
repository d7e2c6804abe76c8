//! A disk that loses what was not flushed. Its server, a FUSE file system with one file, `disk`, that a loop device makes
//! a block device of, notes every write and every flush in a log. From the log a test makes the disk as it is after a
//! power loss at any moment: what was flushed is there, of what was written since the last flush some or nothing is.
//! Device mapper's log-writes target does the same, where the kernel has it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::Result;
use crate::fuse::{self, BUFFER, Request, reply};
use crate::lab::{Lab, program};

/// Bytes of the disk.
pub const SIZE: u64 = 192 << 20;
/// Name of the one file.
const FILE: &str = "disk";
/// Largest write, as the kernel is told.
const MAX_WRITE: u32 = 128 << 10;

/// Where a daemon's state directory is.
#[derive(Debug, Clone)]
pub enum Source {
    /// On a new disk whose writes are logged.
    Logged,
    /// On the disk that is in this file.
    Image(PathBuf),
    /// On the disk that is in this file, with project quotas; the kind of its file system.
    Quotas(PathBuf, &'static str),
}

/// Serves the disk in `dir`; what it holds is kept in `store` and every write in `log`. Until the process is killed.
///
/// # Errors
/// When it can't be mounted, or the files can't be written.
pub fn serve(dir: &Path, store: &Path, log: &Path, mut told: impl FnMut(&str)) -> Result {
    let store = OpenOptions::new().read(true).write(true).create_new(true).open(store)?;
    store.set_len(SIZE)?;
    let mut log = OpenOptions::new().append(true).create_new(true).open(log)?;
    let mut device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40755,user_id=0,group_id=0", device.as_raw_fd());
    mount(
        Some("disk"),
        dir,
        Some("fuse"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    told(fuse::READY);
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT | libc::EAGAIN)) => continue,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let request = Request::new(&buffer[..length])?;
        let Some(answer) = answer(&request, &store, &mut log)? else {
            continue;
        };
        match device.write_all(&answer) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
}

fn answer(request: &Request, store: &File, log: &mut File) -> Result<Option<Vec<u8>>> {
    use fuse::op;
    let word = |at: usize| {
        request
            .body
            .get(at..at + 4)
            .map(|bytes| u32::from_ne_bytes(bytes.try_into().unwrap_or_default()))
    };
    let long = |at: usize| {
        request
            .body
            .get(at..at + 8)
            .map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
    };
    let body = match request.operation {
        op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return Ok(None),
        op::INIT => fuse::init(MAX_WRITE),
        op::GETATTR | op::SETATTR => fuse::attributes_reply(request.node, SIZE),
        op::LOOKUP if request.is_lookup_of(FILE) => fuse::entry(SIZE),
        op::LOOKUP => return Ok(Some(reply(request, -libc::ENOENT, &[]))),
        op::OPEN => vec![0; 16],
        op::READ => {
            let (offset, size) = (long(8).unwrap_or(0), word(16).unwrap_or(0));
            let size = u64::from(size).min(SIZE.saturating_sub(offset));
            let mut bytes = vec![0; usize::try_from(size)?];
            store.read_exact_at(&mut bytes, offset)?;
            bytes
        }
        op::WRITE => {
            let (offset, size) = (long(8).unwrap_or(0), word(16).unwrap_or(0));
            let data = request
                .body
                .get(40..40 + size as usize)
                .ok_or("a write without its data")?;
            store.write_all_at(data, offset)?;
            let mut entry = vec![b'W'];
            entry.extend(offset.to_ne_bytes());
            entry.extend(size.to_ne_bytes());
            entry.extend(data);
            log.write_all(&entry)?;
            [size.to_ne_bytes(), [0; 4]].concat()
        }
        op::FSYNC => {
            log.write_all(b"F")?;
            vec![]
        }
        op::FLUSH | op::RELEASE => vec![],
        op::STATFS => vec![0; 80],
        _ => return Ok(Some(reply(request, -libc::ENOSYS, &[]))),
    };
    Ok(Some(reply(request, 0, &body)))
}

enum Entry<'a> {
    Write(u64, &'a [u8]),
    Flush,
}

/// What was written, in order.
pub struct Log(Vec<u8>);

impl Log {
    /// Reads the log of a disk.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self(std::fs::read(path)?))
    }

    /// Bytes of the log: a moment is told by how many there were.
    pub fn end(&self) -> u64 {
        self.0.len() as u64
    }

    fn entries(&self, until: u64) -> impl Iterator<Item = Entry<'_>> {
        let mut rest = &self.0[..usize::try_from(until).unwrap_or(usize::MAX).min(self.0.len())];
        std::iter::from_fn(move || {
            let (kind, more) = rest.split_first()?;
            if *kind == b'F' {
                rest = more;
                return Some(Entry::Flush);
            }
            let offset = u64::from_ne_bytes(more.get(..8)?.try_into().ok()?);
            let size = u32::from_ne_bytes(more.get(8..12)?.try_into().ok()?);
            let end = 12 + usize::try_from(size).ok()?;
            let data = more.get(12..end)?;
            rest = &more[end..];
            Some(Entry::Write(offset, data))
        })
    }

    /// Writes the disk as a power loss at `moment` leaves it to `path`. Of each write after the last flush, `kept` says
    /// whether it reached the disk. Returns how many did not.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn lose(&self, moment: u64, mut kept: impl FnMut() -> bool, path: &Path) -> Result<usize> {
        let disk = File::create(path)?;
        disk.set_len(SIZE)?;
        let flushes = self
            .entries(moment)
            .filter(|entry| matches!(entry, Entry::Flush))
            .count();
        let (mut seen, mut lost) = (0, 0);
        for entry in self.entries(moment) {
            match entry {
                Entry::Flush => seen += 1,
                Entry::Write(offset, data) if seen < flushes || kept() => disk.write_all_at(data, offset)?,
                Entry::Write(..) => lost += 1,
            }
        }
        Ok(lost)
    }
}

/// The server of a logged disk in a lab. It ends with the lab.
pub struct Disk {
    _server: Child,
    /// Its log.
    pub log: PathBuf,
}

impl Disk {
    /// Starts one below `dir` and makes a file system on it; returns it and the file to mount.
    pub(crate) async fn start(lab: &Lab, dir: &Path) -> Result<(Self, PathBuf)> {
        let at = |name: &str| dir.join("disk").join(name);
        std::fs::create_dir_all(at("mount"))?;
        let mut server = lab
            .command(program("lab")?)
            .arg("disk")
            .args([at("mount"), at("store"), at("log")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = server.stdout.take().ok_or("the disk's server has no output")?;
        let mut told = BufReader::new(stdout).lines();
        if told.next_line().await?.as_deref() != Some(fuse::READY) {
            return Err("the disk's server did not start; its message is above".into());
        }
        let file = at("mount").join(FILE);
        let path = file.to_string_lossy().into_owned();
        let options = [
            "-q",
            "-F",
            "-E",
            "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
            "-J",
            "size=8",
            &path,
        ];
        lab.output("mkfs.ext4", &options).await?;
        Ok((
            Self {
                _server: server,
                log: at("log"),
            },
            file,
        ))
    }

    /// This moment, for [`Log::lose`]: what is acknowledged by now was flushed by now.
    ///
    /// # Errors
    /// When the log can't be looked at.
    pub fn now(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.log)?.len())
    }
}

/// Mounts the disk in `file`, which has a file system of this kind, at `dir` with project quotas.
pub(crate) async fn mount_with_quotas(lab: &Lab, file: &Path, kind: &str, dir: &Path) -> Result {
    let (file, dir) = (file.to_string_lossy(), dir.to_string_lossy());
    lab.output("mount", &["-t", kind, "-o", "loop,prjquota", &file, &dir])
        .await?;
    Ok(())
}

/// Mounts the disk in `file` at `dir`. The loop device goes with the mount. Nothing is written for as long as a test
/// lasts but what is synced: ext4 would do so every five seconds.
pub(crate) async fn mount_at(lab: &Lab, file: &Path, dir: &Path) -> Result {
    let (file, dir) = (file.to_string_lossy(), dir.to_string_lossy());
    lab.output("mount", &["-t", "ext4", "-o", "loop,commit=900", &file, &dir])
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_kept_and_of_the_rest_what_is_said() {
        let write = |offset: u64, data: &[u8]| {
            let size = u32::try_from(data.len()).unwrap();
            [b"W".as_slice(), &offset.to_ne_bytes(), &size.to_ne_bytes(), data].concat()
        };
        let bytes = [write(0, b"aa"), b"F".to_vec(), write(0, b"bb"), write(2, b"cc")].concat();
        let log = Log(bytes);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let after = |moment: u64, kept: bool| {
            log.lose(moment, || kept, &path).unwrap();
            let mut start = [0; 4];
            File::open(&path).unwrap().read_exact(&mut start).unwrap();
            start
        };
        assert_eq!(&after(log.end(), false), b"aa\0\0");
        assert_eq!(&after(log.end(), true), b"bbcc");
        assert_eq!(
            &after(log.end() - 1, true),
            b"bb\0\0",
            "a write that was under way is none"
        );
        assert_eq!(&after(10, false), &[0; 4]);
    }
}
