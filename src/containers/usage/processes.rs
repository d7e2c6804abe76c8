//! What a container's processes hold open, from /proc.

use std::fs;

/// Open descriptors of all processes of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// All of them.
    pub open: u64,
    /// Those that are sockets.
    pub sockets: u64,
    /// Soft limit of its init; None where there is no limit or no process.
    pub limit: Option<u64>,
}

/// Counts the descriptors of `pids`; a process that ends meanwhile counts for nothing.
pub(super) fn descriptors(init: i32, pids: &[i32]) -> Descriptors {
    let mut found = Descriptors {
        limit: open_files_limit(&fs::read_to_string(format!("/proc/{init}/limits")).unwrap_or_default()),
        ..Descriptors::default()
    };
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            found.open += 1;
            let is_socket = fs::read_link(entry.path())
                .is_ok_and(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            found.sockets += u64::from(is_socket);
        }
    }
    found
}

/// The soft limit in a line like `Max open files            1024                 524288               files`.
fn open_files_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_sockets_are_told_apart() {
        let me = std::process::id() as i32;
        let before = descriptors(me, &[me]);
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let after = descriptors(me, &[me]);
        // Other tests open and close descriptors meanwhile, so only what must hold anyhow is asked.
        assert!(after.sockets >= 2 && after.open > after.sockets, "{before:?} {after:?}");
        assert!(after.limit.is_some());
        assert_eq!(descriptors(0, &[]), Descriptors::default());
    }

    #[test]
    fn the_limit_is_read_from_the_kernels_table() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files_limit(text), Some(1024));
        assert_eq!(
            open_files_limit("Max open files            unlimited            unlimited            files\n"),
            None
        );
    }
}
