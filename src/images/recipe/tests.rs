//! Whatever can be unpacked can be given back.

use std::{fs, io::Read as _};

use proptest::{collection, prelude::*};

use super::{Archive, Error};
use crate::images::unpack::{
    Options, TarReader,
    tests::{Head, Scratch, Tar},
    unpack_layer,
};

/// An entry of few names, so that they replace each other, lead through symlinks and fall into directories.
#[derive(Debug, Clone)]
struct Made {
    kind: u8,
    name: String,
    link: String,
    data: Vec<u8>,
    pax: Option<String>,
}

fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("a"),
        Just("b"),
        Just("c"),
        Just(".wh.a"),
        Just(".wh..wh..opq"),
        Just(".wh..wh.plnk")
    ];
    collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn entry() -> impl Strategy<Value = Made> {
    let kind = prop_oneof![4 => Just(b'0'), 3 => Just(b'5'), 2 => Just(b'2'), 2 => Just(b'1'), 1 => Just(b'6'), 1 => Just(b'7')];
    let pax = prop_oneof![3 => Just(None), 1 => name().prop_map(Some)];
    (kind, name(), name(), collection::vec(any::<u8>(), 0..1400), pax).prop_map(|(kind, name, link, data, pax)| Made {
        kind,
        name,
        link,
        data: if matches!(kind, b'0' | b'7') { data } else { Vec::new() },
        pax,
    })
}

fn archive(entries: &[Made], end: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default();
    for made in entries {
        if let Some(path) = &made.pax {
            tar = tar.pax(&[("comment", path.as_bytes()), ("path", path.as_bytes())]);
        }
        let link = if matches!(made.kind, b'1' | b'2') {
            &made.link
        } else {
            ""
        };
        let head = Head {
            kind: made.kind,
            name: &made.name,
            link,
            ..Head::default()
        };
        tar = tar.add(head, &made.data);
    }
    [tar.bytes().as_slice(), end].concat()
}

/// Unpacks what of `entries` can be unpacked in this order, and compares.
fn compare(entries: Vec<Made>, end: &[u8]) {
    let mut good = entries;
    loop {
        let bytes = archive(&good, end);
        let scratch = Scratch::new();
        let directory = scratch.layer().parent().unwrap().to_owned();
        if unpack_layer(bytes.as_slice(), &directory, &Options::default()).is_ok() {
            let mut again = Vec::new();
            let mut given = Archive::open(&directory).unwrap();
            given.read_to_end(&mut again).unwrap();
            assert!(again == bytes, "the archive given back is another one");
            return;
        }
        // An entry that is refused comes after some that are not.
        good.pop();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_archive_comes_back_byte_for_byte(
        entries in collection::vec(entry(), 0..24),
        end in prop_oneof![Just(Vec::new()), collection::vec(Just(0), 0..3000), collection::vec(any::<u8>(), 0..3000)],
    ) {
        compare(entries, &end);
    }
}

#[test]
fn what_is_replaced_through_symlinks_and_with_its_directory_comes_back() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .dir("d", 0o755)
        .dir("d/e", 0o755)
        .file("d/e/f", b"first")
        .symlink("s", "d/e")
        .file("s/g", b"through a link")
        .file("s/f", b"second")
        .hard_link("h", "d/e/f")
        .file("h", b"third")
        .symlink("d", "elsewhere")
        .dir("d", 0o755)
        .file("d/e", b"a file where a directory was")
        .file("s", b"a file where a link was")
        .file(".wh..wh.aufs", b"bookkeeping with data");
    scratch.unpack(&tar).unwrap();
    assert!(scratch.layer().parent().unwrap().join("aside").is_dir());
}

#[test]
fn a_name_that_is_too_long_for_a_path_comes_back() {
    let scratch = Scratch::new();
    let long = vec!["n".repeat(200); 19].join("/");
    let deeper = format!("s/{long}/f");
    let tar = Tar::default()
        .pax(&[("path", long.as_bytes())])
        .dir("x", 0o755)
        .pax(&[("linkpath", long.as_bytes())])
        .symlink("s", "x")
        .pax(&[("path", deeper.as_bytes())])
        .file("x", b"content");
    scratch.unpack(&tar).unwrap();
}

#[test]
fn a_damaged_or_missing_recipe_is_told() {
    let scratch = Scratch::new();
    scratch
        .unpack(&Tar::default().file("a", b"1234567").file("b", b"12345"))
        .unwrap();
    let directory = scratch.layer().parent().unwrap().to_owned();
    let give = || -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let mut archive = Archive::open(&directory).map_err(|error| error.to_string())?;
        archive.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    };
    let bytes = give().unwrap();
    assert!(TarReader::new(bytes.as_slice()).next_entry().is_ok());
    fs::write(scratch.layer().join("a"), b"short").unwrap();
    assert!(give().unwrap_err().contains("\"a\" is not as it was unpacked"));
    fs::remove_file(scratch.layer().join("a")).unwrap();
    std::os::unix::fs::symlink("b", scratch.layer().join("a")).unwrap();
    assert!(give().unwrap_err().contains("open file \"a\""));
    let recipe = directory.join("recipe");
    let mut damaged = fs::read(&recipe).unwrap();
    damaged.truncate(damaged.len() - 9);
    fs::write(&recipe, damaged).unwrap();
    assert!(give().is_err());
    fs::remove_file(&recipe).unwrap();
    assert!(matches!(Archive::open(&directory), Err(Error::Absent { .. })));
    assert!(give().unwrap_err().contains("pull it again"));
}
