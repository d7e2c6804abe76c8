//! The files below a directory as a tar archive: a whole root filesystem, or what an overlay's upper directory changes.
//!
//! The directory belongs to a container, so nothing in it is followed, and what changes meanwhile does no harm.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Write},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, fstat, fstatat, major, minor},
};
use wharf_proto::cri::IdMapping;

use super::{
    rootfs::xattrs_at,
    tarball::{Tarball, empty},
    unpack::{Entry, Kind},
};

/// Directories in directories; as many as a layer may have.
const MAX_DEPTH: usize = 256;
/// The kernel's overflow id.
const NOBODY: u32 = 65_534;
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// How files are shown.
#[derive(Default)]
pub(super) struct View<'a> {
    /// The users and groups of the namespace whose numbers are to be shown.
    pub ids: Option<(IdMapping, IdMapping)>,
    /// What becomes of overlayfs' marks.
    pub marks: Marks<'a>,
}

/// What becomes of overlayfs' marks.
#[derive(Default)]
pub(super) enum Marks<'a> {
    /// There are none: it is no overlay's upper directory.
    #[default]
    None,
    /// They are those of the image specification, and the root itself is shown.
    Layer,
    /// Others are told.
    Told(&'a mut dyn Deletions),
}

/// Who is told what an overlay's upper directory hides. Paths have no leading slash, and one at the end of directories.
pub(super) trait Deletions {
    /// Whether what is at `path`, and all below it, is left out.
    fn leaves_out(&self, path: &[u8]) -> bool;
    /// What lower layers have at `path` is deleted.
    fn deleted(&mut self, path: &[u8]);
    /// The directory `path` hides all that lower layers have in it, and has `names` itself.
    ///
    /// # Errors
    /// When lower layers can't be read.
    fn hides(&mut self, path: &[u8], names: &[Vec<u8>]) -> io::Result<()>;
}

/// Writes what is below `root`; for a layer `root` itself, too.
///
/// # Errors
/// When something can't be read, is too deep or, of an overlay, can't be said; the text names it.
pub(super) fn write<W: Write>(root: OwnedFd, tar: &mut Tarball<W>, view: View<'_>) -> io::Result<()> {
    let mut walk = Walk {
        tar,
        view,
        links: HashMap::new(),
    };
    if matches!(walk.view.marks, Marks::Layer) {
        let stat = fstat(&root)?;
        walk.tar.add(
            &walk.entry(Kind::Directory, b"./", &stat, walk.xattrs(&root, b".")?),
            io::empty(),
        )?;
    }
    walk.directory(root, b"", 0)
}

struct Walk<'a, 'v, W> {
    tar: &'a mut Tarball<W>,
    view: View<'v>,
    /// First names of files that have several.
    links: HashMap<(libc::dev_t, libc::ino_t), Vec<u8>>,
}

impl<W: Write> Walk<'_, '_, W> {
    fn directory(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> io::Result<()> {
        let mut listing = Dir::from_fd(directory.try_clone()?)?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        drop(listing);
        names.sort();
        self.opaque(&directory, path, &names)?;
        for name in names {
            let full = [path, &name].concat();
            if let Marks::Told(deletions) = &self.view.marks
                && deletions.leaves_out(&full)
            {
                continue;
            }
            let told = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", shown(&full)));
            match self.one(&directory, &name, &full, depth) {
                // Gone, or another thing since it was listed.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {}
                // Whoever writes the archive tells its own errors, and deeper ones are told already.
                Err(error) if error.raw_os_error().is_none() => return Err(error),
                other => other.map_err(told)?,
            }
        }
        Ok(())
    }

    fn one(&mut self, directory: &OwnedFd, name: &[u8], path: &[u8], depth: usize) -> io::Result<()> {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = stat.st_mode & libc::S_IFMT;
        let whiteout = kind == libc::S_IFCHR && stat.st_rdev == 0;
        match &mut self.view.marks {
            Marks::Told(deletions) if whiteout => {
                deletions.deleted(path);
                return Ok(());
            }
            Marks::Layer if whiteout => {
                let parent = &path[..path.len() - name.len()];
                return self.mark(&[parent, b".wh.", name].concat(), &stat);
            }
            Marks::Layer if name.starts_with(b".wh.") => {
                return Err(io::Error::other(format!(
                    "{}: a layer can't hold a file of this name",
                    shown(path)
                )));
            }
            Marks::None | Marks::Layer | Marks::Told(_) => {}
        }
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        let numbers = || -> io::Result<(u32, u32)> {
            let number = |number: u64| u32::try_from(number).map_err(io::Error::other);
            Ok((number(device.0)?, number(device.1)?))
        };
        let kind = match kind {
            libc::S_IFDIR => {
                let child = openat(directory, name, DIRECTORY, Mode::empty())?;
                if depth >= MAX_DEPTH {
                    return Err(io::Error::other(format!("{}: it is too deep", shown(path))));
                }
                let below = [path, b"/"].concat();
                let xattrs = self.xattrs(directory, name)?;
                self.tar
                    .add(&self.entry(Kind::Directory, &below, &stat, xattrs), io::empty())?;
                return self.directory(child, &below, depth + 1);
            }
            libc::S_IFREG => Kind::File,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFCHR => {
                let (major, minor) = numbers()?;
                Kind::CharDevice { major, minor }
            }
            libc::S_IFBLK => {
                let (major, minor) = numbers()?;
                Kind::BlockDevice { major, minor }
            }
            // A socket is of the process that made it.
            _ => return Ok(()),
        };
        if stat.st_nlink > 1 {
            let first = self
                .links
                .entry((stat.st_dev, stat.st_ino))
                .or_insert_with(|| path.to_vec());
            if first.as_slice() != path {
                let link = first.clone();
                let entry = Entry {
                    link,
                    ..self.entry(Kind::HardLink, path, &stat, Vec::new())
                };
                return self.tar.add(&entry, io::empty());
            }
        }
        let xattrs = self.xattrs(directory, name)?;
        let mut entry = self.entry(kind, path, &stat, xattrs);
        match kind {
            Kind::File => {
                let flags =
                    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
                let file = File::from(openat(directory, name, flags, Mode::empty())?);
                let meta = file.metadata()?;
                if !meta.is_file() {
                    return Ok(());
                }
                entry.size = meta.len();
                // What shrinks meanwhile ends in zeroes: the header has told the size.
                self.tar.add(&entry, file.chain(io::repeat(0)))
            }
            Kind::Symlink => {
                entry.link = readlinkat(directory, name)?.into_vec();
                self.tar.add(&entry, io::empty())
            }
            _ => self.tar.add(&entry, io::empty()),
        }
    }

    /// Tells that a directory, which has `names`, hides what lower layers have in it, if it does.
    fn opaque(&mut self, directory: &OwnedFd, path: &[u8], names: &[Vec<u8>]) -> io::Result<()> {
        if matches!(self.view.marks, Marks::None) {
            return Ok(());
        }
        for (key, value) in xattrs_at(directory, b".")? {
            match key.as_slice() {
                b"trusted.overlay.opaque" if value == b"y" => match &mut self.view.marks {
                    Marks::Told(deletions) => deletions.hides(path, names)?,
                    _ => {
                        let stat = fstat(directory)?;
                        self.mark(&[path, b".wh..wh..opq"].concat(), &stat)?;
                    }
                },
                b"trusted.overlay.redirect" => {
                    let reason = "the kernel keeps it as a renamed directory, which a layer can't say";
                    return Err(io::Error::other(format!("{}: {reason}", shown(path))));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn mark(&mut self, path: &[u8], stat: &FileStat) -> io::Result<()> {
        let entry = Entry {
            name: path.to_vec(),
            mode: 0o644,
            mtime: (stat.st_mtime, 0),
            ..empty()
        };
        self.tar.add(&entry, io::empty())
    }

    fn entry(&self, kind: Kind, path: &[u8], stat: &FileStat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
        let (uids, gids) = match &self.view.ids {
            Some((uids, gids)) => (Some(uids), Some(gids)),
            None => (None, None),
        };
        Entry {
            kind,
            name: path.to_vec(),
            link: Vec::new(),
            mode: stat.st_mode & 0o7777,
            uid: seen(stat.st_uid, uids),
            gid: seen(stat.st_gid, gids),
            size: 0,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
            xattrs,
        }
    }

    /// What of a file's attributes belongs to it rather than to the overlay or the node.
    fn xattrs(&self, directory: &OwnedFd, name: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = xattrs_at(directory, name)?;
        if !matches!(self.view.marks, Marks::None) && all.iter().any(|(key, _)| key == b"trusted.overlay.metacopy") {
            return Err(io::Error::other("its content is in a lower layer only"));
        }
        all.retain(|(key, _)| !key.starts_with(b"trusted.overlay.") && key != b"security.selinux");
        Ok(all)
    }
}

/// A node's number as the namespace has it.
fn seen(id: u32, mapping: Option<&IdMapping>) -> u32 {
    let Some(mapping) = mapping else { return id };
    match id.checked_sub(mapping.host_id) {
        Some(offset) if offset < mapping.length => mapping.container_id + offset,
        _ => NOBODY,
    }
}

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&path[..path.len().min(200)]))
}

/// Opens a directory as a root to write from.
pub(super) fn open(parent: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    loop {
        match openat(parent.as_fd(), name, DIRECTORY, Mode::empty()) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}
