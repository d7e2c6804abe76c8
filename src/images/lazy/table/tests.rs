use proptest::prelude::*;

use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn parse(entries: &str) -> Result<Table, String> {
    let json = format!(r#"{{"version":1,"entries":[{entries}]}}"#).replace("DIGEST", A);
    Table::parse(json.as_bytes(), 10_000_000)
}

fn refused(entries: &str) -> String {
    parse(entries).map(drop).unwrap_err()
}

#[test]
fn the_kinds_of_entries_become_the_nodes_that_unpacking_would_make() {
    let table = parse(
        r#"{"name":"bin/","type":"dir","mode":16877,"uid":1,"gid":2,"modtime":"2019-08-20T10:30:43.5Z"},
        {"name":"bin/tool","type":"reg","size":5,"mode":35309,"offset":100,"chunkDigest":"DIGEST",
            "xattrs":{"security.capability":"AQI=","trusted.overlay.opaque":"eQ=="}},
        {"name":"bin/empty","type":"reg","mode":33188},
        {"name":"bin/again","type":"hardlink","linkName":"bin/tool"},
        {"name":"bin/sh","type":"symlink","linkName":"tool"},
        {"name":"dev/null","type":"char","mode":8630,"devMajor":1,"devMinor":3},
        {"name":"pipe","type":"fifo","mode":420},
        {"name":"etc/.wh.gone","type":"reg"},
        {"name":"lib/.wh..wh..opq","type":"reg"},
        {"name":".wh..wh.plnk/x","type":"reg"}"#,
    )
    .unwrap();
    let node = |path: &str| &table.nodes[table.find(path).unwrap() as usize];
    assert_eq!((node("bin").mode, node("bin").owner), (0o755, (1, 2)));
    assert_eq!(node("bin").time, (1_566_297_043, 500_000_000));
    assert_eq!(node("bin/tool").mode, 0o4755);
    assert_eq!(node("bin/tool").xattrs, [(b"security.capability".to_vec(), vec![1, 2])]);
    assert_eq!(table.find("bin/tool"), table.find("bin/again"));
    assert_eq!(node("bin/tool").links, 2);
    assert_eq!(node("bin/sh").kind, Kind::Symlink(b"tool".to_vec()));
    assert_eq!(
        node("dev/null").kind,
        Kind::Device {
            characters: true,
            number: (1, 3)
        }
    );
    assert_eq!(node("pipe").kind, Kind::Fifo);
    assert_eq!(node("etc/gone").kind, Kind::Whiteout);
    assert!(matches!(node("lib").kind, Kind::Directory { opaque: true, .. }));
    assert_eq!(table.find(".wh..wh.plnk"), None);
    assert_eq!(table.path(table.find("dev/null").unwrap()), b"dev/null");
    assert!(table.is_file(table.find("bin/empty").unwrap()));
}

#[test]
fn chunks_follow_each_other_and_those_that_lie_together_are_fetched_together() {
    let table = parse(
        r#"{"name":"a","type":"reg","size":25,"mode":420,"offset":0,"chunkSize":10,"chunkDigest":"DIGEST"},
        {"name":"a","type":"chunk","offset":50,"chunkOffset":10,"chunkSize":10,"chunkDigest":"DIGEST"},
        {"name":"a","type":"chunk","offset":90,"chunkOffset":20,"chunkDigest":"DIGEST"},
        {"name":".prefetch.landmark","type":"reg","size":1,"offset":95,"chunkDigest":"DIGEST"},
        {"name":"b","type":"reg","size":4,"offset":2000000,"chunkDigest":"DIGEST"},
        {"name":"c","type":"reg","size":4,"offset":2000000,"innerOffset":4,"chunkDigest":"DIGEST"}"#,
    )
    .unwrap();
    let sizes: Vec<u64> = table.chunks.iter().map(|chunk| chunk.size).collect();
    assert_eq!(sizes, [10, 10, 5, 1, 4, 4]);
    assert_eq!(table.length, 34);
    let groups: Vec<(u64, u64, usize)> = table
        .groups
        .iter()
        .map(|group| (group.from, group.end, group.chunks.len()))
        .collect();
    assert_eq!(groups, [(0, 2_000_000, 4), (2_000_000, 10_000_000, 2)]);
    assert_eq!(table.first, 1);
}

#[test]
fn zstd_chunked_says_the_digest_of_a_file_in_one_piece_once_and_zeroes_need_no_bytes() {
    let table = parse(
        r#"{"name":"a","type":"reg","size":9,"mode":420,"offset":10,"endOffset":30,"digest":"DIGEST"},
        {"name":"b","type":"reg","size":99999999999,"offset":40,"chunkSize":5,"chunkDigest":"DIGEST","digest":"DIGEST"},
        {"name":"b","type":"chunk","offset":50,"chunkOffset":5,"chunkSize":99999999990,"chunkType":"zeros"},
        {"name":"b","type":"chunk","offset":60,"chunkOffset":99999999995,"chunkSize":4,"chunkDigest":"DIGEST"}"#,
    )
    .unwrap();
    let groups: Vec<u32> = table.chunks.iter().map(|chunk| chunk.group).collect();
    assert_eq!(groups, [0, 0, ZEROS, 0]);
    assert_eq!(table.groups[0].chunks, [0, 1, 3]);
    assert_eq!(table.length, 100_000_000_008);
    // The file's own digest is not that of its first piece.
    let why = refused(r#"{"name":"b","type":"reg","size":9,"offset":40,"chunkSize":5,"digest":"DIGEST"}"#);
    assert!(why.contains("has no digest"), "{why}");
    let why = refused(r#"{"name":"b","type":"reg","size":9,"offset":4,"chunkType":"ones","digest":"DIGEST"}"#);
    assert!(why.contains("unknown type"), "{why}");
    // More than a number can say.
    let huge = r#"{"name":"NAME","type":"reg","size":9999999999999999999,"offset":4,"chunkType":"zeros"}"#;
    let why = refused(&[huge.replace("NAME", "a"), huge.replace("NAME", "b")].join(","));
    assert!(why.contains("is too large"), "{why}");
    assert!(parse(r#"{"name":"a","type":"reg","size":-1}"#).is_err());
}

#[test]
fn what_a_layer_deletes_and_has_again_hides_what_is_below() {
    let table = parse(r#"{"name":".wh.d","type":"reg"},{"name":"d/f","type":"reg"}"#).unwrap();
    let directory = &table.nodes[table.find("d").unwrap() as usize];
    assert!(matches!(directory.kind, Kind::Directory { opaque: true, .. }));
    let table = parse(r#"{"name":"d","type":"dir"},{"name":".wh.d","type":"reg"}"#).unwrap();
    let directory = &table.nodes[table.find("d").unwrap() as usize];
    assert!(matches!(directory.kind, Kind::Directory { opaque: true, .. }));
}

#[test]
fn tables_that_are_wrong_or_need_more_than_a_look_are_refused_with_the_entry() {
    for (entries, why) in [
        (r#"{"name":"a","type":"reg","size":5,"offset":0}"#, "has no digest"),
        (
            r#"{"name":"a","type":"reg","size":5,"offset":10000000,"chunkDigest":"DIGEST"}"#,
            "lies behind the end",
        ),
        (
            r#"{"name":"a","type":"reg","size":5,"chunkSize":6,"chunkDigest":"DIGEST"}"#,
            "is longer than its file",
        ),
        (
            r#"{"name":"a","type":"reg","size":5,"chunkSize":2,"chunkDigest":"DIGEST"}"#,
            "lacks 3 bytes",
        ),
        (
            r#"{"name":"a","type":"reg","size":5,"chunkSize":2,"chunkDigest":"DIGEST"},
            {"name":"a","type":"chunk","chunkOffset":3,"chunkDigest":"DIGEST"}"#,
            "does not follow",
        ),
        (r#"{"name":"a","type":"chunk"}"#, "is a piece of no file"),
        (r#"{"name":"../a","type":"dir"}"#, "`..`"),
        (r#"{"name":"a","type":"reg"},{"name":"a","type":"reg"}"#, "comes twice"),
        (
            r#"{"name":"a","type":"symlink","linkName":"b"},{"name":"a/c","type":"reg"}"#,
            "lies in something that is no directory",
        ),
        (r#"{"name":"a","type":"hardlink","linkName":"b"}"#, "not in this layer"),
        (r#"{"name":"a","type":"socket"}"#, "unknown type"),
        (r#"{"name":"a","type":"dir","modtime":"yesterday"}"#, "no time"),
        (r#"{"name":"a","type":"dir","xattrs":{"user.a":"%"}}"#, "is not base64"),
    ] {
        let reason = refused(entries);
        assert!(reason.contains(why), "{entries}: {reason}");
    }
    assert!(Table::parse(br#"{"version":2,"entries":[]}"#, 0).is_err());
    assert!(Table::parse(b"[]", 0).is_err());
}

proptest! {
    #[test]
    fn any_text_is_a_table_or_an_error(text in "\\PC*") {
        let _ = Table::parse(text.as_bytes(), 1000);
    }

    /// Whatever the order and sizes, each chunk is in one group, which spans its place in the blob.
    #[test]
    fn every_chunk_is_in_the_group_that_it_names(
        files in proptest::collection::vec((1_u64..5000, 0_u64..3_000_000), 0..40),
    ) {
        let entries: Vec<String> = files
            .iter()
            .enumerate()
            .map(|(at, (size, offset))| {
                format!(r#"{{"name":"f{at}","type":"reg","size":{size},"offset":{offset},"chunkDigest":"DIGEST"}}"#)
            })
            .collect();
        let table = parse(&entries.join(",")).unwrap();
        prop_assert_eq!(table.length, files.iter().map(|(size, _)| size).sum::<u64>());
        let held: usize = table.groups.iter().map(|group| group.chunks.len()).sum();
        prop_assert_eq!(held, files.len());
        for (at, chunk) in table.chunks.iter().enumerate() {
            let group = &table.groups[chunk.group as usize];
            prop_assert!(group.chunks.contains(&(at as u32)));
            prop_assert!(group.from <= chunk.offset && chunk.offset < group.end);
        }
        for pair in table.groups.windows(2) {
            prop_assert!(pair[0].end <= pair[1].from);
        }
    }
}
