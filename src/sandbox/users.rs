//! The user namespace that a pod asks for.

use wharf_proto::cri::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};

use super::{Error, Result, namespace_options};
use crate::netns::Users;

/// The pod's mapping of ids; none when it runs as the node's own users.
///
/// # Errors
/// When what is asked for is no single range of users and groups each that holds the container's root (KEP-127, contract
/// rule 46). The two may differ in length: each is mapped by itself.
pub fn users(config: &PodSandboxConfig) -> Result<Option<Users>> {
    let Some(asked) = namespace_options(config).userns_options else {
        return Ok(None);
    };
    let mode = NamespaceMode::try_from(asked.mode)
        .map_err(|_| Error::Invalid(format!("user namespace mode {} is not known", asked.mode)))?;
    match mode {
        NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(Error::Invalid(
            "user namespace mode NODE comes with id mappings, which only mode POD can have".into(),
        )),
        NamespaceMode::Pod => Ok(Some(Users {
            uids: only("uid", &asked.uids)?,
            gids: only("gid", &asked.gids)?,
        })),
        other => Err(Error::Invalid(format!(
            "user namespace mode {} is not possible",
            other.as_str_name()
        ))),
    }
}

/// Whether a container's user namespace options mean the pod's namespace. None are given by clients that leave it to
/// the pod.
#[must_use]
pub fn same_users(pod: Option<&Users>, container: Option<&UserNamespace>) -> bool {
    match (pod, container) {
        (_, None) => true,
        (None, Some(own)) => own.mode == NamespaceMode::Node as i32,
        (Some(pod), Some(own)) => {
            own.mode == NamespaceMode::Pod as i32 && own.uids == [pod.uids] && own.gids == [pod.gids]
        }
    }
}

fn only(what: &str, mappings: &[IdMapping]) -> Result<IdMapping> {
    let [mapping] = mappings else {
        return Err(Error::Invalid(format!(
            "a user namespace takes exactly one {what} mapping, not {}",
            mappings.len()
        )));
    };
    if mapping.length == 0
        || mapping.host_id.checked_add(mapping.length).is_none()
        || mapping.container_id.checked_add(mapping.length).is_none()
    {
        return Err(Error::Invalid(format!(
            "the {what} mapping of {} to {}, {} ids long, is no range",
            mapping.container_id, mapping.host_id, mapping.length
        )));
    }
    if mapping.container_id != 0 {
        return Err(Error::Invalid(format!(
            "the {what} mapping begins with id {} of the container; it must begin with 0, the container's root",
            mapping.container_id
        )));
    }
    Ok(*mapping)
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption};

    use super::*;

    const RANGE: IdMapping = IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    };

    fn pod(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> PodSandboxConfig {
        let options = NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: mode.into(),
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            }),
            ..Default::default()
        };
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn rule_46_one_range_each_is_taken_and_all_else_is_refused() {
        assert_eq!(users(&PodSandboxConfig::default()).unwrap(), None);
        assert_eq!(users(&pod(NamespaceMode::Node, &[], &[])).unwrap(), None);
        let both = users(&pod(NamespaceMode::Pod, &[RANGE], &[RANGE])).unwrap().unwrap();
        assert_eq!((both.uids, both.gids), (RANGE, RANGE));
        let endless = IdMapping {
            host_id: u32::MAX,
            ..RANGE
        };
        let empty = IdMapping { length: 0, ..RANGE };
        let rootless = IdMapping {
            container_id: 1000,
            ..RANGE
        };
        for (bad, says) in [
            (pod(NamespaceMode::Pod, &[], &[RANGE]), "exactly one uid mapping"),
            (
                pod(NamespaceMode::Pod, &[RANGE], &[RANGE, RANGE]),
                "exactly one gid mapping",
            ),
            (pod(NamespaceMode::Pod, &[endless], &[RANGE]), "no range"),
            (pod(NamespaceMode::Pod, &[empty], &[RANGE]), "0 ids long, is no range"),
            (
                pod(NamespaceMode::Pod, &[RANGE], &[rootless]),
                "gid mapping begins with id 1000",
            ),
            (pod(NamespaceMode::Pod, &[], &[]), "exactly one uid mapping, not 0"),
            (pod(NamespaceMode::Target, &[RANGE], &[RANGE]), "TARGET"),
            (pod(NamespaceMode::Node, &[RANGE], &[RANGE]), "NODE"),
            (pod(NamespaceMode::Container, &[RANGE], &[RANGE]), "CONTAINER"),
        ] {
            let error = users(&bad).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_container_can_only_have_its_pods_namespace() {
        let of = |config: &PodSandboxConfig| namespace_options(config).userns_options.unwrap();
        let pods = Users {
            uids: RANGE,
            gids: RANGE,
        };
        let other = IdMapping {
            host_id: 200_000,
            ..RANGE
        };
        assert!(same_users(Some(&pods), None) && same_users(None, None));
        assert!(same_users(
            Some(&pods),
            Some(&of(&pod(NamespaceMode::Pod, &[RANGE], &[RANGE])))
        ));
        assert!(!same_users(
            Some(&pods),
            Some(&of(&pod(NamespaceMode::Pod, &[other], &[RANGE])))
        ));
        assert!(!same_users(Some(&pods), Some(&of(&pod(NamespaceMode::Node, &[], &[])))));
        assert!(!same_users(
            None,
            Some(&of(&pod(NamespaceMode::Pod, &[RANGE], &[RANGE])))
        ));
    }
}
