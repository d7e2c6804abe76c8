//! Standard streams of processes in user namespaces. Pipes belong to who has made them, the node's root, whom such a
//! namespace does not know: nobody in it could open /dev/stderr, as servers do for their logs, nor be made the pipe's owner by
//! the runtime. So they become the property of the namespace's root before anybody enters it.

use std::os::fd::BorrowedFd;

use nix::{
    sys::stat::fstat,
    unistd::{Gid, Uid, fchown},
};
use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::{Error, Result, Stdio};

/// A user and a group of the node.
pub type Owner = (u32, u32);

/// Who is root in the user namespace of a container; None where it has none of its own.
pub fn root(linux: &Linux) -> Option<Owner> {
    let all = |mappings: &Option<Vec<LinuxIdMapping>>| first(mappings.as_deref().unwrap_or_default());
    all(linux.uid_mappings()).zip(all(linux.gid_mappings()))
}

/// The same of a spec that was only read as JSON.
pub fn root_in(spec: &serde_json::Value) -> Option<Owner> {
    let all = |name: &str| {
        let mappings = spec["linux"][name].clone();
        first(&serde_json::from_value::<Vec<LinuxIdMapping>>(mappings).unwrap_or_default())
    };
    all("uidMappings").zip(all("gidMappings"))
}

fn first(mappings: &[LinuxIdMapping]) -> Option<u32> {
    let root = mappings.iter().find(|one| one.container_id() == 0 && one.size() > 0);
    root.map(LinuxIdMapping::host_id)
}

/// Makes the pipes among the streams `owner`'s.
///
/// # Errors
/// When one can't be.
pub fn give(stdio: &Stdio, owner: Option<Owner>) -> Result<()> {
    let (Stdio::Streams(streams), Some((uid, gid))) = (stdio, owner) else {
        return Ok(());
    };
    for stream in streams {
        if is_pipe(*stream) {
            fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| Error::os(format!("make a standard stream the property of user {uid}"), errno))?;
        }
    }
    Ok(())
}

fn is_pipe(stream: BorrowedFd) -> bool {
    fstat(stream).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd as _};

    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    #[test]
    fn the_root_of_a_namespace_is_who_is_mapped_to_zero() {
        let mapping = |container: u32, host: u32| {
            let builder = LinuxIdMappingBuilder::default().container_id(container).host_id(host);
            builder.size(1000_u32).build().unwrap()
        };
        let mut linux = Linux::default();
        linux.set_uid_mappings(None).set_gid_mappings(None);
        assert_eq!(root(&linux), None);
        linux
            .set_uid_mappings(Some(vec![mapping(1000, 1), mapping(0, 200_000)]))
            .set_gid_mappings(Some(vec![mapping(0, 300_000)]));
        assert_eq!(root(&linux), Some((200_000, 300_000)));
        let spec = serde_json::json!({ "linux": linux });
        assert_eq!(root_in(&spec), Some((200_000, 300_000)));
        assert_eq!(root_in(&serde_json::json!({ "linux": {} })), None);
        linux.set_gid_mappings(Some(vec![mapping(1000, 1)]));
        assert_eq!(root(&linux), None);
    }

    #[test]
    fn pipes_change_hands_and_nothing_else() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let null = File::open("/dev/null").unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let stdio = Stdio::Streams([null.as_fd(), write.as_fd(), write.as_fd()]);
        give(&stdio, None).unwrap();
        assert_eq!(fstat(&read).unwrap().st_uid, 0);
        give(&stdio, Some((200_000, 300_000))).unwrap();
        let found = fstat(&read).unwrap();
        assert_eq!((found.st_uid, found.st_gid), (200_000, 300_000));
        assert_eq!(fstat(&null).unwrap().st_uid, 0);
        give(&Stdio::Terminal, Some((1, 1))).unwrap();
    }
}
