//! Runtime handlers.

use super::{Check, absolute, fault, range};
use crate::config::{
    handlers::{KNOWN_ANNOTATIONS, RuntimeHandler},
    model::{BUILTIN_RUNTIME, Config},
};

pub(super) fn check(config: &Config) -> Check {
    for (name, handler) in &config.runtimes {
        if handler.privileged_without_host_devices_all_devices_allowed && !handler.privileged_without_host_devices {
            return fault(
                &["runtimes", name, "privileged_without_host_devices_all_devices_allowed"],
                "has no meaning without privileged_without_host_devices = true",
            );
        }
        if name.is_empty()
            || !name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
        {
            return fault(
                &["runtimes", name],
                "a handler's name has only a-z, 0-9, \"-\" and \".\"",
            );
        }
        if let Some(base) = &handler.base_runtime_spec {
            absolute(&["runtimes", name, "base_runtime_spec"], base)?;
        }
        annotations(name, handler)?;
        values(name, handler)?;
        let nothing = handler.path.as_os_str().is_empty() && handler.root.is_none() && handler.arguments.is_empty();
        if name == BUILTIN_RUNTIME {
            if nothing && handler.platform_paths.is_empty() && !handler.inherit_default_runtime {
                continue;
            }
            return fault(
                &["runtimes", name],
                "is Wharf's own runtime and has no path; choose another name",
            );
        }
        if handler.inherit_default_runtime {
            if nothing && handler.platform_paths.is_empty() && *name != config.default_runtime {
                continue;
            }
            return fault(
                &["runtimes", name, "inherit_default_runtime"],
                "is for a handler without path, root, arguments and platform_paths, other than the default one",
            );
        }
        if handler.path.as_os_str().is_empty() {
            return fault(
                &["runtimes", name, "path"],
                "is missing: the command of the OCI runtime",
            );
        }
        absolute(&["runtimes", name, "path"], &handler.path)?;
        if let Some(root) = &handler.root {
            absolute(&["runtimes", name, "root"], root)?;
        }
    }
    let default = &config.default_runtime;
    if default != BUILTIN_RUNTIME && !config.runtimes.contains_key(default) {
        let mut known: Vec<_> = config.runtimes.keys().map(String::as_str).collect();
        known.push(BUILTIN_RUNTIME);
        return fault(
            &["default_runtime"],
            format!("no runtime is named \"{default}\"; there are {}", known.join(", ")),
        );
    }
    Ok(())
}

fn values(name: &str, handler: &RuntimeHandler) -> Check {
    if let Some(profile) = &handler.seccomp_profile {
        absolute(&["runtimes", name, "seccomp_profile"], profile)?;
    }
    for (platform, path) in &handler.platform_paths {
        absolute(&["runtimes", name, "platform_paths", platform], path)?;
    }
    if handler
        .arguments
        .iter()
        .any(|argument| argument.is_empty() || argument.contains('\0'))
    {
        return fault(
            &["runtimes", name, "arguments"],
            "has an empty argument, or one with a NUL byte",
        );
    }
    range(
        &["runtimes", name, "min_memory"],
        handler.min_memory,
        512 << 10,
        1 << 40,
    )?;
    range(
        &["runtimes", name, "create_timeout_secs"],
        handler.create_timeout_secs,
        0,
        3600,
    )
}

/// An annotation that has no effect here would only be waited for.
fn annotations(name: &str, handler: &RuntimeHandler) -> Check {
    let known = |key: &str| KNOWN_ANNOTATIONS.contains(&key.split_once('/').map_or(key, |(base, _)| base));
    let keys = [
        (
            "allowed_annotations",
            handler.allowed_annotations.iter().collect::<Vec<_>>(),
        ),
        ("default_annotations", handler.default_annotations.keys().collect()),
    ];
    for (setting, keys) in keys {
        if let Some(key) = keys.into_iter().find(|key| !known(key)) {
            return fault(
                &["runtimes", name, setting],
                format!(
                    "\"{key}\" has no effect here; there are {}",
                    KNOWN_ANNOTATIONS.join(", ")
                ),
            );
        }
    }
    Ok(())
}
