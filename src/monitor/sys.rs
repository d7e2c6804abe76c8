//! Kernel calls of the monitor that no library wraps safely. One call each, with the reason why it is safe.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// One `prctl` that takes a number.
pub fn prctl(option: i32, value: usize) -> io::Result<()> {
    // SAFETY: the options used here read no memory.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }.into()).map(|_| ())
}

/// The name that `ps` shows; the kernel keeps 15 bytes.
pub fn set_name(name: &CStr) {
    // SAFETY: `name` ends with a zero byte and lives through the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Keeps the allocator from holding on to memory: one arena, everything above 8 KiB mapped by itself.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain settings, made before any other thread exists (there never is one).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 8 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 10);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Makes signal `signal` interrupt nothing and kill nobody. Unlike an ignored signal, this ends with exec, so that
/// containers do not inherit it.
pub fn disregard(signal: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: the action is fully initialised and its handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Pid and wait status of a child that has ended; `None` when there is none at the moment.
pub fn reap() -> Option<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        match pid {
            0 => return None,
            pid if pid > 0 => return Some((pid, status)),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}

/// Sends `signal` to `pid` (above 0).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: no memory is involved.
    check(unsafe { libc::kill(pid, signal) }.into()).map(|_| ())
}

/// Whether descriptor `fd` is a listening unix socket; takes it over then. Used for descriptor 0, which nothing else
/// in this process owns.
pub fn inherited_listener(fd: RawFd) -> Option<OwnedFd> {
    let (mut value, mut length) = (0i32, 4);
    // SAFETY: `value` and `length` are valid and of the size told.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result != 0 || value != 1 {
        return None;
    }
    // SAFETY: the caller owns `fd`; the copy is new.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    // SAFETY: `copy` was just made and belongs to nobody.
    (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Puts `source` in the place of the standard descriptor `target`.
pub fn replace_standard(source: BorrowedFd, target: RawFd) -> io::Result<()> {
    // SAFETY: both are descriptors; std's handles for 0 to 2 do not own them.
    check(unsafe { libc::dup2(source.as_raw_fd(), target) }.into()).map(|_| ())
}

/// Another process that continues here, as pid 1 of a new PID namespace. Gives `None` in the child.
pub fn fork_into_pid_namespace() -> io::Result<Option<i32>> {
    // SAFETY: like fork: no memory is shared and no stack is given. The process has one thread, so that no lock can
    // be held by another one in the child.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            i64::from(libc::CLONE_NEWPID | libc::SIGCHLD),
            0usize,
            0usize,
            0usize,
            0usize,
        )
    };
    Ok(match check(pid)? {
        0 => None,
        pid => i32::try_from(pid).ok(),
    })
}

/// Closes every descriptor of this process.
pub fn close_all() {
    // SAFETY: the caller uses no descriptor afterwards.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
}

/// How many bytes a pipe can hold; 0 when it is none.
pub fn pipe_capacity(fd: BorrowedFd) -> usize {
    // SAFETY: no memory is involved.
    usize::try_from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) }).unwrap_or(0)
}

/// Asks for a pipe that holds `capacity` bytes. One that the system does not allow stays as it is.
pub fn set_pipe_capacity(fd: BorrowedFd, capacity: usize) {
    let Ok(capacity) = i32::try_from(capacity) else { return };
    // SAFETY: no memory is involved.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, capacity) };
}

/// Makes reads from `fd` give an error instead of waiting.
pub fn set_nonblocking(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        check(flags.into())?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK).into()).map(|_| ())
    }
}

/// The slave of the terminal whose master is `master`, without making it anyone's controlling terminal.
pub fn terminal_slave(master: BorrowedFd) -> io::Result<OwnedFd> {
    const TIOCGPTPEER: libc::c_ulong = 0x5441;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the call takes a number and gives a descriptor.
    let fd = check(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER as _, flags) }.into())?;
    // SAFETY: just made, belongs to nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// The kind of file system at `path`, as its magic number.
pub fn file_system(path: &CStr) -> io::Result<i64> {
    // SAFETY: `path` ends with a zero byte; `out` is a valid place of the right type.
    unsafe {
        let mut out: libc::statfs = std::mem::zeroed();
        check(libc::statfs(path.as_ptr(), &raw mut out).into())?;
        #[allow(clippy::unnecessary_cast)]
        Ok(out.f_type as i64)
    }
}

/// The seccomp filter's descriptor that a runtime hands over on `connection`; other descriptors are closed.
///
/// # Errors
/// `WouldBlock` when nothing has come yet, `InvalidData` when something else comes.
pub fn receive_seccomp_filter(connection: BorrowedFd) -> io::Result<OwnedFd> {
    let mut text = [0u8; 4096];
    let mut control = nix::cmsg_space!([RawFd; 8]);
    let mut buffers = [io::IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<UnixAddr>(connection.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
    let mut found = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            for fd in received {
                // SAFETY: the kernel has just put this descriptor into our table.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                if found.is_none() && is_seccomp_filter(fd.as_fd()) {
                    found = Some(fd);
                }
            }
        }
    }
    found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Only such a descriptor knows the question, and that no call has this number.
fn is_seccomp_filter(fd: BorrowedFd) -> bool {
    let number = 0u64;
    // SAFETY: the kernel reads eight bytes, which are there.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const number) };
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT)
}

/// Takes a blocked call from a filter's descriptor, which must have one, and answers it with ENOSYS. Returns the call's
/// architecture and number.
///
/// # Errors
/// ENOENT when the caller was killed meanwhile.
pub fn refuse_blocked_call(filter: BorrowedFd) -> io::Result<(u32, u32)> {
    // Larger than any kernel's structure is: it writes as much as it knows.
    #[repr(C)]
    struct Roomy {
        notice: libc::seccomp_notif,
        more: [u8; 256],
    }
    // SAFETY: plain numbers, for which zero is a value; the kernel demands zeros.
    let mut roomy: Roomy = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes into `roomy`, which has room.
    let taken = unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut roomy) };
    if taken < 0 {
        return Err(io::Error::last_os_error());
    }
    let call = (roomy.notice.data.arch, roomy.notice.data.nr as u32);
    let answer = libc::seccomp_notif_resp {
        id: roomy.notice.id,
        val: 0,
        error: -libc::ENOSYS,
        flags: 0,
    };
    // SAFETY: the kernel reads the structure, which it knows by its size, and keeps nothing of it. A caller that is gone
    // needs no answer.
    unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
    Ok(call)
}
