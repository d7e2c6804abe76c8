//! What holds of the spec of every container, however odd its config: for arbitrary configs, not for chosen ones.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType, Spec};
use proptest::{collection, option, prelude::*};
use wharf_proto::cri;

use super::*;
use crate::{
    config::SeccompDefault,
    containers::{
        caps::CapSet,
        host::{DeviceNode, Facts, Host, MountSource},
        users::ResolvedUser,
    },
    images::ImageConfig,
};

/// Text that is often sensible and sometimes hostile.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => "[a-zA-Z0-9_./-]{1,12}",
        1 => any::<String>(),
        2 => Just(String::new()),
    ]
}

/// A value of an enum that has `count`, and now and then none of them.
fn choice(count: i32) -> impl Strategy<Value = i32> {
    prop_oneof![20 => 0..count, 1 => any::<i32>()]
}

/// A limit, mostly one that can be.
fn limit() -> impl Strategy<Value = i64> {
    prop_oneof![10 => 0..1_000_000i64, 1 => any::<i64>()]
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![10 => "(/[a-z]{1,4}){1,4}", 1 => Just("/dev".to_owned()), 1 => Just("/proc/kcore".to_owned())]
}

fn capability() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("ALL".to_owned()),
        Just("CAP_SYS_ADMIN".to_owned()),
        Just("net_admin".to_owned()),
        Just("CHOWN".to_owned()),
        Just("SYS_MODULE".to_owned()),
        Just("CAP_BPF".to_owned()),
        Just("mknod".to_owned()),
        Just("KILL".to_owned()),
    ]
}

fn capabilities() -> impl Strategy<Value = cri::Capability> {
    let list = || collection::vec(capability(), 0..4);
    (list(), list(), list()).prop_map(|(add, drop, ambient)| cri::Capability {
        add_capabilities: add,
        drop_capabilities: drop,
        add_ambient_capabilities: ambient,
    })
}

fn profile() -> impl Strategy<Value = cri::SecurityProfile> {
    (prop_oneof![4 => 0..2i32, 1 => any::<i32>()], text()).prop_map(|(profile_type, localhost_ref)| {
        cri::SecurityProfile {
            profile_type,
            localhost_ref,
        }
    })
}

fn context() -> impl Strategy<Value = cri::LinuxContainerSecurityContext> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let paths = (collection::vec(path(), 0..5), collection::vec(path(), 0..5));
    let profiles = (
        option::of(profile()),
        option::of(profile()),
        prop_oneof![4 => Just(String::new()), 1 => Just("runtime/default".to_owned()), 1 => text()],
    );
    // TARGET, and one of a later API, now and then.
    let mode = || prop_oneof![20 => Just(0), 20 => Just(2), 1 => Just(1), 1 => Just(3), 1 => Just(77)];
    let namespaces = (mode(), choice(4), mode());
    (option::of(capabilities()), flags, paths, profiles, namespaces).prop_map(
        |(capabilities, (privileged, no_new_privs, readonly_rootfs), (masked, readonly), profiles, namespaces)| {
            let mut context = cri::LinuxContainerSecurityContext {
                capabilities,
                privileged,
                no_new_privs,
                readonly_rootfs,
                masked_paths: masked,
                readonly_paths: readonly,
                ..Default::default()
            };
            (context.seccomp, context.apparmor) = (profiles.0, profiles.1);
            #[allow(deprecated)]
            {
                context.seccomp_profile_path = profiles.2;
            }
            context.namespace_options = Some(cri::NamespaceOption {
                network: namespaces.0,
                pid: namespaces.1,
                ipc: namespaces.2,
                ..Default::default()
            });
            context
        },
    )
}

fn resources() -> impl Strategy<Value = cri::LinuxContainerResources> {
    let numbers = (limit(), limit(), limit(), -2000..2000i64);
    let pages = (text(), prop_oneof![20 => 0..1u64 << 40, 1 => any::<u64>()])
        .prop_map(|(page_size, limit)| cri::HugepageLimit { page_size, limit });
    let unified = collection::hash_map(prop_oneof![4 => "(memory|cpu)\\.[a-z]{1,6}", 1 => text()], text(), 0..3);
    (
        numbers,
        (limit(), limit()),
        text(),
        text(),
        option::weighted(0.2, pages),
        prop_oneof![20 => Just(HashMap::new()), 1 => unified],
    )
        .prop_map(
            |(numbers, (swap, shares), cpus, mems, pages, unified)| cri::LinuxContainerResources {
                cpu_period: numbers.0,
                cpu_quota: numbers.1,
                memory_limit_in_bytes: numbers.2,
                oom_score_adj: numbers.3,
                memory_swap_limit_in_bytes: swap,
                cpu_shares: shares,
                cpuset_cpus: cpus,
                cpuset_mems: mems,
                hugepage_limits: pages.into_iter().collect(),
                unified,
            },
        )
}

fn device() -> impl Strategy<Value = cri::Device> {
    let permissions = prop_oneof![40 => "[rwm]{0,3}", 1 => text()];
    (path(), prop_oneof![40 => path(), 1 => text()], permissions).prop_map(
        |(host_path, container_path, permissions)| cri::Device {
            container_path,
            host_path,
            permissions,
        },
    )
}

/// What the machine would have found at a device's path.
fn node((number, device): (usize, &cri::Device)) -> DeviceNode {
    DeviceNode {
        path: device.container_path.clone().into(),
        host_path: device.host_path.clone().into(),
        kind: LinuxDeviceType::C,
        major: DEVICES,
        minor: number as u32,
        mode: 0o600,
        uid: 0,
        gid: 0,
        access: device.permissions.clone(),
    }
}

/// Major number of every device in these tests.
const DEVICES: u32 = 4242;

/// The users of pods that have a namespace of them.
const USERS: cri::IdMapping = cri::IdMapping {
    host_id: 100_000,
    container_id: 0,
    length: 65_536,
};

fn mount() -> impl Strategy<Value = cri::Mount> {
    let known = prop_oneof![Just("noexec"), Just("nosuid"), Just("nodev")].prop_map(str::to_owned);
    let options = prop_oneof![30 => collection::vec(known, 0..3), 1 => collection::vec(text(), 0..2)];
    let flags = (any::<bool>(), prop::bool::weighted(0.05), choice(3));
    (path(), path(), flags, options).prop_map(
        |(container_path, host_path, (readonly, recursive_read_only, propagation), mount_options)| cri::Mount {
            container_path,
            mount_options,
            host_path,
            readonly,
            recursive_read_only,
            propagation,
            ..Default::default()
        },
    )
}

fn config() -> impl Strategy<Value = cri::ContainerConfig> {
    let command = (collection::vec(text(), 0..3), collection::vec(text(), 0..3), text());
    let value = prop_oneof![20 => "[ -~]{0,8}".prop_map(String::into_bytes), 1 => any::<Vec<u8>>()];
    let envs = collection::vec((text(), value), 0..4);
    let mounts = collection::vec(mount(), 0..6);
    let linux = (option::of(context()), option::of(resources()));
    let devices = collection::vec(device(), 0..4);
    (command, envs, (mounts, devices), linux, any::<bool>()).prop_map(
        |(command, envs, (mounts, devices), linux, tty)| cri::ContainerConfig {
            command: command.0,
            args: command.1,
            working_dir: command.2,
            envs: envs
                .into_iter()
                .map(|(key, value)| cri::KeyValue { key, value })
                .collect(),
            mounts,
            devices,
            tty,
            linux: Some(cri::LinuxContainerConfig {
                security_context: linux.0,
                resources: linux.1,
            }),
            ..Default::default()
        },
    )
}

/// What the container is in.
#[derive(Clone, Copy)]
struct Around {
    /// The pod may have privileged containers.
    privileged: bool,
    /// It has a user namespace of its own.
    users: bool,
    /// The runtime is the built-in one.
    builtin: bool,
}

const AROUND: Around = Around {
    privileged: true,
    users: false,
    builtin: true,
};

/// As on a machine with everything, in a pod that may be privileged.
fn spec_of(config: &cri::ContainerConfig) -> Result<Spec> {
    spec_in(config, AROUND)
}

/// The same, in something else.
fn spec_in(config: &cri::ContainerConfig, around: Around) -> Result<Spec> {
    let users = around.users;
    let pin = |name: &str| Some(PathBuf::from("/run/ns").join(name));
    let source = |mount: &cri::Mount| {
        (!mount.host_path.is_empty()).then(|| MountSource {
            path: mount.host_path.clone().into(),
            shared: true,
            slave: true,
        })
    };
    let pod = cri::PodSandboxConfig {
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                privileged: around.privileged,
                namespace_options: Some(cri::NamespaceOption {
                    userns_options: users.then(|| cri::UserNamespace {
                        mode: cri::NamespaceMode::Pod.into(),
                        uids: vec![USERS],
                        gids: vec![USERS],
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    generate(&SpecInput {
        pod_id: "p",
        pod: &pod,
        config,
        image: &ImageConfig {
            cmd: vec!["/bin/sh".into()],
            ..Default::default()
        },
        rootfs: Path::new("/rootfs"),
        user: &ResolvedUser::default(),
        files: &PodFiles::default(),
        namespaces: &Pins {
            net: pin("net"),
            ipc: pin("ipc"),
            uts: pin("uts"),
            pid: pin("pid"),
            user: pin("user").filter(|_| users),
        },
        cgroup_path: "/wharf/c",
        facts: &Facts {
            mounts: config.mounts.iter().map(source).collect(),
            devices: config.devices.iter().enumerate().map(node).collect(),
            ..Default::default()
        },
        base: None,
        settings: &crate::config::Containers::default(),
        host: &Host {
            swap_limit: true,
            hugetlb: true,
            capabilities: CapSet::all(),
            min_oom_score_adj: -1000,
            kernel: (6, 1),
            ..Host::default()
        },
        default_capabilities: None,
        unset_seccomp: SeccompDefault::Unconfined,
        default_seccomp: None,
        policy: &Policy {
            builtin: around.builtin,
            ..Policy::default()
        },
    })
}

fn without_prefix(names: &[String]) -> Vec<String> {
    let bare = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
    };
    names.iter().map(bare).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_spec_is_made_or_refused_and_reads_back_as_it_was(config in config()) {
        if let Ok(spec) = spec_of(&config) {
            let json = serde_json::to_string(&spec).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Spec>(&json).unwrap(), &spec);
            // The same again: nothing depends on the order of a hash map.
            prop_assert_eq!(&spec_of(&config).unwrap(), &spec);
        }
    }

    #[test]
    fn an_error_is_a_sentence(config in config()) {
        if let Err(error) = spec_of(&config) {
            prop_assert!(error.to_string().len() > 8);
        }
    }

    #[test]
    fn an_unprivileged_container_keeps_its_walls(config in config()) {
        let context = config.linux.clone().unwrap().security_context.unwrap_or_default();
        let Ok(spec) = spec_of(&config) else { return Ok(()) };
        if context.privileged {
            return Ok(());
        }
        let linux = spec.linux().clone().unwrap();
        prop_assert_eq!(linux.masked_paths().clone().unwrap_or_default(), context.masked_paths);
        prop_assert_eq!(linux.readonly_paths().clone().unwrap_or_default(), context.readonly_paths);
        let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
        prop_assert!(!rules[0].allow() && rules.iter().skip(1).all(|rule| rule.major().is_some()
            || rule.access().as_deref() == Some("m")));
        // Of the node's devices those that were asked for, and no more of each.
        for rule in rules.iter().filter(|rule| rule.major() == Some(i64::from(DEVICES))) {
            let asked = &config.devices[rule.minor().unwrap() as usize].permissions;
            let asked = if asked.is_empty() { "rwm" } else { asked };
            prop_assert_eq!(rule.access().as_deref(), Some(asked));
        }
        let process = spec.process().clone().unwrap();
        prop_assert_eq!(process.no_new_privileges(), Some(context.no_new_privs));
        prop_assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(context.readonly_rootfs));
        // Nothing beyond the default list and what was asked for.
        let asked = context.capabilities.unwrap_or_default();
        let mut names = without_prefix(&asked.add_capabilities);
        names.extend(without_prefix(&asked.add_ambient_capabilities));
        let got = CapSet::from_oci(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap());
        if !names.iter().any(|name| name == "ALL") {
            for name in ["SYS_ADMIN", "NET_ADMIN", "SYS_MODULE", "BPF"] {
                prop_assert!(!got.has(name) || names.iter().any(|asked| asked == name), "{} of {:?}", name, names);
            }
        }
    }

    #[test]
    fn a_privileged_container_has_no_walls_and_no_more_than_the_daemon(config in config()) {
        let mut config = config;
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
        let Ok(spec) = spec_of(&config) else { return Ok(()) };
        let linux = spec.linux().clone().unwrap();
        prop_assert!(linux.masked_paths().as_ref().is_none_or(Vec::is_empty));
        prop_assert!(linux.readonly_paths().as_ref().is_none_or(Vec::is_empty));
        prop_assert!(linux.seccomp().is_none(), "contract rule 41");
        let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
        prop_assert!(rules.len() == 1 && rules[0].allow() && rules[0].major().is_none());
        let dropped = config.linux.unwrap().security_context.unwrap().capabilities.unwrap_or_default();
        let got = CapSet::from_oci(
            spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding().as_ref().unwrap(),
        );
        for name in ["SYS_ADMIN", "NET_ADMIN", "BPF"] {
            let gone = without_prefix(&dropped.drop_capabilities).iter().any(|one| one == name || one == "ALL");
            prop_assert!(gone || got.has(name), "{}", name);
        }
    }

    #[test]
    fn a_pod_with_users_of_its_own_has_no_container_among_the_nodes(config in config()) {
        let with_users = Around { users: true, ..AROUND };
        let Ok(spec) = spec_in(&config, with_users) else { return Ok(()) };
        let linux = spec.linux().clone().unwrap();
        let user = |namespace: &&oci_spec::runtime::LinuxNamespace| namespace.typ() == LinuxNamespaceType::User;
        let namespaces = linux.namespaces().clone().unwrap();
        let own: Vec<_> = namespaces.iter().filter(user).collect();
        prop_assert_eq!(own.len(), 1);
        prop_assert_eq!(own[0].path().clone(), Some("/run/ns/user".into()));
        if let Ok(spec) = spec_of(&config) {
            prop_assert!(!spec.linux().clone().unwrap().namespaces().clone().unwrap().iter().any(|one| user(&one)));
        }
    }

    #[test]
    fn an_unprivileged_pod_has_no_privileged_container(config in config()) {
        let pod = Around { privileged: false, ..AROUND };
        let context = config.linux.clone().unwrap().security_context.unwrap_or_default();
        match spec_in(&config, pod) {
            Ok(_) => prop_assert!(!context.privileged, "contract rule 47"),
            Err(_) if context.privileged => {}
            // Nothing else depends on it.
            Err(error) => prop_assert_eq!(Err(error.to_string()), spec_of(&config).map(drop).map_err(|e| e.to_string())),
        }
    }

    #[test]
    fn other_runtimes_get_no_wider_walls_than_the_built_in_one(config in config()) {
        let other = Around { builtin: false, ..AROUND };
        if let (Ok(own), Ok(other)) = (spec_of(&config), spec_in(&config, other)) {
            prop_assert_eq!(own.process(), other.process());
            let (own, other) = (own.linux().clone().unwrap(), other.linux().clone().unwrap());
            prop_assert_eq!(own.masked_paths(), other.masked_paths());
            prop_assert_eq!(own.readonly_paths(), other.readonly_paths());
            prop_assert_eq!(own.resources(), other.resources());
            prop_assert_eq!(own.seccomp(), other.seccomp());
        }
    }

    #[test]
    fn extra_options_of_mounts_are_there_or_refused(config in config()) {
        let Ok(spec) = spec_of(&config) else { return Ok(()) };
        let mounts = spec.mounts().clone().unwrap();
        for asked in &config.mounts {
            // A later mount may have taken the place.
            let twice = config.mounts.iter().filter(|one| one.container_path == asked.container_path).count() > 1;
            let got = mounts.iter().find(|one| {
                one.source().as_deref() == Some(Path::new(&asked.host_path))
                    && one.destination() == Path::new(&asked.container_path)
            });
            if let (false, Some(got)) = (twice, got) {
                for option in &asked.mount_options {
                    prop_assert!(got.options().iter().flatten().any(|one| one == option), "{option} of {got:?}");
                }
            }
        }
    }

    #[test]
    fn limits_are_those_that_were_asked_for(config in config()) {
        let Ok(spec) = spec_of(&config) else { return Ok(()) };
        let asked = config.linux.unwrap().resources.unwrap_or_default();
        let got = spec.linux().clone().unwrap().resources().clone().unwrap();
        // Zero is unset.
        let set = |value: i64| Some(value).filter(|value| *value != 0);
        let cpu = got.cpu().clone().unwrap_or_default();
        prop_assert_eq!(cpu.shares().map(|value| value as i64), set(asked.cpu_shares));
        prop_assert_eq!(cpu.period().map(|value| value as i64), set(asked.cpu_period));
        // Less than zero is what a new cgroup has.
        prop_assert_eq!(cpu.quota(), set(asked.cpu_quota).filter(|quota| *quota > 0));
        prop_assert_eq!(cpu.cpus().clone().unwrap_or_default(), asked.cpuset_cpus);
        let memory = got.memory().unwrap_or_default();
        prop_assert_eq!(memory.limit(), set(asked.memory_limit_in_bytes));
        if let (Some(limit @ 1..), Some(swap @ 1..)) = (memory.limit(), memory.swap()) {
            prop_assert!(swap >= limit, "the kernel takes no smaller sum");
        }
        let pages = got.hugepage_limits().clone().unwrap_or_default();
        prop_assert_eq!(pages.len(), asked.hugepage_limits.len());
    }

    #[test]
    fn mounts_are_ordered_and_the_oom_score_is_in_range(config in config()) {
        let Ok(spec) = spec_of(&config) else { return Ok(()) };
        let mounts = spec.mounts().clone().unwrap();
        for (at, mount) in mounts.iter().enumerate() {
            prop_assert!(mount.destination().is_absolute());
            // Whatever comes later hides nothing that came before, unless it is the same place.
            let hidden = mounts[..at].iter().any(|earlier| earlier.destination() != mount.destination()
                && earlier.destination().starts_with(mount.destination()));
            prop_assert!(!hidden, "{:?}", mounts);
        }
        let score = spec.process().clone().unwrap().oom_score_adj().unwrap();
        prop_assert!((-1000..=1000).contains(&score));
    }
}

/// The properties above say little if most configs are refused.
#[test]
fn enough_configs_become_specs() {
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut made = 0;
    let mut reasons = Vec::new();
    for _ in 0..500 {
        let config = config().new_tree(&mut runner).unwrap().current();
        match spec_of(&config) {
            Ok(_) => made += 1,
            Err(error) => reasons.push(error.to_string()),
        }
    }
    reasons.truncate(20);
    assert!(made >= 150, "only {made} of 500; refused because {reasons:#?}");
}
