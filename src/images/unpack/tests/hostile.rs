//! Archives that try to get out, and what becomes of them.

use std::fs;
use std::path::Path;

use super::{Error, Head, Random, Scratch, Tar};

fn refused(tar: &Tar) -> String {
    let scratch = Scratch::new();
    fs::create_dir(scratch.outside()).unwrap();
    let result = scratch.unpack(tar);
    assert_eq!(
        fs::read_dir(scratch.outside()).unwrap().count(),
        0,
        "something was written outside"
    );
    match result {
        Err(error @ Error::Refused { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn names_that_leave_the_layer_are_refused_with_entry_and_layer() {
    let message = refused(&Tar::default().file("../outside/x", b""));
    assert!(message.contains("sha256:test") && message.contains("\"../outside/x\"") && message.contains(".."));
    for name in ["a/../../outside/x", "..", "a/..", "/../x"] {
        refused(&Tar::default().file(name, b""));
    }
    refused(&Tar::default().hard_link("x", "../outside"));
    refused(&Tar::default().hard_link("x", "/etc/passwd"));
    refused(&Tar::default().hard_link("x", "."));
    refused(&Tar::default().hard_link("x", ".wh.y"));
    refused(&Tar::default().dir("d", 0o755).hard_link("x", "d"));
    refused(&Tar::default().pax(&[("path", b"../x")]).file("ok", b""));
}

#[test]
fn bad_whiteouts_are_refused() {
    for name in [
        ".wh.",
        ".wh..",
        ".wh...",
        "a/.wh...",
        ".wh.../x",
        ".wh.a/x",
        ".wh..wh..opq/x",
    ] {
        refused(&Tar::default().file(name, b""));
    }
}

#[test]
fn symlinks_are_never_followed_out() {
    for target in ["/", "/etc", "../outside", "/proc/self/root", "/proc/self/cwd"] {
        // As a parent it is resolved inside the layer, where nothing of that name is; "/" is the layer itself.
        let tar = Tar::default().symlink("out", target).file("out/wharf-was-here", b"");
        if target == "/" {
            let scratch = Scratch::new();
            scratch.unpack(&tar).unwrap();
            assert!(scratch.layer().join("wharf-was-here").exists());
        } else {
            refused(&tar);
        }
        refused(&Tar::default().symlink("out", target).hard_link("x", "out/passwd"));
        assert!(!Path::new("/wharf-was-here").exists() && !Path::new("/etc/wharf-was-here").exists());
    }
    refused(&Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", b""));
    refused(&Tar::default().file("f", b"").file("f/x", b""));
}

#[test]
fn a_file_replaces_a_symlink_instead_of_writing_through_it() {
    let scratch = Scratch::new();
    fs::write(scratch.outside(), b"precious").unwrap();
    let target = scratch.outside().to_str().unwrap().to_owned();
    let tar = Tar::default()
        .symlink("f", &target)
        .file("f", b"new")
        .symlink("g", &target)
        .hard_link("h", "g")
        .add(
            Head {
                name: "h",
                mode: 0o777,
                uid: 5,
                ..Head::default()
            },
            b"other",
        );
    scratch.unpack(&tar).unwrap();
    assert_eq!(fs::read(scratch.outside()).unwrap(), b"precious");
    assert_eq!(fs::read(scratch.layer().join("f")).unwrap(), b"new");
}

#[test]
fn a_directory_removed_through_its_own_alias_hurts_nobody() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .dir("x", 0o755)
        .symlink("x/loop", "..")
        .file("x/loop/x", b"now a file");
    let result = scratch.unpack(&tar);
    assert!(
        result.is_ok() || matches!(result, Err(Error::Refused { .. } | Error::Io { .. })),
        "{result:?}"
    );
}

#[test]
fn absurd_depth_and_length_are_refused() {
    refused(
        &Tar::default()
            .pax(&[("path", "a/".repeat(300).as_bytes())])
            .dir("d", 0o755),
    );
    refused(
        &Tar::default()
            .pax(&[("path", "a".repeat(5000).as_bytes())])
            .file("d", b""),
    );
    refused(&Tar::default().file("./", b""));
}

/// Whatever names and targets are combined, nothing beside the layer changes, and what is reported ends.
#[test]
fn no_combination_of_entries_escapes() {
    let parts = ["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", "outside", "/"];
    let targets = [
        "/",
        "..",
        "../outside",
        "../../outside",
        "a",
        "b/c",
        "/a",
        "/proc/self/root",
        "../fs/a",
    ];
    let mut random = Random(42);
    for round in 0..250 {
        let scratch = Scratch::new();
        fs::create_dir(scratch.outside()).unwrap();
        fs::write(scratch.outside().join("a"), b"precious").unwrap();
        let mut tar = Tar::default();
        for _ in 0..12 {
            // `..` is refused at once and would end most rounds early.
            let name: Vec<_> = (0..=random.below(3))
                .map(|_| {
                    parts[if random.below(40) == 0 {
                        3
                    } else {
                        [0, 1, 2, 4, 5, 6, 7, 8][random.below(8)]
                    }]
                })
                .collect();
            let (name, link) = (name.join("/"), targets[random.below(targets.len())]);
            tar = match random.below(6) {
                0 => tar.dir(&name, 0o755),
                1 => tar.hard_link(&name, link),
                2 | 3 => tar.symlink(&name, link),
                _ => tar.file(&name, b"evil"),
            };
            // Entry by entry, so that one refusal does not hide the next: each into what the last left.
            let _ = scratch.unpack(&tar);
            tar = Tar::default();
        }
        let names: Vec<_> = fs::read_dir(scratch.outside())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["a"], "round {round}");
        let kept = fs::read(scratch.outside().join("a")).unwrap();
        assert_eq!(kept, b"precious", "round {round}");
        let beside = fs::read_dir(scratch.layer().parent().unwrap()).unwrap();
        let mut beside: Vec<_> = beside.map(|e| e.unwrap().file_name()).collect();
        beside.retain(|name| name != "recipe" && name != "aside");
        assert_eq!(beside.len(), 2, "round {round}: {beside:?}");
    }
}
