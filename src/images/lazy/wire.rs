//! The bytes of the kernel's FUSE protocol, as far as a file system that only reads needs it (linux/fuse.h).

use super::table::{Kind, Node};

/// Operations.
pub(super) mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const READLINK: u32 = 5;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const STATFS: u32 = 17;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
}

/// Bytes before each request and each answer.
const IN: usize = 40;
const OUT: usize = 16;
/// Attributes and names never change: they stay valid for so many seconds.
const VALID: u64 = 1 << 30;
/// The version of the protocol that is spoken.
const MAJOR: u32 = 7;
const MINOR: u32 = 38;
/// Pages of one read: 1 MiB.
const MAX_PAGES: u16 = 256;
/// The kernel refuses a smaller one.
pub(super) const MAX_WRITE: u32 = 4096;
/// Room for any request, and no less than the kernel wants (`FUSE_MIN_READ_BUFFER`).
pub(super) const BUFFER: usize = 8192;

const ASYNC_READ: u64 = 1;
const PARALLEL_DIROPS: u64 = 1 << 18;
const NO_OPEN: u64 = 1 << 17;
const MAX_PAGES_SET: u64 = 1 << 22;
const CACHE_SYMLINKS: u64 = 1 << 23;
const NO_OPENDIR: u64 = 1 << 24;
const INIT_EXT: u64 = 1 << 30;
/// Its mounts may show its files as others' (Linux 6.12).
const ALLOW_IDMAP: u64 = 1 << 40;
/// Without these a file system can't be served as it is here: no state in open files (Linux 5.1).
const NEEDED: u64 = NO_OPEN | NO_OPENDIR;

/// What a kernel can do that has all that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Files can be shown as those of a user namespace.
    pub maps_owners: bool,
}

/// A request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub operation: u32,
    pub unique: u64,
    pub node: u64,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// What was read from the device; `None` if that is no request.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            operation: word(bytes, 4)?,
            unique: long(bytes, 8)?,
            node: long(bytes, 16)?,
            body: bytes.get(IN..)?,
        })
    }

    /// The name that the request ends with, behind `skip` bytes.
    pub fn name(&self, skip: usize) -> &'a [u8] {
        let text = self.body.get(skip..).unwrap_or_default();
        text.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Offset and size that are wanted of a file or directory.
    pub fn range(&self) -> Option<(u64, u32)> {
        Some((long(self.body, 8)?, word(self.body, 16)?))
    }

    /// Bytes that the asker of an extended attribute, or of their list, has room for; 0 asks for the length.
    pub fn room(&self) -> u32 {
        word(self.body, 0).unwrap_or_default()
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The answer to request `unique`: an error's number, or what was asked for.
pub(super) fn answer(unique: u64, result: Result<&[u8], i32>) -> Vec<u8> {
    let (error, body) = match result {
        Ok(body) => (0, body),
        Err(errno) => (-errno, [].as_slice()),
    };
    let mut bytes = Vec::with_capacity(OUT + body.len());
    bytes.extend(u32::try_from(OUT + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// A notice without a request: ask again all that was read and not answered (FUSE_NOTIFY_RESEND).
pub(super) fn resend() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((OUT as u32).to_ne_bytes());
    bytes.extend(7_i32.to_ne_bytes());
    bytes.extend(0_u64.to_ne_bytes());
    bytes
}

/// The answer to INIT, and what the kernel can do, if that is what is needed.
pub(super) fn init(request: &Request) -> Option<(Vec<u8>, Option<Abilities>)> {
    let (minor, readahead) = (word(request.body, 4)?, word(request.body, 8)?);
    let low = u64::from(word(request.body, 12)?);
    let high = if low & INIT_EXT == 0 {
        0
    } else {
        u64::from(word(request.body, 16)?)
    };
    let theirs = low | high << 32;
    let wanted = NEEDED | ASYNC_READ | PARALLEL_DIROPS | MAX_PAGES_SET | CACHE_SYMLINKS | INIT_EXT | ALLOW_IDMAP;
    let flags = wanted & theirs;
    let mut body = Vec::with_capacity(64);
    for value in [MAJOR, minor.min(MINOR), readahead, flags as u32] {
        body.extend(value.to_ne_bytes());
    }
    // Requests in the background, and from when on that is many.
    for value in [64_u16, 48] {
        body.extend(value.to_ne_bytes());
    }
    body.extend(MAX_WRITE.to_ne_bytes());
    body.extend(1_u32.to_ne_bytes());
    body.extend(MAX_PAGES.to_ne_bytes());
    body.extend(0_u16.to_ne_bytes());
    body.extend(((flags >> 32) as u32).to_ne_bytes());
    body.resize(64, 0);
    let abilities = Abilities {
        maps_owners: theirs & ALLOW_IDMAP != 0,
    };
    Some((body, (theirs & NEEDED == NEEDED).then_some(abilities)))
}

/// A directory entry's or file's answer to LOOKUP; without one, that there is none, for good.
pub(super) fn entry(found: Option<(u64, &Node)>) -> Vec<u8> {
    let mut body = Vec::with_capacity(128);
    for value in [found.map_or(0, |(number, _)| number), 0, VALID, VALID, 0] {
        body.extend(value.to_ne_bytes());
    }
    match found {
        Some((number, node)) => body.extend(attributes(number, node)),
        None => body.resize(128, 0),
    }
    body
}

/// The answer to GETATTR.
pub(super) fn attributes_of(number: u64, node: &Node) -> Vec<u8> {
    let mut body = Vec::with_capacity(104);
    body.extend(VALID.to_ne_bytes());
    body.extend(0_u64.to_ne_bytes());
    body.extend(attributes(number, node));
    body
}

fn attributes(number: u64, node: &Node) -> Vec<u8> {
    let (size, device) = match &node.kind {
        Kind::File { size, .. } => (*size, 0),
        Kind::Symlink(target) => (target.len() as u64, 0),
        Kind::Device { number, .. } => (0, device(*number)),
        _ => (0, 0),
    };
    let mut bytes = Vec::with_capacity(88);
    let seconds = node.time.0.cast_unsigned();
    for value in [number, size, size.div_ceil(512), seconds, seconds, seconds] {
        bytes.extend(value.to_ne_bytes());
    }
    let nanoseconds = node.time.1;
    for value in [
        nanoseconds,
        nanoseconds,
        nanoseconds,
        format(&node.kind) | node.mode,
        node.links,
        node.owner.0,
        node.owner.1,
        device,
        4096,
        0,
    ] {
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

/// As the kernel packs a device's number into 32 bits.
fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// The part of a mode that says what it is.
pub(super) fn format(kind: &Kind) -> u32 {
    match kind {
        Kind::Directory { .. } => libc::S_IFDIR,
        Kind::File { .. } => libc::S_IFREG,
        Kind::Symlink(_) => libc::S_IFLNK,
        Kind::Device { characters: false, .. } => libc::S_IFBLK,
        Kind::Device { .. } | Kind::Whiteout => libc::S_IFCHR,
        Kind::Fifo => libc::S_IFIFO,
    }
}

/// A directory that is listed.
#[derive(Default)]
pub(super) struct Listing {
    pub bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    pub fn new(room: u32) -> Self {
        let room = room as usize;
        Self {
            bytes: Vec::new(),
            room,
        }
    }

    /// Adds a name, behind which the list goes on at `next`; false when there is no room for it.
    pub fn add(&mut self, number: u64, next: u64, format: u32, name: &[u8]) -> bool {
        let length = (24 + name.len()).next_multiple_of(8);
        if self.bytes.len() + length > self.room {
            return false;
        }
        let end = self.bytes.len() + length;
        self.bytes.extend(number.to_ne_bytes());
        self.bytes.extend(next.to_ne_bytes());
        self.bytes
            .extend(u32::try_from(name.len()).unwrap_or_default().to_ne_bytes());
        self.bytes.extend((format >> 12).to_ne_bytes());
        self.bytes.extend(name);
        self.bytes.resize(end, 0);
        true
    }
}

/// An extended attribute's value, or their names: its length if there is no room asked for.
///
/// # Errors
/// When it is longer than the room.
pub(super) fn sized(value: &[u8], room: u32) -> Result<Vec<u8>, i32> {
    match room as usize {
        0 => {
            let mut body = u32::try_from(value.len())
                .map_err(|_| libc::E2BIG)?
                .to_ne_bytes()
                .to_vec();
            body.resize(8, 0);
            Ok(body)
        }
        room if room < value.len() => Err(libc::ERANGE),
        _ => Ok(value.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn devices_are_packed_as_the_kernel_does() {
        assert_eq!(device((1, 3)), 0x103);
        assert_eq!(device((8, 0x12345)), 0x1230_0845);
    }

    #[test]
    fn a_list_ends_where_its_room_does() {
        let mut list = Listing::new(64);
        assert!(list.add(1, 1, libc::S_IFDIR, b"."));
        assert!(list.add(2, 2, libc::S_IFREG, b"a-name"));
        assert!(!list.add(3, 3, libc::S_IFREG, b"b"));
        assert_eq!(list.bytes.len(), 64);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Some(request) = Request::parse(&bytes) {
                let _ = (request.name(0), request.name(8), request.range(), request.room(), init(&request));
            }
        }
    }
}
