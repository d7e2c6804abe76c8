//! How a helper tells its result: one packet on a socket pair, with descriptors beside it.

use super::error::Context;
use super::{Error, Pending, Result};
use crate::sys;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A success as the helper sends it.
#[derive(Debug, Default)]
pub struct Report {
    pub pid: i32,
    /// Meaning agreed between the two sides of an operation.
    pub fds: Vec<OwnedFd>,
    /// There are hooks for when the program runs.
    pub hooks: bool,
}

/// Longest error text that is passed on, bytes.
const MAX_TEXT: usize = 8192;
const OK: u8 = 0;
const MAX_FDS: usize = 4;

/// Two connected ends that keep packets apart and report the other's end.
pub fn channel() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context(|| "make a socket pair".into())
}

/// Send a result. Errors are ignored: the other side then sees the end of the connection.
pub fn send(to: BorrowedFd, result: &Result<Report>) {
    let mut packet = Vec::with_capacity(64);
    let mut fds: Vec<RawFd> = Vec::new();
    match result {
        Ok(report) => {
            packet.push(OK);
            packet.push(u8::from(report.hooks));
            packet.extend_from_slice(&report.pid.to_le_bytes());
            fds.extend(report.fds.iter().map(AsRawFd::as_raw_fd));
        }
        Err(error) => {
            let (kind, text) = match error {
                Error::StartFailed(text) => (2, text.clone()),
                Error::Unsupported(text) => (3, text.clone()),
                Error::InvalidSpec(text) => (4, text.clone()),
                other => (1, other.to_string()),
            };
            packet.push(kind);
            packet.extend_from_slice(&text.as_bytes()[..text.len().min(MAX_TEXT)]);
        }
    }
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    let _ = sendmsg::<UnixAddr>(
        to.as_raw_fd(),
        &[IoSlice::new(&packet)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
}

/// Receive a result; `None` when the other side has closed without one.
pub fn receive(from: BorrowedFd) -> Result<Option<Report>> {
    let mut packet = [0u8; MAX_TEXT + 1];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let (length, fds) = loop {
        let mut buffers = [IoSliceMut::new(&mut packet)];
        match recvmsg::<UnixAddr>(
            from.as_raw_fd(),
            &mut buffers,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::errno::Errno::EINTR) => continue,
            // The other side was killed with our packet unread.
            Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
            Err(e) => return Err(Error::os("receive a helper's result", e)),
            Ok(message) => {
                let mut fds = Vec::new();
                for part in message.cmsgs().context(|| "receive a helper's descriptors".into())? {
                    if let ControlMessageOwned::ScmRights(received) = part {
                        // SAFETY: the kernel has just put these descriptors into our table.
                        fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (message.bytes, fds);
            }
        }
    };
    let Some((kind, body)) = packet[..length].split_first() else {
        return Ok(None);
    };
    let text = || String::from_utf8_lossy(body).into_owned();
    match kind {
        &OK => {
            let (hooks, pid) = body
                .split_first()
                .ok_or_else(|| Error::Failed("malformed result".into()))?;
            let pid = pid
                .try_into()
                .map(i32::from_le_bytes)
                .map_err(|_| Error::Failed("malformed result".into()))?;
            Ok(Some(Report {
                pid,
                fds,
                hooks: *hooks != 0,
            }))
        }
        2 => Err(Error::StartFailed(text())),
        3 => Err(Error::Unsupported(text())),
        4 => Err(Error::InvalidSpec(text())),
        _ => Err(Error::Failed(text())),
    }
}

/// Take the result of a [`Pending`] that is readable.
pub fn finish(pending: &Pending, operation: &'static str) -> Result<Report> {
    receive(pending.result.as_fd())?.ok_or(Error::HelperDied(operation))
}

/// Fork a helper that runs `work` and sends its result. It keeps only the descriptors in `keep`.
pub fn spawn_helper(keep: &[RawFd], work: impl FnOnce() -> Result<Report>) -> Result<Pending> {
    let (ours, theirs) = channel()?;
    match sys::fork(0).context(|| "fork a helper".into())? {
        sys::Forked::Parent { pid, .. } => Ok(Pending {
            helper: Some(pid),
            result: ours,
        }),
        sys::Forked::Child => {
            // Nothing may unwind into the caller's frames, which belong to the monitor.
            let code = catch_unwind(AssertUnwindSafe(|| {
                let mut kept = vec![0, 1, 2, theirs.as_raw_fd()];
                kept.extend_from_slice(keep);
                std::mem::forget(ours);
                let result = prepare_helper(&kept).and_then(|()| work());
                send(theirs.as_fd(), &result);
            }));
            sys::exit_now(i32::from(code.is_err()))
        }
    }
}

/// Has `work`, which a node that is out of processes needs to have any again, done by a helper or, without one, here and
/// now. `None`: done.
pub fn helped(work: impl Fn() -> Result<Report>) -> Result<Option<Pending>> {
    match spawn_helper(&[], &work) {
        Err(Error::Os { source, .. }) if is_out_of_processes(&source) => work().map(|_| None),
        pending => pending.map(Some),
    }
}

/// EAGAIN: a limit on processes; ENOMEM: none can be made any more, for lack of memory too.
fn is_out_of_processes(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM))
}

fn prepare_helper(keep: &[RawFd]) -> Result<()> {
    // Without the monitor nobody would know of what the helper makes.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).context(|| "die with the monitor".into())?;
    sys::set_undumpable().context(|| "make the helper undumpable".into())?;
    sys::close_all_but(keep).context(|| "close descriptors".into())?;
    sys::reset_signals();
    Ok(())
}
