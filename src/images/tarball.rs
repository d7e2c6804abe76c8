//! Writes tar archives (POSIX.1-2001 pax): the counterpart of [`super::unpack::TarReader`].

use std::io::{self, Read, Write};

use super::unpack::{BLOCK, Entry, Kind};

/// Largest numbers that a header's octal fields take.
const MAX_SIZE: u64 = (1 << 33) - 1;
const MAX_OWNER: u32 = (1 << 21) - 1;

/// Writes entries one after another to `W`.
pub struct Tarball<W>(W);

impl<W: Write> Tarball<W> {
    /// An archive at its beginning.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    /// Writes an entry; `data` must have `entry.size` bytes, if it is a file.
    ///
    /// # Errors
    /// When `data` ends before that, or can't be read, or the archive can't be written.
    pub fn add(&mut self, entry: &Entry, data: impl Read) -> io::Result<()> {
        let size = if entry.kind == Kind::File { entry.size } else { 0 };
        self.0.write_all(&header(entry))?;
        let copied = io::copy(&mut data.take(size), &mut self.0)?;
        if copied < size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{} became shorter while it was read",
                    String::from_utf8_lossy(&entry.name).escape_debug()
                ),
            ));
        }
        self.pad(size)
    }

    /// Writes a file that belongs to root.
    ///
    /// # Errors
    /// As [`Tarball::add`].
    pub fn file(&mut self, name: &str, size: u64, data: impl Read) -> io::Result<()> {
        let entry = Entry {
            name: name.into(),
            mode: 0o644,
            size,
            ..empty()
        };
        self.add(&entry, data)
    }

    /// Writes the end and returns what was written to.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        self.0.flush()?;
        Ok(self.0)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        match (size % BLOCK as u64) as usize {
            0 => Ok(()),
            rest => self.0.write_all(&[0; BLOCK][rest..]),
        }
    }
}

/// What stands in front of an entry's data.
pub fn header(entry: &Entry) -> Vec<u8> {
    let size = if entry.kind == Kind::File { entry.size } else { 0 };
    let records = extended(entry, size);
    let mut bytes = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let pax = Entry {
            kind: Kind::File,
            name: b"pax".to_vec(),
            mode: 0o644,
            ..empty()
        };
        bytes.extend_from_slice(&block(&pax, b'x', records.len() as u64));
        bytes.extend_from_slice(&records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend_from_slice(&block(entry, code(entry.kind), size));
    bytes
}

/// An entry without anything.
pub fn empty() -> Entry {
    Entry {
        kind: Kind::File,
        name: Vec::new(),
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
    }
}

fn code(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice { .. } => b'3',
        Kind::BlockDevice { .. } => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// What the header has no room for.
fn extended(entry: &Entry, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if entry.name.len() > 100 {
        record(&mut records, b"path", &entry.name);
    }
    if entry.link.len() > 100 {
        record(&mut records, b"linkpath", &entry.link);
    }
    if size > MAX_SIZE {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
        if id > MAX_OWNER {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanos) = entry.mtime;
    if nanos != 0 || u64::try_from(seconds).is_err() || seconds.unsigned_abs() > MAX_SIZE {
        record(&mut records, b"mtime", time(seconds, nanos).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// Seconds with a fraction that counts away from zero.
fn time(seconds: i64, nanos: u32) -> String {
    let text = if seconds < 0 && nanos > 0 {
        // The whole part rounds towards zero.
        format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    } else {
        format!("{seconds}.{nanos:09}")
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
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

fn block(entry: &Entry, code: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &entry.name[..entry.name.len().min(100)]);
    put(100, format!("{:07o}", entry.mode & 0o7777).as_bytes());
    put(108, format!("{:07o}", entry.uid.min(MAX_OWNER)).as_bytes());
    put(116, format!("{:07o}", entry.gid.min(MAX_OWNER)).as_bytes());
    put(124, format!("{:011o}", size.min(MAX_SIZE)).as_bytes());
    let mtime = u64::try_from(entry.mtime.0).unwrap_or_default();
    put(136, format!("{:011o}", mtime.min(MAX_SIZE)).as_bytes());
    put(148, b"        ");
    put(156, &[code]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar\x0000");
    if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } = entry.kind {
        put(329, format!("{:07o}", major & MAX_OWNER).as_bytes());
        put(337, format!("{:07o}", minor & MAX_OWNER).as_bytes());
    }
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::unpack::TarReader;

    #[test]
    fn what_is_written_is_read_again() {
        let entries = [
            Entry {
                kind: Kind::Directory,
                name: b"d".to_vec(),
                mode: 0o1777,
                mtime: (-2, 500_000_000),
                ..empty()
            },
            Entry {
                name: vec![b'n'; 300],
                mode: 0o4755,
                uid: 3_000_000_000,
                gid: 7,
                size: 700,
                mtime: (1 << 34, 7),
                xattrs: vec![(b"user.x".to_vec(), b"a\0=\n".to_vec())],
                ..empty()
            },
            Entry {
                kind: Kind::HardLink,
                name: b"h".to_vec(),
                link: vec![b'n'; 300],
                ..empty()
            },
            Entry {
                kind: Kind::CharDevice { major: 1, minor: 300 },
                name: b"c".to_vec(),
                mtime: (5, 0),
                ..empty()
            },
        ];
        let mut tar = Tarball::new(Vec::new());
        for entry in &entries {
            tar.add(entry, io::repeat(b'x')).unwrap();
        }
        assert!(tar.add(&entries[1], io::empty()).is_err(), "too short");
        let mut tar = Tarball::new(Vec::new());
        for entry in &entries {
            tar.add(entry, io::repeat(b'x')).unwrap();
        }
        let bytes = tar.finish().unwrap();
        let mut reader = TarReader::new(bytes.as_slice());
        for entry in &entries {
            let read = reader.next_entry().unwrap().unwrap();
            assert_eq!(format!("{read:?}"), format!("{entry:?}"));
        }
        assert!(reader.next_entry().unwrap().is_none());
    }

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
        let device = Entry {
            kind: Kind::CharDevice { major: 1, minor: 300 },
            name: b"dev/x".to_vec(),
            mode: 0o666,
            mtime: (-3, 0),
            ..empty()
        };
        let directory = Entry {
            kind: Kind::Directory,
            name: b"dir/".to_vec(),
            mode: 0o700,
            mtime: (9, 0),
            ..empty()
        };
        let mut writer = Tarball::new(Vec::new());
        writer.add(&directory, io::empty()).unwrap();
        writer.add(&entry, b"12345rest".as_slice()).unwrap();
        writer.add(&device, io::empty()).unwrap();
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
        let entry = Entry {
            name: b"f".to_vec(),
            mode: 0o600,
            size: 10,
            ..empty()
        };
        let error = Tarball::new(Vec::new()).add(&entry, b"short".as_slice()).unwrap_err();
        assert!(error.to_string().contains("f became shorter"), "{error}");
    }
}
