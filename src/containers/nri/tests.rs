//! What plugins want, in specs.

use oci_spec::runtime::{LinuxResources as OciResources, Spec};
use wharf_proto::{
    cri::LinuxContainerResources,
    nri::{
        LinuxCpu, LinuxMemory, LinuxMemoryPolicy, LinuxPids, LinuxResources, LinuxScheduler, LinuxSchedulerFlag,
        LinuxSchedulerPolicy, LinuxSeccomp, LinuxSeccompArg, LinuxSyscall, MpolFlag, MpolMode, OptionalInt64,
        OptionalString, OptionalUInt32, OptionalUInt64,
    },
};

use super::{limits, parts, take, wanted};
use crate::containers::{Error, host::Host};

fn memory(limit: i64) -> LinuxResources {
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: Some(OptionalInt64 { value: limit }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn scheduling_and_memory_policies_have_the_specifications_names() {
    let scheduler = parts::to_scheduler(&LinuxScheduler {
        policy: LinuxSchedulerPolicy::SchedRr.into(),
        priority: 5,
        flags: vec![LinuxSchedulerFlag::SchedFlagResetOnFork.into()],
        ..Default::default()
    });
    let json = serde_json::to_value(scheduler.unwrap().unwrap()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"policy": "SCHED_RR", "priority": 5, "flags": ["SCHED_RESET_ON_FORK"]})
    );
    assert_eq!(parts::to_scheduler(&LinuxScheduler::default()), Ok(None));
    let unknown = LinuxScheduler {
        policy: 77,
        ..Default::default()
    };
    assert!(parts::to_scheduler(&unknown).is_err());

    let policy = parts::to_memory_policy(&LinuxMemoryPolicy {
        mode: MpolMode::MpolPreferredMany.into(),
        nodes: "0-1".into(),
        flags: vec![MpolFlag::MpolFStaticNodes.into()],
    });
    assert_eq!(
        serde_json::to_value(policy.unwrap()).unwrap(),
        serde_json::json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]})
    );
}

#[test]
fn limits_that_cri_can_say_are_an_update_and_others_are_named() {
    let mut update = memory(200 << 20);
    update.cpu = Some(LinuxCpu {
        shares: Some(OptionalUInt64 { value: 7 }),
        cpus: "0".into(),
        ..Default::default()
    });
    let limits = wanted(&update).unwrap();
    assert_eq!(
        (
            limits.memory_limit_in_bytes,
            limits.cpu_shares,
            limits.cpuset_cpus.as_str()
        ),
        (200 << 20, 7, "0")
    );
    for (update, name) in [
        (
            LinuxResources {
                pids: Some(LinuxPids { limit: 1 }),
                ..Default::default()
            },
            "pids",
        ),
        (
            LinuxResources {
                rdt_class: Some(OptionalString { value: "gold".into() }),
                ..Default::default()
            },
            "rdt_class",
        ),
        (
            LinuxResources {
                memory: Some(LinuxMemory {
                    reservation: Some(OptionalInt64 { value: 1 }),
                    ..Default::default()
                }),
                ..Default::default()
            },
            "memory.reservation",
        ),
    ] {
        let error = wanted(&update).unwrap_err();
        assert!(
            matches!(&error, Error::Unsupported(text) if text.contains(name)),
            "{error}"
        );
    }
}

#[test]
fn a_new_memory_limit_takes_its_limit_of_swap_along() {
    let mut limits = LinuxContainerResources {
        memory_limit_in_bytes: 100 << 20,
        memory_swap_limit_in_bytes: 100 << 20,
        cpu_shares: 5,
        ..Default::default()
    };
    take(&mut limits, &memory(300 << 20));
    assert_eq!(
        (
            limits.memory_limit_in_bytes,
            limits.memory_swap_limit_in_bytes,
            limits.cpu_shares
        ),
        (300 << 20, 0, 5)
    );
    let host = Host {
        swap_limit: true,
        ..Default::default()
    };
    let mut out = OciResources::default();
    limits::apply(&memory(300 << 20), &limits, &host, true, &mut out).unwrap();
    let memory = out.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(300 << 20), Some(300 << 20)));
    // What nobody asked for is as it was.
    assert!(out.cpu().is_none());
}

#[test]
fn what_the_machine_has_not_is_refused_by_name() {
    let host = Host::default();
    let mut out = OciResources::default();
    let none = LinuxContainerResources::default();
    let mut kernel = memory(0);
    kernel.memory.as_mut().unwrap().kernel = Some(OptionalInt64 { value: 1 });
    let error = limits::apply(&kernel, &none, &host, true, &mut out).unwrap_err();
    assert!(error.to_string().contains("memory.kernel"), "{error}");
    let mut unified = LinuxContainerResources::default();
    unified.unified.insert("memory.high".into(), "1".into());
    let wanted = LinuxResources {
        unified: unified.unified.clone(),
        ..Default::default()
    };
    let error = limits::apply(&wanted, &unified, &host, true, &mut out).unwrap_err();
    assert!(error.to_string().contains("memory.high"), "{error}");
}

#[test]
fn a_seccomp_policy_is_the_same_there_and_back() {
    let policy = LinuxSeccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno: Some(OptionalUInt32 { value: 1 }),
        architectures: vec!["SCMP_ARCH_X86_64".into()],
        flags: vec!["SECCOMP_FILTER_FLAG_LOG".into()],
        listener_path: "/run/x".into(),
        listener_metadata: "who".into(),
        syscalls: vec![LinuxSyscall {
            names: vec!["read".into(), "write".into()],
            action: "SCMP_ACT_ALLOW".into(),
            errno_ret: None,
            args: vec![LinuxSeccompArg {
                index: 1,
                value: 2,
                value_two: 3,
                op: "SCMP_CMP_MASKED_EQ".into(),
            }],
        }],
    };
    assert_eq!(parts::seccomp(&parts::to_seccomp(&policy).unwrap()), policy);
    let unknown = LinuxSeccomp {
        default_action: "SCMP_ACT_SING".into(),
        ..policy
    };
    assert!(parts::to_seccomp(&unknown).unwrap_err().contains("SCMP_ACT_SING"));
}

#[test]
fn hooks_and_mounts_keep_what_they_have() {
    let spec: Spec = serde_json::from_str(
        r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},
        "mounts":[{"destination":"/a","type":"bind","source":"/b","options":["rbind","ro"]}],
        "hooks":{"poststop":[{"path":"/h","args":["h","x"],"env":["A=1"],"timeout":3}]}}"#,
    )
    .unwrap();
    let mount = parts::mount(&spec.mounts().as_ref().unwrap()[0]);
    assert_eq!(
        (
            mount.destination.as_str(),
            mount.r#type.as_str(),
            mount.source.as_str(),
            mount.options.len()
        ),
        ("/a", "bind", "/b", 2)
    );
    let hooks = parts::hooks(spec.hooks().as_ref().unwrap());
    let back = parts::to_hook(&hooks.poststop[0]);
    assert_eq!(back, spec.hooks().as_ref().unwrap().poststop().as_ref().unwrap()[0]);
}
