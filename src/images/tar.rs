//! Writes tar streams (POSIX pax, as `pax(1)` describes them): what the reader of layers reads.

use std::io::{self, Read, Write};

use super::unpack::{Entry, Kind};

const BLOCK: usize = 512;
/// Largest number of seven octal digits.
const SEVEN: u64 = 0o7_777_777;
/// Largest number of eleven octal digits.
const ELEVEN: u64 = 0o77_777_777_777;

/// A tar stream under way. [`Writer::finish`] ends it; dropped before, it is cut off.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Adds an entry. `data` must hold at least `entry.size` bytes for a file; of other kinds nothing is read.
    ///
    /// # Errors
    /// When `data` ends early or the stream can't be written.
    pub fn entry(&mut self, entry: &Entry, data: impl Read) -> io::Result<()> {
        self.header(entry)?;
        if entry.kind != Kind::File {
            return Ok(());
        }
        let copied = io::copy(&mut data.take(entry.size), &mut self.out)?;
        if copied != entry.size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} became shorter while it was read", printable(&entry.name)),
            ));
        }
        self.pad(entry.size)
    }

    /// Adds a file of bytes, owned by root, of mode 0600.
    ///
    /// # Errors
    /// When the stream can't be written.
    pub fn bytes(&mut self, name: &str, bytes: &[u8], mtime: i64) -> io::Result<()> {
        let mut entry = plain(name, Kind::File, 0o600, mtime);
        entry.size = bytes.len() as u64;
        self.entry(&entry, bytes)
    }

    /// Adds a directory, owned by root, of mode 0700.
    ///
    /// # Errors
    /// When the stream can't be written.
    pub fn directory(&mut self, name: &str, mtime: i64) -> io::Result<()> {
        self.entry(&plain(name, Kind::Directory, 0o700, mtime), io::empty())
    }

    /// Ends the stream and gives the writer back.
    ///
    /// # Errors
    /// When the stream can't be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let mut name = entry.name.clone();
        if entry.kind == Kind::Directory && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let size = if entry.kind == Kind::File { entry.size } else { 0 };
        let records = records(entry, &name, size);
        if !records.is_empty() {
            let extension = Block {
                name: b"pax",
                kind: b'x',
                mode: 0o644,
                owner: (0, 0),
                size: records.len() as u64,
                mtime: 0,
                link: b"",
                device: None,
            };
            self.out.write_all(&extension.bytes())?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let (kind, device) = match entry.kind {
            Kind::File => (b'0', None),
            Kind::HardLink => (b'1', None),
            Kind::Symlink => (b'2', None),
            Kind::CharDevice { major, minor } => (b'3', Some((major, minor))),
            Kind::BlockDevice { major, minor } => (b'4', Some((major, minor))),
            Kind::Directory => (b'5', None),
            Kind::Fifo => (b'6', None),
        };
        let block = Block {
            name: &name,
            kind,
            mode: entry.mode,
            owner: (entry.uid, entry.gid),
            size,
            mtime: entry.mtime.0,
            link: &entry.link,
            device,
        };
        self.out.write_all(&block.bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        match (size % BLOCK as u64) as usize {
            0 => Ok(()),
            rest => self.out.write_all(&[0; BLOCK][rest..]),
        }
    }
}

fn plain(name: &str, kind: Kind, mode: u32, mtime: i64) -> Entry {
    Entry {
        kind,
        name: name.as_bytes().to_vec(),
        link: Vec::new(),
        mode,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: (mtime, 0),
        xattrs: Vec::new(),
    }
}

fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// What the plain header has no room for.
fn records(entry: &Entry, name: &[u8], size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in [("path", name), ("linkpath", entry.link.as_slice())] {
        if value.len() > 100 {
            record(&mut out, key.as_bytes(), value);
        }
    }
    let numbers = [
        ("size", size, ELEVEN),
        ("uid", entry.uid.into(), SEVEN),
        ("gid", entry.gid.into(), SEVEN),
    ];
    for (key, value, most) in numbers {
        if value > most {
            record(&mut out, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    let (seconds, nanos) = entry.mtime;
    if nanos != 0 && seconds >= 0 {
        record(&mut out, b"mtime", format!("{seconds}.{nanos:09}").as_bytes());
    } else if !(0..=ELEVEN as i64).contains(&seconds) {
        record(&mut out, b"mtime", seconds.to_string().as_bytes());
    }
    for (key, value) in &entry.xattrs {
        record(&mut out, &[b"SCHILY.xattr.".as_slice(), key].concat(), value);
    }
    out
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A plain header. What is too long for it is cut: a record before it says all.
struct Block<'a> {
    name: &'a [u8],
    kind: u8,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: i64,
    link: &'a [u8],
    device: Option<(u32, u32)>,
}

impl Block<'_> {
    fn bytes(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let seven = |value: u64| format!("{:07o}", value & SEVEN);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, seven(u64::from(self.mode & 0o7777)).as_bytes());
        put(108, seven(self.owner.0.into()).as_bytes());
        put(116, seven(self.owner.1.into()).as_bytes());
        put(124, format!("{:011o}", self.size & ELEVEN).as_bytes());
        put(136, format!("{:011o}", self.mtime.max(0) as u64 & ELEVEN).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        if let Some((major, minor)) = self.device {
            put(329, seven(major.into()).as_bytes());
            put(337, seven(minor.into()).as_bytes());
        }
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::unpack::TarReader;

    #[test]
    fn what_is_written_is_read_back() {
        let entry = Entry {
            kind: Kind::File,
            name: [b"dir/".as_slice(), "n".repeat(150).as_bytes()].concat(),
            link: Vec::new(),
            mode: 0o4755,
            uid: 3_000_000,
            gid: 7,
            size: 5,
            mtime: (1_700_000_000, 123_000_000),
            xattrs: vec![(b"user.k".to_vec(), vec![0, 1, b'\n'])],
        };
        let device = plain("dev/x", Kind::CharDevice { major: 1, minor: 300 }, 0o666, -3);
        let mut writer = Writer::new(Vec::new());
        writer.directory("dir", 9).unwrap();
        writer.entry(&entry, b"12345rest".as_slice()).unwrap();
        writer.entry(&device, io::empty()).unwrap();
        let tar = writer.finish().unwrap();
        assert_eq!(tar.len() % BLOCK, 0);
        let mut reader = TarReader::new(tar.as_slice());
        assert_eq!(reader.next_entry().unwrap().unwrap().kind, Kind::Directory);
        let read = reader.next_entry().unwrap().unwrap();
        assert_eq!(
            (&read.name, read.mode, read.uid, read.gid),
            (&entry.name, 0o4755, 3_000_000, 7)
        );
        assert_eq!((read.mtime, read.xattrs), (entry.mtime, entry.xattrs));
        assert_eq!(reader.data().unwrap(), b"12345");
        let read = reader.next_entry().unwrap().unwrap();
        assert_eq!(read.kind, Kind::CharDevice { major: 1, minor: 300 });
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let mut entry = plain("f", Kind::File, 0o600, 0);
        entry.size = 10;
        let error = Writer::new(Vec::new()).entry(&entry, b"short".as_slice()).unwrap_err();
        assert!(error.to_string().contains("f became shorter"), "{error}");
    }
}
