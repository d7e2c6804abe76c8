//! A directory, a root filesystem of one static busybox, and a monitor to run it.

use std::{
    fs,
    future::Future,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use wharf::monitor::{Client, Events, Program, SpawnOptions};
use wharf_proto::monitor as proto;

pub const LIMIT: Duration = Duration::from_secs(10);

/// Waits for what must not take long.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.expect("it takes too long")
}

pub struct Lab {
    dir: PathBuf,
    name: String,
    /// The monitor, killed when the test fails.
    pid: AtomicI32,
}

pub struct Pod {
    pub client: Client,
    pub hello: proto::HelloReply,
    pub events: Events,
}

/// A mounted file system.
pub struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let pid = self.pid.load(Ordering::Relaxed);
        if std::thread::panicking() && pid > 0 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Lab {
    pub fn new(name: &str) -> Lab {
        let dir = std::env::temp_dir().join(format!("wharf-monitor-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Lab {
            dir,
            name: name.to_owned(),
            pid: AtomicI32::new(0),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("monitor.sock")
    }

    pub async fn monitor(&self, pid_namespace: bool) -> Pod {
        let program = Program::at(env!("CARGO_BIN_EXE_wharf").into());
        let options = SpawnOptions {
            pod_id: "pod",
            socket: &self.socket(),
            pid_namespace,
            user_namespace: None,
            cgroup: None,
        };
        let (client, hello, events) = within(Client::spawn(&program, options)).await.unwrap();
        self.pid.store(hello.pid, Ordering::Relaxed);
        Pod { client, hello, events }
    }

    /// Memory of a process that no file backs, KiB.
    pub fn anonymous_kib(&self, pid: i32) -> u32 {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let value = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        value.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{id}.log"))
    }

    pub fn exit_file(&self, id: &str) -> PathBuf {
        self.dir.join(id).join("exit")
    }

    /// Log lines without their times.
    pub fn log_lines(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log(id)).unwrap_or_default();
        text.split_terminator('\n')
            .map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned())
            .collect()
    }

    pub async fn wait_for_log(&self, id: &str, line: &str) {
        self.wait(|| self.log_lines(id).iter().any(|l| l == line)).await;
    }

    /// Waits for what nobody tells.
    pub async fn wait(&self, mut done: impl FnMut() -> bool) {
        within(async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    pub fn rootfs(&self, id: &str) -> PathBuf {
        self.dir.join(id).join("rootfs")
    }

    pub fn cgroup_pids(&self, path: &str) -> Vec<i32> {
        let hierarchies = wharf::cgroups::detect().unwrap();
        wharf::cgroups::Cgroup::new(&hierarchies, path).unwrap().pids()
    }

    /// Puts the logs on a file system of 64 KiB.
    pub fn small_disk_for_logs(&self) -> Disk {
        let dir = self.dir.join("logs");
        fs::create_dir_all(&dir).unwrap();
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &dir, Some("tmpfs"), none, Some("size=64k")).unwrap();
        Disk(dir)
    }

    /// A container that runs a shell script.
    pub fn container(&self, id: &str, script: &str) -> proto::Start {
        self.container_of(id, &["/bin/sh", "-c", script])
    }

    pub fn container_of(&self, id: &str, args: &[&str]) -> proto::Start {
        self.container_with(id, args, |_| {})
    }

    /// A container whose config.json was changed by `change`.
    pub fn container_with(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> proto::Start {
        let bundle = self.dir.join(id);
        rootfs(&bundle.join("rootfs"));
        let cgroup_path = format!("/wharf-test/{}-{}-{id}", self.name, std::process::id());
        let mut config = config(args, &cgroup_path);
        change(&mut config);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        proto::Start {
            container_id: id.to_owned(),
            bundle: bundle.display().to_string(),
            log_path: self.log(id).display().to_string(),
            exit_file: self.exit_file(id).display().to_string(),
            cgroup_path,
            ..Default::default()
        }
    }

    pub fn exec(&self, exec_id: &str, container_id: &str, script: &str) -> proto::Exec {
        self.exec_of(exec_id, container_id, &["/bin/sh", "-c", script])
    }

    pub fn exec_of(&self, exec_id: &str, container_id: &str, args: &[&str]) -> proto::Exec {
        proto::Exec {
            exec_id: exec_id.to_owned(),
            container_id: container_id.to_owned(),
            process: process(args).to_string().into_bytes(),
            terminal: false,
            bound: false,
        }
    }
}

fn rootfs(dir: &Path) {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for mount_point in ["proc", "dev", "sys"] {
        fs::create_dir_all(dir.join(mount_point)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static must be installed");
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["sh", "sleep", "echo", "true", "test"] {
        symlink("busybox", bin.join(name)).unwrap();
    }
}

fn process(args: &[&str]) -> Value {
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "noNewPrivileges": true,
    })
}

fn config(args: &[&str], cgroup_path: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": { "path": "rootfs", "readonly": false },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "cgroupsPath": cgroup_path,
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" },
            ],
        },
    })
}
