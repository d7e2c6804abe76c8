//! How much a container may write: as the person who runs it says, as its pod's annotation says where the handler lets it, or as
//! configured.

use wharf_proto::{
    cri::{ContainerConfig, PodSandboxConfig},
    record::{self, Owner},
};

use super::{Error, Result};
use crate::config::{Config, DISK_LIMIT, parse_size};

/// Bytes that a container of `pod` may write; 0 is no limit. The annotation [`DISK_LIMIT`] is a person's container's own; of
/// Kubernetes' it is the pod's, for all its containers or, with `/NAME` behind it, for one.
///
/// # Errors
/// [`Error::Invalid`] for what is no size.
pub(super) fn of(
    settings: &Config,
    pod: &record::Pod,
    pod_config: &PodSandboxConfig,
    config: &ContainerConfig,
) -> Result<u64> {
    let name = config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
    let asked = match pod.owner() {
        Owner::User => config
            .annotations
            .get(DISK_LIMIT)
            .map(|text| (DISK_LIMIT.to_owned(), text.clone())),
        Owner::Cri => {
            let effective = settings
                .handler_settings(&pod.runtime_handler)
                .effective(&pod_config.annotations);
            let keys = [format!("{DISK_LIMIT}/{name}"), DISK_LIMIT.to_owned()];
            keys.into_iter()
                .find_map(|key| Some((key.clone(), effective.get(&key)?.clone())))
        }
    };
    let Some((key, text)) = asked else {
        return Ok(settings.containers.disk_limit);
    };
    match parse_size(&text) {
        Some(bytes) if bytes <= i64::MAX.cast_unsigned() => Ok(bytes),
        _ => Err(Error::Invalid(format!(
            "annotation {key}: {text:?} is not a size such as \"10GiB\", or 0 for no limit"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::RuntimeHandler;

    #[test]
    fn a_persons_container_says_it_itself_and_a_pod_where_its_handler_lets_it() {
        let mut settings = Config::default();
        settings.containers.disk_limit = 1 << 30;
        settings.runtimes.insert(
            "limited".into(),
            RuntimeHandler {
                allowed_annotations: vec![DISK_LIMIT.into()],
                ..RuntimeHandler::default()
            },
        );
        let annotations = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let limit = |owner: Owner, handler: &str, of_pod: &[(&str, &str)], own: &[(&str, &str)]| {
            let pod = record::Pod {
                owner: owner.into(),
                runtime_handler: handler.into(),
                ..Default::default()
            };
            let pod_config = PodSandboxConfig {
                annotations: annotations(of_pod),
                ..Default::default()
            };
            let config = ContainerConfig {
                metadata: Some(wharf_proto::cri::ContainerMetadata {
                    name: "web".into(),
                    attempt: 0,
                }),
                annotations: annotations(own),
                ..Default::default()
            };
            of(&settings, &pod, &pod_config, &config).map_err(|error| error.to_string())
        };
        let asked = [("disk-limit.wharf.run", "5m")];
        assert_eq!(limit(Owner::User, "", &[], &asked), Ok(5 << 20));
        assert_eq!(
            limit(Owner::User, "", &asked, &[]),
            Ok(1 << 30),
            "a pod's annotation is Kubernetes'"
        );
        assert_eq!(
            limit(Owner::Cri, "", &asked, &asked),
            Ok(1 << 30),
            "the handler does not allow it"
        );
        assert_eq!(limit(Owner::Cri, "limited", &asked, &[]), Ok(5 << 20));
        let one = [("disk-limit.wharf.run", "5m"), ("disk-limit.wharf.run/web", "0")];
        assert_eq!(limit(Owner::Cri, "limited", &one, &[]), Ok(0), "its own counts more");
        let error = limit(Owner::User, "", &[], &[("disk-limit.wharf.run", "much")]).unwrap_err();
        assert!(
            error.contains("disk-limit.wharf.run") && error.contains("much"),
            "{error}"
        );
    }
}
