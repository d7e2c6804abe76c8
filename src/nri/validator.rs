//! The validator that is built in. What it asks for and its settings are those of NRI's default validator.

use std::collections::HashMap;

use wharf_proto::nri::{
    Field, FieldOwners, PodSandbox, ValidateContainerAdjustmentRequest, security_profile::ProfileType,
};

use crate::config::DefaultValidator;

/// A pod's annotation that lists plugins its containers need, as YAML.
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// Whether the plugins may do to a container what they want.
///
/// # Errors
/// The reason why not, which names the plugins.
pub fn check(settings: &DefaultValidator, request: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
    let id = request.container.as_ref().map_or("", |container| container.id.as_str());
    let none = FieldOwners::default();
    let owners = request
        .owners
        .as_ref()
        .and_then(|owners| owners.owners.get(id))
        .unwrap_or(&none);
    let simple = |field: Field| owners.simple.get(&i32::from(field));
    let compound = |field: Field| {
        let entries = owners.compound.get(&i32::from(field)).map(|entries| &entries.owners);
        let mut told: Vec<_> = entries.into_iter().flatten().collect();
        told.sort();
        told
    };
    let listed = |entries: Vec<(&String, &String)>| {
        let one = |(key, plugin): (&String, &String)| format!("{plugin} ({key})");
        entries.into_iter().map(one).collect::<Vec<_>>().join(", ")
    };
    if let Some(plugins) = simple(Field::OciHooks).filter(|_| settings.reject_oci_hook_adjustment) {
        return Err(format!("OCI hooks may not be added, as {plugins} does"));
    }
    if let Some(plugin) = simple(Field::SeccompPolicy) {
        let (refused, what) = seccomp(settings, request);
        if refused {
            return Err(format!("{what} may not be replaced, as {plugin} does"));
        }
    }
    let namespaces = compound(Field::Namespace);
    if settings.reject_namespace_adjustment && !namespaces.is_empty() {
        return Err(format!("namespaces may not be changed, as {} do", listed(namespaces)));
    }
    required(settings, request)?;
    let sysctls = compound(Field::Sysctl);
    if settings.reject_sysctl_adjustment && !sysctls.is_empty() {
        return Err(format!("sysctls may not be set, as {} do", listed(sysctls)));
    }
    Ok(())
}

/// Whether the container's seccomp profile may not be replaced, and what it is.
fn seccomp(settings: &DefaultValidator, request: &ValidateContainerAdjustmentRequest) -> (bool, &'static str) {
    let linux = request
        .container
        .as_ref()
        .and_then(|container| container.linux.as_ref());
    match linux
        .and_then(|linux| linux.seccomp_profile.as_ref())
        .map(|profile| profile.profile_type())
    {
        None | Some(ProfileType::Unconfined) => (
            settings.reject_unconfined_seccomp_adjustment,
            "the seccomp profile of a container that asks for none",
        ),
        Some(ProfileType::RuntimeDefault) => (
            settings.reject_runtime_default_seccomp_adjustment,
            "the seccomp profile RuntimeDefault",
        ),
        Some(ProfileType::Localhost) => (
            settings.reject_custom_seccomp_adjustment,
            "a seccomp profile of the node's",
        ),
    }
}

/// Whether all plugins were asked that must be.
fn required(settings: &DefaultValidator, request: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
    let name = request
        .container
        .as_ref()
        .map_or("", |container| container.name.as_str());
    let empty = PodSandbox::default();
    let annotations = &request.pod.as_ref().unwrap_or(&empty).annotations;
    let tolerate = &settings.tolerate_missing_plugins_annotation;
    if !tolerate.is_empty()
        && let Some(value) = effective(annotations, tolerate, name)
    {
        match value {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => return Ok(()),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => {}
            other => return Err(format!("annotation {tolerate}: {other:?} is neither true nor false")),
        }
    }
    let mut wanted = settings.required_plugins.clone();
    if let Some(value) = effective(annotations, REQUIRED, name) {
        let more: Vec<String> = serde_saphyr::from_str(value)
            .map_err(|error| format!("annotation {REQUIRED}: {value:?} is not a list: {error}"))?;
        wanted.extend(more);
    }
    let is_there = |wanted: &String| {
        let mut plugins = request.plugins.iter();
        plugins.any(|plugin| *wanted == plugin.name || *wanted == format!("{}-{}", plugin.index, plugin.name))
    };
    wanted.retain(|plugin| !is_there(plugin));
    match wanted.is_empty() {
        true => Ok(()),
        false => Err(format!("required plugins are not there: {}", wanted.join(", "))),
    }
}

/// A pod's annotation for one of its containers, or for all.
fn effective<'a>(annotations: &'a HashMap<String, String>, key: &str, container: &str) -> Option<&'a str> {
    let keys = [
        format!("{key}/container.{container}"),
        format!("{key}/pod"),
        key.to_owned(),
    ];
    keys.iter().find_map(|key| annotations.get(key)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use wharf_proto::nri::{
        CompoundFieldOwners, Container, LinuxContainer, OwningPlugins, PluginInstance, SecurityProfile,
    };

    use super::*;

    fn request(annotations: &[(&str, &str)]) -> ValidateContainerAdjustmentRequest {
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        ValidateContainerAdjustmentRequest {
            pod: Some(PodSandbox {
                annotations: annotations.collect(),
                ..Default::default()
            }),
            container: Some(Container {
                id: "c".into(),
                name: "main".into(),
                ..Default::default()
            }),
            plugins: vec![PluginInstance {
                name: "seen".into(),
                index: "10".into(),
            }],
            ..Default::default()
        }
    }

    fn owned(
        mut request: ValidateContainerAdjustmentRequest,
        owners: FieldOwners,
    ) -> ValidateContainerAdjustmentRequest {
        request.owners = Some(OwningPlugins {
            owners: [("c".to_owned(), owners)].into(),
        });
        request
    }

    fn simple(field: Field) -> FieldOwners {
        FieldOwners {
            simple: [(field.into(), "10-seen".to_owned())].into(),
            ..Default::default()
        }
    }

    fn compound(field: Field, key: &str) -> FieldOwners {
        let entries = CompoundFieldOwners {
            owners: [(key.to_owned(), "10-seen".to_owned())].into(),
        };
        FieldOwners {
            compound: [(field.into(), entries)].into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_forbidden_is_allowed_and_what_is_names_the_plugin() {
        let mut settings = DefaultValidator::default();
        let requests = [
            owned(request(&[]), simple(Field::OciHooks)),
            owned(request(&[]), simple(Field::SeccompPolicy)),
            owned(request(&[]), compound(Field::Namespace, "network")),
            owned(request(&[]), compound(Field::Sysctl, "net.core.somaxconn")),
        ];
        for request in &requests {
            check(&settings, request).unwrap();
        }
        settings.reject_oci_hook_adjustment = true;
        settings.reject_unconfined_seccomp_adjustment = true;
        settings.reject_namespace_adjustment = true;
        settings.reject_sysctl_adjustment = true;
        for request in &requests {
            let reason = check(&settings, request).unwrap_err();
            assert!(reason.contains("10-seen"), "{reason}");
        }
        check(&settings, &request(&[])).unwrap();
    }

    #[test]
    fn which_profile_is_replaced_decides() {
        let settings = DefaultValidator {
            reject_runtime_default_seccomp_adjustment: true,
            ..Default::default()
        };
        for (kind, allowed) in [
            (ProfileType::RuntimeDefault, false),
            (ProfileType::Unconfined, true),
            (ProfileType::Localhost, true),
        ] {
            let mut request = owned(request(&[]), simple(Field::SeccompPolicy));
            request.container.as_mut().unwrap().linux = Some(LinuxContainer {
                seccomp_profile: Some(SecurityProfile {
                    profile_type: kind.into(),
                    localhost_ref: String::new(),
                }),
                ..Default::default()
            });
            assert_eq!(check(&settings, &request).is_ok(), allowed, "{kind:?}");
        }
    }

    #[test]
    fn plugins_that_must_be_there_are_asked_for_by_settings_and_annotations() {
        let mut settings = DefaultValidator {
            required_plugins: vec!["seen".into()],
            tolerate_missing_plugins_annotation: "tolerate".into(),
            ..Default::default()
        };
        check(&settings, &request(&[])).unwrap();
        let key = format!("{REQUIRED}/container.main");
        check(&settings, &request(&[(&key, "[10-seen]")])).unwrap();
        let reason = check(&settings, &request(&[(&key, "[10-seen, absent]")])).unwrap_err();
        assert_eq!(reason, "required plugins are not there: absent");
        assert!(check(&settings, &request(&[(REQUIRED, "{")])).is_err());
        settings.required_plugins.push("20-seen".into());
        assert!(check(&settings, &request(&[])).unwrap_err().ends_with(": 20-seen"));
        check(&settings, &request(&[("tolerate/pod", "true")])).unwrap();
        assert!(check(&settings, &request(&[("tolerate", "false")])).is_err());
        assert!(
            check(&settings, &request(&[("tolerate", "maybe")]))
                .unwrap_err()
                .contains("maybe")
        );
    }
}
