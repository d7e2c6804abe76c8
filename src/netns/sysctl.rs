//! Sysctls of a pod: which ones belong to a namespace, and writing them.

use std::path::{Path, PathBuf};

use super::{Error, Result, Want};

/// Those of the IPC namespace; the rest of `kernel.*` belongs to the whole machine.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// A sysctl that was found to be namespaced, and its value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    name: String,
    /// Below `/proc/sys`.
    path: PathBuf,
    value: String,
}

/// Checks that each of `sysctls` belongs to a namespace that the pod gets of its own.
///
/// # Errors
/// Names the first one that does not, or that is not a name at all.
pub(super) fn check(want: Want, sysctls: &[(String, String)]) -> Result<Vec<Setting>> {
    sysctls
        .iter()
        .map(|(name, value)| {
            let refuse = |reason: &str| Error::Sysctl {
                name: name.clone(),
                reason: reason.to_owned(),
            };
            let path = path_of(name).ok_or_else(|| refuse("not a sysctl name"))?;
            let (own, kind) = if path.starts_with("net/") {
                (want.net, "network")
            } else if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
                (want.ipc, "IPC")
            } else if path == "kernel/domainname" {
                (want.uts, "UTS")
            } else {
                return Err(refuse("not namespaced: it would change the whole node"));
            };
            if !own {
                return Err(refuse(&format!("the pod shares the node's {kind} namespace")));
            }
            Ok(Setting {
                name: name.clone(),
                path: Path::new("/proc/sys").join(path),
                value: value.clone(),
            })
        })
        .collect()
}

/// Writes the settings in the namespaces of the calling thread: `/proc/sys` shows those of whoever looks.
///
/// # Errors
/// Names the sysctl that does not exist here or refuses the value.
pub(super) fn write(settings: &[Setting]) -> Result<()> {
    for Setting { name, path, value } in settings {
        std::fs::write(path, value).map_err(|source| Error::Sysctl {
            name: name.clone(),
            reason: if source.kind() == std::io::ErrorKind::NotFound {
                "this kernel has none of that name in a pod's namespace".to_owned()
            } else {
                format!("set to {value:?}: {source}")
            },
        })?;
    }
    Ok(())
}

/// The path below `/proc/sys`. As in sysctl(8) the first separator decides whether dots or slashes separate.
fn path_of(name: &str) -> Option<String> {
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let path: String = if slashes {
        name.to_owned()
    } else {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect()
    };
    let sane = path
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
    (sane && path.contains('/')).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Want = Want {
        net: true,
        ipc: true,
        uts: true,
        users: None,
    };

    fn one(want: Want, name: &str) -> Result<Vec<Setting>> {
        check(want, &[(name.to_owned(), "1".to_owned())])
    }

    #[test]
    fn namespaced_ones_are_taken() {
        for name in [
            "net.ipv4.ip_unprivileged_port_start",
            "kernel.shm_rmid_forced",
            "fs.mqueue.msg_max",
            "kernel.sem",
        ] {
            assert!(one(ALL, name).is_ok(), "{name}");
        }
        let both = one(ALL, "net/ipv4/conf/eth0.7/forwarding").unwrap();
        assert_eq!(both, {
            let mut dots = one(ALL, "net.ipv4.conf.eth0/7.forwarding").unwrap();
            dots[0].name = "net/ipv4/conf/eth0.7/forwarding".into();
            dots
        });
        assert_eq!(both[0].path, Path::new("/proc/sys/net/ipv4/conf/eth0.7/forwarding"));
    }

    #[test]
    fn the_nodes_own_are_refused_by_name() {
        for name in [
            "kernel.panic",
            "vm.swappiness",
            "fs.file-max",
            "kernel.shmfoo",
            "kernel.msg_next_id",
        ] {
            let text = one(ALL, name).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("whole node"), "{text}");
        }
        let text = one(Want { net: false, ..ALL }, "net.core.somaxconn")
            .unwrap_err()
            .to_string();
        assert_eq!(
            text,
            "sysctl net.core.somaxconn: the pod shares the node's network namespace"
        );
    }

    #[test]
    fn no_name_leads_out_of_proc_sys() {
        for name in [
            "",
            "net",
            "net..x",
            "net/../kernel/panic",
            "/etc/passwd",
            "net.ipv4.",
            "net/./x",
        ] {
            assert!(one(ALL, name).is_err(), "{name:?}");
        }
    }
}
