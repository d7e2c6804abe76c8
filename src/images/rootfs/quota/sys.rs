//! The kernel's calls for project quotas: quotactl_fd(2), Linux 5.14, and ioctl_xfs_fsgetxattr(2), which ext4 has as well.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A quota of projects, not of users or groups.
const PROJECT: libc::c_int = 2;
/// `Q_GETQUOTA`, `Q_SETQUOTA` (linux/quota.h) and `Q_XGETQSTATV` (linux/dqblk_xfs.h). Each file system answers all of them.
const GET_QUOTA: libc::c_int = 0x80_0007;
const SET_QUOTA: libc::c_int = 0x80_0008;
const GET_STATE: libc::c_int = ('X' as libc::c_int) << 8 | 8;
/// `FS_QUOTA_PDQ_ACCT` and `FS_QUOTA_PDQ_ENFD`.
const COUNTED: u16 = 1 << 4;
const ENFORCED: u16 = 1 << 5;
/// `QIF_BLIMITS`.
const SPACE_LIMITS: u32 = 1;
/// `dqb_bhardlimit` has this unit.
const BLOCK: u64 = 1024;
/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR` (linux/fs.h), and what is new in the directory belongs to its project.
const GET_ATTRIBUTES: u32 = 0x801c_581f;
const SET_ATTRIBUTES: u32 = 0x401c_5820;
const INHERIT: u32 = 0x200;

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Quota {
    hard_blocks: u64,
    soft_blocks: u64,
    space: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `struct fs_quota_statv`, of which only the beginning is read.
#[repr(C, align(8))]
struct State {
    version: i8,
    _pad: u8,
    flags: u16,
    _rest: [u8; 252],
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copied_extent_size: u32,
    _pad: [u8; 8],
}

/// What one project takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes, with what is only reserved yet.
    pub bytes: u64,
    pub inodes: u64,
}

/// What the file system does with projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// It counts what they take.
    pub counted: bool,
    /// It holds them to their limits.
    pub enforced: bool,
}

fn quotactl<T>(on: BorrowedFd<'_>, command: libc::c_int, id: u32, argument: &mut T) -> io::Result<()> {
    let command = command << 8 | PROJECT;
    // SAFETY: `argument` is the structure that the command reads or writes, and outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            on.as_raw_fd(),
            command,
            id,
            std::ptr::from_mut(argument),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What the file system of `on` does with projects.
pub fn support(on: BorrowedFd<'_>) -> io::Result<Support> {
    let mut state = State {
        version: 1,
        _pad: 0,
        flags: 0,
        _rest: [0; 252],
    };
    quotactl(on, GET_STATE, 0, &mut state)?;
    Ok(Support {
        counted: state.flags & COUNTED != 0,
        enforced: state.flags & ENFORCED != 0,
    })
}

/// What the project takes. One of which the file system has never heard takes nothing.
pub fn taken(on: BorrowedFd<'_>, project: u32) -> io::Result<Taken> {
    let mut quota = Quota::default();
    match quotactl(on, GET_QUOTA, project, &mut quota) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => other?,
    }
    Ok(Taken {
        bytes: quota.space,
        inodes: quota.inodes,
    })
}

/// Limits what the project takes to so many bytes, rounded up to whole KiB; 0 is no limit.
pub fn limit(on: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    let mut quota = Quota {
        hard_blocks: bytes.div_ceil(BLOCK),
        valid: SPACE_LIMITS,
        ..Quota::default()
    };
    quotactl(on, SET_QUOTA, project, &mut quota)
}

/// The project of the file `of`; 0 where it has none.
pub fn project(of: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(attributes(of)?.project)
}

/// Gives the directory `of`, and what will be made in it, to the project.
pub fn join(of: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = attributes(of)?;
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: the request reads one such structure, which outlives the call.
    let done = unsafe { libc::ioctl(of.as_raw_fd(), SET_ATTRIBUTES as _, &raw const attributes) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn attributes(of: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the request writes one such structure, which outlives the call.
    let done = unsafe { libc::ioctl(of.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut attributes) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<Quota>(), 72);
        assert_eq!(size_of::<Attributes>(), 28);
        // 160 bytes are written.
        assert!(size_of::<State>() >= 160);
        assert_eq!(std::mem::offset_of!(State, flags), 2);
    }
}
