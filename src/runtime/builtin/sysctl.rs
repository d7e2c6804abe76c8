//! Kernel parameters of the container's namespaces.

use super::spec::{Bundle, Namespace};
use crate::runtime::error::Context;
use crate::runtime::{Error, Result, sys};
use oci_spec::runtime::LinuxNamespaceType;
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Refuse parameters that would change the host.
pub fn check(bundle: &Bundle) -> Result<()> {
    let own = |kind| bundle.namespace(kind) != Namespace::Host;
    for name in bundle.linux()?.sysctl().iter().flatten().map(|(name, _)| name) {
        let dotted = name.replace('/', ".");
        let kind = if dotted.starts_with("net.") {
            LinuxNamespaceType::Network
        } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            LinuxNamespaceType::Ipc
        } else if dotted == "kernel.domainname" {
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

/// Write the parameters through the host's procfs, which shows the writer's namespaces and cannot be tampered with
/// from the container.
pub fn write(bundle: &Bundle, procfs: BorrowedFd) -> Result<()> {
    for (name, value) in bundle.linux()?.sysctl().iter().flatten() {
        // A dot separates unless slashes are used; then a dot is part of a name (an interface such as eth0.1).
        let below = if name.contains('/') {
            name.clone()
        } else {
            name.replace('.', "/")
        };
        let path = PathBuf::from("sys").join(below.trim_start_matches('/'));
        let what = || format!("set sysctl {name} to {value:?}");
        let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
        let file = sys::openat2(procfs, &path, libc::O_WRONLY, 0, resolve).context(what)?;
        File::from(file).write_all(value.as_bytes()).context(what)?;
    }
    Ok(())
}
