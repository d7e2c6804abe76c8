//! A bundle with busybox as its root file system, and a monitor's part in driving a handler.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wharf::runtime::{ContainerRef, CreateRequest, Created, Error, ExecRequest, Executed, Handler, Pending, Stdio};

const APPLETS: &[&str] = &[
    "sh", "cat", "ls", "id", "true", "sleep", "stat", "readlink", "mount", "umount", "mknod", "hostname", "touch",
    "env", "pwd", "ps", "kill", "chroot", "unshare", "tty", "stty", "dd", "head", "tr", "sort", "find", "sync", "ip",
    "mkdir", "rm", "ln", "wc", "test", "grep", "sed", "echo", "printf", "cut", "mkfifo",
];

/// A bundle below a directory of its own; everything goes with it.
pub struct Bundle {
    pub dir: PathBuf,
    pub id: String,
}

impl Bundle {
    pub fn new(name: &str) -> Bundle {
        let id = format!("wharf-parity-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&id);
        let rootfs = dir.join("rootfs");
        for sub in ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "home/app", "data"] {
            std::fs::create_dir_all(rootfs.join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            std::fs::hard_link(rootfs.join("bin/busybox"), rootfs.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
        std::fs::write(rootfs.join("etc/passwd"), passwd).unwrap();
        Bundle { dir, id }
    }

    /// Hand the root file system to a mapped root user.
    pub fn give_to(&self, id: u32) {
        give(&self.dir.join("rootfs"), id);
        for dir in [self.dir.clone(), self.dir.join("rootfs")] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    pub fn cgroup(&self) -> String {
        format!("/wharf-parity/{}", self.id)
    }

    pub fn write(&self, spec: &Value) {
        std::fs::write(self.dir.join("config.json"), serde_json::to_vec_pretty(spec).unwrap()).unwrap();
    }

    /// What a container engine asks for by default.
    pub fn spec(&self, args: &[&str]) -> Value {
        let caps = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FSETID",
            "CAP_FOWNER",
            "CAP_MKNOD",
            "CAP_NET_RAW",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETFCAP",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT",
            "CAP_KILL",
            "CAP_AUDIT_WRITE"
        ]);
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
                "args": args,
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
                "noNewPrivileges": true,
                "oomScoreAdj": 100
            },
            "root": {"path": "rootfs", "readonly": false},
            "hostname": "parity",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
            ],
            "linux": {
                "cgroupsPath": self.cgroup(),
                "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"},
                "resources": {
                    "devices": [{"allow": false, "access": "rwm"}],
                    "memory": {"limit": 67108864},
                    "pids": {"limit": 64},
                    "cpu": {"shares": 512, "quota": 50000, "period": 100000}
                },
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}
                ],
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                    "syscalls": [
                        {"names": ["swapon", "kexec_load", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
                        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
                    ]
                }
            }
        })
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn give(path: &Path, id: u32) {
    std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), id);
        }
    }
}

/// A running container under a handler, with its output in a pipe.
pub struct Container<'a> {
    pub handler: &'a dyn Handler,
    pub bundle: &'a Bundle,
    pub created: Created,
    pub output: File,
    cgroup: String,
}

/// Wait for a result, take it, and wait for the helper.
fn finish<T>(pending: Pending, take: impl FnOnce(Pending) -> Result<T, Error>) -> Result<T, Error> {
    let mut fds = [PollFd::new(pending.as_fd(), PollFlags::POLLIN)];
    assert_ne!(
        poll(&mut fds, PollTimeout::from(20_000u16)).unwrap(),
        0,
        "no result within 20 s"
    );
    let helper = pending.helper;
    let result = take(pending);
    if let Some(helper) = helper {
        waitpid(Pid::from_raw(helper), None).unwrap();
    }
    result
}

pub fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read.into(), write)
}

impl<'a> Container<'a> {
    pub fn create(handler: &'a dyn Handler, bundle: &'a Bundle) -> Result<Container<'a>, Error> {
        let null = File::open("/dev/null").unwrap();
        let (output, write) = pipe();
        Container::create_with(
            handler,
            bundle,
            Stdio::Streams([null.as_fd(), write.as_fd(), write.as_fd()]),
            output,
        )
    }

    pub fn create_with(
        handler: &'a dyn Handler,
        bundle: &'a Bundle,
        stdio: Stdio,
        output: File,
    ) -> Result<Container<'a>, Error> {
        let request = CreateRequest {
            id: &bundle.id,
            bundle: &bundle.dir,
            stdio,
            seccomp_filter: None,
            class: None,
        };
        let pending = handler.create(&request)?;
        let created = finish(pending, |pending| handler.finish_create(pending))?;
        Ok(Container {
            handler,
            bundle,
            created,
            output,
            cgroup: bundle.cgroup(),
        })
    }

    pub fn start(&mut self) -> Result<(), Error> {
        let reference = ContainerRef {
            id: &self.bundle.id,
            bundle: &self.bundle.dir,
            init_pid: self.created.init_pid,
            cgroup_path: &self.cgroup,
        };
        let pending = self.handler.start(&reference, &mut self.created)?;
        finish(pending, |pending| self.handler.finish_start(pending))
    }

    pub fn exec(&mut self, process: &Value, stdio: Stdio) -> Result<Executed, Error> {
        let json = serde_json::to_vec(process).unwrap();
        let request = ExecRequest {
            id: &self.bundle.id,
            bundle: &self.bundle.dir,
            init_pid: self.created.init_pid,
            process_json: &json,
            stdio,
            seccomp_filter: None,
            class: None,
        };
        let pending = self.handler.exec(&request)?;
        finish(pending, |pending| self.handler.finish_exec(pending))
    }

    /// Run a process and return its exit code and output.
    pub fn run(&mut self, process: &Value) -> Result<(i32, String), Error> {
        let null = File::open("/dev/null").unwrap();
        let (mut output, write) = pipe();
        let executed = self.exec(process, Stdio::Streams([null.as_fd(), write.as_fd(), write.as_fd()]))?;
        drop(write);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        Ok((self.wait(executed.pid), text))
    }

    /// Kill, wait and delete.
    pub fn end(self) {
        self.signal(libc::SIGKILL, false);
        self.wait_init();
        delete(self.handler, self.bundle);
    }

    /// Wait for a child of ours. Others that end meanwhile are let go: a PID namespace's init cannot end before them.
    pub fn wait(&self, pid: i32) -> i32 {
        let status = loop {
            let status = waitpid(None, None).unwrap();
            if status.pid() == Some(Pid::from_raw(pid)) {
                break status;
            }
        };
        match status {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            other => panic!("{other:?}"),
        }
    }

    pub fn wait_init(&self) -> i32 {
        self.wait(self.created.init_pid)
    }

    pub fn signal(&self, signal: i32, all: bool) {
        if let Some(pending) = self
            .handler
            .kill(&self.reference(self.created.init_pid), signal, all)
            .unwrap()
        {
            finish(pending, |pending| self.handler.finish_kill(pending)).unwrap();
        }
    }

    fn reference(&self, init_pid: i32) -> ContainerRef<'_> {
        ContainerRef {
            id: &self.bundle.id,
            bundle: &self.bundle.dir,
            init_pid,
            cgroup_path: &self.cgroup,
        }
    }
}

pub fn delete(handler: &dyn Handler, bundle: &Bundle) {
    let cgroup = bundle.cgroup();
    let reference = ContainerRef {
        id: &bundle.id,
        bundle: &bundle.dir,
        init_pid: 0,
        cgroup_path: &cgroup,
    };
    if let Some(pending) = handler.delete(&reference).unwrap() {
        finish(pending, |pending| handler.finish_delete(pending)).unwrap();
    }
}

/// After a test that failed half-way.
impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = nix::sys::signal::kill(Pid::from_raw(self.created.init_pid), nix::sys::signal::SIGKILL);
            delete(self.handler, self.bundle);
        }
    }
}

/// Wait for children that have ended.
pub fn reap() {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(5)),
            Ok(_) => {}
            Err(_) => return,
        }
    }
    panic!("a child did not end");
}

/// Create, start and wait for a container's program; its exit code and output.
pub fn run(handler: &dyn Handler, bundle: &Bundle) -> Result<(i32, String), Error> {
    let result = (|| {
        let mut container = Container::create(handler, bundle)?;
        container.start()?;
        let mut text = String::new();
        container.output.read_to_string(&mut text).unwrap();
        Ok((container.wait_init(), text))
    })();
    delete(handler, bundle);
    result
}

/// Leave no cgroup behind.
pub fn remove_cgroups() {
    for root in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(root.path().join("wharf-parity"));
    }
    let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup/wharf-parity"));
}
