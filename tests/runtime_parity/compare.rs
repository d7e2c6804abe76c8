//! The same bundle under the built-in runtime and under runc, init and exec, with every difference explained.

use crate::Subject;
use crate::fixture::{Bundle, Container, delete};
use crate::probe;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;

/// A change to the default spec.
pub struct Case {
    pub name: &'static str,
    pub change: fn(&Bundle, &mut Value),
}

pub fn cases() -> Vec<Case> {
    let case = |name, change| Case { name, change };
    vec![
        case("default", |_, _| {}),
        case("unprivileged user without no_new_privs", |_, spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [50000], "umask": 63});
            spec["process"]["cwd"] = json!("/home/app");
            spec["process"]["noNewPrivileges"] = json!(false);
        }),
        case("ambient and inheritable capabilities", |_, spec| {
            let caps = json!(["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]);
            for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
                spec["process"]["capabilities"][set] = caps.clone();
            }
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        }),
        case("privileged", |_, spec| {
            let all = json!(ALL_CAPS.as_slice());
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = all.clone();
            }
            let linux = spec["linux"].as_object_mut().unwrap();
            for key in ["seccomp", "maskedPaths", "readonlyPaths"] {
                linux.remove(key);
            }
            spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
            spec["process"]["noNewPrivileges"] = json!(false);
        }),
        case("read-only root, working directory made", |_, spec| {
            spec["root"]["readonly"] = json!(true);
            spec["process"]["cwd"] = json!("/srv/new/dir");
        }),
        case("bind mounts and devices", |bundle, spec| {
            std::fs::create_dir_all(bundle.dir.join("vol")).unwrap();
            std::fs::write(bundle.dir.join("file"), "x").unwrap();
            let source = |name: &str| bundle.dir.join(name);
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/data", "type": "bind", "source": source("vol"), "options": ["rbind", "ro", "nosuid", "nodev", "noexec", "rprivate"]}));
            mounts.push(json!({"destination": "/mnt/deep/vol", "type": "bind", "source": source("vol"), "options": ["rbind", "rw", "rslave"]}));
            mounts.push(json!({"destination": "/etc/file", "type": "bind", "source": source("file"), "options": ["bind", "ro"]}));
            mounts.push(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noatime", "size=1m", "mode=1777"]}));
            spec["linux"]["devices"] = json!([{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 384, "uid": 1, "gid": 2}]);
        }),
        case("host namespaces", |_, spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
            spec["linux"].as_object_mut().unwrap().remove("sysctl");
            spec.as_object_mut().unwrap().remove("hostname");
        }),
        case("user namespace", |bundle, spec| {
            let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
            spec["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "user"}));
            // As an engine does: the files belong to the mapped root, and the path to them can be walked.
            bundle.give_to(100_000);
        }),
        case("default action refuses", |_, spec| {
            let allowed: Vec<&str> = ALLOWED.split_whitespace().collect();
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}]
            });
        }),
    ]
}

/// Run a case under both, as init and by exec, and compare.
pub fn compare(case: &Case, ours: &Subject, theirs: &Subject) {
    let ours = look(case, ours);
    let theirs = look(case, theirs);
    let mut different = Vec::new();
    for (at, place) in ["init", "exec"].iter().enumerate() {
        for (section, theirs) in &theirs[at] {
            let empty = Vec::new();
            let ours = ours[at].get(section).unwrap_or(&empty);
            let only = |a: &[String], b: &[String]| -> Vec<String> {
                a.iter()
                    .filter(|line| !b.contains(line))
                    .map(|line| line.to_string())
                    .collect()
            };
            let (added, missing) = (only(ours, theirs), only(theirs, ours));
            let open = |lines: Vec<String>, sign: &str| -> Vec<String> {
                lines
                    .iter()
                    .filter(|l| explained(section, l).is_none())
                    .map(|l| format!("{place} {section} {sign} {l}"))
                    .collect()
            };
            different.extend(open(added, "built-in"));
            different.extend(open(missing, "runc    "));
        }
    }
    assert!(
        different.is_empty(),
        "unexplained differences:\n{}",
        different.join("\n")
    );
}

/// Why a line may be on one side only.
fn explained(section: &str, line: &str) -> Option<&'static str> {
    match section {
        // runc 1.1 mounts with mount(2), which marks a new file system read-only together with its mount; the new
        // mount calls mark the mount, which is what a container can neither change nor get around.
        "mountinfo" if line.starts_with("/sys ") => Some("read-only mount of a read-write sysfs"),
        "mountinfo" if line.starts_with("/sys/fs/cgroup ") => Some("read-only mount of a read-write tmpfs"),
        "mountinfo"
            if line.starts_with("/proc/acpi ")
                || line.starts_with("/proc/scsi ")
                || line.starts_with("/sys/firmware ") =>
        {
            Some("read-only mount of one read-write tmpfs that serves all masked directories")
        }
        // Masked files are covered by the host's null device instead of the one in the container's /dev.
        "mountinfo" if line.contains("/null") || MASKED_FILES.iter().any(|f| line.starts_with(&format!("{f} "))) => {
            Some("null device of the host")
        }
        // The built-in runtime binds the container's cgroup, runc mounts the hierarchy anew: the same directory.
        "mountinfo" if line.starts_with("/sys/fs/cgroup/systemd ") => Some("source of the mount"),
        // runc 1.1 lets every container use TUN devices; runc 1.2 has ended that.
        "cgroupfs" if line == "c 10:200 rwm" => Some("TUN"),
        // Go's runtime ignores this signal of the C library's, and runc hands that on; the built-in runtime resets all.
        "status" | "signals" if line.starts_with("SigIgn") && only_signal_32(line) => Some("ignored by Go"),
        // runc 1.1 does not apply the mask that the process object asks for to what it runs later.
        "status" if line.starts_with("Umask:") => Some("umask of an exec"),
        "id" if line == "0077" || line == "0022" => Some("umask of an exec"),
        // runc becomes the container's root before it has changed its group.
        "dev" if line.starts_with("./mqueue ") => Some("group of the IPC namespace's maker"),
        // On hybrid machines a cgroup on the v2 side is made only when something is limited there.
        "cgroup" if line.starts_with("0::/") => Some("v2 side of a hybrid hierarchy"),
        _ => None,
    }
}

/// The ignored signals are the ones that a shell ignores (SIGQUIT for what it waits for), or signal 32.
fn only_signal_32(line: &str) -> bool {
    let mask = line
        .split_whitespace()
        .last()
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    mask.is_some_and(|mask| mask & !(1 << 31) & !(1 << (libc::SIGQUIT - 1)) == 0)
}

const MASKED_FILES: [&str; 5] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
];

type Sections = BTreeMap<String, Vec<String>>;

fn look(case: &Case, subject: &Subject) -> [Sections; 2] {
    let bundle = Bundle::new(subject.name);
    let mut spec = bundle.spec(&["sh", "-c", &format!("{}\necho == end\nexec sleep 60", probe::SCRIPT)]);
    (case.change)(&bundle, &mut spec);
    bundle.write(&spec);
    let result = (|| {
        let mut container = Container::create(subject.handler.as_ref(), &bundle)?;
        container.start()?;
        let init = read_until_end(&mut container);
        let mut process = spec["process"].clone();
        process["args"] = json!(["sh", "-c", probe::SCRIPT]);
        let (_, exec) = container.run(&process)?;
        container.signal(libc::SIGKILL, false);
        assert_eq!(container.wait_init(), 128 + libc::SIGKILL);
        Ok::<_, wharf::runtime::Error>([init, exec])
    })();
    delete(subject.handler.as_ref(), &bundle);
    let outputs = result.unwrap_or_else(|e| panic!("{}: {e}", subject.name));
    outputs.map(|text| {
        assert!(
            text.contains("== signals"),
            "{}: the probe did not finish:\n{text}",
            subject.name
        );
        // The handlers' bundles are at different paths.
        probe::sections(&text.replace(&bundle.id, "BUNDLE"))
    })
}

fn read_until_end(container: &mut Container) -> String {
    let (mut text, mut part) = (Vec::new(), [0u8; 4096]);
    loop {
        let length = container.output.read(&mut part).unwrap();
        text.extend_from_slice(&part[..length]);
        if length == 0 || text.ends_with(b"== end\n") {
            return String::from_utf8_lossy(&text).into_owned();
        }
    }
}

const ALL_CAPS: [&str; 40] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Enough for a shell, and for runc's own steps between the filter and the program.
const ALLOWED: &str = "read write open openat close stat fstat lstat newfstatat statx poll lseek mmap mprotect munmap \
    brk rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access faccessat faccessat2 pipe \
    pipe2 select dup dup2 dup3 nanosleep clock_nanosleep getpid sendfile socket connect sendto recvfrom clone fork \
    vfork execve exit wait4 kill uname fcntl flock fsync truncate ftruncate getdents getdents64 getcwd chdir fchdir \
    rename mkdir rmdir creat link unlink symlink readlink readlinkat chmod fchmod chown umask gettimeofday getrlimit \
    getrusage sysinfo times getuid syslog getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid \
    setreuid setregid getgroups setgroups setresuid getresuid setresgid getresgid getpgid getsid capget capset \
    rt_sigtimedwait sigaltstack mknod mknodat personality statfs fstatfs prctl arch_prctl setrlimit sync mount \
    umount2 sethostname unshare gettid futex sched_getaffinity set_tid_address epoll_create1 epoll_ctl epoll_pwait \
    exit_group tgkill unlinkat mkdirat prlimit64 getrandom set_robust_list rseq clock_gettime fchown fchownat \
    close_range renameat symlinkat linkat eventfd2 madvise";
