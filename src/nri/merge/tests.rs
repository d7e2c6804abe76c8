//! Wishes of several plugins.

use proptest::prelude::*;
use wharf_proto::nri::{
    CdiDevice, Field, Hook, Hooks, KeyValue, LinuxContainerAdjustment, LinuxCpu, LinuxDevice, LinuxMemory,
    LinuxNamespace, LinuxRdt, Mount, OptionalInt, OptionalInt64, OptionalString, OptionalUInt64, PosixRlimit,
};

use super::*;

const A: &str = "10-a";
const B: &str = "20-b";

fn container() -> Container {
    Container {
        id: "c".into(),
        env: vec!["HOME=/root".into(), "OLD=1".into()],
        mounts: vec![mount("/data", "/host/data")],
        annotations: [("keep".to_owned(), "yes".to_owned())].into(),
        ..Default::default()
    }
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount {
        destination: destination.into(),
        source: source.into(),
        ..Default::default()
    }
}

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

fn answer(adjust: ContainerAdjustment) -> CreateContainerResponse {
    CreateContainerResponse {
        adjust: Some(adjust),
        ..Default::default()
    }
}

fn linux(linux: LinuxContainerAdjustment) -> CreateContainerResponse {
    answer(ContainerAdjustment {
        linux: Some(linux),
        ..Default::default()
    })
}

fn limits(memory: i64) -> LinuxResources {
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: Some(OptionalInt64 { value: memory }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn update(id: &str, resources: LinuxResources) -> ContainerUpdate {
    ContainerUpdate {
        container_id: id.into(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(resources),
        }),
        ignore_failure: false,
    }
}

/// What two plugins want, one after the other.
fn both(first: CreateContainerResponse, second: CreateContainerResponse) -> Result<Merge, String> {
    let mut merge = Merge::create(container());
    merge.created(A, first)?;
    merge.created(B, second)?;
    Ok(merge)
}

#[test]
fn the_next_plugin_sees_what_those_before_want() {
    let mut merge = Merge::create(container());
    let first = ContainerAdjustment {
        env: vec![env("NEW", "a"), env("-OLD", "")],
        mounts: vec![mount("/more", "/host/more")],
        annotations: [("a".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    merge.created(A, answer(first)).unwrap();
    let seen = merge.container();
    assert_eq!(seen.env, ["HOME=/root", "NEW=a"]);
    assert_eq!(seen.mounts.len(), 2);
    assert_eq!(seen.annotations.len(), 2);
    let (adjustment, ..) = merge.finish();
    // The runtime is told to remove, and then to add.
    let keys: Vec<_> = adjustment.env.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["-OLD", "NEW"]);
}

#[test]
fn no_two_plugins_set_the_same() {
    let device = |path: &str| LinuxContainerAdjustment {
        devices: vec![LinuxDevice {
            path: path.into(),
            r#type: "c".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let cases: Vec<(&str, CreateContainerResponse)> = vec![
        (
            "Annotations a",
            answer(ContainerAdjustment {
                annotations: [("a".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
        ),
        (
            "Mounts /m",
            answer(ContainerAdjustment {
                mounts: vec![mount("/m", "/x")],
                ..Default::default()
            }),
        ),
        (
            "Env E",
            answer(ContainerAdjustment {
                env: vec![env("E", "1")],
                ..Default::default()
            }),
        ),
        (
            "Args",
            answer(ContainerAdjustment {
                args: vec!["sh".into()],
                ..Default::default()
            }),
        ),
        (
            "Rlimits RLIMIT_NOFILE",
            answer(ContainerAdjustment {
                rlimits: vec![PosixRlimit {
                    r#type: "RLIMIT_NOFILE".into(),
                    hard: 1,
                    soft: 1,
                }],
                ..Default::default()
            }),
        ),
        (
            "CdiDevices v/c=d",
            answer(ContainerAdjustment {
                cdi_devices: vec![CdiDevice { name: "v/c=d".into() }],
                ..Default::default()
            }),
        ),
        ("Devices /dev/x", linux(device("/dev/x"))),
        (
            "MemLimit",
            linux(LinuxContainerAdjustment {
                resources: Some(limits(1 << 30)),
                ..Default::default()
            }),
        ),
        (
            "CPUSetCPUs",
            linux(LinuxContainerAdjustment {
                resources: Some(LinuxResources {
                    cpu: Some(LinuxCpu {
                        cpus: "0".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        ),
        (
            "CgroupsUnified memory.high",
            linux(LinuxContainerAdjustment {
                resources: Some(LinuxResources {
                    unified: [("memory.high".to_owned(), "1".to_owned())].into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        ),
        (
            "CgroupsPath",
            linux(LinuxContainerAdjustment {
                cgroups_path: "/x".into(),
                ..Default::default()
            }),
        ),
        (
            "OomScoreAdj",
            linux(LinuxContainerAdjustment {
                oom_score_adj: Some(OptionalInt { value: 1 }),
                ..Default::default()
            }),
        ),
        (
            "Namespace network",
            linux(LinuxContainerAdjustment {
                namespaces: vec![LinuxNamespace {
                    r#type: "-network".into(),
                    path: String::new(),
                }],
                ..Default::default()
            }),
        ),
        (
            "Sysctl net.core.somaxconn",
            linux(LinuxContainerAdjustment {
                sysctl: [("net.core.somaxconn".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
        ),
        (
            "RdtClosID",
            linux(LinuxContainerAdjustment {
                rdt: Some(LinuxRdt {
                    clos_id: Some(OptionalString { value: "gold".into() }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        ),
    ];
    for (field, wish) in cases {
        let error = both(wish.clone(), wish.clone()).unwrap_err();
        assert_eq!(
            error,
            format!("plugins {B:?} and {A:?} both tried to set {field}"),
            "{field}"
        );
        // One plugin is answered for once.
        both(wish, CreateContainerResponse::default()).unwrap();
    }
}

#[test]
fn what_is_removed_first_may_be_set_anew() {
    let first = ContainerAdjustment {
        env: vec![env("E", "a")],
        mounts: vec![mount("/m", "/a")],
        annotations: [("k".to_owned(), "a".to_owned())].into(),
        args: vec!["a".into()],
        ..Default::default()
    };
    let second = ContainerAdjustment {
        env: vec![env("-E", ""), env("E", "b")],
        mounts: vec![mount("-/m", ""), mount("/m", "/b")],
        annotations: [("-k".to_owned(), String::new()), ("k".to_owned(), "b".to_owned())].into(),
        args: vec![String::new(), "b".into()],
        ..Default::default()
    };
    let (adjustment, _, owners) = both(answer(first), answer(second)).unwrap().finish();
    assert_eq!(adjustment.env, [env("-E", ""), env("E", "b")]);
    let mounts: Vec<_> = adjustment
        .mounts
        .iter()
        .map(|mount| (mount.destination.as_str(), mount.source.as_str()))
        .collect();
    assert_eq!(mounts, [("-/m", ""), ("/m", "/b")]);
    assert_eq!(adjustment.annotations["k"], "b");
    assert_eq!(adjustment.args, ["b"]);
    assert_eq!(owners["c"].simple[&i32::from(Field::Args)], B);
    assert_eq!(owners["c"].compound[&i32::from(Field::Env)].owners["E"], B);
}

#[test]
fn hooks_of_all_are_taken_and_their_plugins_named() {
    let hooks = |path: &str| {
        answer(ContainerAdjustment {
            hooks: Some(Hooks {
                poststop: vec![Hook {
                    path: path.into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    let (adjustment, _, owners) = both(hooks("/a"), hooks("/b")).unwrap().finish();
    assert_eq!(adjustment.hooks.unwrap().poststop.len(), 2);
    assert_eq!(owners["c"].simple[&i32::from(Field::OciHooks)], format!("{A},{B}"));
}

#[test]
fn updates_of_others_come_together_by_container() {
    let cpus = LinuxResources {
        cpu: Some(LinuxCpu {
            shares: Some(OptionalUInt64 { value: 7 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut merge = Merge::create(container());
    merge
        .updated(A, vec![update("x", limits(1)), update("y", limits(2))], vec![])
        .unwrap();
    merge.updated(B, vec![update("x", cpus)], vec![]).unwrap();
    let error = merge.updated(B, vec![update("y", limits(3))], vec![]).unwrap_err();
    assert!(error.contains("MemLimit"), "{error}");
    let ignored = ContainerUpdate {
        ignore_failure: true,
        ..update("y", limits(3))
    };
    merge.updated(B, vec![ignored], vec![]).unwrap();
    let error = merge.updated(B, vec![update("c", limits(3))], vec![]).unwrap_err();
    assert!(error.contains("while it is created"), "{error}");
    let eviction = ContainerEviction {
        container_id: "z".into(),
        reason: "room".into(),
    };
    merge.updated(A, vec![], vec![eviction.clone()]).unwrap();
    merge.updated(B, vec![], vec![eviction]).unwrap();
    let (_, wishes, _) = merge.finish();
    assert_eq!(wishes.evictions.len(), 1);
    let ids: Vec<_> = wishes
        .updates
        .iter()
        .map(|update| update.container_id.as_str())
        .collect();
    assert_eq!(ids, ["x", "y"]);
    let x = wishes.updates[0].linux.as_ref().unwrap().resources.as_ref().unwrap();
    assert_eq!(x.memory.unwrap().limit.unwrap().value, 1);
    assert_eq!(x.cpu.as_ref().unwrap().shares.unwrap().value, 7);
    let y = wishes.updates[1].linux.as_ref().unwrap().resources.as_ref().unwrap();
    assert_eq!(y.memory.unwrap().limit.unwrap().value, 2);
}

#[test]
fn the_updated_container_gets_what_was_asked_and_what_plugins_change_of_it() {
    let asked = LinuxResources {
        cpu: Some(LinuxCpu {
            cpus: "0".into(),
            ..Default::default()
        }),
        ..limits(100)
    };
    let mut merge = Merge::update("c".into(), asked);
    merge
        .updated(A, vec![update("c", limits(200)), update("x", limits(1))], vec![])
        .unwrap();
    assert_eq!(merge.resources().memory.unwrap().limit.unwrap().value, 200);
    assert!(merge.updated(B, vec![update("c", limits(300))], vec![]).is_err());
    let (resources, wishes) = merge.finish_update();
    assert_eq!(resources.memory.unwrap().limit.unwrap().value, 200);
    assert_eq!(resources.cpu.unwrap().cpus, "0");
    assert_eq!(wishes.updates.len(), 1);
}

proptest! {
    /// However two plugins set and remove, the outcome is a conflict, or each key has one owner and the container that later
    /// plugins see is what the adjustment makes of the first one.
    #[test]
    fn the_container_seen_is_the_container_made(
        first in proptest::collection::vec(("-?[A-C]", "[a-z]"), 0..5),
        second in proptest::collection::vec(("-?[A-C]", "[a-z]"), 0..5),
    ) {
        let wish = |pairs: &[(String, String)]| answer(ContainerAdjustment {
            env: pairs.iter().map(|(key, value)| env(key, value)).collect(),
            ..Default::default()
        });
        let mut start = container();
        start.env = vec!["A=0".into(), "D=0".into()];
        let mut merge = Merge::create(start);
        let outcome = merge.created(A, wish(&first)).and_then(|()| merge.created(B, wish(&second)));
        if outcome.is_ok() {
            let mut seen = merge.container().env.clone();
            let (adjustment, ..) = merge.finish();
            let mut made = vec!["A=0".to_owned(), "D=0".to_owned()];
            for entry in &adjustment.env {
                let key = unmarked(&entry.key).unwrap_or(&entry.key);
                made.retain(|old| old.split('=').next() != Some(key));
                if unmarked(&entry.key).is_none() {
                    made.push(format!("{key}={}", entry.value));
                }
            }
            seen.sort();
            made.sort();
            prop_assert_eq!(seen, made);
        }
    }
}
