//! What the kernel holds for pods: mounts, pinned namespaces, cgroups.

use std::{
    collections::HashSet,
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use wharf_proto::record::{ContainerState, PodState};

use super::{Error, Remedy, Result, Seen, found, records};
use crate::{
    cgroups::{self, Cgroup, systemd},
    sandbox::{DEFAULT_CGROUP_PARENT, Roots, host_ipc, host_network},
    store,
};

pub(super) fn look(roots: &Roots, slice: &str, seen: &mut Seen) -> Result<()> {
    let mounts = mounts()?;
    orphaned_mounts(roots, &mounts, seen);
    missing_mounts(roots, &mounts, seen)?;
    run_directories(roots, seen);
    orphaned_cgroups(slice, seen)
}

/// Mount points of this process's namespace.
fn mounts() -> Result<HashSet<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read(path).map_err(|error| Error::Internal(format!("read {path}: {error}")))?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|point| PathBuf::from(OsString::from_vec(unescape(point))))
        .collect())
}

/// Spaces and the like are `\040` in the kernel's table.
fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::new(), text);
    while let [first, after @ ..] = rest {
        let octal = || {
            let digits = after.get(..3).filter(|_| *first == b'\\')?;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
        };
        match octal() {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

/// Mounts that belong to pods or containers which are not there.
fn orphaned_mounts(roots: &Roots, mounts: &HashSet<PathBuf>, seen: &mut Seen) {
    for mount in mounts {
        let below = mount
            .strip_prefix(roots.pods())
            .or_else(|_| mount.strip_prefix(roots.pods_run()));
        let Ok(below) = below else { continue };
        let parts: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let (Some(pod), container) = (parts.first(), parts.get(2)) else {
            continue;
        };
        let in_container = parts.get(1).is_some_and(|part| part == "containers");
        let problem = match seen.known.pods.get(pod) {
            None if seen.known.directories.contains(pod) => continue,
            None => format!("its pod {pod} is not there"),
            Some(record) if record.teardown_done => format!("its pod {pod} has been stopped"),
            Some(_) => match container.filter(|_| in_container) {
                Some(id) if !seen.known.directories.contains(id) => format!("its container {id} is not there"),
                _ => continue,
            },
        };
        let object = mount.display().to_string();
        seen.found
            .push(found("mount", object, problem, "", Remedy::Unmount(mount.clone())));
    }
}

/// What ready pods and running containers need. After a reboot there is nothing of it, which the next start knows.
fn missing_mounts(roots: &Roots, mounts: &HashSet<PathBuf>, seen: &mut Seen) -> Result<()> {
    let boot_id = store::boot_id()?;
    let advice = "the pod can't be repaired: remove it, and whoever wants it makes another";
    let mut missing = Vec::new();
    for (id, pod) in &seen.known.pods {
        if pod.state() != PodState::PodReady || pod.boot_id != boot_id {
            continue;
        }
        let config = pod.config.clone().unwrap_or_default();
        let directory = roots.pod(id).namespaces();
        let (net, ipc) = (!host_network(&config), !host_ipc(&config));
        for (kind, _) in [("net", net), ("uts", net), ("ipc", ipc)]
            .into_iter()
            .filter(|(_, own)| *own)
        {
            if !mounts.contains(&canonical(&directory).join(kind)) {
                let problem = format!("its {kind} namespace is not pinned any more");
                missing.push(found("namespace", id.clone(), problem, advice, Remedy::None));
            }
        }
    }
    for (id, container) in &seen.known.containers {
        let ready = seen
            .known
            .pods
            .get(&container.pod_id)
            .is_some_and(|pod| pod.boot_id == boot_id);
        if container.state() == ContainerState::ContainerRunning && ready {
            let rootfs = canonical(&roots.pod(&container.pod_id).container(id)).join("rootfs");
            if !mounts.contains(&rootfs) {
                let problem = "it runs, and its root file system is not mounted any more";
                missing.push(found("container", id.clone(), problem, advice, Remedy::None));
            }
        }
    }
    seen.found.extend(missing);
    Ok(())
}

/// As the mount table has it.
fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Run directories of pods that are not there.
fn run_directories(roots: &Roots, seen: &mut Seen) {
    for id in records::names(&roots.pods_run()) {
        if seen.known.directories.contains(&id) {
            continue;
        }
        let path = roots.pods_run().join(&id);
        let object = path.display().to_string();
        let problem = "its pod is not there";
        let mut found = found("directory", object, problem, "", Remedy::RunDirectory(path.clone()));
        found.path = Some(path);
        seen.found.push(found);
    }
}

/// Cgroups of containers that are not there. Only those below Wharf's own parents can be told from others'.
fn orphaned_cgroups(slice: &str, seen: &mut Seen) -> Result<()> {
    let failed = |error: cgroups::Error| Error::Internal(format!("look for cgroups: {error}"));
    let hierarchies = cgroups::detect().map_err(failed)?;
    let slice = format!("/{}", systemd::slice_path(slice).map_err(failed)?);
    let below = |parent: &str| -> Result<Vec<String>> {
        let children = Cgroup::new(&hierarchies, parent).map_err(failed)?.children();
        Ok(children.iter().map(|name| format!("{parent}/{name}")).collect())
    };
    for path in below(DEFAULT_CGROUP_PARENT)?.into_iter().chain(below(&slice)?) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let scope = name
            .strip_prefix(systemd::PREFIX)
            .and_then(|name| name.strip_prefix('-')?.strip_suffix(".scope"));
        let id = scope.unwrap_or(name);
        let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id || seen.known.directories.contains(id) {
            continue;
        }
        let pids = Cgroup::new(&hierarchies, &path).map_err(failed)?.pids();
        if pids.is_empty() {
            let problem = "its container is not there";
            seen.found
                .push(found("cgroup", &path, problem, "", Remedy::Cgroup(path.clone())));
        } else {
            let problem = format!("its container is not there, but processes {pids:?} run in it");
            seen.found
                .push(found("cgroup", path, problem, "end them", Remedy::None));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn names_in_the_mount_table_lose_their_escapes() {
        assert_eq!(unescape(br"/a\040b\134c\"), br"/a b\c\");
    }
}
