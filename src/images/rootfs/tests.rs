//! Tests of mounts and removal, each mount in a namespace of its thread alone. They run as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount as mount_call};
use nix::sched::{CloneFlags, unshare};

use super::{Error, copy_directory, mount, mount_read_only, mounted, mountpoint, overlay, remove_tree, unmount, usage};

/// Runs `test` in a new mount namespace with a tmpfs of its own, as overlay directories cannot lie on every filesystem.
fn in_namespace(test: impl FnOnce(&Path) + Send + 'static) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = std::env::temp_dir().join(format!(
        "wharf-rootfs-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    fs::create_dir(&dir).unwrap();
    let inside = dir.clone();
    let ended = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount_call(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount_call(Some("tmpfs"), &inside, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        test(&inside);
    })
    .join();
    fs::remove_dir(&dir).unwrap();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn layers(root: &Path, count: usize, name: &str) -> Vec<PathBuf> {
    let mut layers: Vec<PathBuf> = (0..count).map(|i| root.join(format!("{name}{i:064}"))).collect();
    for (i, layer) in layers.iter().enumerate() {
        fs::create_dir(layer).unwrap();
        fs::write(layer.join("which"), format!("{i}")).unwrap();
        fs::write(layer.join(format!("only{i}")), b"").unwrap();
    }
    layers.reverse();
    layers
}

#[test]
fn the_top_layer_wins_and_changes_stay_in_upper() {
    in_namespace(|root| {
        let layers = layers(root, 3, "l");
        fs::set_permissions(&layers[0], fs::Permissions::from_mode(0o711)).unwrap();
        let container = root.join("c");
        fs::create_dir(&container).unwrap();
        let rootfs = mount(&layers, &container, None).unwrap();
        assert_eq!(fs::read_to_string(rootfs.join("which")).unwrap(), "2");
        assert!(rootfs.join("only0").exists());
        assert_eq!(fs::metadata(&rootfs).unwrap().mode() & 0o7777, 0o711);
        fs::write(rootfs.join("new"), b"x").unwrap();
        assert!(container.join("upper/new").exists() && !layers[0].join("new").exists());
        assert!(matches!(
            mount(&layers, &container, None),
            Err(Error::AlreadyMounted { .. })
        ));
        unmount(&container).unwrap();
        unmount(&container).unwrap();
        unmount(&root.join("absent")).unwrap();
        assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 0);
        // The mark of a volatile mount that was not unmounted in order.
        fs::create_dir_all(container.join("work/work/incompat/volatile")).unwrap();
        mount(&layers, &container, None).unwrap();
        assert!(rootfs.join("new").exists());
        unmount(&container).unwrap();
    });
}

#[test]
fn a_view_can_only_be_read() {
    in_namespace(|root| {
        for count in [0, 1, 2, 100] {
            let layers = layers(root, count, &format!("v{count}-"));
            let view = root.join(format!("view{count}"));
            fs::create_dir(&view).unwrap();
            assert_eq!(mounted(&view).unwrap(), None);
            let rootfs = mount_read_only(&layers, &view, None, None).unwrap();
            assert_eq!(mounted(&view).unwrap().as_ref(), Some(&rootfs));
            if count > 0 {
                assert_eq!(
                    fs::read_to_string(rootfs.join("which")).unwrap(),
                    (count - 1).to_string()
                );
                assert!(rootfs.join("only0").exists());
            }
            let refused = fs::write(rootfs.join("new"), b"").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{count}");
            let twice = mount_read_only(&layers, &view, None, None);
            assert!(matches!(twice, Err(Error::AlreadyMounted { .. })));
            unmount(&view).unwrap();
            assert_eq!(mounted(&view).unwrap(), None);
        }
    });
}

#[test]
fn no_layer_one_layer_and_a_hundred_layers_mount() {
    in_namespace(|root| {
        for (name, count) in [("none", 0), ("one", 1), ("many", 120)] {
            let layers = layers(root, count, name);
            let container = root.join(format!("c-{name}"));
            fs::create_dir(&container).unwrap();
            let rootfs = mount(&layers, &container, None).unwrap();
            assert_eq!(
                fs::read_dir(&rootfs).unwrap().count(),
                if count == 0 { 0 } else { count + 1 },
                "{name}"
            );
            unmount(&container).unwrap();
        }
    });
}

#[test]
fn the_older_mount_call_serves_too() {
    in_namespace(|root| {
        for (name, count) in [("few", 2), ("comma,colon:", 3), ("many", 120)] {
            let layers = layers(root, count, name);
            let container = root.join(format!("c-{name}"));
            for dir in ["rootfs", "upper", "work"] {
                fs::create_dir_all(container.join(dir)).unwrap();
            }
            overlay::mount_as_before_6_7(&layers, &container).unwrap();
            assert_eq!(
                fs::read_dir(container.join("rootfs")).unwrap().count(),
                count + 1,
                "{name}"
            );
            unmount(&container).unwrap();
        }
    });
}

#[test]
fn a_missing_layer_is_named() {
    in_namespace(|root| {
        let container = root.join("c");
        fs::create_dir(&container).unwrap();
        let error = mount(&[root.join("not-there")], &container, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not-there"), "{error}");
    });
}

#[test]
fn a_layer_whose_root_is_opaque_hides_those_below() {
    in_namespace(|root| {
        let layers = layers(root, 3, "l");
        let path = std::ffi::CString::new(layers[1].to_str().unwrap()).unwrap();
        let name = c"trusted.overlay.opaque";
        // SAFETY: the strings are NUL-terminated, one byte of value is passed.
        assert_eq!(
            unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), b"y".as_ptr().cast(), 1, 0) },
            0
        );
        let container = root.join("c");
        fs::create_dir(&container).unwrap();
        let rootfs = mount(&layers, &container, None).unwrap();
        assert!(rootfs.join("only1").exists() && !rootfs.join("only0").exists());
        unmount(&container).unwrap();
    });
}

#[test]
fn removal_takes_any_depth_and_follows_nothing() {
    in_namespace(|root| {
        fs::create_dir(root.join("precious")).unwrap();
        fs::write(root.join("precious/file"), b"").unwrap();
        let tree = root.join("tree");
        fs::create_dir(&tree).unwrap();
        symlink(root.join("precious"), tree.join("link")).unwrap();
        let mut dir = nix::fcntl::open(&tree, nix::fcntl::OFlag::O_DIRECTORY, nix::sys::stat::Mode::empty()).unwrap();
        // Deeper than a path or the stack can be.
        for _ in 0..5000 {
            nix::sys::stat::mkdirat(&dir, "d", nix::sys::stat::Mode::S_IRWXU).unwrap();
            nix::sys::stat::mkdirat(&dir, "e", nix::sys::stat::Mode::empty()).unwrap();
            let flags = nix::fcntl::OFlag::O_DIRECTORY;
            dir = nix::fcntl::openat(&dir, "d", flags, nix::sys::stat::Mode::empty()).unwrap();
        }
        drop(dir);
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&root.join("no/parent")).unwrap();
        assert!(!tree.exists() && root.join("precious/file").exists());
        symlink(root.join("precious"), &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(fs::symlink_metadata(&tree).is_err() && root.join("precious/file").exists());
    });
}

#[test]
fn removal_stops_at_a_mount() {
    in_namespace(|root| {
        fs::create_dir_all(root.join("tree/volume")).unwrap();
        fs::create_dir(root.join("data")).unwrap();
        fs::write(root.join("data/file"), b"").unwrap();
        let none = None::<&str>;
        mount_call(
            Some(&root.join("data")),
            &root.join("tree/volume"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        let error = remove_tree(&root.join("tree")).unwrap_err();
        assert!(error.to_string().contains("tree"), "{error}");
        assert!(root.join("data/file").exists());
    });
}

#[test]
fn usage_counts_hard_links_once_and_finds_the_mount() {
    in_namespace(|root| {
        let tree = root.join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("sub/file"), vec![1; 10_000]).unwrap();
        fs::hard_link(tree.join("sub/file"), tree.join("again")).unwrap();
        let found = usage(&tree).unwrap();
        assert_eq!((found.inodes_used, found.mountpoint.as_path()), (3, root));
        assert!((10_000..20_000).contains(&found.used_bytes), "{}", found.used_bytes);
        assert_eq!(mountpoint(Path::new("/proc/self")).unwrap(), Path::new("/proc"));
    });
}

#[test]
fn a_copy_has_all_that_belongs_to_files() {
    in_namespace(|root| {
        let image = root.join("image");
        let data = image.join("srv/data");
        fs::create_dir_all(data.join("sub/deep")).unwrap();
        fs::create_dir_all(image.join("etc")).unwrap();
        fs::write(image.join("etc/secret"), "of the image").unwrap();
        symlink("/srv/data", image.join("data")).unwrap();
        fs::write(data.join("file"), vec![7; 300_000]).unwrap();
        fs::write(data.join("suid"), "x").unwrap();
        std::os::unix::fs::chown(data.join("suid"), Some(1002), Some(1003)).unwrap();
        fs::set_permissions(data.join("suid"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(data.join("file"), data.join("sub/deep/linked")).unwrap();
        symlink("/etc/secret", data.join("absolute")).unwrap();
        symlink("/etc", data.join("directory")).unwrap();
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
        nix::unistd::mkfifo(&data.join("fifo"), mode).unwrap();
        let device = nix::sys::stat::makedev(1, 3);
        nix::sys::stat::mknod(&data.join("null"), nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
        std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
        let file = fs::File::open(data.join("file")).unwrap();
        // SAFETY: the name is NUL-terminated, the value's pointer and length belong together.
        let set = unsafe {
            let value = [9u8; 700];
            let file = std::os::fd::AsRawFd::as_raw_fd(&file);
            libc::fsetxattr(file, c"trusted.wharf".as_ptr(), value.as_ptr().cast(), value.len(), 0)
        };
        assert_eq!(set, 0);
        std::os::unix::fs::chown(&data, Some(33), Some(34)).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o2750)).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5_000_000);
        fs::File::open(data.join("sub")).unwrap().set_modified(old).unwrap();
        fs::File::open(data.join("suid")).unwrap().set_modified(old).unwrap();

        let target = root.join("volume");
        fs::create_dir(&target).unwrap();
        assert!(copy_directory(&image, Path::new("/data"), &target).unwrap());
        let at = |name: &str| fs::symlink_metadata(target.join(name)).unwrap();
        assert_eq!((at("").uid(), at("").gid(), at("").mode() & 0o7777), (33, 34, 0o2750));
        assert_eq!(fs::read(target.join("file")).unwrap(), vec![7; 300_000]);
        assert_eq!(
            (at("suid").uid(), at("suid").gid(), at("suid").mode() & 0o7777),
            (1002, 1003, 0o4751)
        );
        assert_eq!(at("file").ino(), at("sub/deep/linked").ino());
        assert_eq!(
            fs::read_link(target.join("absolute")).unwrap(),
            Path::new("/etc/secret")
        );
        assert!(at("directory").is_symlink() && !target.join("socket").exists());
        assert_eq!((at("fifo").mode(), at("null").rdev()), (libc::S_IFIFO | 0o640, device));
        assert_eq!((at("sub").mtime(), at("sub").mtime_nsec()), (1_000_000_000, 5_000_000));
        assert_eq!(at("suid").mtime(), 1_000_000_000);
        let copied = fs::File::open(target.join("file")).unwrap();
        let mut value = [0u8; 1024];
        // SAFETY: the name is NUL-terminated, the buffer's pointer and length belong together.
        let length = unsafe {
            libc::fgetxattr(
                std::os::fd::AsRawFd::as_raw_fd(&copied),
                c"trusted.wharf".as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        assert_eq!((length, value[699]), (700, 9));

        assert!(!copy_directory(&image, Path::new("/nowhere"), &target).unwrap());
        let Err(Error::Io { source, .. }) = copy_directory(&image, Path::new("/data/file"), &target) else {
            panic!("a file was copied as a directory");
        };
        assert_eq!(source.kind(), std::io::ErrorKind::NotADirectory);
    });
}

#[test]
fn a_very_deep_directory_is_copied() {
    in_namespace(|root| {
        let image = root.join("image");
        let depth = 1000;
        fs::create_dir_all(image.join(vec!["d"; depth].join("/"))).unwrap();
        let target = root.join("volume");
        fs::create_dir(&target).unwrap();
        assert!(copy_directory(&image, Path::new(""), &target).unwrap());
        assert!(target.join(vec!["d"; depth].join("/")).is_dir());
    });
}
