//! The open directories from the layer's root to where the extraction is. A directory's attributes are set when it is
//! left, because creating things in it changes its times and may be forbidden or altered by its mode.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::fault::{Fault, io};
use super::reader::Entry;
use super::sys;
use crate::images::recipe::MAX_PATH;

/// Mode of directories that no entry describes.
const IMPLIED: u32 = 0o755;
/// Default ACLs remembered until the end.
const MAX_ACLS: usize = 4096;
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const NOW: TimeSpec = TimeSpec::new(0, libc::UTIME_OMIT);

/// What happens to a directory when it is left.
enum Leave {
    /// Nothing: implied by an entry inside it.
    Keep,
    /// It was finished before; only its time must not show that we came again.
    Restore(TimeSpec),
    /// Its entry's attributes are set.
    Apply(Box<Entry>),
}

/// An open directory.
struct Level {
    name: Vec<u8>,
    fd: OwnedFd,
    leave: Leave,
    /// Made by us with root's ownership and nothing inherited.
    fresh: bool,
    /// Has the set-group-id bit, so what is created inside gets its group.
    inherits: bool,
    touched: bool,
    /// Its name is a symlink's.
    elsewhere: bool,
}

/// The path of open directories; the first is the layer's root.
pub struct Dirs {
    levels: Vec<Level>,
    umask: u32,
    acls: Vec<(Vec<u8>, Vec<u8>)>,
    /// Directories created.
    pub created: u64,
}

impl Dirs {
    /// Starts at `root`, a directory the caller made for this layer, which gets mode 0755 unless an entry says else.
    pub fn new(root: OwnedFd) -> Result<Self, Fault> {
        // A default ACL or set-group-id bit of the store must not leak into the image.
        sys::fremovexattr(&root, c"system.posix_acl_default")
            .map_err(io("clear the default ACL of the root before"))?;
        fchmod(&root, Mode::from_bits_truncate(IMPLIED)).map_err(io("chmod the root before"))?;
        let root = Level {
            name: Vec::new(),
            fd: root,
            leave: Leave::Keep,
            fresh: false,
            inherits: false,
            touched: false,
            elsewhere: false,
        };
        Ok(Dirs {
            levels: vec![root],
            umask: sys::umask(),
            acls: Vec::new(),
            created: 0,
        })
    }

    /// The directory the extraction is in.
    pub fn here(&self) -> &OwnedFd {
        &self.top().fd
    }

    /// The layer's root.
    pub fn root(&self) -> &OwnedFd {
        &self.levels[0].fd
    }

    /// Something is about to be created or removed here: its time is to be put back.
    pub fn touch(&mut self) {
        let last = self.levels.len() - 1;
        self.levels[last].touched = true;
    }

    /// Whether what is created here must be given its owner even if that is root.
    pub fn inherits(&self) -> bool {
        self.top().inherits
    }

    /// Whether a file created with `mode` does not have it yet.
    pub fn needs_chmod(&self, mode: u32) -> bool {
        mode & (0o7000 | self.umask) != 0
    }

    /// Whether `parts` is where the extraction is.
    pub fn is_here(&self, parts: &[&[u8]]) -> bool {
        self.levels.len() == parts.len() + 1 && self.common(parts) == parts.len()
    }

    fn top(&self) -> &Level {
        // The root is never popped.
        &self.levels[self.levels.len() - 1]
    }

    fn common(&self, parts: &[&[u8]]) -> usize {
        self.levels[1..]
            .iter()
            .zip(parts)
            .take_while(|(level, part)| level.name == **part)
            .count()
    }

    /// Goes to the directory `parts`, making what is missing.
    pub fn go(&mut self, parts: &[&[u8]]) -> Result<(), Fault> {
        let common = self.common(parts);
        self.leave_until(common + 1)?;
        for part in &parts[common..] {
            self.enter(part)?;
        }
        Ok(())
    }

    /// Leaves all directories but the root: one of them may be gone.
    pub fn reset(&mut self) -> Result<(), Fault> {
        self.leave_until(1)
    }

    fn leave_until(&mut self, depth: usize) -> Result<(), Fault> {
        while self.levels.len() > depth {
            if let Some(level) = self.levels.pop() {
                finish(&level)?;
            }
        }
        Ok(())
    }

    /// Enters a parent directory that is only named in an entry's path.
    fn enter(&mut self, name: &[u8]) -> Result<(), Fault> {
        match sys::open_dir(self.here(), name) {
            Ok(fd) => self.push_existing(name, fd, false),
            Err(Errno::ENOENT) => self.make(name, Leave::Keep, false),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let stat = sys::stat(self.here(), name).map_err(io("stat a parent of"))?;
                if sys::is_whiteout(&stat) {
                    self.touch();
                    unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir)
                        .map_err(io("replace a whiteout by a parent of"))?;
                    return self.make(name, Leave::Keep, true);
                }
                if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
                    return Err(Fault::Refused("a parent is not a directory".into()));
                }
                let fd = sys::open_in_root(self.root(), &self.path(name)).map_err(|errno| match errno {
                    Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => {
                        Fault::Refused("a parent is a symlink that leads to no directory of this layer".into())
                    }
                    other => Fault::Io("resolve a parent of", other.into()),
                })?;
                self.push_existing(name, fd, true)
            }
            Err(errno) => Err(Fault::Io("open a parent of", errno.into())),
        }
    }

    /// Enters the directory that `entry` describes; `hides` if it takes the place of a whiteout.
    pub fn enter_new(&mut self, name: &[u8], entry: Entry, hides: bool) -> Result<(), Fault> {
        self.make(name, Leave::Apply(Box::new(entry)), hides)
    }

    /// Enters an existing directory to give it the attributes of `entry`.
    pub fn enter_again(&mut self, name: &[u8], fd: OwnedFd, entry: Entry) -> Result<(), Fault> {
        self.push_existing(name, fd, false)?;
        self.describe(entry);
        Ok(())
    }

    /// Gives the attributes of `entry` to the directory the extraction is in.
    pub fn describe(&mut self, entry: Entry) {
        let last = self.levels.len() - 1;
        self.levels[last].leave = Leave::Apply(Box::new(entry));
    }

    /// Hides all of lower layers in the directory the extraction is in.
    pub fn hide_lower(&self) -> Result<(), Fault> {
        sys::fsetxattr(self.here().as_fd(), b"trusted.overlay.opaque", b"y").map_err(io("mark as opaque"))
    }

    fn make(&mut self, name: &[u8], leave: Leave, hides: bool) -> Result<(), Fault> {
        self.touch();
        mkdirat(self.here(), name, Mode::from_bits_truncate(IMPLIED)).map_err(io("make directory for"))?;
        let fd = sys::open_dir(self.here(), name).map_err(io("open directory of"))?;
        let inherited = self.inherits();
        if matches!(leave, Leave::Keep) && (inherited || self.needs_chmod(IMPLIED)) {
            fchown(&fd, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).map_err(io("chown a parent of"))?;
            fchmod(&fd, Mode::from_bits_truncate(IMPLIED)).map_err(io("chmod a parent of"))?;
        }
        self.created += 1;
        self.remember_acl(name, &leave)?;
        self.levels.push(Level {
            name: name.to_vec(),
            fd,
            leave,
            fresh: !inherited,
            // A directory made in a set-group-id directory has the bit until its own mode is set.
            inherits: inherited,
            touched: false,
            elsewhere: false,
        });
        if hides { self.hide_lower() } else { Ok(()) }
    }

    fn push_existing(&mut self, name: &[u8], fd: OwnedFd, elsewhere: bool) -> Result<(), Fault> {
        let stat = fstat(&fd).map_err(io("stat a parent of"))?;
        self.levels.push(Level {
            name: name.to_vec(),
            fd,
            leave: Leave::Restore(TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec)),
            fresh: false,
            inherits: stat.st_mode & libc::S_ISGID != 0,
            touched: false,
            elsewhere,
        });
        Ok(())
    }

    /// A default ACL would be inherited by what is still to be created, so it waits for the end.
    fn remember_acl(&mut self, name: &[u8], leave: &Leave) -> Result<(), Fault> {
        let Leave::Apply(entry) = leave else { return Ok(()) };
        let acl = entry.xattrs.iter().find(|(key, _)| key == DEFAULT_ACL);
        if let Some((_, value)) = acl {
            if self.acls.len() == MAX_ACLS {
                return Err(Fault::Refused("too many directories with a default ACL".into()));
            }
            let path = self.path(name);
            self.acls.push((path, value.clone()));
        }
        Ok(())
    }

    /// The path from the root to `name` here.
    fn path(&self, name: &[u8]) -> Vec<u8> {
        let mut names: Vec<&[u8]> = self.levels[1..].iter().map(|level| level.name.as_slice()).collect();
        names.push(name);
        names.join(&b'/')
    }

    /// The same without symlinks in it, if it is not too long.
    pub fn real_path(&self, name: &[u8]) -> Option<Vec<u8>> {
        let known = self.levels.iter().rposition(|level| level.elsewhere).unwrap_or(0);
        let mut path = if known == 0 {
            Vec::new()
        } else {
            let (root, real) = (sys::path_of(self.root())?, sys::path_of(&self.levels[known].fd)?);
            let below = real.strip_prefix(root.as_slice())?;
            below.strip_prefix(b"/").unwrap_or(below).to_vec()
        };
        for name in self.levels[known + 1..]
            .iter()
            .map(|level| level.name.as_slice())
            .chain([name])
        {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        (path.len() <= MAX_PATH).then_some(path)
    }

    /// Leaves all directories, the root last.
    pub fn finish(mut self) -> Result<(), Fault> {
        self.leave_until(1)?;
        for (path, value) in &self.acls {
            // Gone or replaced since is no matter.
            if let Ok(fd) = sys::open_in_root(self.root(), path) {
                set_xattr(DEFAULT_ACL, |name| sys::fsetxattr(fd.as_fd(), name, value))?;
            }
        }
        finish(self.top())
    }
}

fn finish(level: &Level) -> Result<(), Fault> {
    let what = "set the attributes of a directory before";
    match &level.leave {
        Leave::Keep => Ok(()),
        Leave::Restore(_) if !level.touched => Ok(()),
        Leave::Restore(time) => futimens(&level.fd, &NOW, time).map_err(io(what)),
        Leave::Apply(entry) => {
            if !level.fresh || entry.uid != 0 || entry.gid != 0 {
                fchown(
                    &level.fd,
                    Some(Uid::from_raw(entry.uid)),
                    Some(Gid::from_raw(entry.gid)),
                )
                .map_err(io(what))?;
            }
            fchmod(&level.fd, Mode::from_bits_truncate(entry.mode)).map_err(io(what))?;
            for (name, value) in entry.xattrs.iter().filter(|(name, _)| name != DEFAULT_ACL) {
                set_xattr(name, |name| sys::fsetxattr(level.fd.as_fd(), name, value))?;
            }
            let time = sys::time(entry.mtime);
            futimens(&level.fd, &time, &time).map_err(io(what))
        }
    }
}

/// Sets the owner (before the mode, which chown may strip) and the times of something that is no file or directory.
pub fn describe_node(dirs: &Dirs, name: &[u8], entry: &Entry, has_mode: bool) -> Result<(), Fault> {
    use nix::fcntl::AtFlags;
    use nix::sys::stat::{FchmodatFlags, fchmodat};
    let here = dirs.here();
    if dirs.inherits() || entry.uid != 0 || entry.gid != 0 {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        nix::unistd::fchownat(here, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(io("chown"))?;
    }
    if has_mode && dirs.needs_chmod(entry.mode) {
        // Not a symlink: this process has just made it, and nobody else writes here.
        fchmodat(
            here,
            name,
            Mode::from_bits_truncate(entry.mode),
            FchmodatFlags::FollowSymlink,
        )
        .map_err(io("chmod"))?;
    }
    for (key, value) in &entry.xattrs {
        set_xattr(key, |key| sys::setxattr_at(here, name, key, value))?;
    }
    let time = sys::time(entry.mtime);
    utimensat(here, name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(io("set the time of"))
}

/// Sets an extended attribute of an image. Those with which overlayfs would be steered are left out; what the
/// filesystem does not know is lost, except capabilities, without which the program would not work.
pub fn set_xattr(name: &[u8], set: impl FnOnce(&[u8]) -> nix::Result<()>) -> Result<(), Fault> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Ok(());
    }
    match set(name) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP) if name != b"security.capability" => Ok(()),
        // Symlinks and devices cannot have user attributes.
        Err(Errno::EPERM) if name.starts_with(b"user.") => Ok(()),
        Err(errno) => Err(Fault::Io("set an extended attribute of", errno.into())),
    }
}
