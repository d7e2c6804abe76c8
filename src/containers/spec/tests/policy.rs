//! What configuration and handler decide.

use super::*;
use crate::containers::host::Confinement;

/// Row C8.
#[test]
fn apparmor_confines_who_does_not_refuse_it_and_never_silently_not() {
    let mut case = Case::new();
    case.policy.apparmor_profile = "wharf-default".into();
    let profile = |kind: ProfileType, name: &str| {
        Some(cri::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: name.into(),
        })
    };
    let chosen = |case: &Case| {
        let spec = case.generate().unwrap();
        spec.process()
            .as_ref()
            .and_then(|process| process.apparmor_profile().clone())
    };
    assert_eq!(chosen(&case), None);
    for (kind, name) in [(ProfileType::Localhost, "tight"), (ProfileType::RuntimeDefault, "")] {
        case.context().apparmor = profile(kind, name);
        assert!(case.refused().contains("does not enforce"), "{name}");
    }
    case.context().apparmor = profile(ProfileType::Unconfined, "");
    assert_eq!(chosen(&case), None);

    case.host.apparmor = Confinement::On;
    assert_eq!(chosen(&case), None);
    for asked in [None, profile(ProfileType::RuntimeDefault, "")] {
        case.context().apparmor = asked;
        assert_eq!(chosen(&case).as_deref(), Some("wharf-default"));
    }
    case.context().apparmor = profile(ProfileType::Localhost, "localhost/tight");
    assert_eq!(chosen(&case).as_deref(), Some("tight"));
    for bad in ["", "a\nb"] {
        case.context().apparmor = profile(ProfileType::Localhost, bad);
        assert!(case.refused().contains("no profile's name"), "{bad:?}");
    }
    // The deprecated field counts when the new one is not there.
    case.context().apparmor = None;
    #[allow(deprecated)]
    {
        case.context().apparmor_profile = "unconfined".into();
    }
    assert_eq!(chosen(&case), None);
    // A privileged container has what it names, and else none.
    let pod = case
        .pod
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    pod.privileged = true;
    case.context().privileged = true;
    for asked in [None, profile(ProfileType::RuntimeDefault, "")] {
        case.context().apparmor = asked;
        assert_eq!(chosen(&case), None);
    }
    case.context().apparmor = profile(ProfileType::Localhost, "tight");
    assert_eq!(chosen(&case).as_deref(), Some("tight"));
}

/// Row C14: both ways out.
#[test]
fn a_privileged_container_without_the_nodes_devices() {
    let mut case = Case::new();
    let pod = case
        .pod
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    pod.privileged = true;
    case.context().privileged = true;
    let node = |path: &str, kind| DeviceNode {
        path: path.into(),
        host_path: path.into(),
        kind,
        major: 1,
        minor: 3,
        mode: 0o600,
        uid: 0,
        gid: 6,
        access: "rw".into(),
    };
    case.facts.host_devices = vec![node("/dev/vda", oci_spec::runtime::LinuxDeviceType::B)];
    case.facts.devices = vec![node("/dev/own", oci_spec::runtime::LinuxDeviceType::C)];
    let seen = |case: &Case| {
        let spec = case.generate().unwrap();
        let linux = spec.linux().clone().unwrap();
        let paths: Vec<_> = linux
            .devices()
            .iter()
            .flatten()
            .map(|d| d.path().display().to_string())
            .collect();
        let resources = linux.resources().clone().unwrap();
        let rules = resources.devices().clone().unwrap();
        (paths.join(" "), rules[0].allow())
    };
    assert_eq!(seen(&case), ("/dev/vda /dev/own".into(), true));
    case.policy.privileged_devices = PrivilegedDevices::Allowed;
    assert_eq!(seen(&case), ("/dev/own".into(), true));
    case.policy.privileged_devices = PrivilegedDevices::Own;
    assert_eq!(seen(&case), ("/dev/own".into(), false));
}

/// Row C3.
#[test]
fn what_a_user_namespace_may_not_mount_is_bound_or_refused() {
    let mut case = Case::new();
    case.namespaces.user = Some("/run/wharf/pods/p/ns/user".into());
    let range = cri::IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    };
    let pod = case.pod.linux.get_or_insert_default();
    let options = pod
        .security_context
        .get_or_insert_default()
        .namespace_options
        .get_or_insert_default();
    options.userns_options = Some(cri::UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: vec![range],
        gids: vec![range],
    });
    options.network = NamespaceMode::Node as i32;
    let sys = |case: &Case| {
        let spec = case.generate().unwrap();
        let mounts = spec.mounts().clone().unwrap();
        let mount = mounts.iter().find(|m| m.destination() == Path::new("/sys")).unwrap();
        mount.typ().clone().unwrap()
    };
    assert_eq!(sys(&case), "bind");
    case.policy.builtin = true;
    assert_eq!(sys(&case), "sysfs");
    let options = case.context().namespace_options.get_or_insert_default();
    options.pid = NamespaceMode::Node as i32;
    assert_eq!(sys(&case), "sysfs");
    case.policy.builtin = false;
    assert!(case.refused().contains("the node's PID namespace"));
    // Ids beyond the mapping are nobody's.
    case.policy.builtin = true;
    case.user.uid = 65_536;
    assert_eq!(
        case.refused(),
        "user 65536 is not in the pod's user namespace, whose 65536 user ids begin with 0"
    );
}

/// Row C9.
#[test]
fn selinux_labels_stand_in_the_spec_and_are_refused_where_they_are_switched_off() {
    let mut case = Case::new();
    let asked = cri::SeLinuxOption {
        level: "s0:c1,c2".into(),
        ..Default::default()
    };
    case.context().selinux_options = Some(asked);
    let labels = |case: &Case| {
        let spec = case.generate().unwrap();
        let process = spec.process().clone().unwrap().selinux_label().clone();
        (process, spec.linux().clone().unwrap().mount_label().clone())
    };
    // A kernel without SELinux: they mean nothing.
    assert_eq!(labels(&case), (None, None));
    case.host.selinux = true;
    assert!(case.refused().contains("switched off"));
    case.policy.selinux = true;
    case.policy.labels = Some(crate::sandbox::Labels {
        process: "u:r:t:s0:c1,c2".into(),
        files: "u:o:f:s0:c1,c2".into(),
        unconfined: false,
    });
    assert_eq!(
        labels(&case),
        (Some("u:r:t:s0:c1,c2".into()), Some("u:o:f:s0:c1,c2".into()))
    );
}

/// Row C20.
#[test]
fn devices_belong_to_who_runs_the_container_if_so_configured() {
    let mut case = Case::new();
    case.facts.devices = vec![DeviceNode {
        path: "/dev/own".into(),
        host_path: "/dev/own".into(),
        kind: oci_spec::runtime::LinuxDeviceType::C,
        major: 1,
        minor: 3,
        mode: 0o600,
        uid: 0,
        gid: 6,
        access: "rw".into(),
    }];
    (case.user.uid, case.user.gid) = (1000, 2000);
    let owner = |case: &Case| {
        let spec = case.generate().unwrap();
        let device = spec.linux().clone().unwrap().devices().clone().unwrap().remove(0);
        (device.uid(), device.gid())
    };
    // The image's user is not asked for.
    case.policy.device_ownership = true;
    assert_eq!(owner(&case), (Some(0), Some(6)));
    case.context().run_as_user = Some(cri::Int64Value { value: 1000 });
    assert_eq!(owner(&case), (Some(1000), Some(6)));
    case.context().run_as_group = Some(cri::Int64Value { value: 2000 });
    assert_eq!(owner(&case), (Some(1000), Some(2000)));
    case.policy.device_ownership = false;
    assert_eq!(owner(&case), (Some(0), Some(6)));
}

/// Row C22.
#[test]
fn a_cgroup_is_writable_to_the_privileged_or_where_the_handler_allows_it() {
    let mut case = Case::new();
    let options = |case: &Case| {
        let spec = case.generate().unwrap();
        let mounts = spec.mounts().clone().unwrap();
        let of = |target: &str| {
            let mount = mounts.iter().find(|m| m.destination() == Path::new(target)).unwrap();
            mount.options().clone().unwrap().contains(&"rw".to_owned())
        };
        (of("/sys/fs/cgroup"), of("/sys"))
    };
    assert_eq!(options(&case), (false, false));
    case.policy.cgroup_writable = true;
    assert_eq!(options(&case), (true, false));
}
