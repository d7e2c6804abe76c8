//! Reads a tar stream entry by entry with one buffer: headers are parsed and data handed out in place.

use std::io::{self, Read};

use super::header::{self, BLOCK, FormatError, Header};
use super::pax::{self, Pax};
use crate::images::recipe::Recorder;

/// Bytes read from the source at once.
const BUFFER: usize = 256 * 1024;
/// Limit of one extended header, which is held in memory (Go's tar reader has the same).
const MAX_EXTENSION: u64 = 1024 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Directory,
    Fifo,
}

/// An entry with everything its extended headers say; names as they came.
#[derive(Debug)]
pub struct Entry {
    pub kind: Kind,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The stream broke, or it is no tar.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("write its recipe: {0}")]
    Recipe(io::Error),
}

/// The reader. After `next_entry` gave an entry, `data` gives its bytes; what is not taken is skipped.
pub struct TarReader<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the current entry's data not handed out, and the padding after it.
    left: u64,
    padding: u64,
    /// Where in the stream the last header began.
    header_at: u64,
    consumed: u64,
    /// Takes down what is not the content of a file, if somebody wants that.
    recorder: Option<Recorder>,
    /// The current entry's data is the content of a file that the recorder knows.
    known: bool,
}

impl<R: Read> TarReader<R> {
    pub fn new(source: R) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        TarReader {
            source,
            buffer,
            start: 0,
            end: 0,
            left: 0,
            padding: 0,
            header_at: 0,
            consumed: 0,
            recorder: None,
            known: false,
        }
    }

    /// A reader that has `recorder` take down the stream.
    pub fn recording(source: R, recorder: Recorder) -> Self {
        TarReader {
            recorder: Some(recorder),
            ..Self::new(source)
        }
    }

    /// Who takes down the stream.
    pub fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_mut()
    }

    /// Gives back who takes down the stream.
    pub fn into_recorder(self) -> Option<Recorder> {
        self.recorder
    }

    /// The current entry's data, of which nothing was taken yet, becomes the file `path` below the layer's root.
    pub fn data_becomes(&mut self, path: &[u8]) -> Result<(), ReadError> {
        if let Some(recorder) = &mut self.recorder
            && self.left > 0
        {
            recorder.content(path, self.left).map_err(ReadError::Recipe)?;
            self.known = true;
        }
        Ok(())
    }

    /// Where in the stream the last header began, for error messages.
    pub fn header_at(&self) -> u64 {
        self.header_at
    }

    /// The next entry, or `None` at the end of the stream, which is then read to its last byte.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut long_name = None;
        let mut long_link = None;
        let mut extended = Pax::default();
        let mut pending = false;
        loop {
            let Some(header) = self.header()? else {
                return if pending {
                    Err(FormatError::Dangling.into())
                } else {
                    Ok(None)
                };
            };
            self.start_data(header.size);
            match header.kind {
                b'L' => long_name = Some(self.long(header.size)?),
                b'K' => long_link = Some(self.long(header.size)?),
                b'x' => extended = pax::parse(&self.extension(header.size)?)?,
                b'g' => {
                    // Global records are comments (git archive) in practice; checked, not applied.
                    pax::parse(&self.extension(header.size)?)?;
                    continue;
                }
                _ => return self.entry(header, long_name, long_link, extended).map(Some),
            }
            pending = true;
        }
    }

    /// The next piece of the current entry's data; empty at its end.
    pub fn data(&mut self) -> Result<&[u8], ReadError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        if self.start == self.end {
            self.fill()?;
            if self.start == self.end {
                return Err(FormatError::Truncated.into());
            }
        }
        let take = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(self.end - self.start);
        let from = self.start;
        self.start += take;
        self.left -= take as u64;
        self.consumed += take as u64;
        let data = &self.buffer[from..from + take];
        if let Some(recorder) = &mut self.recorder
            && !self.known
        {
            recorder.inline(data).map_err(ReadError::Recipe)?;
        }
        Ok(data)
    }

    fn entry(
        &mut self,
        header: Header,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        extended: Pax,
    ) -> Result<Entry, ReadError> {
        let name = extended.path.or(long_name).unwrap_or(header.name);
        let kind = match header.kind {
            // The oldest writers mark directories by their name only.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice {
                major: header.major,
                minor: header.minor,
            },
            b'4' => Kind::BlockDevice {
                major: header.major,
                minor: header.minor,
            },
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(FormatError::Sparse.into()),
            other => return Err(FormatError::Kind(other).into()),
        };
        // Only files have data, whatever the size field of a link or directory says.
        let size = if kind == Kind::File {
            extended.size.unwrap_or(header.size)
        } else {
            0
        };
        self.start_data(size);
        Ok(Entry {
            kind,
            name,
            link: extended.linkpath.or(long_link).unwrap_or(header.link),
            mode: header.mode,
            uid: owner(extended.uid.unwrap_or(header.uid), "uid")?,
            gid: owner(extended.gid.unwrap_or(header.gid), "gid")?,
            size,
            mtime: extended.mtime.unwrap_or((header.mtime, 0)),
            xattrs: extended.xattrs,
        })
    }

    fn start_data(&mut self, size: u64) {
        self.known = false;
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        self.skip_rest()?;
        let Some(block) = self.block()? else { return Ok(None) };
        if let Some(header) = header::parse(&block)? {
            return Ok(Some(header));
        }
        // One zero block and the end of the stream is what some writers leave; a header after one is damage.
        if let Some(block) = self.block()?
            && header::parse(&block)?.is_some()
        {
            return Err(FormatError::Dangling.into());
        }
        self.drain()?;
        Ok(None)
    }

    /// The next block; `None` if the stream ends exactly before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ReadError> {
        self.header_at = self.consumed;
        while self.end - self.start < BLOCK {
            let had = self.end - self.start;
            self.fill()?;
            if self.end - self.start == had {
                return if had == 0 {
                    Ok(None)
                } else {
                    Err(FormatError::Truncated.into())
                };
            }
        }
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.buffer[self.start..self.start + BLOCK]);
        if let Some(recorder) = &mut self.recorder {
            recorder.inline(&block).map_err(ReadError::Recipe)?;
        }
        self.start += BLOCK;
        self.consumed += BLOCK as u64;
        Ok(Some(block))
    }

    /// The body of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        if size > MAX_EXTENSION {
            return Err(FormatError::TooLarge(size).into());
        }
        let mut body = Vec::new();
        loop {
            let piece = self.data()?;
            if piece.is_empty() {
                return Ok(body);
            }
            body.extend_from_slice(piece);
        }
    }

    /// The body of a GNU long name, which ends in a NUL.
    fn long(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        let mut body = self.extension(size)?;
        if let Some(end) = body.iter().position(|b| *b == 0) {
            body.truncate(end);
        }
        Ok(body)
    }

    fn skip_rest(&mut self) -> Result<(), ReadError> {
        while !self.data()?.is_empty() {}
        self.left = std::mem::take(&mut self.padding);
        self.known = false;
        while self.left > 0 {
            match self.data() {
                // Some writers (umoci inserting one file) end right behind the last entry's data, as Go's reader lets
                // them. Whether the stream is whole is for its digest to say.
                Err(ReadError::Format(FormatError::Truncated)) => self.left = 0,
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Reads to the end, so that a digest taken below covers the whole stream.
    fn drain(&mut self) -> Result<(), ReadError> {
        loop {
            if let Some(recorder) = &mut self.recorder {
                let rest = &self.buffer[self.start..self.end];
                recorder.inline(rest).map_err(ReadError::Recipe)?;
            }
            self.consumed += (self.end - self.start) as u64;
            self.start = self.end;
            self.fill()?;
            if self.start == self.end {
                return Ok(());
            }
        }
    }

    /// Moves what is left to the front and reads once more; nothing new means the end of the stream.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(read) => {
                    self.end += read;
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// An owner the kernel accepts: (u32)-1 would mean "leave as it is".
fn owner(id: u64, field: &'static str) -> Result<u32, FormatError> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(FormatError::Range(field))
}
