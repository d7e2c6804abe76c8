//! The runtime specification's parts in NRI's words, and back.

use oci_spec::runtime as oci;
use serde_json::{Value, json};
use wharf_proto::nri::{
    Hook, Hooks, HugepageLimit, IoPrioClass, LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxMemory, LinuxMemoryPolicy,
    LinuxNamespace, LinuxPids, LinuxResources, LinuxScheduler, LinuxSchedulerFlag, LinuxSchedulerPolicy, LinuxSeccomp,
    LinuxSeccompArg, LinuxSyscall, Mount, MpolFlag, MpolMode, OptionalBool, OptionalFileMode, OptionalInt,
    OptionalInt64, OptionalUInt32, OptionalUInt64,
};

pub(super) fn mount(mount: &oci::Mount) -> Mount {
    Mount {
        destination: mount.destination().display().to_string(),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: mount
            .source()
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

pub(super) fn hooks(hooks: &oci::Hooks) -> Hooks {
    let list = |hooks: &Option<Vec<oci::Hook>>| hooks.iter().flatten().map(hook).collect();
    Hooks {
        #[allow(deprecated)] // Plugins may still ask for them.
        prestart: list(hooks.prestart()),
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    }
}

fn hook(hook: &oci::Hook) -> Hook {
    Hook {
        path: hook.path().display().to_string(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().map(|value| OptionalInt { value }),
    }
}

pub(super) fn to_hook(hook: &Hook) -> oci::Hook {
    let mut out = oci::Hook::default();
    out.set_path(hook.path.clone().into())
        .set_args(Some(hook.args.clone()).filter(|args| !args.is_empty()))
        .set_env(Some(hook.env.clone()).filter(|env| !env.is_empty()))
        .set_timeout(hook.timeout.map(|timeout| timeout.value).filter(|seconds| *seconds > 0));
    out
}

pub(super) fn device(device: &oci::LinuxDevice) -> LinuxDevice {
    LinuxDevice {
        path: device.path().display().to_string(),
        r#type: device.typ().as_str().to_owned(),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(|value| OptionalFileMode { value }),
        uid: device.uid().map(|value| OptionalUInt32 { value }),
        gid: device.gid().map(|value| OptionalUInt32 { value }),
    }
}

/// None for a type that there is not.
pub(super) fn device_type(name: &str) -> Option<oci::LinuxDeviceType> {
    Some(match name {
        "a" => oci::LinuxDeviceType::A,
        "b" => oci::LinuxDeviceType::B,
        "c" => oci::LinuxDeviceType::C,
        "u" => oci::LinuxDeviceType::U,
        "p" => oci::LinuxDeviceType::P,
        _ => return None,
    })
}

/// The kind in the words of the specification's files.
pub(super) fn kind(kind: oci::LinuxNamespaceType) -> &'static str {
    match kind {
        oci::LinuxNamespaceType::Mount => "mount",
        oci::LinuxNamespaceType::Cgroup => "cgroup",
        oci::LinuxNamespaceType::Uts => "uts",
        oci::LinuxNamespaceType::Ipc => "ipc",
        oci::LinuxNamespaceType::User => "user",
        oci::LinuxNamespaceType::Pid => "pid",
        oci::LinuxNamespaceType::Network => "network",
        oci::LinuxNamespaceType::Time => "time",
    }
}

pub(super) fn namespace(namespace: &oci::LinuxNamespace) -> LinuxNamespace {
    LinuxNamespace {
        r#type: kind(namespace.typ()).to_owned(),
        path: namespace
            .path()
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
    }
}

pub(super) fn io_class(class: oci::IOPriorityClass) -> IoPrioClass {
    match class {
        oci::IOPriorityClass::IoprioClassRt => IoPrioClass::IoprioClassRt,
        oci::IOPriorityClass::IoprioClassBe => IoPrioClass::IoprioClassBe,
        oci::IOPriorityClass::IoprioClassIdle => IoPrioClass::IoprioClassIdle,
    }
}

#[allow(deprecated)] // Kernel memory, which plugins still see.
pub(super) fn resources(resources: &oci::LinuxResources) -> LinuxResources {
    let signed = |value: Option<i64>| value.map(|value| OptionalInt64 { value });
    let unsigned = |value: Option<u64>| value.map(|value| OptionalUInt64 { value });
    let memory = resources.memory().as_ref().map(|memory| LinuxMemory {
        limit: signed(memory.limit()),
        reservation: signed(memory.reservation()),
        swap: signed(memory.swap()),
        kernel: signed(memory.kernel()),
        kernel_tcp: signed(memory.kernel_tcp()),
        swappiness: unsigned(memory.swappiness()),
        disable_oom_killer: memory.disable_oom_killer().map(|value| OptionalBool { value }),
        use_hierarchy: memory.use_hierarchy().map(|value| OptionalBool { value }),
    });
    let cpu = resources.cpu().as_ref().map(|cpu| LinuxCpu {
        shares: unsigned(cpu.shares()),
        quota: signed(cpu.quota()),
        period: unsigned(cpu.period()),
        realtime_runtime: signed(cpu.realtime_runtime()),
        realtime_period: unsigned(cpu.realtime_period()),
        cpus: cpu.cpus().clone().unwrap_or_default(),
        mems: cpu.mems().clone().unwrap_or_default(),
    });
    let pages = resources.hugepage_limits().iter().flatten().map(|limit| HugepageLimit {
        page_size: limit.page_size().clone(),
        limit: u64::try_from(limit.limit()).unwrap_or(0),
    });
    let devices = resources.devices().iter().flatten().map(|rule| LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        major: signed(rule.major()),
        minor: signed(rule.minor()),
        access: rule.access().clone().unwrap_or_default(),
    });
    LinuxResources {
        memory,
        cpu,
        hugepage_limits: pages.collect(),
        unified: resources.unified().clone().unwrap_or_default(),
        devices: devices.collect(),
        pids: resources.pids().map(|pids| LinuxPids { limit: pids.limit() }),
        // Classes have been resolved by then.
        ..Default::default()
    }
}

pub(super) fn seccomp(profile: &oci::LinuxSeccomp) -> LinuxSeccomp {
    let name = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let word = |value: serde_json::Result<Value>| name(value.unwrap_or_default());
    let calls = profile.syscalls().iter().flatten().map(|rule| LinuxSyscall {
        names: rule.names().clone(),
        action: word(serde_json::to_value(rule.action())),
        errno_ret: rule.errno_ret().map(|value| OptionalUInt32 { value }),
        args: rule
            .args()
            .iter()
            .flatten()
            .map(|arg| LinuxSeccompArg {
                index: u32::try_from(arg.index()).unwrap_or(u32::MAX),
                value: arg.value(),
                value_two: arg.value_two().unwrap_or(0),
                op: word(serde_json::to_value(arg.op())),
            })
            .collect(),
    });
    LinuxSeccomp {
        default_action: word(serde_json::to_value(profile.default_action())),
        default_errno: profile.default_errno_ret().map(|value| OptionalUInt32 { value }),
        architectures: profile
            .architectures()
            .iter()
            .flatten()
            .map(|arch| word(serde_json::to_value(arch)))
            .collect(),
        flags: profile
            .flags()
            .iter()
            .flatten()
            .map(|flag| word(serde_json::to_value(flag)))
            .collect(),
        listener_path: profile
            .listener_path()
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        listener_metadata: profile.listener_metadata().clone().unwrap_or_default(),
        syscalls: calls.collect(),
    }
}

/// The profile in the specification's form.
///
/// # Errors
/// For a word that the specification does not know.
pub(super) fn to_seccomp(policy: &LinuxSeccomp) -> Result<oci::LinuxSeccomp, String> {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let calls: Vec<_> = policy
        .syscalls
        .iter()
        .map(|rule| {
            let args: Vec<_> = rule
                .args
                .iter()
                .map(|arg| json!({ "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op }))
                .collect();
            let mut call = json!({ "names": rule.names, "action": rule.action });
            set(&mut call, "errnoRet", rule.errno_ret.map(|errno| errno.value));
            set(&mut call, "args", Some(args).filter(|args| !args.is_empty()));
            call
        })
        .collect();
    let mut profile = json!({ "defaultAction": policy.default_action, "syscalls": calls });
    set(
        &mut profile,
        "defaultErrnoRet",
        policy.default_errno.map(|errno| errno.value),
    );
    let list = |list: &[String]| Some(list.to_vec()).filter(|list| !list.is_empty());
    set(&mut profile, "architectures", list(&policy.architectures));
    set(&mut profile, "flags", list(&policy.flags));
    set(&mut profile, "listenerPath", text(&policy.listener_path));
    set(&mut profile, "listenerMetadata", text(&policy.listener_metadata));
    serde_json::from_value(profile).map_err(|error| error.to_string())
}

pub(super) fn scheduler(scheduler: &oci::Scheduler) -> LinuxScheduler {
    let policy = LinuxSchedulerPolicy::from_str_name(&scheduler.policy().to_string());
    LinuxScheduler {
        policy: policy.unwrap_or_default().into(),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0),
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .map(|flag| scheduler_flag(*flag).into())
            .collect(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

fn scheduler_flag(flag: oci::LinuxSchedulerFlag) -> LinuxSchedulerFlag {
    match flag {
        oci::LinuxSchedulerFlag::SchedResetOnFork => LinuxSchedulerFlag::SchedFlagResetOnFork,
        oci::LinuxSchedulerFlag::SchedFlagReclaim => LinuxSchedulerFlag::SchedFlagReclaim,
        oci::LinuxSchedulerFlag::SchedFlagDLOverrun => LinuxSchedulerFlag::SchedFlagDlOverrun,
        oci::LinuxSchedulerFlag::SchedFlagKeepPolicy => LinuxSchedulerFlag::SchedFlagKeepPolicy,
        oci::LinuxSchedulerFlag::SchedFlagKeepParams => LinuxSchedulerFlag::SchedFlagKeepParams,
        oci::LinuxSchedulerFlag::SchedFlagUtilClampMin => LinuxSchedulerFlag::SchedFlagUtilClampMin,
        oci::LinuxSchedulerFlag::SchedFlagUtilClampMax => LinuxSchedulerFlag::SchedFlagUtilClampMax,
    }
}

/// The scheduling policy in the specification's form; none for `SCHED_NONE`.
///
/// # Errors
/// For a number that has no name.
pub(super) fn to_scheduler(wanted: &LinuxScheduler) -> Result<Option<oci::Scheduler>, String> {
    let policy = LinuxSchedulerPolicy::try_from(wanted.policy).map_err(|error| error.to_string())?;
    if policy == LinuxSchedulerPolicy::SchedNone {
        return Ok(None);
    }
    let mut flags = Vec::new();
    for flag in &wanted.flags {
        let flag = LinuxSchedulerFlag::try_from(*flag).map_err(|error| error.to_string())?;
        flags.push(match flag {
            LinuxSchedulerFlag::SchedFlagResetOnFork => oci::LinuxSchedulerFlag::SchedResetOnFork,
            LinuxSchedulerFlag::SchedFlagReclaim => oci::LinuxSchedulerFlag::SchedFlagReclaim,
            LinuxSchedulerFlag::SchedFlagDlOverrun => oci::LinuxSchedulerFlag::SchedFlagDLOverrun,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => oci::LinuxSchedulerFlag::SchedFlagKeepPolicy,
            LinuxSchedulerFlag::SchedFlagKeepParams => oci::LinuxSchedulerFlag::SchedFlagKeepParams,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => oci::LinuxSchedulerFlag::SchedFlagUtilClampMin,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => oci::LinuxSchedulerFlag::SchedFlagUtilClampMax,
        });
    }
    let mut scheduler = json!({ "policy": policy.as_str_name(), "flags": flags });
    set(&mut scheduler, "nice", Some(wanted.nice).filter(|nice| *nice != 0));
    set(
        &mut scheduler,
        "priority",
        Some(wanted.priority).filter(|priority| *priority != 0),
    );
    for (key, time) in [
        ("runtime", wanted.runtime),
        ("deadline", wanted.deadline),
        ("period", wanted.period),
    ] {
        set(&mut scheduler, key, Some(time).filter(|time| *time != 0));
    }
    serde_json::from_value(scheduler)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// Where memory comes from, in the specification's form.
///
/// # Errors
/// For a number that has no name.
pub(super) fn to_memory_policy(wanted: &LinuxMemoryPolicy) -> Result<oci::LinuxMemoryPolicy, String> {
    let mode = MpolMode::try_from(wanted.mode).map_err(|error| error.to_string())?;
    let mut flags = Vec::new();
    for flag in &wanted.flags {
        let flag = MpolFlag::try_from(*flag).map_err(|error| error.to_string())?;
        flags.push(flag.as_str_name());
    }
    let mut policy = json!({ "mode": mode.as_str_name() });
    set(&mut policy, "flags", Some(flags).filter(|flags| !flags.is_empty()));
    set(
        &mut policy,
        "nodes",
        Some(&wanted.nodes).filter(|nodes| !nodes.is_empty()),
    );
    serde_json::from_value(policy).map_err(|error| error.to_string())
}

fn set<T: serde::Serialize>(object: &mut Value, key: &str, value: Option<T>) {
    if let (Some(value), Some(object)) = (value, object.as_object_mut()) {
        object.insert(key.to_owned(), json!(value));
    }
}
