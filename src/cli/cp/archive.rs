//! Writes a tar stream (POSIX pax) of a file or directory of this machine.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _};
use std::path::Path;

use crate::images::tarball::{Tarball, empty};
use crate::images::unpack::{Entry, Kind};

/// Writes `path` under `name` to `out`, symbolic links as such, everything owned by root as docker does. What is neither
/// file, directory nor link is left out.
pub fn write(path: &Path, name: &str, out: impl Write) -> io::Result<()> {
    let mut tar = Tarball::new(BufWriter::with_capacity(64 << 10, out));
    add(path, name.as_bytes(), &mut tar)?;
    tar.finish().map(drop)
}

fn add(path: &Path, name: &[u8], tar: &mut Tarball<impl Write>) -> io::Result<()> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let meta = fs::symlink_metadata(path).map_err(at)?;
    let kind = meta.file_type();
    let entry = Entry {
        name: name.to_vec(),
        mode: meta.mode() & 0o7777,
        mtime: (meta.mtime().max(0), 0),
        ..empty()
    };
    if kind.is_dir() {
        let entry = Entry {
            kind: Kind::Directory,
            name: [name, b"/"].concat(),
            ..entry
        };
        tar.add(&entry, io::empty())?;
        let mut entries = fs::read_dir(path)
            .map_err(at)?
            .collect::<io::Result<Vec<_>>>()
            .map_err(at)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            add(&entry.path(), &[name, b"/", entry.file_name().as_bytes()].concat(), tar)?;
        }
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(at)?;
        let entry = Entry {
            kind: Kind::Symlink,
            link: target.into_os_string().as_bytes().to_vec(),
            ..entry
        };
        tar.add(&entry, io::empty())?;
    } else if kind.is_file() {
        let file = File::open(path).map_err(at)?;
        let entry = Entry {
            size: meta.len(),
            ..entry
        };
        // A file that shrinks meanwhile ends in zeroes, one that grows is cut: the header has told the size.
        tar.add(&entry, io::Read::chain(file, io::repeat(0)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::unpack::{BLOCK, TarReader};

    #[test]
    fn what_is_written_is_read_by_the_reader_of_layers() {
        let dir = std::env::temp_dir().join(format!("wharf-archive-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let long = "n".repeat(150);
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join(&long), vec![7; 1000]).unwrap();
        std::os::unix::fs::symlink("../x", dir.join("sub/link")).unwrap();
        let mut tar = Vec::new();
        write(&dir, "top", &mut tar).unwrap();
        assert_eq!(tar.len() % BLOCK, 0);
        let mut reader = TarReader::new(tar.as_slice());
        let mut seen = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let name = String::from_utf8(entry.name.clone()).unwrap();
            seen.push((name.trim_end_matches('/').to_owned(), entry.kind, entry.size, entry.uid));
        }
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            seen,
            [
                ("top".to_owned(), Kind::Directory, 0, 0),
                (format!("top/{long}"), Kind::File, 1000, 0),
                ("top/sub".to_owned(), Kind::Directory, 0, 0),
                ("top/sub/link".to_owned(), Kind::Symlink, 0, 0),
            ]
        );
    }
}
