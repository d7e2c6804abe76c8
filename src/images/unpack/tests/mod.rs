//! Tests of the extraction, on archives made here byte by byte. They run as root.

mod format;
mod hostile;
mod tree;

use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Error, Options, Stats, unpack_layer};
use crate::images::recipe::Archive;

/// A directory that goes away.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "wharf-unpack-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::create_dir_all(path.join("layer/fs")).unwrap();
        Scratch(path)
    }

    pub fn layer(&self) -> PathBuf {
        self.0.join("layer/fs")
    }

    /// Beside the layer: what a hostile archive must not reach.
    pub fn outside(&self) -> PathBuf {
        self.0.join("layer/outside")
    }

    pub fn unpack(&self, tar: &Tar) -> Result<Stats, Error> {
        self.unpack_as(tar, false)
    }

    pub fn unpack_as(&self, tar: &Tar, plain: bool) -> Result<Stats, Error> {
        let opts = Options {
            layer: "sha256:test".into(),
            plain,
            hollow: false,
        };
        // A test may go on where the last archive has ended.
        let _ = std::fs::remove_file(self.0.join("layer/recipe"));
        let _ = crate::images::rootfs::remove_tree(&self.0.join("layer/aside"));
        let (stats, _) = unpack_layer(tar.bytes().as_slice(), &self.0.join("layer"), &opts)?;
        // Whatever is unpacked can be given back.
        let mut again = Vec::new();
        let mut archive = Archive::open(&self.0.join("layer")).unwrap();
        archive.read_to_end(&mut again).unwrap();
        assert!(again == tar.bytes(), "the archive given back is another one");
        assert_eq!(archive.length(), again.len() as u64);
        Ok(stats)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = crate::images::rootfs::remove_tree(&self.0);
    }
}

/// Writes ustar archives, proper or not.
#[derive(Default, Clone)]
pub struct Tar(Vec<u8>);

pub struct Head<'a> {
    pub kind: u8,
    pub name: &'a str,
    pub link: &'a str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub device: (u32, u32),
}

impl Default for Head<'_> {
    fn default() -> Self {
        Head {
            kind: b'0',
            name: "",
            link: "",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
        }
    }
}

impl Tar {
    pub fn add(mut self, head: Head<'_>, data: &[u8]) -> Tar {
        let mut block = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, head.name.as_bytes());
        put(100, format!("{:07o}", head.mode).as_bytes());
        put(108, format!("{:07o}", head.uid).as_bytes());
        put(116, format!("{:07o}", head.gid).as_bytes());
        put(124, format!("{:011o}", data.len()).as_bytes());
        put(136, format!("{:011o}", head.mtime).as_bytes());
        put(156, &[head.kind]);
        put(157, head.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", head.device.0).as_bytes());
        put(337, format!("{:07o}", head.device.1).as_bytes());
        seal(&mut block);
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Tar {
        self.add(
            Head {
                name,
                ..Head::default()
            },
            data,
        )
    }

    pub fn dir(self, name: &str, mode: u32) -> Tar {
        self.add(
            Head {
                kind: b'5',
                name,
                mode,
                ..Head::default()
            },
            b"",
        )
    }

    pub fn symlink(self, name: &str, link: &str) -> Tar {
        self.add(
            Head {
                kind: b'2',
                name,
                link,
                ..Head::default()
            },
            b"",
        )
    }

    pub fn hard_link(self, name: &str, link: &str) -> Tar {
        self.add(
            Head {
                kind: b'1',
                name,
                link,
                ..Head::default()
            },
            b"",
        )
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.add(
            Head {
                kind: b'x',
                name: "pax",
                ..Head::default()
            },
            &body,
        )
    }

    /// The archive with its end.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

/// Writes the checksum of a header.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

/// Numbers that look random and are the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

pub fn is_whiteout(path: &Path) -> bool {
    let meta = std::fs::symlink_metadata(path).unwrap();
    meta.mode() & libc::S_IFMT == libc::S_IFCHR && meta.rdev() == 0
}

pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    let mut value = [0u8; 256];
    // SAFETY: both strings are NUL-terminated, the buffer's pointer and length belong together.
    let read = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    usize::try_from(read).ok().map(|n| value[..n].to_vec())
}
