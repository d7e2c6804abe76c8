//! Creates what each entry describes, in the directory its name leads to.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, futimens, makedev, mknodat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, symlinkat, unlinkat};

use super::dirs::{Dirs, describe_node, set_xattr};
use super::fault::{Fault, io};
use super::name::{self, Meaning};
use super::reader::{Entry, Kind, TarReader};
use super::{Options, Stats, sys};
use crate::images::{recipe::Kept, rootfs};

/// Files of a layer from this size on are on their way to the disk while the next are unpacked. Smaller ones are written in one
/// go when the image is synced: together they cost the disk less.
const EAGERLY: u64 = 32 << 10;

/// Where an entry belongs.
#[derive(Clone, Copy)]
struct At<'a> {
    parents: &'a [&'a [u8]],
    name: &'a [u8],
}

/// The extraction of one layer.
pub struct Extractor {
    dirs: Dirs,
    plain: bool,
    hollow: bool,
    bytes: u64,
    inodes: u64,
    disk: Disk,
}

/// How much of the disk things take, as far as can be said without asking for each.
#[derive(Clone, Copy)]
struct Disk {
    /// Bytes of one block: content takes whole ones.
    block: u64,
    /// Bytes of a directory with few entries.
    directory: u64,
}

impl Disk {
    /// As it is where the empty directory `root` is.
    fn of(root: &OwnedFd) -> nix::Result<Self> {
        // The unit of `st_blocks`, whatever the file system's is.
        const UNIT: u64 = 512;
        Ok(Self {
            block: fstatvfs(root)?.fragment_size().max(1),
            directory: fstat(root)?.st_blocks.unsigned_abs() * UNIT,
        })
    }

    fn file(self, size: u64) -> u64 {
        size.div_ceil(self.block).saturating_mul(self.block)
    }
}

impl Extractor {
    /// Starts at `root`, a directory the caller made for this layer. `options` say how.
    pub fn new(root: OwnedFd, options: &Options) -> Result<Self, Fault> {
        let disk = Disk::of(&root).map_err(io("measure the root before"))?;
        Ok(Extractor {
            dirs: Dirs::new(root)?,
            disk,
            plain: options.plain,
            hollow: options.hollow,
            bytes: 0,
            inodes: 0,
        })
    }

    /// Creates one entry, taking its data from `reader`.
    pub fn entry<R: Read>(&mut self, entry: Entry, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let path = entry.name.clone();
        let parts = name::components(&path)?;
        let parents = &parts[..parts.len().saturating_sub(1)];
        match self.meaning(&parts)? {
            Meaning::Ignored => Ok(()),
            Meaning::Root => {
                if entry.kind != Kind::Directory {
                    return Err(Fault::Refused("the layer's root is not a directory".into()));
                }
                self.dirs.go(&[])?;
                self.dirs.describe(entry);
                Ok(())
            }
            Meaning::Opaque => {
                self.dirs.go(parents)?;
                self.dirs.hide_lower()
            }
            Meaning::Whiteout(hidden) => {
                self.dirs.go(parents)?;
                self.whiteout(hidden)
            }
            Meaning::Plain(name) => {
                self.dirs.go(parents)?;
                let at = At { parents, name };
                match entry.kind {
                    Kind::Directory => self.directory(at, entry, reader),
                    Kind::File => self.file(at, &entry, reader),
                    Kind::HardLink => self.hard_link(at, &entry, reader),
                    Kind::Symlink => self.symlink(at, &entry, reader),
                    Kind::Fifo => self.node(at, &entry, (SFlag::S_IFIFO, 0), reader),
                    Kind::CharDevice { major, minor } => {
                        let device = (SFlag::S_IFCHR, makedev(major.into(), minor.into()));
                        self.node(at, &entry, device, reader)
                    }
                    Kind::BlockDevice { major, minor } => {
                        let device = (SFlag::S_IFBLK, makedev(major.into(), minor.into()));
                        self.node(at, &entry, device, reader)
                    }
                }
            }
        }
    }

    /// Sets what is still to be set and says what was made.
    pub fn finish(self) -> Result<Stats, Fault> {
        let stats = Stats {
            // The root is a directory, too.
            bytes: self.bytes + (self.dirs.created + 1) * self.disk.directory,
            inodes: self.inodes + self.dirs.created,
        };
        self.dirs.finish()?;
        Ok(stats)
    }

    fn meaning<'a>(&self, parts: &[&'a [u8]]) -> Result<Meaning<'a>, name::NameError> {
        match (self.plain, parts.last()) {
            (false, _) => name::meaning(parts),
            (true, Some(last)) => Ok(Meaning::Plain(last)),
            (true, None) => Ok(Meaning::Root),
        }
    }

    fn directory<R: Read>(&mut self, at: At<'_>, entry: Entry, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let name = at.name;
        match sys::stat(self.dirs.here(), name) {
            Err(Errno::ENOENT) => self.dirs.enter_new(name, entry, false),
            Err(errno) => Err(Fault::Io("stat", errno.into())),
            Ok(stat) if sys::is_dir(&stat) => {
                let fd = sys::open_dir(self.dirs.here(), name).map_err(io("open directory"))?;
                self.dirs.enter_again(name, fd, entry)
            }
            Ok(stat) => {
                self.make_way(at, reader)?;
                // This layer's directory is all there is under a name that the layer also deletes.
                self.dirs.enter_new(name, entry, sys::is_whiteout(&stat))
            }
        }
    }

    fn file<R: Read>(&mut self, at: At<'_>, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let mode = entry.mode & 0o777;
        let fd = self.place(at, "create", reader, |here| sys::create(here, at.name, mode))?;
        let mut file = File::from(fd);
        if reader.recorder().is_some()
            && let Some(path) = self.dirs.real_path(at.name)
        {
            reader.data_becomes(&path)?;
        }
        loop {
            let piece = reader.data()?;
            if piece.is_empty() {
                break;
            }
            if self.hollow {
                continue;
            }
            file.write_all(piece).map_err(|e| Fault::Io("write", e))?;
        }
        if self.hollow {
            file.set_len(entry.size).map_err(|e| Fault::Io("write", e))?;
        }
        if self.dirs.inherits() || entry.uid != 0 || entry.gid != 0 {
            fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(io("chown"))?;
        }
        if self.dirs.needs_chmod(entry.mode) {
            fchmod(&file, Mode::from_bits_truncate(entry.mode)).map_err(io("chmod"))?;
        }
        for (key, value) in &entry.xattrs {
            set_xattr(key, |key| sys::fsetxattr(file.as_fd(), key, value))?;
        }
        let time = sys::time(entry.mtime);
        futimens(&file, &time, &time).map_err(io("set the time of"))?;
        if reader.recorder().is_some() && entry.size >= EAGERLY {
            sys::begin_writing(&file);
        }
        self.inodes += 1;
        self.bytes += self.disk.file(entry.size);
        Ok(())
    }

    fn symlink<R: Read>(&mut self, at: At<'_>, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let target = entry.link.as_slice();
        if target.is_empty() || target.contains(&0) {
            return Err(Fault::Refused("the symlink's target is not a path".into()));
        }
        self.place(at, "make symlink", reader, |here| symlinkat(target, here, at.name))?;
        self.inodes += 1;
        describe_node(&self.dirs, at.name, entry, false)
    }

    fn node<R: Read>(
        &mut self,
        at: At<'_>,
        entry: &Entry,
        (kind, device): (SFlag, libc::dev_t),
        reader: &mut TarReader<R>,
    ) -> Result<(), Fault> {
        let mode = Mode::from_bits_truncate(entry.mode & 0o777);
        self.place(at, "make node", reader, |here| {
            mknodat(here, at.name, kind, mode, device)
        })?;
        self.inodes += 1;
        describe_node(&self.dirs, at.name, entry, true)
    }

    /// A hard link shares everything with its target, so only the name is made.
    fn hard_link<R: Read>(&mut self, at: At<'_>, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let At { parents, name } = at;
        let target = name::components(&entry.link)
            .map_err(|reason| Fault::Refused(format!("its hard link target: {reason}")))?;
        let Meaning::Plain(target_name) = self.meaning(&target)? else {
            return Err(Fault::Refused("its hard link target is no file".into()));
        };
        let target_parents = &target[..target.len() - 1];
        if target_parents == parents && target_name == name {
            return Ok(());
        }
        let missing = |errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => {
                Fault::Refused("its hard link target is not in this layer".into())
            }
            Errno::EPERM => Fault::Refused("its hard link target is a directory".into()),
            other => Fault::Io("find the hard link target of", other.into()),
        };
        let away = if self.dirs.is_here(target_parents) {
            None
        } else {
            Some(sys::open_in_root(self.dirs.root(), &target_parents.join(&b'/')).map_err(missing)?)
        };
        let mut freed = false;
        loop {
            self.dirs.touch();
            let here = self.dirs.here();
            let from = away.as_ref().unwrap_or(here);
            // Without AT_SYMLINK_FOLLOW: a target that is a symlink is linked itself.
            match linkat(from, target_name, here, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) => {
                    let (old, new) = (sys::stat(from, target_name), sys::stat(here, name));
                    if let (Ok(old), Ok(new)) = (&old, &new)
                        && (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino)
                    {
                        return Ok(());
                    }
                    // Through a symlink the name can be one of its own parents, which then comes back.
                    if std::mem::replace(&mut freed, true) {
                        return Err(Fault::Refused("its name is one of its parents".into()));
                    }
                    self.make_way(at, reader)?;
                }
                Err(errno) => return Err(missing(errno)),
            }
        }
    }

    /// Deletes `hidden` of lower layers. What this layer has under that name stays, as the specification wants.
    fn whiteout(&mut self, hidden: &[u8]) -> Result<(), Fault> {
        self.dirs.touch();
        match mknodat(self.dirs.here(), hidden, SFlag::S_IFCHR, Mode::empty(), 0) {
            Ok(()) => {
                self.inodes += 1;
                Ok(())
            }
            Err(Errno::EEXIST) => match sys::open_dir(self.dirs.here(), hidden) {
                Ok(own) => sys::fsetxattr(own.as_fd(), b"trusted.overlay.opaque", b"y").map_err(io("mark as opaque")),
                Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
                Err(errno) => Err(Fault::Io("open directory", errno.into())),
            },
            Err(errno) => Err(Fault::Io("make whiteout", errno.into())),
        }
    }

    /// Creates something; what an earlier entry left under the name gives way.
    fn place<R: Read, T>(
        &mut self,
        at: At<'_>,
        what: &'static str,
        reader: &mut TarReader<R>,
        create: impl Fn(&OwnedFd) -> nix::Result<T>,
    ) -> Result<T, Fault> {
        self.dirs.touch();
        match create(self.dirs.here()) {
            Err(Errno::EEXIST) => {
                self.make_way(at, reader)?;
                create(self.dirs.here()).map_err(io(what))
            }
            other => other.map_err(io(what)),
        }
    }

    /// Removes what is at that name, or moves it aside if its content will be asked for again.
    fn make_way<R: Read>(&mut self, at: At<'_>, reader: &mut TarReader<R>) -> Result<(), Fault> {
        let At { parents, name } = at;
        self.dirs.touch();
        let stat = sys::stat(self.dirs.here(), name).map_err(io("stat"))?;
        let size = stat.st_size.unsigned_abs();
        let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let mut counted = Kept::default();
        if !sys::is_dir(&stat) && stat.st_nlink == 1 {
            self.inodes = self.inodes.saturating_sub(1);
            counted.inodes = 1;
            if is_file {
                counted.bytes = self.disk.file(size);
                self.bytes = self.bytes.saturating_sub(counted.bytes);
            }
        }
        let keep = sys::is_dir(&stat) || (is_file && size > 0);
        // No file below a path that is too long was written down by its path.
        let kept = match (reader.recorder(), self.dirs.real_path(name)) {
            (Some(recorder), Some(path)) if keep => {
                let moved = recorder.set_aside(self.dirs.here(), name, &path, counted);
                moved.map_err(|e| Fault::Io("move aside", e))?;
                true
            }
            _ => false,
        };
        if !sys::is_dir(&stat) {
            if !kept {
                unlinkat(self.dirs.here(), name, UnlinkatFlags::NoRemoveDir).map_err(io("replace"))?;
            }
            return Ok(());
        }
        if !kept {
            rootfs::remove_at(self.dirs.here().as_fd(), name).map_err(|e| Fault::Io("replace directory", e))?;
        }
        // Through a symlink the removed directory may be one the path leads through.
        self.dirs.reset()?;
        self.dirs.go(parents)?;
        self.dirs.touch();
        Ok(())
    }
}
