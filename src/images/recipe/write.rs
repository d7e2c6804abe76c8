//! Writes a recipe while a layer is unpacked.

use std::{
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::fcntl::renameat;

use super::{ASIDE, CONTENT, END, FILE, HEAD, INLINE, MAGIC, MOVED};

/// Own bytes of the archive that are collected before they become an item.
const PENDING: usize = 64 << 10;

/// What a recipe takes on disk beside the layer's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Of the recipe and of the files moved aside that nothing else counts.
    pub bytes: u64,
    /// The same.
    pub inodes: u64,
}

/// Takes down one layer's archive.
pub struct Recorder {
    directory: PathBuf,
    out: zstd::Encoder<'static, File>,
    pending: Vec<u8>,
    total: u64,
    aside: Option<OwnedFd>,
    moves: u64,
    kept: Kept,
}

impl Recorder {
    /// Starts a recipe in `directory`, which holds the layer's `fs/` and no recipe yet.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .open(directory.join(FILE))?;
        file.write_all(&[0; HEAD])?;
        // Headers compress to a few percent at the quickest level already.
        let mut out = zstd::Encoder::new(file, 1)?;
        out.include_checksum(true)?;
        Ok(Self {
            directory: directory.to_owned(),
            out,
            pending: Vec::with_capacity(PENDING + 4096),
            total: 0,
            aside: None,
            moves: 0,
            kept: Kept::default(),
        })
    }

    /// The archive's next bytes are these.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn inline(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.total += bytes.len() as u64;
        if self.pending.len() + bytes.len() > PENDING {
            self.flush()?;
        }
        if bytes.len() > PENDING {
            self.item(INLINE, bytes.len() as u64)?;
            return self.out.write_all(bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// The archive's next `size` bytes are the content of the file `path` below `fs/`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn content(&mut self, path: &[u8], size: u64) -> io::Result<()> {
        self.flush()?;
        self.total += size;
        self.item(CONTENT, size)?;
        self.path(path)
    }

    /// Moves `name` in the directory `parent` out of the way. `path` is where that is below `fs/`; `counted` are the
    /// bytes and inodes that the layer counts no more.
    ///
    /// # Errors
    /// When it can't be moved, or the file can't be written.
    pub fn set_aside(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8], counted: Kept) -> io::Result<()> {
        let aside = match &self.aside {
            Some(aside) => aside,
            None => {
                let directory = self.directory.join(ASIDE);
                fs::create_dir(&directory)?;
                self.kept.inodes += 1;
                self.aside.insert(File::open(directory)?.into())
            }
        };
        renameat(parent, name, aside.as_fd(), self.moves.to_string().as_str())?;
        self.kept.bytes += counted.bytes;
        self.kept.inodes += counted.inodes;
        self.flush()?;
        self.item(MOVED, self.moves)?;
        self.path(path)?;
        self.moves += 1;
        Ok(())
    }

    /// Completes the recipe. Not synced.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn finish(mut self) -> io::Result<Kept> {
        self.flush()?;
        self.item(END, self.total)?;
        let mut file = self.out.finish()?;
        file.rewind()?;
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&self.total.to_le_bytes());
        head.extend_from_slice(&self.moves.to_le_bytes());
        file.write_all(&head)?;
        self.kept.bytes += file.metadata()?.len();
        self.kept.inodes += 1;
        Ok(self.kept)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.item(INLINE, self.pending.len() as u64)?;
        self.out.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    fn path(&mut self, path: &[u8]) -> io::Result<()> {
        let length = leb128(path.len() as u64);
        self.out.write_all(&length)?;
        self.out.write_all(path)
    }

    fn item(&mut self, kind: u8, number: u64) -> io::Result<()> {
        self.out.write_all(&[kind])?;
        self.out.write_all(&leb128(number))
    }
}

/// Seven bits a byte, the low ones first; the high bit says that more follow.
fn leb128(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10);
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
