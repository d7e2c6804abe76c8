use super::*;
use std::{fs, path::PathBuf};

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Tree {
        let dir = std::env::temp_dir().join(format!("wharf-users-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("etc")).unwrap();
        let passwd = "# comment\nroot:x:0:0:root:/root:/bin/sh\nbroken\nwww-data:x:33:33::/var/www:/bin/false\n\
            app:x:1000:1000::relative:/bin/sh\n";
        fs::write(dir.join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nwww-data:x:33:\nextra:x:50000:other,app\nroots:x:10:root\n";
        fs::write(dir.join("etc/group"), group).unwrap();
        Tree(dir)
    }

    fn root(&self) -> Root {
        Root::new(&self.0, false)
    }

    fn image(&self, user: &str) -> Result<ResolvedUser> {
        resolve(&self.root(), None, user)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn number(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

#[test]
fn the_image_user_may_be_names_or_numbers_with_a_group() {
    let root = Tree::new("image");
    let ids = |user: &str| root.image(user).map(|u| (u.uid, u.gid)).unwrap();
    assert_eq!(ids(""), (0, 0));
    assert_eq!(ids("www-data"), (33, 33));
    assert_eq!(ids("1002"), (1002, 0));
    assert_eq!(ids("1003:1004"), (1003, 1004));
    assert_eq!(ids("www-data:1004"), (33, 1004));
    assert_eq!(ids("app:extra"), (1000, 50000));
    assert_eq!(root.image("www-data").unwrap().home, "/var/www");
    assert_eq!(root.image("1002").unwrap().home, "/");
    assert_eq!(root.image("app").unwrap().home, "/", "a relative home is no home");
}

#[test]
fn unknown_names_are_named() {
    let root = Tree::new("unknown");
    assert_eq!(
        root.image("ghost").unwrap_err().to_string(),
        "no user \"ghost\" in the image's /etc/passwd"
    );
    assert_eq!(
        root.image("app:ghosts").unwrap_err().to_string(),
        "no group \"ghosts\" in the image's /etc/group"
    );
    assert!(root.image("-1").is_err());
    assert!(root.image("4294967295").is_err());
}

#[test]
fn groups_of_the_image_are_merged_unless_the_policy_is_strict() {
    let root = Tree::new("groups");
    let mut context = cri::LinuxContainerSecurityContext {
        run_as_user: number(1000),
        supplemental_groups: vec![1234, 1000],
        ..Default::default()
    };
    assert_eq!(
        resolve(&root.root(), Some(&context), "").unwrap().groups,
        [1000, 50000, 1234]
    );
    context.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict as i32;
    assert_eq!(resolve(&root.root(), Some(&context), "").unwrap().groups, [1000, 1234]);
    context.run_as_group = number(7);
    assert_eq!(
        resolve(&root.root(), Some(&context), "").unwrap().groups,
        [7, 1234, 1000]
    );
}

#[test]
fn the_request_wins_over_the_image() {
    let root = Tree::new("request");
    let context = cri::LinuxContainerSecurityContext {
        run_as_username: "www-data".into(),
        ..Default::default()
    };
    assert_eq!(resolve(&root.root(), Some(&context), "app:extra").unwrap().gid, 33);
    let context = cri::LinuxContainerSecurityContext {
        run_as_group: number(5),
        ..Default::default()
    };
    let error = resolve(&root.root(), Some(&context), "app").unwrap_err();
    assert!(matches!(error, Error::GroupWithoutUser(5)), "{error}");
}

#[test]
fn links_never_leave_the_root() {
    let root = Tree::new("links");
    fs::write(root.0.join("inside"), "inner:x:77:78::/:\n").unwrap();
    fs::remove_file(root.0.join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("/inside", root.0.join("etc/passwd")).unwrap();
    assert_eq!(root.image("inner").unwrap().uid, 77);
    fs::remove_file(root.0.join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/passwd", root.0.join("etc/passwd")).unwrap();
    assert!(root.image("inner").is_err());
}

#[test]
fn without_files_numbers_still_work() {
    let root = Tree::new("empty");
    fs::remove_dir_all(root.0.join("etc")).unwrap();
    assert_eq!(root.image("12:13").unwrap().groups, [13]);
    assert_eq!(root.image("").unwrap().uid, 0);
}
