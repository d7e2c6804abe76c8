//! Tests on the machine's own hierarchies, below `/wharf-test-<pid>`. They need root, as CI has it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxPids, LinuxResources};

use super::{detect::Layout, *};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A cgroup that is gone after the test, with everything in it.
struct Own(Cgroup);

impl Own {
    fn new() -> Option<Own> {
        // SAFETY: geteuid cannot fail and touches no memory.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let hierarchies = detect().unwrap();
        let cgroup = Cgroup::new(&hierarchies, &format!("/wharf-test-{}-{n}/pod/ctr", std::process::id())).unwrap();
        cgroup.create().unwrap();
        Some(Own(cgroup))
    }

    fn top(&self) -> Cgroup {
        let top = self.0.path().split('/').nth(1).map(|t| format!("/{t}")).unwrap();
        Cgroup::new(&detect().unwrap(), &top).unwrap()
    }

    /// Where `file` of a v1 controller or of v2 is.
    fn read(&self, controller: &str, v1_file: &str, v2_file: &str) -> Option<String> {
        let hierarchies = detect().unwrap();
        let path = match &*hierarchies.0 {
            Layout::V1 { .. } => hierarchies.v1_root(controller)?.join(&self.0.path()[1..]).join(v1_file),
            Layout::V2 { root } => root.join(&self.0.path()[1..]).join(v2_file),
        };
        Some(std::fs::read_to_string(path).unwrap().trim().to_owned())
    }

    fn sleeper(&self) -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        self.0.add(child.id() as i32).unwrap();
        child
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill_all();
        self.top().remove().unwrap();
    }
}

#[test]
fn making_and_removing_may_be_repeated() {
    let Some(own) = Own::new() else { return };
    own.0.create().unwrap();
    assert!(own.0.exists() && own.0.pids().is_empty());
    own.top().remove().unwrap();
    assert!(!own.0.exists() && !own.top().exists());
    own.top().remove().unwrap();
    own.0.kill_all().unwrap();
    assert_eq!((own.0.oom_kills(), own.0.pids()), (0, vec![]));
}

#[test]
fn limits_are_raised_and_lowered() {
    let Some(own) = Own::new() else { return };
    let apply = |mb: i64, both: i64| {
        let mut memory = LinuxMemory::default();
        memory
            .set_limit(Some(mb << 20))
            .set_swap(Some(both << 20).filter(|_| detect().unwrap().has_swap_limit()));
        let mut pids = LinuxPids::default();
        pids.set_limit(mb);
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(Some(1024))
            .set_period(Some(100_000))
            .set_quota(Some(mb * 1000));
        let mut resources = LinuxResources::default();
        resources
            .set_devices(None)
            .set_memory(Some(memory))
            .set_pids(Some(pids))
            .set_cpu(Some(cpu));
        own.0.apply(&resources).unwrap();
        let limit = own.read("memory", "memory.limit_in_bytes", "memory.max").unwrap();
        assert_eq!(limit, (mb << 20).to_string());
        assert_eq!(own.read("pids", "pids.max", "pids.max").unwrap(), mb.to_string());
    };
    for (memory, both) in [(64, 64), (128, 256), (32, 32), (512, 512)] {
        apply(memory, both);
    }
    let usage = own.0.usage(Depth::Metrics);
    assert_eq!(usage.memory.unwrap().limit, Some(512 << 20));
    assert_eq!(usage.tasks.unwrap().limit, Some(512));
    assert_eq!((usage.processes, usage.oom_kills), (Some(0), Some(0)));
    assert!(usage.cpu.is_some() && usage.throttling.is_some(), "{usage:?}");
}

#[test]
fn processes_are_listed_and_killed_and_leave() {
    let Some(own) = Own::new() else { return };
    let mut children = [own.sleeper(), own.sleeper()];
    assert_eq!(own.top().pids().len(), 2);
    let busy = own.0.remove_within(Duration::ZERO).unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }), "{busy}");
    own.0.kill_all().unwrap();
    for child in &mut children {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    own.0.remove().unwrap();
    assert!(!own.0.exists());
}

#[test]
fn a_forked_child_joins() {
    use std::os::unix::process::CommandExt;
    let Some(own) = Own::new() else { return };
    let joiner = own.0.joiner().unwrap();
    let mut command = Command::new("sleep");
    command.arg("1000");
    // SAFETY: the closure writes to open descriptors; it allocates only to report an error.
    unsafe { command.pre_exec(move || joiner.join().map_err(std::io::Error::other)) };
    let mut child = command.spawn().unwrap();
    assert_eq!(own.0.pids(), [child.id() as i32]);
    child.kill().unwrap();
    child.wait().unwrap();
}

fn rule(allow: bool, kind: LinuxDeviceType, numbers: Option<(i64, i64)>) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_typ(Some(kind)).set_access(Some("rwm".into()));
    rule.set_major(numbers.map(|n| n.0)).set_minor(numbers.map(|n| n.1));
    rule
}

/// Can a process in the cgroup of `procs` read from `device`?
fn can_open(procs: &Path, device: &str) -> bool {
    let script = format!(
        "echo $$ > {} && exec head -c 1 {device} > /proc/self/fd/1",
        procs.display()
    );
    let status = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

#[test]
fn only_allowed_devices_open() {
    let Some(own) = Own::new() else { return };
    let hierarchies = detect().unwrap();
    let procs = match &*hierarchies.0 {
        Layout::V1 { .. } => hierarchies
            .v1_root("devices")
            .unwrap()
            .join(&own.0.path()[1..])
            .join("cgroup.procs"),
        Layout::V2 { root } => root.join(&own.0.path()[1..]).join("cgroup.procs"),
    };
    let mut resources = LinuxResources::default();
    let deny = rule(false, LinuxDeviceType::A, None);
    resources.set_devices(Some(vec![deny.clone(), rule(true, LinuxDeviceType::C, Some((1, 5)))]));
    own.0.apply(&resources).unwrap();
    assert!(can_open(&procs, "/dev/zero") && !can_open(&procs, "/dev/urandom"));
    // The new rules replace the old ones.
    resources.set_devices(Some(vec![deny, rule(true, LinuxDeviceType::C, Some((1, 9)))]));
    own.0.apply(&resources).unwrap();
    assert!(!can_open(&procs, "/dev/zero") && can_open(&procs, "/dev/urandom"));
    resources.set_devices(Some(vec![rule(true, LinuxDeviceType::A, None)]));
    own.0.apply(&resources).unwrap();
    assert!(can_open(&procs, "/dev/zero") && can_open(&procs, "/dev/urandom"));
}

/// On a hybrid machine the v2 programs can be tried beside the v1 rules.
#[test]
fn device_programs_work_on_v2() {
    let hierarchies = detect().unwrap();
    let root = match &*hierarchies.0 {
        Layout::V2 { root }
        | Layout::V1 {
            unified: Some(root), ..
        } => root.clone(),
        Layout::V1 { unified: None, .. } => return,
    };
    let dir = root.join(format!("wharf-test-bpf-{}", std::process::id()));
    if fsutil::mkdir(&dir).is_err() {
        return;
    }
    let parse = |rules: &[LinuxDeviceCgroup]| devices::parse(rules).unwrap();
    let deny = rule(false, LinuxDeviceType::A, None);
    let one = bpf::restrict_devices(
        &dir,
        &parse(&[deny.clone(), rule(true, LinuxDeviceType::C, Some((1, 5)))]),
    );
    let procs = dir.join("cgroup.procs");
    let first = (can_open(&procs, "/dev/zero"), can_open(&procs, "/dev/urandom"));
    let hole = [
        rule(true, LinuxDeviceType::A, None),
        rule(false, LinuxDeviceType::C, Some((1, 5))),
    ];
    let two = bpf::restrict_devices(&dir, &parse(&hole));
    let second = (can_open(&procs, "/dev/zero"), can_open(&procs, "/dev/urandom"));
    let three = bpf::restrict_devices(&dir, &parse(&[rule(true, LinuxDeviceType::A, None)]));
    let third = (can_open(&procs, "/dev/zero"), can_open(&procs, "/dev/urandom"));
    kill::remove(&[dir], Duration::from_secs(2)).unwrap();
    one.and(two).and(three).unwrap();
    assert_eq!((first, second, third), ((true, false), (false, true), (true, true)));
}

#[test]
fn an_oom_kill_is_counted() {
    let Some(own) = Own::new() else { return };
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(Some(16 << 20))
        .set_swap(Some(16 << 20).filter(|_| detect().unwrap().has_swap_limit()));
    let mut resources = LinuxResources::default();
    resources.set_devices(None).set_memory(Some(memory));
    own.0.apply(&resources).unwrap();
    use std::os::unix::process::CommandExt;
    let joiner = own.0.joiner().unwrap();
    // tail keeps what has no line break in memory.
    let mut command = Command::new("tail");
    command.arg("/dev/zero").stdout(Stdio::null());
    // SAFETY: as in a_forked_child_joins.
    unsafe { command.pre_exec(move || joiner.join().map_err(std::io::Error::other)) };
    let status = command.status().unwrap();
    assert!(!status.success());
    assert!(
        own.0.oom_kills() >= 1,
        "ended with {status}, and no OOM kill was counted"
    );
}

#[test]
fn unified_keys_need_v2() {
    let Some(own) = Own::new() else { return };
    let mut resources = LinuxResources::default();
    resources
        .set_devices(None)
        .set_unified(Some([("pids.max".to_owned(), "7".to_owned())].into()));
    match own.0.apply(&resources) {
        Ok(()) => assert_eq!(own.read("pids", "pids.max", "pids.max").unwrap(), "7"),
        Err(e) => assert!(
            !detect().unwrap().is_v2() && e.to_string().starts_with("Unsupported"),
            "{e}"
        ),
    }
}
