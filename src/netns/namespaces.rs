//! Namespaces without a process: made on a thread that ends, kept by bind mounts of their handles.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::link::Links;
use super::users::Holder;
use super::{Error, Result, Want, sysctl, thread};

/// The user namespace last: it owns the others.
const KINDS: [&str; 4] = ["net", "ipc", "uts", "user"];

/// See [`super::Networks::create_namespaces`].
pub(super) async fn create(dir: &Path, want: Want, hostname: &str, sysctls: &[(String, String)]) -> Result<()> {
    let settings = sysctl::check(want, sysctls)?;
    let (dir, hostname) = (dir.to_owned(), hostname.to_owned());
    thread::run("wharf-ns", move || {
        let made = make(&dir, want, &hostname, &settings);
        if made.is_err() {
            // The first error is the one to tell; what stays pinned in spite of this is named by the next removal.
            let _ = unpin(&dir);
        }
        made
    })
    .await
}

/// See [`super::Networks::remove_namespaces`].
pub(super) async fn remove(dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    thread::run("wharf-ns", move || unpin(&dir)).await
}

fn make(dir: &Path, want: Want, hostname: &str, settings: &[sysctl::Setting]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| Error::io("create directory", dir, source))?;
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, want.net);
    flags.set(CloneFlags::CLONE_NEWIPC, want.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, want.uts);
    let holder = match &want.users {
        None => {
            unshare(flags).map_err(|errno| Error::kernel("create namespaces", errno))?;
            None
        }
        Some(users) => {
            let holder = Holder::start(flags, users)?;
            for (kind, wanted) in KINDS.into_iter().zip([want.net, want.ipc, want.uts]) {
                if wanted {
                    holder.enter(kind)?;
                }
            }
            Some(holder)
        }
    };
    if want.net {
        Links::open()?.set_up("lo")?;
    }
    if want.uts && !hostname.is_empty() {
        nix::unistd::sethostname(hostname)
            .map_err(|errno| Error::kernel(format!("set host name {hostname:?}"), errno))?;
    }
    sysctl::write(settings)?;
    for (kind, wanted) in KINDS.into_iter().zip([want.net, want.ipc, want.uts]) {
        if wanted {
            pin(&dir.join(kind), Path::new(&format!("/proc/thread-self/ns/{kind}")))?;
        }
    }
    match holder {
        Some(holder) => pin(&dir.join("user"), &holder.namespace("user")),
        None => Ok(()),
    }
}

fn pin(target: &Path, handle: &Path) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(target)
        .map_err(|source| Error::io("create namespace pin", target, source))?;
    mount(Some(handle), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| Error::io("pin namespace at", target, errno.into()))
}

fn unpin(dir: &Path) -> Result<()> {
    for kind in KINDS {
        let pin = dir.join(kind);
        // More than one mount can lie on a file when an earlier run was killed between two steps.
        loop {
            match umount2(&pin, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                // Not a mount point, or not there.
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(Error::io("unmount namespace pin", &pin, errno.into())),
            }
        }
        match std::fs::remove_file(&pin) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove namespace pin", &pin, source));
            }
            _ => {}
        }
    }
    match std::fs::remove_dir(dir) {
        // What else lies there is the caller's.
        Err(source) if !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(Error::io("remove directory", dir, source))
        }
        _ => Ok(()),
    }
}
