use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;

use super::*;

const CONTEXTS: &str = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"x\"\n\
    file = \"system_u:object_r:container_file_t:s0\"\nro_file=\"system_u:object_r:container_ro_file_t:s0\"\n";

struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Root {
        let root = Root(std::env::temp_dir().join(format!("wharf-selinux-{}-{name}", std::process::id())));
        let _ = fs::remove_dir_all(&root.0);
        fs::create_dir_all(&root.0).unwrap();
        root
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn node(categories: u32) -> Selinux {
    Selinux {
        process: Label::parse("system_u:system_r:container_t:s0").unwrap(),
        files: Label::parse("system_u:object_r:container_file_t:s0").unwrap(),
        shared: Label::parse("system_u:object_r:container_ro_file_t:s0").unwrap(),
        check: PathBuf::from("/nowhere"),
        categories,
        taken: Mutex::default(),
    }
}

#[test]
fn the_policys_labels_are_read_and_a_policy_without_containers_is_named() {
    let root = Root::new("policy");
    let error = Selinux::read(&root.0, Path::new("/nowhere"), 1024)
        .unwrap_err()
        .to_string();
    assert!(error.contains("targeted/contexts/lxc_contexts"), "{error}");
    root.put("config", "# comment\nSELINUX=enforcing\nSELINUXTYPE=mls\n");
    root.put("mls/contexts/lxc_contexts", CONTEXTS);
    let read = Selinux::read(&root.0, Path::new("/nowhere"), 1024).unwrap();
    assert_eq!(read.process.text(), "system_u:system_r:container_t:s0");
    assert_eq!(read.files.text(), "system_u:object_r:container_file_t:s0");
    root.put("mls/contexts/lxc_contexts", "process = \"system_u:system_r\"\n");
    let error = Selinux::read(&root.0, Path::new("/nowhere"), 1024)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no label for \"process\""), "{error}");
}

#[test]
fn each_pod_has_a_level_of_its_own_until_none_is_left() {
    let node = node(4);
    let levels: BTreeSet<_> = (0..6).map(|pod| node.allocate(&format!("pod{pod}")).unwrap()).collect();
    assert_eq!(levels.len(), 6, "{levels:?}");
    for level in &levels {
        check_level(level).unwrap();
        let (first, second) = pair(level).unwrap();
        assert!(first < second && second < 4, "{level}");
    }
    assert!(
        node.allocate("more")
            .unwrap_err()
            .to_string()
            .contains("selinux_categories")
    );
    let one = levels.first().unwrap();
    node.release(one);
    assert_eq!(&node.allocate("more").unwrap(), one);
    node.release(one);
    node.reserve(one);
    node.reserve(one);
    node.release(one);
    assert!(node.allocate("more").is_err(), "a level that is reserved is given away");
    node.release(one);
    node.release(one);
    assert_eq!(&node.allocate("more").unwrap(), one);
    // Levels of other shapes are nobody's.
    node.reserve("s0-s3:c0.c9");
    node.release("s0");
}

#[test]
fn a_container_has_its_pods_level_unless_it_asks_for_its_own() {
    let node = node(1024);
    let labels = node.labels("s0:c1,c2", None).unwrap();
    assert_eq!(labels.process, "system_u:system_r:container_t:s0:c1,c2");
    assert_eq!(labels.files, "system_u:object_r:container_file_t:s0:c1,c2");
    let asked = SeLinuxOption {
        user: "user_u".into(),
        role: "user_r".into(),
        r#type: "spc_t".into(),
        level: "s0:c5".into(),
    };
    let labels = node.labels("s0:c1,c2", Some(&asked)).unwrap();
    assert_eq!(labels.process, "user_u:user_r:spc_t:s0:c5");
    assert_eq!(labels.files, "user_u:object_r:container_file_t:s0:c5");
    assert!(labels.unconfined);
    for bad in [
        SeLinuxOption {
            r#type: "a:b".into(),
            ..Default::default()
        },
        SeLinuxOption {
            user: "a\n".into(),
            ..Default::default()
        },
        SeLinuxOption {
            level: "s0:c1,context=x".into(),
            ..Default::default()
        },
    ] {
        assert!(node.labels("s0", Some(&bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn levels_are_checked() {
    for good in ["s0", "s0:c1", "s0:c1,c2", "s0-s15:c0.c1023", "s3:c1.c4,c9", "s0-s1"] {
        check_level(good).unwrap();
    }
    for bad in [
        "",
        "s",
        "s16",
        "s0:",
        "s0:c",
        "s0:c1024",
        "c1",
        "s0:c4.c1",
        "s0:c1,",
        "s0-",
        "s0-s1-s2",
        "s0:c1 ",
        "s0:c-1",
        "s0:c00001",
    ] {
        assert!(check_level(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn all_below_a_directory_is_relabelled_and_links_are_not_followed() {
    let root = Root::new("relabel");
    root.put("volume/deep/file", "x");
    root.put("outside", "x");
    std::os::unix::fs::symlink(root.0.join("outside"), root.0.join("volume/link")).unwrap();
    // An attribute that every kernel has stands for the label.
    relabel::set_below(&root.0.join("volume"), c"trusted.wharf-test", "a:b:c:s0").unwrap();
    let of = |name: &str| {
        let path = CString::new(root.0.join(name).as_os_str().as_bytes()).unwrap();
        let mut value = [0u8; 64];
        // SAFETY: names are C strings; the buffer is told with its length.
        let length = unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                c"trusted.wharf-test".as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        String::from_utf8_lossy(&value[..usize::try_from(length).unwrap_or(0)]).into_owned()
    };
    assert!(relabel::has(
        &root.0.join("volume/deep"),
        c"trusted.wharf-test",
        "a:b:c:s0"
    ));
    assert!(!relabel::has(
        &root.0.join("volume/deep"),
        c"trusted.wharf-test",
        "a:b:c:s"
    ));
    assert!(!relabel::has(
        &root.0.join("outside"),
        c"trusted.wharf-test",
        "a:b:c:s0"
    ));
    for labelled in ["volume", "volume/deep", "volume/deep/file", "volume/link"] {
        assert_eq!(of(labelled), "a:b:c:s0", "{labelled}");
    }
    assert_eq!((of("outside"), of("")), (String::new(), String::new()));
    // Nor is one that stands at the beginning.
    std::os::unix::fs::symlink(root.0.join("outside"), root.0.join("way")).unwrap();
    relabel::set_below(&root.0.join("way"), c"trusted.wharf-test", "a:b:c:s0").unwrap();
    assert_eq!((of("outside"), of("way")), (String::new(), "a:b:c:s0".to_owned()));
    // As deep as nobody's volume is.
    let mut at = root.0.join("deep");
    let mut dirs = vec![at.clone()];
    for _ in 0..1001 {
        at.push("d");
        dirs.push(at.clone());
    }
    fs::create_dir_all(&at).unwrap();
    let error = relabel::set_below(&dirs[0], c"trusted.wharf-test", "x").unwrap_err();
    assert!(error.to_string().contains("1000 directories"), "{error}");
    relabel::set_below(&dirs[5], c"trusted.wharf-test", "x").unwrap();
    relabel::set_below(&root.0.join("absent"), c"trusted.wharf-test", "x").unwrap();
    for never in ["/", "/usr", "/var"] {
        assert!(matches!(relabel(Path::new(never), "x"), Err(Error::NotAllowed(_))));
    }
}
