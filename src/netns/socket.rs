//! A netlink socket that asks and waits: requests out, replies and errors in. Blocking; for threads, not for tasks.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{Error, Result};

/// Room for one datagram; the kernel fills at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// The kernel answers while it handles the request; a wait means that the answer was lost.
const PATIENCE_SECS: i64 = 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: a sentence.
const ATTR_MESSAGE: u16 = 1;

/// A request's failure: the error number and the kernel's sentence, if it had one.
#[derive(Debug)]
pub(super) struct Refusal {
    errno: i32,
    detail: Option<String>,
}

impl Refusal {
    /// Turns it into this room's error about `attempt`.
    pub(super) fn during(self, attempt: impl Into<String>) -> Error {
        Error::Netlink {
            attempt: attempt.into(),
            source: io::Error::from_raw_os_error(self.errno),
            detail: self.detail,
        }
    }

    pub(super) fn errno(&self) -> i32 {
        self.errno
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            detail: None,
        }
    }
}

/// One message of an answer.
enum Part<'a> {
    /// Answer to the request with this sequence number: a refusal, or none.
    Verdict(u32, Option<Refusal>),
    /// The end of a listing.
    Done,
    /// Anything else: header and body.
    Data(&'a [u8]),
}

/// How many addresses [`Conversation::open_as_ours`] has used.
static PORTS_USED: AtomicU32 = AtomicU32::new(0);

/// Where they begin: at random, in the half of the numbers that no process id is in.
fn first_port() -> u32 {
    static FIRST: OnceLock<u32> = OnceLock::new();
    *FIRST.get_or_init(|| RandomState::new().build_hasher().finish() as u32 & 0x3fff_ffff | 0x8000_0000)
}

/// Whether a change that the kernel tells of was made by [`Conversation::open_as_ours`] of this process.
pub(super) fn is_ours(port: u32) -> bool {
    port.wrapping_sub(first_port()) < PORTS_USED.load(Ordering::Relaxed)
}

/// A connection to one of the kernel's netlink families, in the namespace of the thread that opened it.
pub(super) struct Conversation {
    socket: Socket,
    seq: u32,
}

impl Conversation {
    /// Opens a socket of `family`, a constant of [`netlink_sys::protocols`].
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub(super) fn open(family: isize) -> Result<Self> {
        Self::bound(family, |socket| socket.bind_auto().map(drop))
    }

    /// As [`Conversation::open`], with an address by which [`is_ours`] knows the changes that are made by it.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub(super) fn open_as_ours(family: isize) -> Result<Self> {
        Self::bound(family, |socket| {
            loop {
                let port = first_port().wrapping_add(PORTS_USED.fetch_add(1, Ordering::Relaxed));
                match socket.bind(&SocketAddr::new(port, 0)) {
                    // Somebody else's: the next one.
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                    other => return other,
                }
            }
        })
    }

    fn bound(family: isize, bind: impl FnOnce(&mut Socket) -> io::Result<()>) -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(family)?;
            bind(&mut socket)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            // SAFETY: the descriptor belongs to `socket`, which outlives the borrow.
            let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECS, 0))?;
            Ok(socket)
        };
        open()
            .map(|socket| Self { socket, seq: 0 })
            .map_err(|source| Error::kernel("open netlink socket", source))
    }

    /// The sequence number for the next message.
    pub(super) fn next_seq(&mut self) -> u32 {
        self.seq += 1;
        self.seq
    }

    /// Sends `request`, of which each message whose number lies in `seqs` asks for an acknowledgement, and waits for
    /// all of them. Gives the data messages that came before.
    ///
    /// # Errors
    /// The refusal of the first message that was refused, with its number.
    pub(super) fn ask(
        &mut self,
        request: &[u8],
        seqs: std::ops::RangeInclusive<u32>,
    ) -> std::result::Result<Vec<Vec<u8>>, (u32, Refusal)> {
        let (first, last) = (*seqs.start(), *seqs.end());
        let here = |error: io::Error| (first, error.into());
        self.socket.send(request, 0).map_err(here)?;
        let mut data = Vec::new();
        let mut refused: Option<(u32, Refusal)> = None;
        let mut waiting = last - first + 1;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        while waiting > 0 {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(refused.unwrap_or_else(|| here(error))),
            }
            for part in parts(&buffer) {
                match part {
                    Part::Verdict(seq, refusal) => {
                        if let Some(refusal) = refusal {
                            // A batch as a whole is refused under the number of its first message.
                            if !seqs.contains(&seq) {
                                return Err((first, refusal));
                            }
                            refused.get_or_insert((seq, refusal));
                        }
                        waiting = waiting.saturating_sub(1);
                    }
                    Part::Done => waiting = 0,
                    Part::Data(message) => data.push(message.to_vec()),
                }
            }
        }
        refused.map_or(Ok(data), Err)
    }
}

fn parts(mut rest: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..length).filter(|_| length >= HEADER)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let flags = u16::from_ne_bytes([message[6], message[7]]);
        let seq = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        Some(match kind {
            NLMSG_ERROR => Part::Verdict(seq, refusal(&message[HEADER..], flags)),
            NLMSG_DONE => Part::Done,
            _ => Part::Data(message),
        })
    })
}

/// Reads the body of an `NLMSG_ERROR`: the negated error number, the request's header, attributes.
fn refusal(body: &[u8], flags: u16) -> Option<Refusal> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    let mut detail = None;
    let mut rest = if flags & NLM_F_ACK_TLVS == 0 {
        &[][..]
    } else {
        body.get(4 + HEADER..).unwrap_or_default()
    };
    while let Some(head) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = rest.get(4..length) else { break };
        if u16::from_ne_bytes([head[2], head[3]]) == ATTR_MESSAGE {
            detail = Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Some(Refusal { errno: -code, detail })
}

/// Netlink pads everything to four bytes.
pub(super) fn aligned(length: usize) -> usize {
    length.div_ceil(4) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(code: i32, flags: u16, tail: &[u8]) -> Vec<u8> {
        let mut bytes = (36 + tail.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn the_kernels_sentence_is_part_of_the_error() {
        let mut sentence = 9u16.to_ne_bytes().to_vec();
        sentence.extend(ATTR_MESSAGE.to_ne_bytes());
        sentence.extend(b"busy\0\0\0\0");
        let bytes = verdict(-libc::EBUSY, NLM_F_ACK_TLVS, &sentence);
        let Some(Part::Verdict(7, Some(refusal))) = parts(&bytes).next() else {
            panic!("no verdict")
        };
        let text = refusal.during("delete device x").to_string();
        assert!(
            text.starts_with("delete device x: ") && text.ends_with("(busy)"),
            "{text}"
        );
    }

    #[test]
    fn truncated_answers_end_quietly() {
        let bytes = verdict(-1, NLM_F_ACK_TLVS, &[200, 0, 1, 0, b'x']);
        for cut in 0..bytes.len() {
            let _ = parts(&bytes[..cut]).count();
        }
        assert!(matches!(
            parts(&verdict(0, 0, &[])).next(),
            Some(Part::Verdict(7, None))
        ));
    }
}
