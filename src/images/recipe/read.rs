//! Gives a layer's archive back by its recipe.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
};

use super::{ASIDE, CONTENT, END, Error, FILE, HEAD, INLINE, MAGIC, MAX_PATH, MOVED};

type Stream = BufReader<zstd::Decoder<'static, BufReader<File>>>;

/// The archive of one layer as a stream. Its errors are [`Error`]s within [`io::Error`]s.
pub struct Archive {
    layer: PathBuf,
    files: OwnedFd,
    aside: Option<OwnedFd>,
    stream: Stream,
    moves: HashMap<Vec<u8>, Vec<Move>>,
    /// Items read.
    items: u64,
    now: Now,
    length: u64,
    given: u64,
}

/// Something was moved aside.
struct Move {
    /// When: items before this one mean what was there before.
    item: u64,
    number: u64,
}

enum Now {
    Between,
    Inline(u64),
    Content { file: File, left: u64 },
    End,
}

impl Archive {
    /// The archive of the layer in `directory`.
    ///
    /// # Errors
    /// When there is no recipe, or it can't be used.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let damaged = |reason: String| Error::damaged(directory, reason);
        let mut file = match File::open(directory.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Absent {
                    layer: directory.to_owned(),
                });
            }
            Err(error) => return Err(damaged(format!("open its recipe: {error}"))),
        };
        let (length, count) = head(&mut file).map_err(|error| damaged(format!("read its recipe: {error}")))?;
        let open = |name: &str| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            nix::fcntl::open(&directory.join(name), flags, nix::sys::stat::Mode::empty())
                .map_err(|errno| damaged(format!("open its {name}: {errno}")))
        };
        let unreadable = |error: io::Error| damaged(format!("read its recipe: {error}"));
        let moves = if count == 0 {
            HashMap::new()
        } else {
            moves(&mut items(&file).map_err(unreadable)?).map_err(unreadable)?
        };
        Ok(Self {
            layer: directory.to_owned(),
            files: open("fs")?,
            aside: (count > 0).then(|| open(ASIDE)).transpose()?,
            stream: items(&file).map_err(unreadable)?,
            moves,
            items: 0,
            now: Now::Between,
            length,
            given: 0,
        })
    }

    /// Bytes of the whole archive.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    fn next(&mut self) -> io::Result<Now> {
        let (kind, number) = item(&mut self.stream)?;
        self.items += 1;
        Ok(match kind {
            INLINE => Now::Inline(number),
            CONTENT => {
                let path = path(&mut self.stream)?;
                let file = self.file(&path, number)?;
                Now::Content { file, left: number }
            }
            MOVED => {
                path(&mut self.stream)?;
                Now::Between
            }
            END if number == self.length && self.given == number => {
                // The frame's checksum stands behind its last byte.
                if self.stream.fill_buf()?.is_empty() {
                    Now::End
                } else {
                    return Err(bad("the recipe goes on after its end"));
                }
            }
            _ => return Err(bad("the recipe has an item that makes no sense")),
        })
    }

    /// The file that was at `path` when the item that was just read was written.
    fn file(&self, path: &[u8], size: u64) -> io::Result<File> {
        let (root, now) = match (self.moved(path), &self.aside) {
            (Some(now), Some(aside)) => (aside, now),
            _ => (&self.files, path.to_vec()),
        };
        let how = OpenHow::new()
            // Should it be a pipe, opening must not wait.
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        let name = || String::from_utf8_lossy(path).into_owned();
        let opened = loop {
            match openat2(root, now.as_slice(), how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => break other,
            }
        };
        let file = File::from(opened.map_err(|errno| bad(format!("open file {:?}: {errno}", name())))?);
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() != size {
            return Err(bad(format!("file {:?} is not as it was unpacked", name())));
        }
        Ok(file)
    }

    /// Where below `aside/` the thing is by now, if it was moved.
    fn moved(&self, path: &[u8]) -> Option<Vec<u8>> {
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at);
        let later = |end: usize| {
            let all = self.moves.get(&path[..end])?;
            let first = all.partition_point(|moved| moved.item <= self.items);
            all.get(first).map(|moved| (moved, end))
        };
        let candidates = ends.chain([path.len()]).filter_map(later);
        let (moved, end) = candidates.min_by_key(|(moved, _)| moved.item)?;
        Some([moved.number.to_string().as_bytes(), &path[end..]].concat())
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let (read, left) = match &mut self.now {
                Now::End => return Ok(0),
                Now::Between | Now::Inline(0) | Now::Content { left: 0, .. } => {
                    self.now = self.next().map_err(|error| wrap(&self.layer, error))?;
                    continue;
                }
                Now::Inline(left) => (self.stream.read(limit(buffer, *left)), left),
                Now::Content { file, left } => (file.read(limit(buffer, *left)), left),
            };
            match read {
                Ok(0) => return Err(wrap(&self.layer, bad("a file or the recipe is shorter than it was"))),
                Ok(read) => {
                    *left -= read as u64;
                    self.given += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(wrap(&self.layer, error)),
            }
        }
    }
}

fn limit(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let end = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    &mut buffer[..end]
}

fn wrap(layer: &Path, error: io::Error) -> io::Error {
    io::Error::other(Error::damaged(layer, error))
}

fn bad(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Length of the archive, and the number of moves.
fn head(file: &mut File) -> io::Result<(u64, u64)> {
    let mut head = [0; HEAD];
    file.read_exact(&mut head)?;
    let (magic, rest) = head.split_at(8);
    if magic != MAGIC {
        return Err(bad("it was never completed, or is of another version"));
    }
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    Ok((number(&rest[..8]), number(&rest[8..])))
}

/// The items of a recipe from the first one on, on a position of its own.
fn items(file: &File) -> io::Result<Stream> {
    use std::{io::Seek as _, os::fd::AsRawFd as _};
    let mut file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    file.seek(io::SeekFrom::Start(HEAD as u64))?;
    Ok(BufReader::with_capacity(64 << 10, zstd::Decoder::new(file)?))
}

fn moves(stream: &mut Stream) -> io::Result<HashMap<Vec<u8>, Vec<Move>>> {
    let mut moves: HashMap<Vec<u8>, Vec<Move>> = HashMap::new();
    let mut at = 0;
    loop {
        let (kind, number) = item(stream)?;
        at += 1;
        match kind {
            INLINE => {
                let skipped = io::copy(&mut stream.take(number), &mut io::sink())?;
                if skipped != number {
                    return Err(bad("it ends too early"));
                }
            }
            CONTENT => drop(path(stream)?),
            MOVED => {
                let path = path(stream)?;
                moves.entry(path).or_default().push(Move { item: at, number });
            }
            END => return Ok(moves),
            _ => return Err(bad("it has an item that makes no sense")),
        }
    }
}

fn item(stream: &mut Stream) -> io::Result<(u8, u64)> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok((kind[0], number(stream)?))
}

fn number(stream: &mut Stream) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        number |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(bad("it has a number that is too large"))
}

fn path(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let length = number(stream)?;
    if length > MAX_PATH as u64 {
        return Err(bad("it has a path that is too long"));
    }
    let mut path = vec![0; length as usize];
    stream.read_exact(&mut path)?;
    Ok(path)
}
