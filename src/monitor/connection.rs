//! The monitor's end of the connection to the daemon: never waits, never trusts a length.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, send, sendmsg};
use std::os::fd::{FromRawFd as _, RawFd};
use wharf_proto::monitor::{Reply, Request};

use super::frame::{self, Assembler};

/// Most bytes that wait for a daemon that does not read; beyond that the connection is given up.
const MAX_BACKLOG: usize = 1 << 20;
/// Most descriptors with one frame.
const MAX_DESCRIPTORS: usize = 4;

/// A connection; `serial` tells it from those before it.
#[derive(Debug)]
pub struct Connection {
    pub serial: u32,
    socket: OwnedFd,
    incoming: Assembler,
    descriptors: Vec<OwnedFd>,
    outgoing: Vec<u8>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn broken(message: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl Connection {
    /// `socket` must not block.
    pub fn new(serial: u32, socket: OwnedFd) -> Connection {
        Connection {
            serial,
            socket,
            incoming: Assembler::default(),
            descriptors: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// The next request with its descriptors; `None` when there is none yet.
    ///
    /// # Errors
    /// When the daemon has gone or does not speak the protocol.
    pub fn receive(&mut self) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
        loop {
            let mut buffer = [0; 4096];
            let wanted = self.incoming.wanted().min(buffer.len());
            let count = self.read(&mut buffer[..wanted])?;
            let Some(count) = count else { return Ok(None) };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(request) = self.incoming.push(&buffer[..count]).map_err(broken)? {
                return Ok(Some((request, std::mem::take(&mut self.descriptors))));
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = loop {
            match recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(message) => break message,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let cut = message.flags.contains(MsgFlags::MSG_CTRUNC);
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                for number in numbers {
                    // SAFETY: the kernel has just made this descriptor for us.
                    self.descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
        }
        if cut || self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(broken("too many descriptors"));
        }
        Ok(Some(message.bytes))
    }

    /// Sends `reply`, as far as the socket takes it; the rest waits for [`Self::flush`].
    ///
    /// # Errors
    /// When the daemon has gone or does not read.
    pub fn send(&mut self, reply: &Reply) -> io::Result<()> {
        frame::encode(reply, &mut self.outgoing);
        self.flush()?;
        if self.outgoing.len() > MAX_BACKLOG {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match send(
                self.socket.as_raw_fd(),
                &self.outgoing[sent..],
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(count) => sent += count,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.outgoing.drain(..sent);
        if self.outgoing.is_empty() {
            self.outgoing = Vec::new();
        }
        Ok(())
    }

    /// Whether something waits for room in the socket.
    pub fn has_backlog(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

/// Sends byte `what` on `socket`, with descriptor `fd` if there is one.
///
/// # Errors
/// When nobody takes it.
pub fn send_byte(socket: BorrowedFd, what: u8, fd: Option<BorrowedFd>) -> io::Result<()> {
    let descriptors: Vec<RawFd> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[io::IoSlice::new(&[what])],
        if descriptors.is_empty() { &[] } else { &rights },
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    )?;
    Ok(())
}
