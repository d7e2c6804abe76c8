//! Kernel calls that no library wraps. Each function is one call; the reason for its safety stands beside it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just returned this descriptor to us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub fn cpath(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Clone a mount (with `recursive`, and all below it) into a detached tree that [`move_mount`] can attach.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    clone_tree_at(libc::AT_FDCWD, &cpath(path)?, recursive)
}

/// As [`clone_tree`], of what `fd` refers to.
pub fn clone_tree_fd(fd: BorrowedFd, recursive: bool) -> io::Result<OwnedFd> {
    clone_tree_at(fd.as_raw_fd(), c"", recursive)
}

fn clone_tree_at(dir: RawFd, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: `path` is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// Attach the mount `from` on `to`.
pub fn move_mount(from: BorrowedFd, to: BorrowedFd) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (empty, from, to) = (c"".as_ptr(), from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both paths are a static empty C string.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) })?;
    Ok(())
}

/// What [`mount_setattr`] changes.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    /// Descriptor of the user namespace for `MOUNT_ATTR_IDMAP`.
    pub userns: u64,
}

/// Change the attributes of the mount at `fd`, or of the whole tree.
pub fn mount_setattr(fd: BorrowedFd, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<MountAttr>();
    // SAFETY: `attr` has the layout of struct mount_attr and `size` is its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr as *const MountAttr,
            size,
        )
    })?;
    Ok(())
}

/// A new file system of a type, mounted nowhere yet. `params` with an empty value are flags.
pub fn fsmount(fstype: &str, params: &[(String, String)], attrs: u64) -> io::Result<OwnedFd> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let name = CString::new(fstype).map_err(invalid)?;
    // SAFETY: `name` is a C string that outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    for (key, value) in params {
        let (key, text) = (
            CString::new(key.as_str()).map_err(invalid)?,
            CString::new(value.as_str()).map_err(invalid)?,
        );
        if value.is_empty() {
            fsconfig(&context, libc::FSCONFIG_SET_FLAG, Some(&key), None)?;
        } else {
            fsconfig(&context, libc::FSCONFIG_SET_STRING, Some(&key), Some(&text))?;
        }
    }
    fsconfig(&context, libc::FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attrs) })
}

fn fsconfig(context: &OwnedFd, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
    let pointer = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both pointers are null or C strings that outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    })?;
    Ok(())
}

/// openat2(2). Always close-on-exec.
pub fn openat2(dir: BorrowedFd, path: &Path, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let path = cpath(path)?;
    let how = [(flags | libc::O_CLOEXEC) as u64, u64::from(mode), resolve];
    loop {
        // SAFETY: `path` is a C string; `how` has the layout of struct open_how (three u64) and its size is given.
        let result = owned(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                how.as_ptr(),
                size_of_val(&how),
            )
        });
        match result {
            // A rename somewhere in the system raced with the resolution.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => continue,
            result => return result,
        }
    }
}

/// Both sides of a fork.
pub enum Forked {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// fork(2) with namespace flags and `CLONE_PARENT`. The caller must have a single thread.
pub fn fork(flags: i32) -> io::Result<Forked> {
    fork_with(flags, None)
}

/// As [`fork`], with the child born in the cgroup of version 2 whose directory is `cgroup`: to move it there would hold up
/// every fork of the machine for a while (`CLONE_INTO_CGROUP`, Linux 5.7).
pub fn fork_into(flags: i32, cgroup: BorrowedFd) -> io::Result<Forked> {
    fork_with(flags, Some(cgroup))
}

fn fork_with(flags: i32, cgroup: Option<BorrowedFd>) -> io::Result<Forked> {
    /// From <linux/sched.h>; it is beyond what clone(2)'s flags hold.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    // With CLONE_PARENT the kernel takes the caller's own exit signal and refuses another.
    let signal = if flags & libc::CLONE_PARENT != 0 {
        0
    } else {
        libc::SIGCHLD
    };
    let into = cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup.
    let args: [u64; 11] = [
        u64::from((flags | libc::CLONE_PIDFD) as u32) | into,
        &raw mut pidfd as u64,
        0,
        0,
        signal as u64,
        0,
        0,
        0,
        0,
        0,
        cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
    ];
    // A kernel that knows less takes what it knows of if the rest is zero.
    // SAFETY: `args` has the layout of struct clone_args (version 2). Without CLONE_VM the child runs on a copy of this
    // address space; the process has one thread, so no lock is held by a thread that the child lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel stored a new descriptor there.
    Ok(Forked::Parent {
        pid: pid as i32,
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}

/// Leave without running destructors or exit handlers: for forked children.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub fn pidfd_kill(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) })?;
    Ok(())
}

pub fn setns(fd: BorrowedFd, kinds: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(fd.as_raw_fd(), kinds) }.into())?;
    Ok(())
}

pub fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(kinds) }.into())?;
    Ok(())
}

/// close_range(2) from `first` to `last`; with `on_exec` only marks them.
pub fn close_range(first: u32, last: u32, on_exec: bool) -> io::Result<()> {
    let flags = if on_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: no pointers. Callers do not use the closed descriptors again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
    Ok(())
}

/// Close every descriptor but those in `keep`.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter(|fd| **fd >= 0).map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut next = 0;
    for fd in keep {
        if fd > next {
            close_range(next, fd - 1, false)?;
        }
        next = fd + 1;
    }
    close_range(next, u32::MAX, false)
}

/// Make the current directory the root and stack the old root on top of it.
pub fn pivot_root_here() -> io::Result<()> {
    // SAFETY: static C strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    Ok(())
}

pub fn prctl(option: i32, a: u64, b: u64) -> io::Result<i32> {
    // SAFETY: only used with options that take numbers.
    let result = check(unsafe { libc::prctl(option, a, b, 0u64, 0u64) }.into())?;
    Ok(result as i32)
}

/// Keep others from tracing this process or reading its descriptors and executable below /proc.
pub fn set_undumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// Effective, permitted and inheritable capabilities as bit sets.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct CapSets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// _LINUX_CAPABILITY_VERSION_3 and "this process".
const CAP_HEADER: [u32; 2] = [0x2008_0522, 0];

pub fn capget() -> io::Result<CapSets> {
    let (mut header, mut data) = (CAP_HEADER, [0u32; 6]);
    // SAFETY: the layouts of the header and of two struct __user_cap_data_struct.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    let join = |low: usize| u64::from(data[low]) | u64::from(data[low + 3]) << 32;
    Ok(CapSets {
        effective: join(0),
        permitted: join(1),
        inheritable: join(2),
    })
}

pub fn capset(sets: &CapSets) -> io::Result<()> {
    let mut header = CAP_HEADER;
    let [e, p, i] = [sets.effective, sets.permitted, sets.inheritable];
    let high = |set: u64| (set >> 32) as u32;
    let data = [e as u32, p as u32, i as u32, high(e), high(p), high(i)];
    // SAFETY: the layouts of the header and of two struct __user_cap_data_struct.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) })?;
    Ok(())
}

/// Install a seccomp filter given as an array of struct sock_filter.
pub fn seccomp_set_filter(program: &[u8], flags: u64) -> io::Result<()> {
    seccomp_set(program, flags).map(drop)
}

fn seccomp_set(program: &[u8], flags: u64) -> io::Result<libc::c_long> {
    const INSTRUCTION: usize = size_of::<libc::sock_filter>();
    let length = u16::try_from(program.len() / INSTRUCTION).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fprog = libc::sock_fprog {
        len: length,
        filter: program.as_ptr() as *mut libc::sock_filter,
    };
    // SAFETY: the kernel copies `len` instructions, which lie within `program`, and does not write to it.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const fprog,
        )
    })
}

/// As [`seccomp_set_filter`]; returns the descriptor that tells of calls that the filter wants told.
pub fn seccomp_set_listening_filter(program: &[u8], flags: u64) -> io::Result<OwnedFd> {
    owned(seccomp_set(program, flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?)
}

/// Start a new session keyring, so that the process does not share the caller's keys.
pub fn new_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: `name` is a C string that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}

/// Open the other side of the terminal whose master is given.
pub fn terminal_peer(master: BorrowedFd) -> io::Result<OwnedFd> {
    let unlock = 0i32;
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    owned(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())
}

/// Make the terminal on `fd` the session's own.
pub fn take_terminal(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}

pub fn set_window_size(fd: BorrowedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one struct winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())?;
    Ok(())
}

/// Soft and hard limit of a resource.
pub fn getrlimit(resource: i32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable and of the right type; the new limit is null.
    check(unsafe { libc::prlimit64(0, resource as _, std::ptr::null(), &raw mut limit) }.into())?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Set the limits of a process; 0 is the caller.
pub fn setrlimit(pid: i32, resource: i32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is readable and of the right type; the old limit is null.
    check(unsafe { libc::prlimit64(pid, resource as _, &raw const limit, std::ptr::null_mut()) }.into())?;
    Ok(())
}

/// Set the caller's I/O priority: class and level as ioprio_set(2) puts them together.
pub fn set_io_priority(value: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: a system call with three numbers; 0 is the caller.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// Set how a process is scheduled; 0 is the caller.
pub fn sched_setattr(pid: i32, attr: &libc::sched_attr) -> io::Result<()> {
    let mut attr = *attr;
    attr.size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel reads as many bytes of `attr` as it says it has.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) })?;
    Ok(())
}

/// Set where the caller's memory comes from: mode with flags, and a bit for each node.
pub fn set_mempolicy(mode: i32, nodes: &[u64]) -> io::Result<()> {
    // The kernel counts one bit more than it reads; no node at all is no mask.
    let (mask, bits) = match nodes.iter().all(|word| *word == 0) {
        true => (std::ptr::null(), 0),
        false => (nodes.as_ptr(), nodes.len() * 64 + 1),
    };
    // SAFETY: `mask` is null or readable for as many bits as the kernel reads.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}

/// Set every signal to its default action and unblock all. The C library hides two signals from its own functions.
pub fn reset_signals() {
    const SIGSET_SIZE: usize = 8;
    // struct kernel_sigaction: no handler, no flags, no restorer, an empty mask.
    let default = [0u64; 4];
    let none = 0u64;
    // SAFETY: changes only this process's signal actions and mask; the default action runs no code, and both arrays
    // are as large as the kernel's types.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                SIGSET_SIZE,
            );
        }
        let previous = std::ptr::null::<u64>();
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            previous,
            SIGSET_SIZE,
        );
    }
}

/// execve(2); returns only the error. The arrays end with null pointers of their own.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let list = |of: &[CString]| -> Vec<*const libc::c_char> {
        of.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (list(args), list(env));
    // SAFETY: C strings and null-terminated arrays that live until the call returns.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

pub fn personality(domain: u64) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::personality(domain as _) }.into())?;
    Ok(())
}

pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length of a string that outlives the call.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// Makes the calling thread run before others that want to: with `nice`, and in turns of only `slice_ns` where the kernel
/// (6.12) has such. Threads and processes that it makes are as others.
pub fn prefer_this_thread(nice: i32, slice_ns: u64) -> io::Result<()> {
    // SAFETY: all zeros are a value of this plain struct.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.sched_policy = libc::SCHED_OTHER as u32;
    attr.sched_flags = libc::SCHED_FLAG_RESET_ON_FORK as u64;
    attr.sched_nice = nice;
    attr.sched_runtime = slice_ns;
    sched_setattr(0, &attr)
}
