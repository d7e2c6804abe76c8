//! The executable that monitors run.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
};

use super::super::{Error, Result};

/// The program that monitors run: this process's own executable, seen through a read-only mount of its own, so that
/// no process in a container can write to the file of the host by way of `/proc/PID/exe`. Made once per daemon.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    /// What `path` leads through.
    #[cfg_attr(not(test), allow(dead_code))]
    file: Option<OwnedFd>,
}

impl Program {
    /// Prepares the executable of the running process.
    ///
    /// # Errors
    /// When `/proc/self/exe` can't be opened.
    pub fn current() -> Result<Program> {
        let file = read_only_view().or_else(|_| File::open("/proc/self/exe").map(OwnedFd::from));
        let file = file.map_err(|source| Error::Io {
            attempt: "open the program of monitors",
            object: "/proc/self/exe".into(),
            source,
        })?;
        Ok(Program {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            file: Some(file),
        })
    }

    /// Any executable that understands `monitor` as its first argument; for tests.
    #[must_use]
    pub fn at(path: PathBuf) -> Program {
        Program { path, file: None }
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// The executable on a mount that is attached nowhere and can't be written through. Needs Linux 5.12.
fn read_only_view() -> io::Result<OwnedFd> {
    let check = |result: libc::c_long| match i32::try_from(result) {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err(io::Error::last_os_error()),
    };
    // From <linux/mount.h>; the constant's type differs between C libraries.
    const OPEN_TREE_CLONE: u32 = 1;
    const OPEN_TREE_CLOEXEC: u32 = 0o2_000_000;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    // SAFETY: the path ends with a zero byte.
    let number =
        check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/proc/self/exe".as_ptr(), flags) })?;
    // SAFETY: just made, belongs to nobody.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    /// `struct mount_attr`.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes {
        set: 1, // MOUNT_ATTR_RDONLY
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: path and structure live through the call and have the sizes told.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_but_cannot_be_written_through() {
        let program = Program::current().unwrap();
        let listed = std::process::Command::new(program.path())
            .arg("--list")
            .output()
            .unwrap();
        assert!(listed.status.success());
        // Opening it for writing would fail here for another reason: it runs.
        let mount = nix::sys::statvfs::fstatvfs(program.file.as_ref().unwrap()).unwrap();
        assert!(
            mount.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
            "{mount:?}"
        );
    }
}
