//! Entries in /etc/passwd and /etc/group for who runs a container whose image does not know them: programs such as ssh,
//! git and psql refuse to run as a user without a name (row C19).
//!
//! The container's files are copies of the image's with one more line, mounted over them. An image without such a file gets
//! none, and a file that CRI mounts stays as it is.

use std::path::{Component, Path, PathBuf};

use wharf_proto::cri::ContainerConfig;

use super::{
    Error, Result,
    users::{self, ResolvedUser},
};
use crate::{
    images::{ImageConfig, rootfs::Root},
    store,
};

/// Files that were written.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// For /etc/passwd.
    pub passwd: Option<PathBuf>,
    /// For /etc/group.
    pub group: Option<PathBuf>,
}

/// Writes to `dir` what is missing in the image at `root`.
///
/// # Errors
/// A home directory that would make more than one entry, a file that can't be read or written.
pub(super) fn write_missing(
    dir: &Path,
    root: &Root,
    user: &ResolvedUser,
    config: &ContainerConfig,
    image: &ImageConfig,
) -> Result<Written> {
    let mut written = Written::default();
    if !is_mounted(config, "/etc/passwd") {
        let passwd = users::read_file(root, "/etc/passwd")?;
        if let Some(text) = with_user(&passwd, user, &home(user, config, image))? {
            written.passwd = Some(write(dir, "passwd", &text)?);
        }
    }
    if !is_mounted(config, "/etc/group") {
        let group = users::read_file(root, "/etc/group")?;
        if let Some(text) = with_group(&group, user.gid) {
            written.group = Some(write(dir, "group", &text)?);
        }
    }
    Ok(written)
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    // Everyone in the container reads it.
    store::write_file(&path, text.as_bytes(), 0o644)?;
    Ok(path)
}

/// CRI mounts the file or a directory above it.
fn is_mounted(config: &ContainerConfig, file: &str) -> bool {
    let plain = |path: &str| -> PathBuf {
        let parts = Path::new(path).components();
        parts.filter(|part| !matches!(part, Component::CurDir)).collect()
    };
    let targets = config.mounts.iter().map(|mount| plain(&mount.container_path));
    targets.into_iter().any(|target| Path::new(file).starts_with(target))
}

/// As the process will see it in its environment.
fn home(user: &ResolvedUser, config: &ContainerConfig, image: &ImageConfig) -> String {
    let of_config = config.envs.iter().rev().find(|pair| pair.key == "HOME");
    let of_image = image.env.iter().rev().find_map(|entry| entry.strip_prefix("HOME="));
    match (of_config, of_image) {
        (Some(pair), _) => String::from_utf8_lossy(&pair.value).into_owned(),
        (None, Some(home)) => home.to_owned(),
        (None, None) => user.home.clone(),
    }
}

/// None if there is no need of an entry, no file, or no name left for it.
fn with_user(passwd: &str, user: &ResolvedUser, home: &str) -> Result<Option<String>> {
    let name = user.uid.to_string();
    if passwd.is_empty() || users::entries(passwd).any(|entry| entry.uid == user.uid || entry.name == name) {
        return Ok(None);
    }
    if home.contains(['\n', '\r', ':', '\0']) {
        return Err(Error::Invalid(format!(
            "HOME {home:?} has a line break or a colon in it and can't stand in the container's /etc/passwd"
        )));
    }
    let home = if home.is_empty() { "/" } else { home };
    let entry = format!("{name}:x:{name}:{}:container user:{home}:/sbin/nologin\n", user.gid);
    Ok(Some(appended(passwd, &entry)))
}

fn with_group(group: &str, gid: u32) -> Option<String> {
    let name = gid.to_string();
    let known = group.is_empty() || users::groups(group).any(|entry| entry.gid == gid || entry.name == name);
    (!known).then(|| appended(group, &format!("{name}:x:{name}:\n")))
}

fn appended(text: &str, line: &str) -> String {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}{line}")
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::{KeyValue, Mount};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n4000:x:1:1::/:/bin/false";

    fn user(uid: u32, gid: u32) -> ResolvedUser {
        ResolvedUser {
            uid,
            gid,
            home: "/".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_unknown_get_an_entry_of_their_own_and_others_none() {
        let text = with_user(PASSWD, &user(1002, 7), "/data").unwrap().unwrap();
        assert_eq!(
            text,
            format!("{PASSWD}\n1002:x:1002:7:container user:/data:/sbin/nologin\n")
        );
        assert!(with_user(PASSWD, &user(5, 5), "").unwrap().unwrap().contains(":/:"));
        assert_eq!(with_user(PASSWD, &user(0, 0), "/root").unwrap(), None);
        assert_eq!(with_user(PASSWD, &user(4000, 0), "/").unwrap(), None);
        assert_eq!(with_user("", &user(1002, 7), "/").unwrap(), None);
        assert_eq!(with_group("root:x:0:\n", 7).unwrap(), "root:x:0:\n7:x:7:\n");
        assert_eq!((with_group("root:x:0:", 0), with_group("", 7)), (None, None));
    }

    #[test]
    fn a_home_makes_one_entry_or_none() {
        for bad in ["/root\nevil:x:0:0::/:/bin/sh", "/a\rb", "/a:/bin/sh"] {
            let error = with_user(PASSWD, &user(1002, 7), bad).unwrap_err().to_string();
            assert!(error.contains("HOME"), "{error}");
        }
        // Of no importance to whom the image knows.
        assert_eq!(with_user(PASSWD, &user(0, 0), "/a\nb").unwrap(), None);
    }

    #[test]
    fn home_is_what_the_process_sees() {
        let mut image = ImageConfig::default();
        let mut config = ContainerConfig::default();
        assert_eq!(home(&user(1, 1), &config, &image), "/");
        image.env = vec!["HOME=/image".into()];
        assert_eq!(home(&user(1, 1), &config, &image), "/image");
        config.envs = vec![KeyValue {
            key: "HOME".into(),
            value: b"/config".to_vec(),
        }];
        assert_eq!(home(&user(1, 1), &config, &image), "/config");
    }

    #[test]
    fn what_cri_mounts_stays() {
        for (target, mounted) in [
            ("/etc/passwd", true),
            ("/etc", true),
            ("/etc/./passwd/", true),
            ("/etc/passwd2", false),
            ("/etc/group", false),
        ] {
            let config = ContainerConfig {
                mounts: vec![Mount {
                    container_path: target.into(),
                    ..Default::default()
                }],
                ..Default::default()
            };
            assert_eq!(is_mounted(&config, "/etc/passwd"), mounted, "{target}");
        }
    }
}
