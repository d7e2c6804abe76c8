//! Where an eStargz blob says that its table of contents is, and the table in it (stargz-snapshotter, docs/estargz.md).

use std::io::Read;

/// Bytes of the footer: an empty gzip member whose extra field has the offset.
pub(super) const LENGTH: u64 = 51;
/// Largest table, compressed and not.
pub(super) const MAX_COMPRESSED: u64 = 32 << 20;
const MAX_TABLE: u64 = 128 << 20;
/// Name of the archive's entry that is the table.
const NAME: &[u8] = b"stargz.index.json";
const BLOCK: usize = 512;

/// Offset of the table's gzip member in a blob that ends with `footer`; `None` if that is no footer of this kind.
pub(super) fn offset(footer: &[u8]) -> Option<u64> {
    // Magic, method, flag FEXTRA; time, extra flags and system may be anything.
    if footer.len() as u64 != LENGTH || footer[..4] != [0x1f, 0x8b, 8, 4] {
        return None;
    }
    if footer[10..16] != [26, 0, b'S', b'G', 22, 0] || &footer[32..38] != b"STARGZ" {
        return None;
    }
    let digits = std::str::from_utf8(&footer[16..32]).ok()?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// The table of contents, JSON, in the gzip member `bytes`, which has an archive with it as the only entry.
///
/// # Errors
/// What is wrong with it.
pub(super) fn table(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut archive = Vec::new();
    flate2::bufread::GzDecoder::new(bytes)
        .take(MAX_TABLE)
        .read_to_end(&mut archive)
        .map_err(|error| format!("its table of contents can't be decompressed: {error}"))?;
    let header = archive.get(..BLOCK).ok_or("its table of contents is no archive")?;
    let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    if name != NAME {
        return Err("its table of contents is not where its footer says".into());
    }
    let size = std::str::from_utf8(&header[124..136]).unwrap_or_default();
    let size =
        usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).map_err(|_| "its table of contents has no length")?;
    let end = BLOCK.checked_add(size).filter(|end| *end <= archive.len());
    let end = end.ok_or("its table of contents is cut off or too large")?;
    archive.truncate(end);
    Ok(archive.split_off(BLOCK))
}
