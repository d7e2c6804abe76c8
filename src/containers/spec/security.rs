//! Seccomp, AppArmor, SELinux, masked and read-only paths.

use oci_spec::runtime::LinuxSeccomp;
use wharf_proto::cri::{self, security_profile::ProfileType};

use super::{Result, SpecInput, invalid};
use crate::{
    config::SeccompDefault,
    containers::{caps, host::Confinement, seccomp},
};

/// Which profile a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileChoice {
    /// Nothing is said.
    Unset,
    /// None.
    Unconfined,
    /// The built-in one.
    RuntimeDefault,
    /// A file (seccomp) or a loaded profile (AppArmor).
    Localhost(String),
}

/// The new field wins over the deprecated string, which kubelets of old and critest still send.
fn choice(profile: Option<&cri::SecurityProfile>, old: &str) -> ProfileChoice {
    match profile {
        Some(p) => match ProfileType::try_from(p.profile_type) {
            Ok(ProfileType::Unconfined) => ProfileChoice::Unconfined,
            Ok(ProfileType::Localhost) => localhost(&p.localhost_ref),
            // An unknown type must not mean less protection than the default.
            Ok(ProfileType::RuntimeDefault) | Err(_) => ProfileChoice::RuntimeDefault,
        },
        None => match old {
            "" => ProfileChoice::Unset,
            "unconfined" => ProfileChoice::Unconfined,
            "runtime/default" | "docker/default" => ProfileChoice::RuntimeDefault,
            other => localhost(other),
        },
    }
}

/// The prefix is the old field's; some clients put it into the new one too.
fn localhost(reference: &str) -> ProfileChoice {
    ProfileChoice::Localhost(reference.strip_prefix("localhost/").unwrap_or(reference).to_owned())
}

/// The seccomp profile that a container asks for; the file of a Localhost one must be loaded before [`super::generate`].
#[must_use]
#[allow(deprecated)] // critest and old kubelets still send the old field.
pub fn seccomp_choice(context: &cri::LinuxContainerSecurityContext) -> ProfileChoice {
    choice(context.seccomp.as_ref(), &context.seccomp_profile_path)
}

/// Contract rule 41.
pub(super) fn seccomp(input: &SpecInput) -> Result<Option<LinuxSeccomp>> {
    if input.privileged() {
        return Ok(None);
    }
    let requested = input.context().and_then(|c| c.capabilities.as_ref());
    let caps = caps::of_container(false, requested, input.default_capabilities, input.host.capabilities)?.main;
    let default = || {
        let own = input
            .default_seccomp
            .map(|profile| profile.to_oci(caps, input.host.kernel));
        Ok(Some(
            own.unwrap_or_else(|| seccomp::default_profile(caps, input.host.kernel)),
        ))
    };
    match input.context().map_or(ProfileChoice::Unset, seccomp_choice) {
        ProfileChoice::Unconfined => Ok(None),
        ProfileChoice::RuntimeDefault => default(),
        ProfileChoice::Unset if input.unset_seccomp == SeccompDefault::RuntimeDefault => default(),
        ProfileChoice::Unset => Ok(None),
        ProfileChoice::Localhost(path) => match &input.facts.localhost_seccomp {
            Some(profile) => Ok(Some(profile.to_oci(caps, input.host.kernel))),
            None => invalid(format!("seccomp profile {path}: not loaded")),
        },
    }
}

/// The AppArmor profile of the process.
///
/// Where AppArmor is in force, who says nothing gets the default profile, as with the peers (kubernetes#51746); a privileged
/// container only what it names. Where it is not, only those are refused who ask for a profile.
#[allow(deprecated)] // critest and old kubelets still send the old field.
pub(super) fn apparmor(input: &SpecInput) -> Result<Option<String>> {
    let asked = input.context().map_or(ProfileChoice::Unset, |context| {
        choice(context.apparmor.as_ref(), &context.apparmor_profile)
    });
    let default = || (!input.privileged()).then(|| input.policy.apparmor_profile.clone());
    match (asked, &input.host.apparmor) {
        (ProfileChoice::Unconfined, _) | (ProfileChoice::Unset, Confinement::Off(_)) => Ok(None),
        (ProfileChoice::RuntimeDefault, Confinement::Off(_)) if input.privileged() => Ok(None),
        (ProfileChoice::RuntimeDefault, Confinement::Off(why)) => {
            invalid(format!("AppArmor profile runtime/default: {why}"))
        }
        (ProfileChoice::Localhost(name), Confinement::Off(why)) => invalid(format!("AppArmor profile {name:?}: {why}")),
        (ProfileChoice::Localhost(name), Confinement::On) if name.is_empty() || name.contains(char::is_control) => {
            invalid(format!("AppArmor profile {name:?}: localhost_ref is no profile's name"))
        }
        (ProfileChoice::Localhost(name), Confinement::On) => Ok(Some(name)),
        (ProfileChoice::Unset | ProfileChoice::RuntimeDefault, Confinement::On) => Ok(default()),
    }
}

/// On a kernel without SELinux labels mean nothing and are ignored, as peers do: kubelet passes on what the pod says.
/// Where they would mean something they are refused rather than dropped.
pub(super) fn refuse_selinux(input: &SpecInput) -> Result<()> {
    let Some(o) = input.context().and_then(|c| c.selinux_options.as_ref()) else {
        return Ok(());
    };
    let label = [&o.user, &o.role, &o.r#type, &o.level];
    if input.host.selinux && !input.policy.selinux && label.iter().any(|part| !part.is_empty()) {
        let label = label.map(String::as_str).join(":");
        return invalid(format!("SELinux label {label}: SELinux is switched off in wharf.toml"));
    }
    Ok(())
}

/// Exactly what CRI sends (row C13); nothing for a privileged container.
pub(super) fn paths(
    input: &SpecInput,
    list: fn(&cri::LinuxContainerSecurityContext) -> &Vec<String>,
) -> Option<Vec<String>> {
    let paths = input.context().filter(|c| !c.privileged).map(|c| list(c).clone());
    Some(paths.unwrap_or_default()).filter(|p| !p.is_empty())
}
