//! The tar reader alone: formats, numbers, and bytes that are no tar.

use super::super::header::{FormatError, parse};
use super::super::reader::{Kind, ReadError, TarReader};
use super::{Head, Random, Tar, pax_record, seal};

fn names(bytes: &[u8]) -> Result<Vec<String>, ReadError> {
    let mut reader = TarReader::new(bytes);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        names.push(String::from_utf8(entry.name).unwrap());
    }
    Ok(names)
}

#[test]
fn long_names_of_gnu_and_pax_replace_the_headers() {
    let long = "d/".repeat(90) + "file";
    let tar = Tar::default()
        .add(
            Head {
                kind: b'L',
                name: "././@LongLink",
                ..Head::default()
            },
            format!("{long}\0").as_bytes(),
        )
        .file("short", b"x")
        .pax(&[("path", b"from-pax")])
        .file("other", b"y")
        .file("plain", b"");
    assert_eq!(names(&tar.bytes()).unwrap(), [long.as_str(), "from-pax", "plain"]);
}

#[test]
fn pax_gives_owner_size_time_and_xattrs() {
    let tar = Tar::default()
        .pax(&[
            ("uid", b"3000000"),
            ("gid", b"7"),
            ("mtime", b"-1.25"),
            ("size", b"5"),
            ("SCHILY.xattr.user.a", b"\0=\n"),
        ])
        .file("f", b"hello");
    let bytes = tar.bytes();
    let mut reader = TarReader::new(bytes.as_slice());
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!(
        (entry.uid, entry.gid, entry.size, entry.mtime),
        (3_000_000, 7, 5, (-2, 750_000_000))
    );
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"\0=\n".to_vec())]);
    assert_eq!(reader.data().unwrap(), b"hello");
    assert!(reader.next_entry().unwrap().is_none());
}

#[test]
fn ustar_prefix_and_base_256_numbers_are_read() {
    let mut block: [u8; 512] = Tar::default().file("name", b"").bytes()[..512].try_into().unwrap();
    block[345..351].copy_from_slice(b"prefix");
    block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]);
    block[136..148].fill(0xff);
    seal(&mut block);
    let header = parse(&block).unwrap().unwrap();
    assert_eq!(
        (header.name.as_slice(), header.size, header.mtime),
        (&b"prefix/name"[..], (2 << 32) + 1, -1)
    );
    // A negative size would wrap.
    block[124..136].fill(0xff);
    seal(&mut block);
    assert_eq!(parse(&block), Err(FormatError::Range("size")));
}

#[test]
fn damage_is_found() {
    let whole = Tar::default().file("a", &[7; 700]).file("b", b"").bytes();
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(matches!(
        names(&flipped),
        Err(ReadError::Format(FormatError::Checksum { .. }))
    ));
    assert!(matches!(
        names(&whole[..900]),
        Err(ReadError::Format(FormatError::Truncated))
    ));
    assert!(matches!(
        names(&whole[..1600]),
        Err(ReadError::Format(FormatError::Truncated))
    ));
    // No end marker is what some writers leave.
    assert_eq!(names(&whole[..2048]).unwrap(), ["a", "b"]);
    // And no padding either, when the last entry is a file.
    assert_eq!(names(&whole[..512 + 700]).unwrap(), ["a"]);
}

#[test]
fn sparse_and_unknown_kinds_are_refused_by_name() {
    let sparse = Tar::default().pax(&[("GNU.sparse.major", b"1")]).file("f", b"").bytes();
    assert!(matches!(names(&sparse), Err(ReadError::Format(FormatError::Sparse))));
    for (kind, wanted) in [(b'S', FormatError::Sparse), (b'M', FormatError::Kind(b'M'))] {
        let tar = Tar::default()
            .add(
                Head {
                    kind,
                    name: "f",
                    ..Head::default()
                },
                b"",
            )
            .bytes();
        assert!(matches!(names(&tar), Err(ReadError::Format(e)) if e == wanted));
    }
}

#[test]
fn an_extended_header_is_bounded() {
    let big = vec![b' '; 1024 * 1024 + 1];
    for kind in *b"xgLK" {
        let tar = Tar::default()
            .add(
                Head {
                    kind,
                    name: "f",
                    ..Head::default()
                },
                &big,
            )
            .bytes();
        assert!(
            matches!(names(&tar), Err(ReadError::Format(FormatError::TooLarge(_)))),
            "kind {kind}"
        );
    }
}

#[test]
fn only_files_have_data() {
    // A directory whose size field lies must not swallow the next header.
    let mut bytes = Tar::default().dir("d", 0o755).file("f", b"").bytes();
    let mut block: [u8; 512] = bytes[..512].try_into().unwrap();
    block[124..135].copy_from_slice(b"00000001000");
    seal(&mut block);
    bytes[..512].copy_from_slice(&block);
    assert_eq!(names(&bytes).unwrap(), ["d", "f"]);
}

#[test]
fn the_stream_is_read_to_its_last_byte() {
    struct Counting<'a>(&'a [u8], usize);
    impl std::io::Read for &mut Counting<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            // Odd pieces, so that headers are split.
            let limit = out.len().min(313);
            let read = self.0.read(&mut out[..limit])?;
            self.1 += read;
            Ok(read)
        }
    }
    let mut bytes = Tar::default().file("a", &[1; 3000]).bytes();
    bytes.resize(bytes.len() + 9_999, 0);
    let mut source = Counting(&bytes, 0);
    let mut reader = TarReader::new(&mut source);
    assert_eq!(reader.next_entry().unwrap().unwrap().kind, Kind::File);
    assert!(reader.next_entry().unwrap().is_none());
    drop(reader);
    assert_eq!(source.1, bytes.len());
}

#[test]
fn no_bytes_make_the_parsers_panic_or_loop() {
    let mut random = Random(0x5eed);
    let body: Vec<u8> = [
        ("path", "a"),
        ("mtime", "12.5"),
        ("SCHILY.xattr.user.x", "y"),
        ("size", "12"),
    ]
    .iter()
    .flat_map(|(key, value)| pax_record(key, value.as_bytes()))
    .collect();
    let tar = Tar::default()
        .add(
            Head {
                kind: b'x',
                name: "p",
                ..Head::default()
            },
            &body,
        )
        .file("f", b"0123456789ab")
        .symlink("l", "f")
        .add(
            Head {
                kind: b'L',
                name: "n",
                ..Head::default()
            },
            b"long\0",
        )
        .file("g", &[9; 600]);
    let whole = tar.bytes();
    for round in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        // Most damage dies at the checksum: mend it, so that the fields behind it are reached.
        if round % 4 != 0 {
            for block in bytes.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    seal(block.try_into().unwrap());
                }
            }
        }
        bytes.truncate(bytes.len() - random.below(2) * random.below(3000));
        let mut reader = TarReader::new(bytes.as_slice());
        let mut entries = 0;
        while let Ok(Some(entry)) = reader.next_entry() {
            entries += 1;
            assert!(entry.mode <= 0o7777 && entry.mtime.1 < 1_000_000_000);
            while !matches!(reader.data(), Ok([]) | Err(_)) {}
        }
        assert!(entries <= whole.len() / 512);
    }
}
