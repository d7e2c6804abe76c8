//! Writes a tar stream (POSIX pax) of a file or directory of this machine.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _};
use std::path::Path;

const BLOCK: usize = 512;

/// Writes `path` under `name` to `out`, symbolic links as such, everything owned by root as docker does. What is neither
/// file, directory nor link is left out.
pub fn write(path: &Path, name: &str, out: impl Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, out);
    add(path, name.as_bytes(), &mut out)?;
    out.write_all(&[0; 2 * BLOCK])?;
    out.flush()
}

fn add(path: &Path, name: &[u8], out: &mut impl Write) -> io::Result<()> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let meta = fs::symlink_metadata(path).map_err(at)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        header(out, &[name, b"/"].concat(), b'5', &meta, 0, b"")?;
        let mut entries = fs::read_dir(path)
            .map_err(at)?
            .collect::<io::Result<Vec<_>>>()
            .map_err(at)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            add(&entry.path(), &[name, b"/", entry.file_name().as_bytes()].concat(), out)?;
        }
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(at)?;
        header(out, name, b'2', &meta, 0, target.as_os_str().as_bytes())?;
    } else if kind.is_file() {
        let file = File::open(path).map_err(at)?;
        let size = meta.len();
        header(out, name, b'0', &meta, size, b"")?;
        // A file that shrinks meanwhile ends in zeroes, one that grows is cut: the header has told the size.
        let copied = io::copy(&mut file.take(size), out)?;
        io::copy(&mut io::repeat(0).take(size - copied), out)?;
        pad(out, size)?;
    }
    Ok(())
}

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let rest = (size % BLOCK as u64) as usize;
    if rest > 0 {
        out.write_all(&[0; BLOCK][rest..])?;
    }
    Ok(())
}

fn header(out: &mut impl Write, name: &[u8], kind: u8, meta: &Metadata, size: u64, link: &[u8]) -> io::Result<()> {
    let mut records = Vec::new();
    for (key, value, room) in [("path", name, 100), ("linkpath", link, 100)] {
        if value.len() > room {
            record(&mut records, key, value);
        }
    }
    if size >= 1 << 33 {
        record(&mut records, "size", size.to_string().as_bytes());
    }
    if !records.is_empty() {
        out.write_all(&block(b"pax", b'x', 0o644, 0, records.len() as u64, b""))?;
        out.write_all(&records)?;
        pad(out, records.len() as u64)?;
    }
    let mtime = meta.mtime().max(0).unsigned_abs();
    out.write_all(&block(name, kind, meta.mode() & 0o7777, mtime, size, link))
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn block(name: &[u8], kind: u8, mode: u32, mtime: u64, size: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", size & ((1 << 33) - 1)).as_bytes());
    put(136, format!("{:011o}", mtime & ((1 << 33) - 1)).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::unpack::{Kind, TarReader};

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
