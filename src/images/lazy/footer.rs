//! Where an eStargz blob says that its table of contents is, and the table in it (stargz-snapshotter, docs/estargz.md).

use std::io::Read;

/// Bytes of the footer: an empty gzip member whose extra field has the offset.
pub(super) const LENGTH: u64 = 51;
/// Largest table, compressed and not.
pub(super) const MAX_COMPRESSED: u64 = 32 << 20;
pub(super) const MAX_TABLE: u64 = 128 << 20;
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::images::testing::tar;

    /// A footer for a table at `offset`.
    pub fn footer(offset: u64) -> Vec<u8> {
        let mut bytes = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0];
        bytes.extend(format!("{offset:016x}STARGZ").as_bytes());
        bytes.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn the_footer_of_the_specification_is_read() {
        let bytes = footer(0x1234_5678);
        assert_eq!(bytes.len() as u64, LENGTH);
        assert_eq!(offset(&bytes), Some(0x1234_5678));
        let mut empty = Vec::new();
        flate2::bufread::GzDecoder::new(bytes.as_slice())
            .read_to_end(&mut empty)
            .unwrap();
        assert!(empty.is_empty());
    }

    #[test]
    fn an_archive_with_the_table_gives_it_and_another_does_not() {
        let gzip = |archive: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(archive).unwrap();
            encoder.finish().unwrap()
        };
        let json = br#"{"version":1,"entries":[]}"#;
        let good = tar(&[("stargz.index.json", json)]);
        assert_eq!(table(&gzip(&good)).unwrap(), json);
        assert!(table(&gzip(&tar(&[("other.json", json)]))).is_err());
        assert!(table(&gzip(&good[..520])).is_err());
        assert!(table(b"no gzip").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_offset_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = offset(&bytes);
        }

        #[test]
        fn a_changed_byte_of_the_frame_is_noticed(at in 0_usize..38, new in any::<u8>()) {
            let good = footer(77);
            let mut bytes = good.clone();
            bytes[at] = new;
            // Time and system are free, digits give another number.
            if !(4..10).contains(&at) && !(16..32).contains(&at) && bytes != good {
                prop_assert_eq!(offset(&bytes), None);
            }
        }
    }
}
