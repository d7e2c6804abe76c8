//! Settings of cgroups: who makes them, and where those of pods lie whose config names no parent.

use serde::{Deserialize, Serialize};

/// Who makes cgroups, and how their paths are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where it runs on cgroup v2, else the cgroup file system.
    Auto,
    /// Wharf writes to the cgroup file system.
    Cgroupfs,
    /// systemd makes scopes and slices; needs cgroup v2.
    Systemd,
}

/// `[cgroups]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroups {
    /// The driver of new pods. Kubelet must use the same; it asks for it (RuntimeConfig) from Kubernetes 1.28 on.
    pub driver: CgroupDriver,
    /// systemd driver: the slice of pods whose config names no cgroup parent, and of monitors.
    pub slice: String,
}

impl Default for Cgroups {
    fn default() -> Self {
        Self {
            driver: CgroupDriver::Auto,
            slice: "wharf.slice".to_owned(),
        }
    }
}

impl Cgroups {
    /// Whether `slice` is the name of a slice other than the root's: parts between dashes are not empty.
    pub(super) fn has_slice(&self) -> bool {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
        let part = |part: &str| !part.is_empty() && part.bytes().all(known);
        self.slice.len() <= 200
            && self
                .slice
                .strip_suffix(".slice")
                .is_some_and(|stem| stem.split('-').all(part))
    }
}

#[cfg(test)]
mod tests {
    use super::Cgroups;

    #[test]
    fn slices_have_names_that_systemd_takes() {
        let is_good = |slice: &str| {
            Cgroups {
                slice: slice.to_owned(),
                ..Cgroups::default()
            }
            .has_slice()
        };
        for good in ["wharf.slice", "node-pods.slice"] {
            assert!(is_good(good), "{good}");
        }
        for bad in ["", "wharf", ".slice", "-.slice", "a--b.slice", "/a.slice", "a b.slice"] {
            assert!(!is_good(bad), "{bad}");
        }
    }
}
