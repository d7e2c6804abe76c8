//! Seeing when somebody else takes rules away: the kernel tells of every change of its tables.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;

use crate::netns::socket::{aligned, is_ours};
use crate::netns::{Error, Result};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Room for one datagram of changes.
const DATAGRAM: usize = 64 * 1024;
/// Room for those that were not read yet, bytes: a flush of a large rule set comes in one go.
const BACKLOG: usize = 4 << 20;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADERS: usize = 20;
/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;
/// Messages that tell of something that is gone: `NFT_MSG_DELTABLE`, `DELCHAIN`, `DELRULE`, `DELSET`, `DELSETELEM`.
const LOSSES: [u8; 5] = [2, 5, 8, 11, 14];
/// The attribute with the table's name: the first of each of these messages.
const TABLE_NAME: u16 = 1;

/// A socket that hears of changes in the network namespace in which it was opened.
#[derive(Debug)]
pub(in crate::netns) struct Monitor(AsyncFd<OwnedFd>);

impl Monitor {
    /// Begins to listen. What happens from then on is not missed.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub(in crate::netns) fn open() -> Result<Self> {
        let open = || -> io::Result<AsyncFd<OwnedFd>> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                flags,
                SockProtocol::NetlinkNetFilter,
            )?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (GROUP - 1)))?;
            // It is root's to have more than others; with less, a flood is taken for a loss.
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG);
            // SAFETY: the descriptor is owned by the value that is registered, which neither closes nor exchanges it while
            // it lives.
            Ok(unsafe { AsyncFd::register(socket) }?)
        };
        open()
            .map(Self)
            .map_err(|source| Error::kernel("listen to changes of nftables", source))
    }

    /// Waits until somebody else has taken away something of a table whose name `matters`, or may have.
    ///
    /// # Errors
    /// When the socket fails.
    pub(in crate::netns) async fn lost(&self, matters: impl Fn(&str) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let mut ready = self.0.readable().await?;
            let mut lost = false;
            // All that is there: a flush tells of each rule, and one repair is enough.
            loop {
                match take(self.0.get_ref().as_fd(), &mut buffer) {
                    Ok(length) => lost |= tells_of_loss(&buffer[..length], &matters),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // More came than there was room for.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                    Err(error) => return Err(error),
                }
            }
            ready.clear_ready();
            if lost {
                return Ok(());
            }
        }
    }
}

fn take(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?)
}

/// Whether one of the messages says that somebody else removed something from such a table.
fn tells_of_loss(mut rest: &[u8], matters: &impl Fn(&str) -> bool) -> bool {
    while let Some(head) = rest.get(..16) {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let (kind, subsystem) = match u16::from_ne_bytes([head[4], head[5]]).to_be_bytes() {
            [subsystem, kind] => (kind, subsystem),
        };
        let from = u32::from_ne_bytes([head[12], head[13], head[14], head[15]]);
        let Some(message) = rest.get(..length).filter(|_| length >= 16) else {
            return false;
        };
        if subsystem == SUBSYSTEM && LOSSES.contains(&kind) && !is_ours(from) {
            let name = message.get(HEADERS..).and_then(table_name);
            let name = name.and_then(|name| std::str::from_utf8(name).ok());
            if name.is_some_and(|name| matters(name.trim_end_matches('\0'))) {
                return true;
            }
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    false
}

fn table_name(mut attributes: &[u8]) -> Option<&[u8]> {
    while let Some(head) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) & 0x3fff == TABLE_NAME {
            return Some(value);
        }
        attributes = attributes.get(aligned(length)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, from: u32, table: &str) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS];
        bytes.extend((4 + table.len() as u16 + 1).to_ne_bytes());
        bytes.extend(TABLE_NAME.to_ne_bytes());
        bytes.extend(table.as_bytes());
        bytes.push(0);
        bytes.resize(aligned(bytes.len()), 0);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&u16::from_be_bytes([SUBSYSTEM, kind]).to_ne_bytes());
        bytes[12..16].copy_from_slice(&from.to_ne_bytes());
        bytes
    }

    #[test]
    fn losses_of_our_tables_count_and_truncated_messages_end_quietly() {
        let (loss, gain, other) = (message(8, 7, "wharf-x"), message(6, 7, "wharf-x"), message(8, 7, "nat"));
        let tells = |bytes: &[u8]| tells_of_loss(bytes, &|name: &str| name == "wharf-x");
        assert!(tells(&loss) && !tells(&gain) && !tells(&other));
        assert!(tells(&[other, gain, loss.clone()].concat()));
        for cut in 0..loss.len() {
            assert!(!tells(&loss[..cut]));
        }
    }
}
