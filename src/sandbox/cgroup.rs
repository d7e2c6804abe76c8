//! Where a pod's cgroups are, with either driver.

use wharf_proto::{cri::PodSandboxConfig, record};

use super::{DEFAULT_CGROUP_PARENT, Error, Mechanisms, Result};
use crate::{cgroups::systemd, monitor};

/// A container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Below the hierarchies' roots, with a leading slash.
    pub path: String,
    /// As the runtime is told: the path, or `slice:prefix:name` for what systemd makes.
    pub in_spec: String,
}

fn parent_of(config: &PodSandboxConfig) -> &str {
    config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent)
}

/// The slice of a new pod's containers; empty with the cgroupfs driver. It stays with the pod when the driver changes.
///
/// # Errors
/// [`Error::Invalid`] when its `cgroup_parent` can be no slice.
pub fn slice(mechanisms: &Mechanisms, config: &PodSandboxConfig) -> Result<String> {
    match (&mechanisms.slice, parent_of(config)) {
        (None, _) => Ok(String::new()),
        (Some(own), "") => Ok(own.clone()),
        (Some(_), parent) => {
            systemd::slice_of(parent).map_err(|error| Error::Invalid(format!("cgroup_parent {parent:?}: {error}")))
        }
    }
}

/// The cgroup that the pod's containers are below, where its config names one.
#[must_use]
pub fn parent(pod: &record::Pod) -> Option<String> {
    let parent = parent_of(pod.config.as_ref()?).trim_end_matches('/');
    if parent.is_empty() {
        return None;
    }
    match pod.slice.as_str() {
        "" => Some(parent.to_owned()),
        slice => Some(format!("/{}", systemd::slice_path(slice).ok()?)),
    }
}

/// The cgroup of a container of the pod.
///
/// # Errors
/// [`Error::Invalid`] when the record's slice is none.
pub fn of_container(pod: &record::Pod, id: &str) -> Result<Place> {
    if pod.slice.is_empty() {
        let parent = parent(pod);
        let path = format!("{}/{id}", parent.as_deref().unwrap_or(DEFAULT_CGROUP_PARENT));
        return Ok(Place {
            in_spec: path.clone(),
            path,
        });
    }
    let scope = systemd::Scope::of_container(&pod.slice, id);
    Ok(Place {
        path: scope.path().map_err(|error| Error::Invalid(error.to_string()))?,
        in_spec: systemd::Scope::spec_path(&pod.slice, id),
    })
}

/// The cgroup of all monitors: outside of every pod's limits.
#[must_use]
pub fn of_monitors(mechanisms: &Mechanisms) -> String {
    let scope = mechanisms.slice.as_deref().map(systemd::Scope::of_monitors);
    scope
        .and_then(|scope| scope.path().ok())
        .unwrap_or_else(|| monitor::DEFAULT_CGROUP.to_owned())
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::LinuxPodSandboxConfig;

    use super::*;

    fn pod(parent: &str, slice: &str) -> record::Pod {
        record::Pod {
            config: Some(PodSandboxConfig {
                linux: Some(LinuxPodSandboxConfig {
                    cgroup_parent: parent.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            slice: slice.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_container_lies_below_its_pods_parent_with_either_driver() {
        let place = |parent: &str, slice: &str| {
            let place = of_container(&pod(parent, slice), "c1").unwrap();
            (place.path, place.in_spec)
        };
        let same = |path: &str| (path.to_owned(), path.to_owned());
        assert_eq!(place("", ""), same("/wharf/c1"));
        assert_eq!(place("/kubepods/pod1/", ""), same("/kubepods/pod1/c1"));
        let slice = "kubepods-pod1.slice";
        let expected = "/kubepods.slice/kubepods-pod1.slice/wharf-c1.scope";
        assert_eq!(
            place("/kubepods/pod1", slice),
            (expected.to_owned(), "kubepods-pod1.slice:wharf:c1".to_owned())
        );
    }

    #[test]
    fn a_pods_own_cgroup_is_the_slice_that_was_made_of_its_parent() {
        assert_eq!(parent(&pod("", "wharf.slice")), None);
        assert_eq!(
            parent(&pod("a-b.slice", "a-b.slice")).as_deref(),
            Some("/a.slice/a-b.slice")
        );
        assert_eq!(parent(&pod("/a/b/", "")).as_deref(), Some("/a/b"));
    }
}
