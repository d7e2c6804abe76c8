//! The smallest FUSE server: a file system that gets stuck, as one does whose network has gone. It has one empty file,
//! `file`. Closing it waits for an answer that never comes, and no signal ends that: a process that has it open can be
//! killed and does not go away until the server does. Looking up `hang` and listing the directory wait just so.
//!
//! The protocol is that of /dev/fuse, see linux/fuse.h: a header of 40 bytes and the request's own struct come in one
//! read; the answer is a header of 16 bytes and the answer's own struct in one write.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::Result;
use crate::lab::{Lab, program};

/// Name of the one file.
pub const FILE: &str = "file";
/// Name of what nobody ever learns whether it is there; also what is told of such a request.
pub const HANG: &str = "hang";
/// Told when the file system is mounted.
pub const READY: &str = "ready";
/// Told when somebody waits for the end of a close.
pub const CLOSE: &str = "close";
/// Told when somebody waits for a list of the directory.
pub const LIST: &str = "list";

const ROOT: u64 = 1;
const NODE: u64 = 2;
/// The kernel refuses a server whose buffer is smaller than a request can be.
pub(crate) const BUFFER: usize = 1 << 20;
/// The attributes and names stay valid for so many seconds: longer than any test.
const VALID: u64 = 3600;

pub(crate) mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
}

/// Mounts the file system at `dir` and serves it until the process is killed or it is unmounted. `told` gets [`READY`]
/// when it is mounted, and then the name of each request that is left without an answer.
///
/// # Errors
/// When it can't be mounted.
pub fn serve(dir: &Path, mut told: impl FnMut(&str)) -> Result {
    let mut fuse = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40755,user_id=0,group_id=0,allow_other",
        fuse.as_raw_fd()
    );
    mount(
        Some("stuck"),
        dir,
        Some("fuse"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    told(READY);
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match fuse.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT | libc::EAGAIN)) => continue,
            // It is unmounted.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let request = Request::new(&buffer[..length])?;
        let answer = match request.answer() {
            Answer::Bytes(answer) => answer,
            Answer::None => continue,
            Answer::Never(name) => {
                told(name);
                continue;
            }
        };
        match fuse.write_all(&answer) {
            // ENOENT: whoever asked has gone.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
}

/// A request of the kernel.
pub(crate) struct Request<'a> {
    pub operation: u32,
    unique: u64,
    pub node: u64,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let parse = || {
            Some(Self {
                operation: word(4)?,
                unique: long(8)?,
                node: long(16)?,
                body: bytes.get(40..)?,
            })
        };
        parse().ok_or_else(|| "a request is shorter than its header".into())
    }

    fn answer(&self) -> Answer {
        let body = match self.operation {
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return Answer::None,
            // What this file system is for.
            op::FLUSH => return Answer::Never(CLOSE),
            op::OPENDIR => return Answer::Never(LIST),
            op::LOOKUP if self.is_lookup_of(HANG) => return Answer::Never(HANG),
            op::INIT => init(4096),
            op::GETATTR => attributes_reply(self.node, 0),
            op::LOOKUP if self.is_lookup_of(FILE) => entry(0),
            op::LOOKUP => return self.reply(-libc::ENOENT, &[]),
            // Handle, flags, and a word that nobody uses.
            op::OPEN => vec![0; 16],
            op::RELEASE => vec![],
            op::STATFS => vec![0; 80],
            _ => return self.reply(-libc::ENOSYS, &[]),
        };
        self.reply(0, &body)
    }

    pub fn is_lookup_of(&self, name: &str) -> bool {
        self.node == ROOT && self.body.strip_suffix(b"\0") == Some(name.as_bytes())
    }

    fn reply(&self, error: i32, body: &[u8]) -> Answer {
        Answer::Bytes(reply(self, error, body))
    }
}

/// The answer to `request`: an error's number, negative, or 0 and what was asked for.
pub(crate) fn reply(request: &Request, error: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(error.to_ne_bytes());
    bytes.extend(request.unique.to_ne_bytes());
    bytes.extend(body);
    bytes
}

enum Answer {
    Bytes(Vec<u8>),
    /// The kernel waits for none.
    None,
    /// The kernel waits for one.
    Never(&'static str),
}

/// fuse_init_out of 7.23 and later: version, readahead, large writes and nothing else, limits, and space for what came
/// later.
pub(crate) fn init(max_write: u32) -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    let mut body = Vec::new();
    for word in [7_u32, 31, 0, BIG_WRITES] {
        body.extend(word.to_ne_bytes());
    }
    body.extend(12_u16.to_ne_bytes());
    body.extend(9_u16.to_ne_bytes());
    body.extend(max_write.to_ne_bytes());
    body.extend(1_u32.to_ne_bytes());
    body.resize(64, 0);
    body
}

/// fuse_entry_out of the file: node, generation, how long name and attributes are valid, attributes.
pub(crate) fn entry(size: u64) -> Vec<u8> {
    let mut body = Vec::new();
    for long in [NODE, 0, VALID, VALID, 0] {
        body.extend(long.to_ne_bytes());
    }
    body.extend(attributes(NODE, size));
    body
}

/// fuse_attr_out: how long they are valid, attributes.
pub(crate) fn attributes_reply(node: u64, size: u64) -> Vec<u8> {
    [VALID.to_ne_bytes().as_slice(), &[0; 8], &attributes(node, size)].concat()
}

/// fuse_attr of a node; `size` is the file's.
fn attributes(node: u64, size: u64) -> Vec<u8> {
    let (mode, size): (u32, u64) = if node == ROOT {
        (0o040_755, 0)
    } else {
        (0o100_644, size)
    };
    let mut body = Vec::new();
    // Node, size, blocks, three times.
    for long in [node, size, size / 512, 0, 0, 0] {
        body.extend(long.to_ne_bytes());
    }
    // Parts of the times, mode, links, owner, group, device, block size, flags.
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        body.extend(word.to_ne_bytes());
    }
    body
}

/// The file system in a lab.
pub struct Stuck {
    server: i32,
    outer: Child,
    told: Lines<BufReader<ChildStdout>>,
    dir: PathBuf,
}

impl Stuck {
    /// Mounts it at `dir`, which is made.
    ///
    /// # Errors
    /// When it can't be mounted.
    pub async fn start(lab: &Lab, dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut outer = lab
            .command(program("lab")?)
            .arg("fuse")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = outer.stdout.take().ok_or("the server has no output")?;
        let mut stuck = Self {
            server: lab.inner_pid(&outer).await?,
            outer,
            told: BufReader::new(stdout).lines(),
            dir,
        };
        stuck.waits(READY).await?;
        Ok(stuck)
    }

    /// Waits until somebody waits for [`CLOSE`], [`LIST`] or [`HANG`].
    ///
    /// # Errors
    /// When nobody does in time.
    pub async fn waits(&mut self, what: &str) -> Result {
        let wait = async {
            while let Some(line) = self.told.next_line().await? {
                if line == what {
                    return Ok(());
                }
            }
            Err(format!("the file system ended before {what}").into())
        };
        tokio::time::timeout(crate::PATIENCE, wait)
            .await
            .map_err(|_| format!("nobody waits for {what}"))?
    }

    /// Ends the server, upon which whoever waits gets an error.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn end(mut self, lab: &Lab) -> Result {
        kill(Pid::from_raw(self.server), Signal::SIGKILL)?;
        self.outer.wait().await?;
        lab.output("umount", &["--lazy", &self.dir.to_string_lossy()]).await?;
        Ok(())
    }
}
