//! Descriptors that a monitor hands over, beside the requests.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// What stands on the socket of an attached client.
#[derive(Debug)]
pub enum Word {
    /// The container's terminal.
    Terminal(OwnedFd),
    /// The writing end of its stdin.
    Input(OwnedFd),
    /// There is no stdin for this client.
    NoInput,
    /// The client was cut off because it did not read.
    CutOff,
    /// Nothing more comes.
    Closed,
}

/// The next word on the socket of an attached client; `WouldBlock` when there is none yet.
///
/// # Errors
/// What the system says, and what is not the protocol.
pub fn hear(socket: BorrowedFd) -> io::Result<Word> {
    match receive(socket)? {
        Some((b'T', Some(fd))) => Ok(Word::Terminal(fd)),
        Some((b'I', Some(fd))) => Ok(Word::Input(fd)),
        Some((b'N', None)) => Ok(Word::NoInput),
        Some((b'C', None)) => Ok(Word::CutOff),
        None => Ok(Word::Closed),
        Some((byte, _)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the monitor says {byte} to a client"),
        )),
    }
}

/// The terminal that an exec's socket brings, after the exec has been answered.
///
/// # Errors
/// When none came.
pub fn terminal(socket: BorrowedFd) -> io::Result<OwnedFd> {
    match receive(socket)? {
        Some((_, Some(master))) => Ok(master),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no terminal came")),
    }
}

fn receive(socket: BorrowedFd) -> io::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut byte = [0u8];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let (count, mut received) = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
        ) {
            Err(nix::Error::EINTR) => {}
            // The monitor was killed with a word of ours unread.
            Err(nix::Error::ECONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
            Ok(message) => {
                let mut received = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(fds) = control {
                        // SAFETY: the kernel has just put these descriptors into our table.
                        received.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (message.bytes, received);
            }
        }
    };
    Ok((count > 0).then(|| (byte[0], received.pop())))
}
