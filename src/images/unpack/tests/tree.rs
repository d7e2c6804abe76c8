//! What honest archives become.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::{Head, Scratch, Tar, is_whiteout, xattr};

#[test]
fn attributes_arrive_and_directories_keep_their_times() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .dir("./", 0o755)
        .dir("d", 0o2750)
        .add(
            Head {
                name: "d/suid",
                mode: 0o4755,
                uid: 12,
                gid: 34,
                mtime: 5,
                ..Head::default()
            },
            b"abc",
        )
        .add(
            Head {
                name: "d/open",
                mode: 0o666,
                ..Head::default()
            },
            b"",
        )
        .add(
            Head {
                kind: b'5',
                name: "d/sub",
                mode: 0o777,
                uid: 9,
                mtime: 6,
                ..Head::default()
            },
            b"",
        )
        .add(
            Head {
                kind: b'2',
                name: "d/link",
                link: "/etc/passwd",
                uid: 8,
                mtime: 7,
                ..Head::default()
            },
            b"",
        )
        .add(
            Head {
                kind: b'6',
                name: "d/fifo",
                mode: 0o622,
                mtime: 8,
                ..Head::default()
            },
            b"",
        )
        .add(
            Head {
                kind: b'3',
                name: "d/null",
                mode: 0o666,
                device: (1, 3),
                ..Head::default()
            },
            b"",
        )
        .hard_link("d/hard", "./d/suid")
        .file("top", b"12345")
        .file("d/sub/late", b"");
    let stats = scratch.unpack(&tar).unwrap();
    // What a walk finds; the layer's root is not counted as an inode.
    let found = crate::images::rootfs::usage(&scratch.layer()).unwrap();
    assert_eq!((stats.bytes, stats.inodes), (found.used_bytes, found.inodes_used - 1));
    assert_eq!(stats.inodes, 9);

    let meta = |name: &str| fs::symlink_metadata(scratch.layer().join(name)).unwrap();
    let suid = meta("d/suid");
    assert_eq!(
        (suid.mode() & 0o7777, suid.uid(), suid.gid(), suid.mtime()),
        (0o4755, 12, 34, 5)
    );
    assert_eq!((suid.nlink(), suid.ino()), (2, meta("d/hard").ino()));
    assert_eq!(meta("d/open").mode() & 0o7777, 0o666, "the umask must not show");
    let sub = meta("d/sub");
    assert_eq!(
        (sub.mode() & 0o7777, sub.uid(), sub.mtime()),
        (0o777, 9, 6),
        "a later file must not touch the time"
    );
    assert_eq!((meta("d").mode() & 0o7777, meta("d").mtime()), (0o2750, 1_000_000_000));
    assert_eq!((meta("").mode() & 0o7777, meta("").mtime()), (0o755, 1_000_000_000));
    assert_eq!(
        fs::read_link(scratch.layer().join("d/link")).unwrap().to_str(),
        Some("/etc/passwd")
    );
    assert_eq!((meta("d/link").uid(), meta("d/link").mtime()), (8, 7));
    assert!(meta("d/fifo").file_type().is_fifo() && meta("d/fifo").mode() & 0o7777 == 0o622);
    assert_eq!(
        (meta("d/null").rdev(), meta("d/null").mode() & 0o7777),
        (libc::makedev(1, 3), 0o666)
    );
    assert_eq!(fs::read(scratch.layer().join("top")).unwrap(), b"12345");
}

#[test]
fn a_set_group_id_directory_gives_its_group_to_nobody() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .add(
            Head {
                kind: b'5',
                name: "s",
                mode: 0o2775,
                gid: 50,
                ..Head::default()
            },
            b"",
        )
        .file("s/one", b"")
        .file("elsewhere", b"")
        .file("s/two", b"")
        .dir("s/dir", 0o755)
        .file("s/implied/x", b"");
    scratch.unpack(&tar).unwrap();
    for name in ["s/one", "s/two", "s/dir", "s/implied", "s/implied/x"] {
        let meta = fs::symlink_metadata(scratch.layer().join(name)).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o7000), (0, 0), "{name}");
    }
    let meta = fs::symlink_metadata(scratch.layer().join("s")).unwrap();
    assert_eq!(
        (meta.gid(), meta.mode() & 0o7777, meta.mtime()),
        (50, 0o2775, 1_000_000_000)
    );
}

#[test]
fn capabilities_survive_and_overlay_attributes_do_not_enter() {
    let scratch = Scratch::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"hi"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .add(
            Head {
                name: "ping",
                mode: 0o755,
                uid: 1,
                ..Head::default()
            },
            b"elf",
        )
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.note", b"dir"),
        ])
        .dir("d", 0o755)
        .pax(&[("SCHILY.xattr.user.note", b"no"), ("SCHILY.xattr.trusted.note", b"yes")])
        .symlink("l", "ping");
    scratch.unpack(&tar).unwrap();
    let get = |file: &str, name: &str| xattr(&scratch.layer().join(file), name);
    assert_eq!(get("ping", "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(get("ping", "user.note").as_deref(), Some(&b"hi"[..]));
    assert_eq!(get("ping", "trusted.overlay.redirect"), None);
    assert_eq!(get("d", "trusted.overlay.opaque"), None);
    assert_eq!(get("d", "user.note").as_deref(), Some(&b"dir"[..]));
    assert_eq!(get("l", "trusted.note").as_deref(), Some(&b"yes"[..]));
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .file("a/.wh.gone", b"")
        .file("b/.wh..wh..opq", b"")
        .file(".wh.early", b"")
        .file("early/new", b"")
        .file(".wh.replaced", b"")
        .dir("replaced", 0o755)
        .file("kept/file", b"k")
        .file(".wh.kept", b"")
        .file("same", b"s")
        .file(".wh.same", b"")
        .file(".wh.same2", b"")
        .file("same2", b"t")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"");
    scratch.unpack(&tar).unwrap();
    let at = |name: &str| scratch.layer().join(name);
    let opaque = |name: &str| xattr(&at(name), "trusted.overlay.opaque").as_deref() == Some(b"y");
    assert!(is_whiteout(&at("a/gone")) && !opaque("a"));
    assert!(opaque("b"));
    // The layer deletes the lower one and brings its own: lower content must not shine through.
    assert!(opaque("early") && at("early/new").exists());
    assert!(opaque("replaced"));
    assert!(opaque("kept") && fs::read(at("kept/file")).unwrap() == b"k");
    assert_eq!(
        (fs::read(at("same")).unwrap(), fs::read(at("same2")).unwrap()),
        (b"s".to_vec(), b"t".to_vec())
    );
    let mut names: Vec<_> = fs::read_dir(scratch.layer())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "b", "early", "kept", "replaced", "same", "same2"]);
}

#[test]
fn in_a_plain_archive_no_name_hides_another() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .file("a", b"kept")
        .file(".wh.a", b"plain")
        .file("d/.wh..wh..opq", b"p")
        .file(".wh..wh.plnk/1.2", b"q")
        .dir(".wh.", 0o755)
        .hard_link("link", ".wh.a");
    scratch.unpack_as(&tar, true).unwrap();
    let read = |name: &str| fs::read(scratch.layer().join(name)).unwrap();
    assert_eq!((read("a"), read(".wh.a")), (b"kept".to_vec(), b"plain".to_vec()));
    assert_eq!(
        (read("d/.wh..wh..opq"), read("link")),
        (b"p".to_vec(), b"plain".to_vec())
    );
    assert_eq!(read(".wh..wh.plnk/1.2"), b"q");
    assert!(scratch.layer().join(".wh.").is_dir());
    assert!(xattr(&scratch.layer().join("d"), "trusted.overlay.opaque").is_none());
    assert!(scratch.unpack_as(&Tar::default().file("../x", b""), true).is_err());
}

#[test]
fn later_entries_win_and_types_change() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .file("f", b"first")
        .hard_link("keeps", "f")
        .file("f", b"2nd")
        .dir("was-dir", 0o755)
        .file("was-dir/inside/deep", b"xx")
        .file("was-dir", b"file")
        .symlink("was-link", "f")
        .dir("was-link", 0o700)
        .file("was-file", b"")
        .symlink("was-file", "x")
        .dir("again", 0o700)
        .file("again/x", b"")
        .dir("again", 0o711);
    let stats = scratch.unpack(&tar).unwrap();
    let at = |name: &str| scratch.layer().join(name);
    assert_eq!(fs::read(at("f")).unwrap(), b"2nd");
    assert_eq!(
        fs::read(at("keeps")).unwrap(),
        b"first",
        "a hard link must not be written through"
    );
    assert_eq!(fs::read(at("was-dir")).unwrap(), b"file");
    assert!(fs::symlink_metadata(at("was-link")).unwrap().is_dir());
    assert!(fs::symlink_metadata(at("was-file")).unwrap().is_symlink());
    assert_eq!(fs::symlink_metadata(at("again")).unwrap().mode() & 0o777, 0o711);
    assert!(at("again/x").exists());
    assert!(stats.inodes >= 7);
}

#[test]
fn a_parent_that_is_a_symlink_is_resolved_inside_the_layer() {
    let scratch = Scratch::new();
    let tar = Tar::default()
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .symlink("up", "../../../../usr")
        .file("lib/a", b"1")
        .file("abs/b", b"2")
        .file("up/lib/c", b"3")
        .hard_link("d", "abs/a")
        .dir("lib/deep", 0o700);
    scratch.unpack(&tar).unwrap();
    for name in ["usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/lib/deep", "d"] {
        assert!(scratch.layer().join(name).exists(), "{name}");
    }
    assert!(fs::symlink_metadata(scratch.layer().join("lib")).unwrap().is_symlink());
}
