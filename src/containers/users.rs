//! Who a container's process runs as: names and numbers resolved in the image's /etc/passwd and /etc/group.
//!
//! Both files are the image's, so they are hostile: they are opened without leaving the root filesystem and parsed within
//! bounds, and they can only choose among numbers.

use std::io;

use wharf_proto::cri;

use crate::images::rootfs::Root;

/// Why a user or group could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is not in the image.
    #[error("no {what} {name:?} in the image's {file}")]
    Unknown {
        /// "user" or "group".
        what: &'static str,
        /// As asked for.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// The request contradicts itself.
    #[error("run_as_group {0} is set without run_as_user or run_as_username")]
    GroupWithoutUser(i64),
    /// A policy of a later API.
    #[error("supplemental_groups_policy {0} is not known")]
    UnknownPolicy(i32),
    /// A number that is no id.
    #[error("{what} {value}: not an id (0 to 4294967294)")]
    OutOfRange {
        /// Which field.
        what: &'static str,
        /// As asked for.
        value: String,
    },
    /// A file of the image could not be read.
    #[error("read {file} in the image: {source}")]
    Io {
        /// Which file.
        file: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups of the process, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory by /etc/passwd; `/` if there is no entry.
    pub home: String,
}

impl ResolvedUser {
    /// What ContainerStatus reports.
    #[must_use]
    pub fn to_cri(&self) -> cri::LinuxContainerUser {
        cri::LinuxContainerUser {
            uid: i64::from(self.uid),
            gid: i64::from(self.gid),
            supplemental_groups: self.groups.iter().map(|g| i64::from(*g)).collect(),
        }
    }
}

/// Resolves the user of a container. `image_user` is the image's `USER` ("user", "user:group", numbers or names).
///
/// # Errors
/// A name that is not in the image, a group without a user, an id out of range, an unreadable file.
pub fn resolve(
    root: &Root,
    context: Option<&cri::LinuxContainerSecurityContext>,
    image_user: &str,
) -> Result<ResolvedUser> {
    let none = cri::LinuxContainerSecurityContext::default();
    let context = context.unwrap_or(&none);
    let run_as_group = context.run_as_group.as_ref().map(|g| g.value);
    let (user, image_group) = match (&context.run_as_user, context.run_as_username.as_str(), run_as_group) {
        (Some(uid), _, _) => (uid.value.to_string(), ""),
        (None, "", Some(gid)) => return Err(Error::GroupWithoutUser(gid)),
        (None, "", None) => {
            let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
            (user.to_owned(), group)
        }
        (None, name, _) => (name.to_owned(), ""),
    };

    let passwd = read_file(root, "/etc/passwd")?;
    let entry = match user.as_str() {
        "" => entries(&passwd).find(|e| e.uid == 0),
        number if is_number(number) => {
            let uid = parse_id("user", number)?;
            entries(&passwd).find(|e| e.uid == uid)
        }
        name => Some(
            entries(&passwd)
                .find(|e| e.name == name)
                .ok_or_else(|| unknown("user", name, "/etc/passwd"))?,
        ),
    };
    let uid = match (&entry, user.as_str()) {
        (Some(entry), _) => entry.uid,
        (None, "") => 0,
        (None, number) => parse_id("user", number)?,
    };

    let group_file = read_file(root, "/etc/group")?;
    let gid = match (run_as_group, image_group) {
        (Some(gid), _) => parse_id("run_as_group", &gid.to_string())?,
        (None, "") => entry.as_ref().map_or(0, |e| e.gid),
        (None, number) if is_number(number) => parse_id("group", number)?,
        (None, name) => {
            let found = groups(&group_file).find(|g| g.name == name);
            found.ok_or_else(|| unknown("group", name, "/etc/group"))?.gid
        }
    };

    let mut all = vec![gid];
    // Strict: only what the request names. Merge: also what the image says of this user.
    let policy = cri::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy)
        .map_err(|_| Error::UnknownPolicy(context.supplemental_groups_policy))?;
    let strict = policy == cri::SupplementalGroupsPolicy::Strict;
    if let Some(entry) = entry.as_ref().filter(|_| !strict) {
        all.extend(
            groups(&group_file)
                .filter(|g| g.members.split(',').any(|m| m == entry.name))
                .map(|g| g.gid),
        );
    }
    for group in &context.supplemental_groups {
        all.push(parse_id("supplemental group", &group.to_string())?);
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|g| seen.insert(*g));
    let home = entry
        .map(|e| e.home)
        .filter(|h| h.starts_with('/'))
        .unwrap_or("/")
        .to_owned();
    Ok(ResolvedUser {
        uid,
        gid,
        groups: all,
        home,
    })
}

fn unknown(what: &'static str, name: &str, file: &'static str) -> Error {
    Error::Unknown {
        what,
        name: name.to_owned(),
        file,
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// The highest number means "no change" to the kernel.
fn parse_id(what: &'static str, text: &str) -> Result<u32> {
    let id = text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| Error::OutOfRange {
        what,
        value: text.to_owned(),
    })
}

pub(super) struct Passwd<'a> {
    pub(super) name: &'a str,
    pub(super) uid: u32,
    gid: u32,
    home: &'a str,
}

/// Well-formed lines of passwd; others are skipped, as libc does.
pub(super) fn entries(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or_default();
        (!name.is_empty() && !name.starts_with('#')).then_some(Passwd { name, uid, gid, home })
    })
}

pub(super) struct Group<'a> {
    pub(super) name: &'a str,
    pub(super) gid: u32,
    members: &'a str,
}

pub(super) fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or_default();
        (!name.is_empty() && !name.starts_with('#')).then_some(Group { name, gid, members })
    })
}

/// The text of a file in the image; empty if it is not there. Symbolic links resolve inside `root`.
pub(super) fn read_file(root: &Root, file: &'static str) -> Result<String> {
    root.read(file).map_err(|source| Error::Io { file, source })
}

#[cfg(test)]
mod tests;
