//! The table of contents of a zstd:chunked layer (containers/storage, docs/containers-storage-zstd-chunked.md): JSON as that of
//! eStargz, compressed by zstd in a skippable frame, whose place and digest the manifest's annotations give.

use std::io::Read;

/// Bytes of a skippable frame before what is in it.
pub(super) const FRAME_HEADER: u64 = 8;

/// The table, JSON, of `unpacked` bytes, that `bytes` is compressed.
///
/// # Errors
/// What is wrong with it.
pub(super) fn table(bytes: &[u8], unpacked: u64) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("its table of contents can't be decompressed: {error}");
    let mut json = Vec::new();
    let content = zstd::stream::read::Decoder::with_buffer(bytes).map_err(failed)?;
    // One byte more shows that it is longer than was said.
    content
        .take(unpacked.saturating_add(1))
        .read_to_end(&mut json)
        .map_err(failed)?;
    if json.len() as u64 != unpacked {
        return Err(format!(
            "its table of contents does not have the {unpacked} bytes that its manifest promises"
        ));
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_table_has_the_length_that_was_promised_or_is_refused() {
        let json = br#"{"version":1,"entries":[]}"#;
        let bytes = zstd::encode_all(json.as_slice(), 1).unwrap();
        assert_eq!(table(&bytes, json.len() as u64).unwrap(), json);
        for wrong in [0, json.len() as u64 - 1, json.len() as u64 + 1, u64::MAX] {
            assert!(table(&bytes, wrong).unwrap_err().contains("does not have"), "{wrong}");
        }
        assert!(table(&bytes[..bytes.len() - 3], json.len() as u64).is_err());
        assert!(table(b"no zstd", 7).unwrap_err().contains("decompressed"));
        // A gigabyte of zeroes is not unpacked.
        let bomb = zstd::encode_all(std::io::repeat(0).take(1 << 30), 1).unwrap();
        assert!(table(&bomb, 1000).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_table_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), unpacked in 0_u64..1000) {
            let _ = table(&bytes, unpacked);
        }
    }
}
