//! The built-in runtime against images and containers that mean harm, and against specs that it cannot honour.

use crate::fixture::{Bundle, Container, run};
use crate::{Subject, Test};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use wharf::runtime::{Error, Stdio};

pub const TESTS: &[Test] = &[
    ("mounts follow no link out of the root", mounts_stay_inside),
    ("a linked /proc is refused", linked_proc),
    ("a masked path that is a link masks what it names inside", masked_link),
    ("a working directory in /proc/self/fd leads nowhere", cwd_by_descriptor),
    ("a pipe in place of the terminal multiplexer blocks nothing", fake_ptmx),
    (
        "a waiting init shows nothing of itself to its neighbours",
        waiting_init_is_closed,
    ),
    ("a container whose gate is dropped ends", dropped_gate),
    ("limits do not count the helper", tight_pids_limit),
    ("idmapped binds show mapped owners", idmapped_bind),
    ("recursive read-only reaches mounts below", recursive_readonly),
    ("what is not supported is refused by name", refusals),
    ("foreign sysctls are refused", foreign_sysctl),
];

fn mounts_stay_inside(subject: &Subject) {
    let bundle = Bundle::new("links");
    let outside = bundle.dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(bundle.dir.join("file"), "bound").unwrap();
    symlink(&outside, bundle.dir.join("rootfs/abs")).unwrap();
    symlink("../../outside", bundle.dir.join("rootfs/up")).unwrap();
    let mut spec = bundle.spec(&["sh", "-c", "cat /abs/a /up/b"]);
    for to in ["/abs/a", "/up/b"] {
        let mount =
            json!({"destination": to, "type": "bind", "source": bundle.dir.join("file"), "options": ["bind", "ro"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    bundle.write(&spec);
    assert_eq!(
        run(subject.handler.as_ref(), &bundle).unwrap(),
        (0, "boundbound".into())
    );
    assert_eq!(
        std::fs::read_dir(&outside).unwrap().count(),
        0,
        "something was made outside the root"
    );
}

fn failure(subject: &Subject, bundle: &Bundle, spec: &Value) -> String {
    bundle.write(spec);
    match run(subject.handler.as_ref(), bundle) {
        Err(error) => error.to_string(),
        Ok(output) => panic!("it ran: {output:?}"),
    }
}

fn linked_proc(subject: &Subject) {
    let bundle = Bundle::new("proc");
    std::fs::remove_dir(bundle.dir.join("rootfs/proc")).unwrap();
    symlink("/tmp", bundle.dir.join("rootfs/proc")).unwrap();
    let text = failure(subject, &bundle, &bundle.spec(&["true"]));
    assert!(text.contains("/proc") && text.contains("plain directory"), "{text}");
}

fn masked_link(subject: &Subject) {
    let bundle = Bundle::new("masklink");
    std::fs::write(bundle.dir.join("rootfs/data/secret"), "secret").unwrap();
    symlink("/data/secret", bundle.dir.join("rootfs/etc/link")).unwrap();
    let mut spec = bundle.spec(&["sh", "-c", "cat /etc/link /data/secret | wc -c"]);
    spec["linux"]["maskedPaths"] = json!(["/etc/link"]);
    bundle.write(&spec);
    assert_eq!(run(subject.handler.as_ref(), &bundle).unwrap(), (0, "0\n".into()));
}

fn cwd_by_descriptor(subject: &Subject) {
    let bundle = Bundle::new("cwdfd");
    for fd in 3..12 {
        let mut spec = bundle.spec(&["sh", "-c", "pwd; ls"]);
        spec["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        bundle.write(&spec);
        match run(subject.handler.as_ref(), &bundle) {
            Err(Error::StartFailed(_)) => {}
            Err(other) => panic!("{other}"),
            // A descriptor of the container's own root is harmless.
            Ok((_, text)) => assert!(!text.contains("boot") && text.starts_with("/\n"), "fd {fd}: {text}"),
        }
    }
}

fn running<'a>(subject: &'a Subject, bundle: &'a Bundle, spec: &Value) -> Container<'a> {
    bundle.write(spec);
    let mut container = Container::create(subject.handler.as_ref(), bundle).unwrap();
    container.start().unwrap();
    container
}

fn fake_ptmx(subject: &Subject) {
    let bundle = Bundle::new("ptmx");
    let spec = bundle.spec(&["sleep", "60"]);
    // The image's /dev is used as it is: nothing is mounted over the pipe.
    let mut hostile = spec.clone();
    hostile["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| m["destination"] != "/dev/pts");
    let mut container = running(subject, &bundle, &hostile);
    let mut process = spec["process"].clone();
    process["args"] = json!(["sh", "-c", "mkdir -p /dev/pts && mkfifo /dev/pts/ptmx"]);
    assert_eq!(container.run(&process).unwrap().0, 0);
    process["terminal"] = json!(true);
    let error = container
        .exec(&process, Stdio::Terminal)
        .err()
        .expect("a terminal came");
    assert!(error.to_string().contains("not a terminal multiplexer"), "{error}");
    container.end();
}

fn waiting_init_is_closed(subject: &Subject) {
    let first = Bundle::new("look");
    let spec = first.spec(&["sleep", "60"]);
    let mut container = running(subject, &first, &spec);
    let second = Bundle::new("waiting");
    let mut joined = second.spec(&["sleep", "60"]);
    let pid = format!("/proc/{}/ns/pid", container.created.init_pid);
    joined["linux"]["namespaces"] = json!([{"type": "pid", "path": pid}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}]);
    second.write(&joined);
    let mut waiting = Container::create(subject.handler.as_ref(), &second).unwrap();
    let mut process = spec["process"].clone();
    let look = "for p in $(ls /proc | grep '^[0-9]'); do \
                  [ $p = 1 ] || [ $p = $$ ] || [ ! -d /proc/$p ] && continue; \
                  case $(cat /proc/$p/comm) in ls|grep|sh|cat) continue;; esac; echo seen; \
                  (readlink /proc/$p/fd/0 && echo FD; readlink /proc/$p/exe && echo EXE; readlink /proc/$p/root && echo ROOT; \
                   cat /proc/$p/environ && echo ENV; cat /proc/$p/mem && echo MEM) 2>&1 | grep -E '^(FD|EXE|ROOT|ENV|MEM)$'; done";
    process["args"] = json!(["sh", "-c", look]);
    let (_, text) = container.run(&process).unwrap();
    assert_eq!(text, "seen\n");
    drop(waiting.created.gate.take());
    container.wait(waiting.created.init_pid);
    crate::fixture::delete(subject.handler.as_ref(), &second);
    container.end();
}

fn dropped_gate(subject: &Subject) {
    let bundle = Bundle::new("gate");
    bundle.write(&bundle.spec(&["true"]));
    let mut container = Container::create(subject.handler.as_ref(), &bundle).unwrap();
    drop(container.created.gate.take());
    assert_eq!(container.wait_init(), 1);
    crate::fixture::delete(subject.handler.as_ref(), &bundle);
}

fn tight_pids_limit(subject: &Subject) {
    let bundle = Bundle::new("pids");
    let mut spec = bundle.spec(&["sleep", "60"]);
    spec["linux"]["resources"]["pids"]["limit"] = json!(2);
    let mut container = running(subject, &bundle, &spec);
    let mut process = spec["process"].clone();
    process["args"] = json!(["true"]);
    assert_eq!(container.run(&process).unwrap().0, 0);
    container.end();
}

fn idmapped_bind(subject: &Subject) {
    let bundle = Bundle::new("idmap");
    let volume = bundle.dir.join("vol");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("f"), "x").unwrap();
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 1000}]);
    let mut spec = bundle.spec(&["sh", "-c", "stat -c %u:%g /vol/f; touch /vol/new"]);
    let mount = json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", "idmap"], "uidMappings": map, "gidMappings": map});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    spec["process"]["user"] = json!({"uid": 5000, "gid": 5000});
    bundle.write(&spec);
    let (_, text) = run(subject.handler.as_ref(), &bundle).unwrap();
    assert_eq!(text, "5000:5000\n");
    let made = std::fs::metadata(volume.join("new")).unwrap();
    assert_eq!(
        (made.uid(), made.gid()),
        (0, 0),
        "what the mapped user made belongs to root on disk"
    );
}

fn recursive_readonly(subject: &Subject) {
    let bundle = Bundle::new("rro");
    let volume = bundle.dir.join("vol");
    std::fs::create_dir_all(volume.join("sub")).unwrap();
    let none: Option<&str> = None;
    nix::mount::mount(
        Some("tmpfs"),
        &volume.join("sub"),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .unwrap();
    for (option, wanted) in [("ro", "below\n"), ("rro", "")] {
        let script = "touch /vol/x 2>/dev/null && echo top; touch /vol/sub/x 2>/dev/null && echo below; true";
        let mut spec = bundle.spec(&["sh", "-c", script]);
        let mount = json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", option]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
        bundle.write(&spec);
        let result = run(subject.handler.as_ref(), &bundle);
        assert_eq!(result.unwrap(), (0, wanted.to_string()), "{option}");
    }
    nix::mount::umount(&volume.join("sub")).unwrap();
}

fn refusals(subject: &Subject) {
    let bundle = Bundle::new("refuse");
    let cases: [(&str, &str, Value); 6] = [
        (
            "is not absolute",
            "/hooks",
            json!({"poststart": [{"path": "bin/true"}]}),
        ),
        ("linux.intelRdt", "/linux/intelRdt", json!({"closID": "x"})),
        ("AppArmor", "/process/apparmorProfile", json!("some-profile")),
        (
            "SELinux",
            "/process/selinuxLabel",
            json!("system_u:system_r:container_t:s0"),
        ),
        (
            "process.scheduler",
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "priority": 1}),
        ),
        (
            "SCMP_ACT_NOTIFY",
            "/linux/seccomp/defaultAction",
            json!("SCMP_ACT_NOTIFY"),
        ),
    ];
    let enabled = |path: &str| Path::new(path).exists();
    for (name, at, value) in cases {
        if name == "AppArmor" && enabled("/sys/module/apparmor")
            || name == "SELinux" && enabled("/sys/fs/selinux/enforce")
        {
            continue;
        }
        let mut spec = bundle.spec(&["true"]);
        let (parent, key) = at.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let text = failure(subject, &bundle, &spec);
        assert!(text.contains(name), "{name}: {text}");
    }
}

fn foreign_sysctl(subject: &Subject) {
    let bundle = Bundle::new("sysctl");
    // Should one get through, it writes what is there already.
    let value = std::fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    for name in ["vm.swappiness", "net/../vm/swappiness", "net.//.vm.swappiness"] {
        let mut spec = bundle.spec(&["true"]);
        spec["linux"]["sysctl"] = json!({name: value.trim()});
        let text = failure(subject, &bundle, &spec);
        assert!(text.contains("sysctl"), "{name}: {text}");
    }
    let mut spec = bundle.spec(&["true"]);
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
    spec.as_object_mut().unwrap().remove("hostname");
    let text = failure(subject, &bundle, &spec);
    assert!(text.contains("namespace of the container's own"), "{text}");
}
