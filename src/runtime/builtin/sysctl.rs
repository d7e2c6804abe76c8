//! Kernel parameters of the container's namespaces.

use super::spec::{Bundle, Namespace};
use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys;
use oci_spec::runtime::LinuxNamespaceType;
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::Path;

const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Refuse parameters that would change the host.
pub fn check(bundle: &Bundle) -> Result<()> {
    let own = |kind| bundle.namespace(kind) != Namespace::Host;
    for name in bundle.linux()?.sysctl().iter().flatten().map(|(name, _)| name) {
        let path = path(name).ok_or_else(|| Error::InvalidSpec(format!("sysctl {name:?} is not a sysctl's name")))?;
        let kind = if path.starts_with("net/") {
            LinuxNamespaceType::Network
        } else if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
            LinuxNamespaceType::Ipc
        } else if path == "kernel/domainname" {
            LinuxNamespaceType::Uts
        } else {
            return Err(Error::InvalidSpec(format!("sysctl {name} is not of a namespace")));
        };
        if !own(kind) {
            return Err(Error::InvalidSpec(format!(
                "sysctl {name} needs a {kind} namespace of the container's own"
            )));
        }
    }
    Ok(())
}

/// The path below /proc/sys. As in sysctl(8) the first separator decides: after a dot, slashes stand for dots within
/// a name (an interface such as eth0/1); after a slash, dots are what they are. No way up is accepted, or a name that
/// begins in a namespace could end at the host's.
fn path(name: &str) -> Option<String> {
    let path: String = match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_string(),
    };
    let sound = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    sound.then_some(path)
}

/// Write the parameters through the host's procfs, which shows the writer's namespaces and cannot be tampered with
/// from the container.
pub fn write(bundle: &Bundle, procfs: BorrowedFd) -> Result<()> {
    for (name, value) in bundle.linux()?.sysctl().iter().flatten() {
        let Some(path) = path(name) else { continue };
        let what = || format!("set sysctl {name} to {value:?}");
        let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
        let file = sys::openat2(procfs, &Path::new("sys").join(path), libc::O_WRONLY, 0, resolve).context(what)?;
        File::from(file).write_all(value.as_bytes()).context(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_decides() {
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("net/ipv4/ip_forward"));
        assert_eq!(
            path("net.ipv4.conf.eth0/1.rp_filter").as_deref(),
            Some("net/ipv4/conf/eth0.1/rp_filter")
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.1/rp_filter").as_deref(),
            Some("net/ipv4/conf/eth0.1/rp_filter")
        );
    }

    #[test]
    fn no_name_leads_up() {
        for name in [
            "net/../kernel/core_pattern",
            "net.//.kernel.core_pattern",
            "net..x",
            "/net/x",
            "net/",
            "",
            "net/./x",
        ] {
            assert_eq!(path(name), None, "{name}");
        }
    }
}
