//! A container of the floor: an overlay, a cgroup in each hierarchy, one process in namespaces with the mounts that every CRI
//! runtime makes, and further processes in it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, execve, pivot_root};
use wharf_e2e::Result;

use super::Pod;

/// Files of the pod that its containers see in /etc.
pub const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// What CRI has kubelet hide of the kernel from containers that are not privileged, as far as it is everywhere.
const MASKED: [&str; 4] = ["proc/kcore", "proc/keys", "proc/timer_list", "sys/firmware"];
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
const NONE: Option<&str> = None;

/// A directory with busybox as `sleep` and `true`, and what is mounted on.
///
/// # Errors
/// When busybox-static is not installed.
pub fn make_image(dir: &Path) -> Result {
    let bin = dir.join("bin");
    for name in ["bin", "dev", "proc", "sys", "etc"] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .ok_or("busybox-static is not installed: make setup")?;
    std::fs::copy(program, bin.join("sleep"))?;
    std::fs::hard_link(bin.join("sleep"), bin.join("true"))?;
    for name in FILES {
        std::fs::write(dir.join("etc").join(name), "")?;
    }
    Ok(())
}

/// Mounts an overlay over the image, for one container.
pub fn root(pod: &Path, image: &Path) -> Result<PathBuf> {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| pod.join(name));
    for dir in [&upper, &work, &root] {
        std::fs::create_dir(dir)?;
    }
    let options = format!(
        "volatile,lowerdir={},upperdir={},workdir={}",
        image.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    Ok(root)
}

/// The hierarchies that hold containers: those of version 1 if there are any, else version 2.
pub struct Cgroups {
    mounts: Vec<PathBuf>,
    v2: bool,
}

/// A container's cgroup in each hierarchy.
pub struct Cgroup {
    dirs: Vec<PathBuf>,
    v2: bool,
}

impl Cgroups {
    pub fn find() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/mountinfo")?;
        let of = |kind: &str| -> Vec<PathBuf> {
            let lines = text.lines().filter(|line| line.contains(kind));
            lines
                .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
                .collect()
        };
        let v1 = of(" - cgroup ");
        let v2 = v1.is_empty();
        let mounts = if v2 { of(" - cgroup2 ") } else { v1 };
        Ok(Self { mounts, v2 })
    }

    pub fn make(&self, n: usize) -> Result<Cgroup> {
        let mut dirs = Vec::new();
        for point in &self.mounts {
            let dir = point.join(format!("floor-{n}"));
            std::fs::create_dir(&dir)?;
            // A cpuset of version 1 begins empty, and takes nobody then.
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| !self.v2) {
                if let Ok(value) = std::fs::read(point.join(file)) {
                    std::fs::write(dir.join(file), value)?;
                }
            }
            dirs.push(dir);
        }
        Ok(Cgroup { dirs, v2: self.v2 })
    }
}

impl Cgroup {
    /// Puts the calling process there. `tasks` is the one thread, without the lock of the whole machine that its process takes.
    fn join(&self) -> io::Result<()> {
        let file = if self.v2 { "cgroup.procs" } else { "tasks" };
        self.dirs.iter().try_for_each(|dir| std::fs::write(dir.join(file), "0"))
    }

    pub fn remove(self) -> io::Result<()> {
        self.dirs.iter().try_for_each(std::fs::remove_dir)
    }
}

/// A container that runs.
pub struct Container {
    pid: Pid,
    pidfd: OwnedFd,
}

/// fork(2) into new namespaces; the child's half is `child`, which only returns when it has failed.
fn fork(flags: i32, child: impl FnOnce() -> Result) -> Result<Container> {
    let (mut failure, mut told) = {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        (File::from(read), File::from(write))
    };
    let mut pidfd = -1_i32;
    // struct clone_args of version 0: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let args: [u64; 8] = [
        u64::from((flags | libc::CLONE_PIDFD).cast_unsigned()),
        &raw mut pidfd as u64,
        0,
        0,
        libc::SIGCHLD as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the layout of struct clone_args; this process has one thread, so its copy can do what it can.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if pid < 0 {
        return Err(io::Error::last_os_error().into());
    }
    if pid == 0 {
        if let Err(error) = child() {
            let _ = told.write_all(error.to_string().as_bytes());
        }
        // SAFETY: ends the process, without what the parent has yet to do.
        unsafe { libc::_exit(1) }
    }
    drop(told);
    // SAFETY: the kernel has stored a descriptor there that belongs to nobody.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // Executing closes the pipe without a word.
    let mut said = String::new();
    failure.read_to_string(&mut said)?;
    if !said.is_empty() {
        return Err(said.into());
    }
    Ok(Container {
        pid: Pid::from_raw(i32::try_from(pid)?),
        pidfd,
    })
}

/// Runs a program in a container of `pod`; returns when it is executed.
pub fn start(pod: &Pod, root: &Path, cgroup: &Cgroup, command: &[CString]) -> Result<Container> {
    fork(libc::CLONE_NEWPID | libc::CLONE_NEWNS, || {
        cgroup.join()?;
        unshare(CloneFlags::CLONE_NEWCGROUP)?;
        super::enter(&pod.namespaces)?;
        world(pod, root, cgroup)?;
        nix::unistd::setsid()?;
        execute(command)
    })
}

fn execute(command: &[CString]) -> Result {
    let program = command.first().ok_or("no command")?;
    let environment: [&CStr; 1] = [c"PATH=/bin"];
    execve(program, command, &environment)?;
    Ok(())
}

/// The mounts, devices and the root of a container.
fn world(pod: &Pod, root: &Path, cgroup: &Cgroup) -> Result {
    let at = |path: &str| root.join(path);
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let make = |kind: &str, to: &str, flags: MsFlags, options: Option<&str>| -> Result {
        let to = at(to);
        if !to.is_dir() {
            std::fs::create_dir(&to)?;
        }
        mount(Some(kind), &to, Some(kind), flags, options)?;
        Ok(())
    };
    let bind = |from: &Path, to: &Path, read_only: bool| -> Result {
        mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)?;
        if read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NONE, to, NONE, flags, NONE)?;
        }
        Ok(())
    };
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    make("proc", "proc", quiet, None)?;
    make("tmpfs", "dev", MsFlags::MS_NOSUID, Some("mode=755,size=65536k"))?;
    make(
        "devpts",
        "dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )?;
    make("mqueue", "dev/mqueue", quiet, None)?;
    make("sysfs", "sys", quiet | MsFlags::MS_RDONLY, None)?;
    std::fs::create_dir(at("dev/shm"))?;
    bind(&pod.dir.join("shm"), &at("dev/shm"), false)?;
    for file in FILES {
        bind(&pod.dir.join(file), &at("etc").join(file), false)?;
    }
    if cgroup.v2 {
        make("cgroup2", "sys/fs/cgroup", quiet | MsFlags::MS_RDONLY, None)?;
    } else {
        make("tmpfs", "sys/fs/cgroup", quiet, Some("mode=755"))?;
        for dir in &cgroup.dirs {
            let name = dir
                .parent()
                .and_then(Path::file_name)
                .ok_or("a hierarchy without a name")?;
            let to = at("sys/fs/cgroup").join(name);
            std::fs::create_dir(&to)?;
            bind(dir, &to, true)?;
        }
    }
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&at("dev").join(name), SFlag::S_IFCHR, mode, makedev(major, minor))?;
    }
    for (target, name) in LINKS {
        symlink(target, at("dev").join(name))?;
    }
    for path in READ_ONLY.into_iter().map(at).filter(|path| path.exists()) {
        bind(&path, &path, true)?;
    }
    for path in MASKED.into_iter().map(at) {
        match path.metadata() {
            Ok(meta) if meta.is_dir() => {
                mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0"))?;
            }
            Ok(_) => bind(&at("dev/null"), &path, false)?,
            Err(_) => {}
        }
    }
    std::env::set_current_dir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

impl Container {
    /// Runs a program in the container until it ends.
    pub fn exec(&self, cgroup: &Cgroup, command: &[CString]) -> Result {
        let own = File::open("/proc/self/ns/pid")?;
        // Counts for what is forked from here on.
        setns(&self.pidfd, CloneFlags::CLONE_NEWPID)?;
        let started = fork(0, || {
            cgroup.join()?;
            let kinds = CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP;
            setns(&self.pidfd, kinds)?;
            nix::unistd::setsid()?;
            execute(command)
        });
        setns(&own, CloneFlags::CLONE_NEWPID)?;
        match waitpid(started?.pid, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => Err(format!("{command:?} ended with {other:?}").into()),
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(self) -> Result {
        let (fd, none) = (self.pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: without a siginfo the kernel makes one.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error().into());
        }
        waitpid(self.pid, None)?;
        Ok(())
    }
}
