//! Golden tests: each config makes the spec in `testdata/`. To accept a change, run with `WHARF_UPDATE_GOLDEN=1` and read
//! the difference.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::Value;
use wharf_proto::cri::{self, NamespaceMode, security_profile::ProfileType};

use super::*;
use crate::{
    config::{Containers, SeccompDefault},
    containers::{
        caps::CapSet,
        host::{DeviceNode, Facts, Host, MountSource},
        users::ResolvedUser,
        volumes::Volume,
    },
    images::ImageConfig,
};

mod policy;

/// A pod with one container from a small image on a v1 machine.
struct Case {
    pod: cri::PodSandboxConfig,
    config: cri::ContainerConfig,
    image: ImageConfig,
    user: ResolvedUser,
    namespaces: Pins,
    facts: Facts,
    host: Host,
    base: Option<Spec>,
    settings: Containers,
    unset_seccomp: SeccompDefault,
    policy: Policy,
}

impl Case {
    fn new() -> Case {
        let pin = |name: &str| Some(PathBuf::from("/run/wharf/pods/p/ns").join(name));
        Case {
            pod: cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata {
                    name: "web".into(),
                    uid: "u-1".into(),
                    namespace: "default".into(),
                    attempt: 0,
                }),
                hostname: "web-host".into(),
                linux: Some(Default::default()),
                ..Default::default()
            },
            config: cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata {
                    name: "main".into(),
                    attempt: 0,
                }),
                image: Some(cri::ImageSpec {
                    image: "sha256:1".into(),
                    ..Default::default()
                }),
                linux: Some(cri::LinuxContainerConfig {
                    security_context: Some(cri::LinuxContainerSecurityContext {
                        namespace_options: Some(cri::NamespaceOption {
                            pid: NamespaceMode::Container as i32,
                            ..Default::default()
                        }),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            },
            image: ImageConfig {
                cmd: vec!["/bin/sh".into()],
                ..Default::default()
            },
            user: ResolvedUser {
                groups: vec![0],
                home: "/root".into(),
                ..Default::default()
            },
            namespaces: Pins {
                user: None,
                net: pin("net"),
                ipc: pin("ipc"),
                uts: pin("uts"),
                pid: None,
            },
            facts: Facts {
                hostname: "node".into(),
                ..Facts::default()
            },
            host: Host {
                swap_limit: true,
                capabilities: CapSet::all(),
                min_oom_score_adj: -1000,
                kernel: (6, 1),
                ..Host::default()
            },
            base: None,
            settings: Containers::default(),
            unset_seccomp: SeccompDefault::Unconfined,
            policy: Policy::default(),
        }
    }

    fn context(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.config
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
    }

    fn resources(&mut self) -> &mut cri::LinuxContainerResources {
        self.config
            .linux
            .get_or_insert_default()
            .resources
            .get_or_insert_default()
    }

    fn mount(&mut self, target: &str, source: &str, change: impl FnOnce(&mut cri::Mount, &mut MountSource)) {
        let mut mount = cri::Mount {
            container_path: target.into(),
            host_path: source.into(),
            ..Default::default()
        };
        let mut from = MountSource {
            path: source.into(),
            shared: false,
            slave: false,
        };
        change(&mut mount, &mut from);
        self.config.mounts.push(mount);
        self.facts.mounts.push(Some(from));
    }

    fn generate(&self) -> Result<Spec> {
        let etc = |name: &str| Some(PathBuf::from("/var/lib/wharf/pods/p").join(name));
        let files = PodFiles {
            hosts: etc("hosts"),
            hostname: etc("hostname"),
            resolv_conf: etc("resolv.conf"),
            shm: Some("/run/wharf/pods/p/shm".into()),
            ..Default::default()
        };
        generate(&SpecInput {
            pod_id: "p",
            pod: &self.pod,
            config: &self.config,
            image: &self.image,
            rootfs: Path::new("/var/lib/wharf/pods/p/containers/c/rootfs"),
            user: &self.user,
            files: &files,
            namespaces: &self.namespaces,
            cgroup_path: "/wharf/c",
            facts: &self.facts,
            host: &self.host,
            base: self.base.as_ref(),
            settings: &self.settings,
            default_capabilities: None,
            unset_seccomp: self.unset_seccomp,
            default_seccomp: None,
            policy: &self.policy,
        })
    }

    fn refused(&self) -> String {
        self.generate()
            .map(|_| ())
            .expect_err("this config must be refused")
            .to_string()
    }

    #[track_caller]
    fn golden(&self, name: &str) {
        let mut got = serde_json::to_value(self.generate().unwrap()).unwrap();
        sort_capabilities(&mut got);
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src/containers/testdata")
            .join(format!("{name}.json"));
        if std::env::var_os("WHARF_UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&got).unwrap())).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let want: Value = serde_json::from_str(&text).unwrap_or_default();
        assert!(
            got == want,
            "spec differs from {}:\n{}",
            path.display(),
            serde_json::to_string_pretty(&got).unwrap()
        );
    }
}

/// The type keeps capabilities in no order.
fn sort_capabilities(spec: &mut Value) {
    let sets = spec.pointer_mut("/process/capabilities").and_then(Value::as_object_mut);
    for set in sets
        .into_iter()
        .flat_map(|s| s.values_mut())
        .filter_map(Value::as_array_mut)
    {
        set.sort_by_key(ToString::to_string);
    }
}

#[test]
fn minimal() {
    Case::new().golden("minimal");
}

#[test]
fn privileged() {
    let mut case = Case::new();
    case.context().privileged = true;
    case.context().masked_paths = vec!["/proc/kcore".into()];
    case.context().seccomp = Some(cri::SecurityProfile::default());
    assert_eq!(
        case.refused(),
        "failed to generate spec opts: no privileged container allowed in sandbox: the pod sandbox is not privileged"
    );
    case.pod
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
        .privileged = true;
    let disk = DeviceNode {
        path: "/dev/vda".into(),
        host_path: "/dev/vda".into(),
        kind: oci_spec::runtime::LinuxDeviceType::B,
        major: 254,
        minor: 0,
        mode: 0o660,
        uid: 0,
        gid: 6,
        access: String::new(),
    };
    case.facts.host_devices = vec![disk];
    case.golden("privileged");
}

#[test]
fn host_namespaces() {
    let mut case = Case::new();
    let node = NamespaceMode::Node as i32;
    case.pod.hostname.clear();
    case.context().namespace_options = Some(cri::NamespaceOption {
        network: node,
        pid: node,
        ipc: node,
        ..Default::default()
    });
    case.golden("host-namespaces");
}

#[test]
fn what_the_pod_has_is_shared_where_that_is_the_nodes_too() {
    let mut case = Case::new();
    let node = NamespaceMode::Node as i32;
    case.pod.linux.get_or_insert_default().security_context = Some(cri::LinuxSandboxSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            network: node,
            ipc: node,
            ..Default::default()
        }),
        ..Default::default()
    });
    case.namespaces = Pins::default();
    let spec = case
        .generate()
        .expect("a container of a pod on the node's network may say \"as the pod\"");
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().clone())
        .unwrap_or_default();
    let kinds: Vec<String> = namespaces.iter().map(|namespace| namespace.typ().to_string()).collect();
    assert_eq!(kinds, ["mnt", "pid"]);
}

#[test]
fn cgroup_v2_and_a_shared_pid_namespace() {
    let mut case = Case::new();
    case.host.cgroup_v2 = true;
    case.context().namespace_options = Some(cri::NamespaceOption::default());
    assert_eq!(case.refused(), "the pod has no PID namespace to share");
    case.namespaces.pid = Some("/proc/42/ns/pid".into());
    case.golden("shared-pid-v2");
}

#[test]
fn user_groups_and_capabilities() {
    let mut case = Case::new();
    case.user = ResolvedUser {
        uid: 1000,
        gid: 7,
        groups: vec![7, 1234],
        home: "/home/app".into(),
    };
    case.context().no_new_privs = true;
    case.context().run_as_user = Some(cri::Int64Value { value: 1000 });
    case.context().capabilities = Some(cri::Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
    });
    case.golden("user");
}

#[test]
fn command_and_environment() {
    let mut case = Case::new();
    case.image.entrypoint = vec!["/entry".into()];
    case.image.env = vec!["PATH=/opt/bin".into(), "A=image".into(), "B=image".into()];
    case.image.working_dir = "srv".into();
    case.config.tty = true;
    case.config.args = vec!["one".into()];
    case.config.envs = vec![cri::KeyValue {
        key: "A".into(),
        value: b"own".to_vec(),
    }];
    case.golden("command");
    // Rule 43, the other half.
    case.config.command = vec!["/cmd".into()];
    case.config.args.clear();
    let args = case
        .generate()
        .unwrap()
        .process()
        .as_ref()
        .and_then(|p| p.args().clone());
    assert_eq!(args.as_deref(), Some(&["/cmd".to_owned()][..]));
}

#[test]
fn mounts_override_the_defaults() {
    let mut case = Case::new();
    let slave = cri::MountPropagation::PropagationHostToContainer as i32;
    let shared = cri::MountPropagation::PropagationBidirectional as i32;
    case.mount("/data/deep/er", "/srv/deep", |m, _| {
        m.mount_options = vec!["noexec".into()]
    });
    case.mount("/data", "/srv/data", |m, _| m.readonly = true);
    case.mount("/etc/hosts", "/var/lib/kubelet/hosts", |_, _| {});
    case.mount("/dev//termination-log/", "/var/lib/kubelet/term", |_, _| {});
    case.mount("/slave", "/mnt/a", |m, s| (m.propagation, s.slave) = (slave, true));
    case.mount("/shared", "/mnt/b", |m, s| (m.propagation, s.shared) = (shared, true));
    case.mount("/sealed", "/mnt/c", |m, _| {
        (m.readonly, m.recursive_read_only) = (true, true)
    });
    case.golden("mounts");
}

#[test]
fn a_mount_at_dev_hides_what_would_be_below() {
    let mut case = Case::new();
    case.mount("/dev", "/dev", |_, _| {});
    let spec = case.generate().unwrap();
    let below: Vec<_> = spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| m.destination())
        .filter(|d| d.starts_with("/dev"))
        .collect();
    assert_eq!(below, [Path::new("/dev")]);
}

#[test]
fn impossible_mounts_are_refused_by_name() {
    let refused = |change: fn(&mut cri::Mount, &mut MountSource)| {
        let mut case = Case::new();
        case.host.kernel = (5, 10);
        case.mount("/x", "/y", change);
        let text = case.refused();
        assert!(text.contains("/x"), "{text}");
        text
    };
    assert!(refused(|m, _| m.propagation = 1).contains("neither a shared nor a slave"));
    assert!(refused(|m, s| (m.propagation, s.slave) = (2, true)).contains("not on a shared mount"));
    assert!(refused(|m, _| m.recursive_read_only = true).contains("needs readonly"));
    assert!(refused(|m, _| (m.readonly, m.recursive_read_only) = (true, true)).starts_with("RROUnsupported"));
    assert!(refused(|m, _| m.uid_mappings = vec![Default::default()]).contains("mapped both"));
    assert!(refused(|m, _| m.mount_options = vec!["suid".into()]).contains("suid"));
}

#[test]
fn read_only_root_masks_and_devices() {
    let mut case = Case::new();
    case.context().readonly_rootfs = true;
    case.context().masked_paths = vec!["/proc/kcore".into(), "/sys/firmware".into()];
    case.context().readonly_paths = vec!["/proc/sys".into()];
    case.facts.devices = vec![DeviceNode {
        path: "/dev/fuse".into(),
        host_path: "/dev/fuse".into(),
        kind: oci_spec::runtime::LinuxDeviceType::C,
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        access: "rw".into(),
    }];
    case.golden("readonly");
}

#[test]
fn resources() {
    let mut case = Case::new();
    case.host.hugetlb = true;
    case.host.cgroup_v2 = true;
    case.host.min_oom_score_adj = -5;
    *case.resources() = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: -997,
        cpuset_cpus: "0-1".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![cri::HugepageLimit {
            page_size: "2MB".into(),
            limit: 2 << 20,
        }],
        unified: [("memory.high".to_owned(), "60000000".to_owned())].into(),
        memory_swap_limit_in_bytes: 0,
    };
    case.golden("resources");
    case.host.hugetlb = false;
    assert!(case.refused().contains("hugetlb"));
    case.resources().hugepage_limits[0].limit = 0;
    assert!(case.generate().is_ok(), "kubelet names every page size with zero");
    case.host.cgroup_v2 = false;
    assert!(case.refused().contains("memory.high"));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn seccomp_runtime_default() {
    let mut case = Case::new();
    case.unset_seccomp = SeccompDefault::RuntimeDefault;
    case.golden("seccomp");
}

#[test]
fn profiles_follow_the_request() {
    let profile = |kind: ProfileType, name: &str| {
        Some(cri::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: name.into(),
        })
    };
    let mut case = Case::new();
    case.unset_seccomp = SeccompDefault::RuntimeDefault;
    case.context().seccomp = profile(ProfileType::Unconfined, "");
    assert!(
        case.generate()
            .unwrap()
            .linux()
            .as_ref()
            .is_some_and(|l| l.seccomp().is_none())
    );
    case.context().seccomp = profile(ProfileType::Localhost, "/p.json");
    assert!(case.refused().contains("/p.json"));
    case.context().seccomp = None;
}

#[test]
fn what_is_not_there_yet_is_named() {
    let mut case = Case::new();
    case.image.cmd.clear();
    assert!(case.refused().contains("no command"));
    let mut case = Case::new();
    case.context().run_as_group = Some(cri::Int64Value { value: 3 });
    assert!(case.refused().contains("run_as_group 3"));
}

#[test]
fn the_nodes_settings_reach_every_container() {
    let mut case = Case::new();
    case.settings.env = vec!["REGION=here".into(), "FROM_IMAGE=node".into(), "FROM_CRI=node".into()];
    case.image.env = vec!["FROM_IMAGE=image".into()];
    case.config.envs = vec![cri::KeyValue {
        key: "FROM_CRI".into(),
        value: b"cri".to_vec(),
    }];
    let base = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 7, "gid": 7}, "cwd": "/", "env": ["PATH=/base", "REGION=base"],
            "rlimits": [{"type": "RLIMIT_NPROC", "soft": 1, "hard": 2}, {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}],
        },
        "mounts": [
            {"destination": "/proc", "type": "tmpfs", "source": "none"},
            {"destination": "/base", "type": "tmpfs", "source": "none"},
        ],
        "hooks": {"poststop": [{"path": "/base/hook"}]},
        "annotations": {"base": "yes", "io.kubernetes.cri.container-name": "base"},
    });
    case.base = Some(serde_json::from_value(base).unwrap());
    case.settings.ulimits = vec!["nofile=5:10".into(), "core=0".into(), "nofile=7:-1".into()];
    case.settings.read_only_rootfs = true;
    let mut spec = case.generate().unwrap();
    crate::containers::base::add(case.base.as_ref().unwrap(), &mut spec);
    let mounts = spec.mounts().as_ref().unwrap();
    let kind = |target: &str| {
        mounts
            .iter()
            .find(|m| m.destination() == Path::new(target))
            .unwrap()
            .typ()
            .clone()
            .unwrap()
    };
    assert_eq!((kind("/proc").as_str(), kind("/base").as_str()), ("proc", "tmpfs"));
    assert!(spec.hooks().as_ref().is_some_and(|hooks| hooks.poststop().is_some()));
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!(
        (
            annotations["base"].as_str(),
            annotations["io.kubernetes.cri.container-name"].as_str()
        ),
        ("yes", "main")
    );
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.user().uid(), 0);
    let env = process.env().as_ref().unwrap();
    for entry in ["PATH=/base", "REGION=here", "FROM_IMAGE=image", "FROM_CRI=cri"] {
        assert!(env.iter().any(|have| have == entry), "{entry} is not in {env:?}");
    }
    let limits = serde_json::to_value(process.rlimits()).unwrap();
    let wanted = serde_json::json!([
        {"type": "RLIMIT_NPROC", "soft": 1, "hard": 2},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_NOFILE", "soft": 7, "hard": u64::MAX},
    ]);
    assert_eq!(limits, wanted);
    assert_eq!(spec.root().as_ref().and_then(|root| root.readonly()), Some(true));
}

#[test]
fn declared_volumes_are_mounted_but_never_over_the_pods_files() {
    let mut case = Case::new();
    let volume = |target: &str| Volume {
        target: target.into(),
        source: "/state/volumes/0".into(),
    };
    case.facts.volumes = vec![volume("/etc/hosts"), volume("/data/deep")];
    case.mount("/data", "/srv", |_, _| {});
    case.settings.read_only_rootfs = true;
    let spec = case.generate().unwrap();
    let mounts = spec.mounts().as_ref().unwrap();
    let at = |target: &str| {
        mounts
            .iter()
            .filter(|m| m.destination() == Path::new(target))
            .collect::<Vec<_>>()
    };
    assert_eq!(at("/etc/hosts").len(), 1);
    assert_eq!(
        at("/etc/hosts")[0].source().as_deref(),
        Some(Path::new("/var/lib/wharf/pods/p/hosts"))
    );
    let [data] = at("/data/deep")[..] else {
        panic!("{mounts:?}");
    };
    assert_eq!(data.options().as_ref().unwrap(), &["rbind", "rprivate", "rw"]);
    let place = |target: &str| mounts.iter().position(|m| m.destination() == Path::new(target));
    assert!(place("/data") < place("/data/deep"));
}
