//! Paths inside a container's root, which is hostile: nothing found there may lead out of it.

use crate::sys;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// The root directory of a container.
pub struct Root(OwnedFd);

/// Symbolic links that one path may pass, as in the kernel.
const MAX_LINKS: u32 = 40;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Directory,
    File,
}

impl Root {
    pub fn new(dir: OwnedFd) -> Root {
        Root(dir)
    }

    /// The root of this process, when it is the container's.
    pub fn own() -> io::Result<Root> {
        Ok(Root(openat(
            AT_FDCWD,
            "/",
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Open an existing path with open(2) flags.
    pub fn open(&self, path: &Path, flags: i32) -> io::Result<OwnedFd> {
        sys::openat2(
            self.fd(),
            path,
            flags,
            0,
            libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
        )
    }

    /// Open an existing path of which no component is a symbolic link.
    pub fn open_without_links(&self, path: &Path, flags: i32) -> io::Result<OwnedFd> {
        sys::openat2(
            self.fd(),
            path,
            flags,
            0,
            libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS,
        )
    }

    /// The directory at `path`, made with its parents if absent. An `O_PATH` descriptor.
    pub fn ensure_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path, libc::O_PATH | libc::O_DIRECTORY) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.make(path, Want::Directory),
            result => result,
        }
    }

    /// The file at `path`, made empty and with its parents if absent. An `O_PATH` descriptor.
    pub fn ensure_file(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path, libc::O_PATH) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.make(path, Want::File),
            result => result,
        }
    }

    /// The parent directory of `path`, made if absent, and the last component.
    pub fn ensure_parent(&self, path: &Path) -> io::Result<(OwnedFd, OsString)> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let name = path.file_name().ok_or_else(invalid)?.to_owned();
        Ok((self.ensure_dir(path.parent().ok_or_else(invalid)?)?, name))
    }

    /// Walk the path one component at a time, following links by hand so that what a dangling link names is made
    /// inside the root. `done` never holds a link or a `..`, and each step is resolved from the root again.
    fn make(&self, path: &Path, want: Want) -> io::Result<OwnedFd> {
        let mut todo: VecDeque<OsString> = components(path);
        let mut done = PathBuf::from(".");
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                if done != Path::new(".") {
                    done.pop();
                }
                continue;
            }
            let next = done.join(&part);
            match self.open_without_links(&next, libc::O_PATH | libc::O_NOFOLLOW) {
                Ok(found) if file_type(&found)? == SFlag::S_IFLNK => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    let target = PathBuf::from(readlinkat(found.as_fd(), "")?);
                    if target.is_absolute() {
                        done = PathBuf::from(".");
                    }
                    components(&target)
                        .into_iter()
                        .rev()
                        .for_each(|part| todo.push_front(part));
                }
                Ok(_) => done = next,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    let parent = self.open_without_links(&done, libc::O_PATH | libc::O_DIRECTORY)?;
                    let made = if want == Want::File && todo.is_empty() {
                        mknodat(
                            parent.as_fd(),
                            part.as_os_str(),
                            SFlag::S_IFREG,
                            Mode::from_bits_truncate(0o644),
                            0,
                        )
                    } else {
                        mkdirat(parent.as_fd(), part.as_os_str(), Mode::from_bits_truncate(0o755))
                    };
                    match made {
                        // Somebody was faster; look again at what they made. Not for ever: below /proc/self/fd
                        // looking changes what is there.
                        Err(nix::errno::Errno::EEXIST) if links < MAX_LINKS => {
                            links += 1;
                            todo.push_front(part);
                        }
                        Err(e) => return Err(e.into()),
                        Ok(()) => done = next,
                    }
                }
                Err(e) => return Err(e),
            }
        }
        let directory = if want == Want::Directory { libc::O_DIRECTORY } else { 0 };
        self.open_without_links(&done, libc::O_PATH | directory)
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

pub fn file_type(fd: impl AsFd) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode & libc::S_IFMT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Fixture {
        base: PathBuf,
    }

    impl Fixture {
        fn new(name: &str) -> (Fixture, Root) {
            let base = std::env::temp_dir().join(format!("wharf-paths-{name}-{}", std::process::id()));
            std::fs::create_dir_all(base.join("root")).unwrap();
            std::fs::create_dir_all(base.join("outside")).unwrap();
            let dir = std::fs::File::open(base.join("root")).unwrap();
            (Fixture { base }, Root::new(dir.into()))
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.base);
        }
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        let (fixture, root) = Fixture::new("links");
        let base = &fixture.base;
        symlink("../outside", base.join("root/up")).unwrap();
        symlink(base.join("outside"), base.join("root/abs")).unwrap();
        root.ensure_dir(Path::new("/up/a/b")).unwrap();
        root.ensure_file(Path::new("/abs/c/d")).unwrap();
        root.ensure_dir(Path::new("/../../x/../y")).unwrap();
        assert_eq!(
            std::fs::read_dir(base.join("outside")).unwrap().count(),
            0,
            "something was made outside"
        );
        assert!(base.join("root/outside/a/b").is_dir());
        let inside = base
            .join("root")
            .join(base.strip_prefix("/").unwrap())
            .join("outside/c/d");
        assert!(inside.is_file());
        assert!(base.join("root/y").is_dir());
    }

    #[test]
    fn what_a_dangling_link_names_is_made_inside() {
        let (fixture, root) = Fixture::new("dangling");
        symlink("/run/lock", fixture.base.join("root/lock")).unwrap();
        root.ensure_file(Path::new("/lock/a")).unwrap();
        assert!(fixture.base.join("root/run/lock/a").is_file());
    }

    #[test]
    fn circular_links_end_with_an_error() {
        let (fixture, root) = Fixture::new("circle");
        symlink("b", fixture.base.join("root/a")).unwrap();
        symlink("a", fixture.base.join("root/b")).unwrap();
        assert_eq!(
            root.ensure_dir(Path::new("/a/x")).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
    }

    #[test]
    fn a_file_in_the_way_of_a_directory_is_an_error() {
        let (fixture, root) = Fixture::new("notdir");
        std::fs::write(fixture.base.join("root/f"), b"").unwrap();
        assert_eq!(
            root.ensure_dir(Path::new("/f/x")).unwrap_err().raw_os_error(),
            Some(libc::ENOTDIR)
        );
    }
}
