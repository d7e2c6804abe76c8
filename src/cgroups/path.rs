//! Which cgroup paths are accepted. A path without a leading slash is one below the root, as the peers take it.

use super::{Error, Result};

/// Checks a cgroup path and returns it without the leading slash and without empty or `.` components. An empty result
/// means the root, which callers refuse where they would change it.
pub(super) fn sanitise(path: &str) -> Result<String> {
    let fail = |reason| {
        Err(Error::InvalidPath {
            path: path.to_owned(),
            reason,
        })
    };
    if path.is_empty() {
        return fail("empty");
    }
    if !path.starts_with('/') && path.contains(':') {
        return fail("this is a systemd path (slice:prefix:name), but the cgroup driver is cgroupfs");
    }
    if path.bytes().any(|b| b == 0 || b == b'\n') {
        return fail("contains a NUL or a line break");
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return fail("contains \"..\""),
            part if part.len() > 255 => return fail("has a component of more than 255 bytes"),
            // A directory of such a name would shadow one of the kernel's own files.
            part if part.starts_with("cgroup.") => return fail("has a component that begins with \"cgroup.\""),
            part => parts.push(part),
        }
    }
    let clean = parts.join("/");
    if clean.len() > 3500 {
        return fail("too long");
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::sanitise;

    #[test]
    fn plain_paths_are_normalised() {
        assert_eq!(
            sanitise("/kubepods/./burstable//pod1").unwrap(),
            "kubepods/burstable/pod1"
        );
        assert_eq!(sanitise("/").unwrap(), "");
        assert_eq!(sanitise("/kubepods.slice/x").unwrap(), "kubepods.slice/x");
        assert_eq!(sanitise("pods/a.slice").unwrap(), "pods/a.slice");
    }

    #[test]
    fn paths_that_leave_the_hierarchy_are_refused() {
        for bad in [
            "",
            "../a",
            "/a/../../b",
            "/..",
            "/a\nb",
            "/a/cgroup.procs",
            "kubepods.slice:cri:1",
        ] {
            assert!(sanitise(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(
            sanitise("kubepods.slice:cri:1")
                .unwrap_err()
                .to_string()
                .contains("systemd")
        );
    }
}
