//! First process of a lab: makes the namespaces, waits until its standard input closes, and ends; with it ends, by the
//! kernel's hand, every process in its PID namespace. `lab run NAME COMMAND...` runs a command in such a lab, which ends
//! with it. `lab whoami ADDRESS` is a server that tells callers their address. `lab fuse DIR` serves a file system
//! that gets stuck. `lab nri-plugin LOG` is an NRI plugin that a daemon starts. `lab grpc-health ADDRESS` is well, by gRPC's health service. `lab disk DIR FILE LOG` is a disk that logs its writes. `lab trickle ADDRESS` is a registry that sends a byte a second. `lab meddle ADDRESS UPSTREAM RULES LOG` is a proxy before a registry that misbehaves by rules. `lab critest-images DIR` writes the images that critest names into a docker-registry's storage.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use wharf_e2e::lab::{PROCESSES, is_v2};
use wharf_e2e::trickle::Manner;

/// Where the hierarchies are mounted; itself one where there is only version 2.
const CGROUPS: &str = "/sys/fs/cgroup";

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["whoami", address] => whoami(address).map(|()| 0),
        ["fuse", dir] => fuse(Path::new(dir)).map(|()| 0),
        ["disk", dir, store, log] => disk([dir, store, log].map(Path::new)).map(|()| 0),
        ["grpc-health", address] => grpc_health(address).map(|()| 0),
        ["nri-plugin", log] => nri_plugin(Path::new(log)).map(|()| 0),
        ["trickle", address] => proxy(address, wharf_e2e::registry::ADDRESS, Manner::Trickle).map(|()| 0),
        ["trickle", address, upstream] => proxy(address, upstream, Manner::Trickle).map(|()| 0),
        ["forward", address, upstream] => proxy(address, upstream, Manner::Forward).map(|()| 0),
        ["rangeless", address, upstream] => proxy(address, upstream, Manner::Rangeless).map(|()| 0),
        ["meddle", address, upstream, rules, log] => {
            meddle(address, upstream, Path::new(rules), Path::new(log)).map(|()| 0)
        }
        ["cgroup", name, rest @ ..] => {
            let slice = rest.iter().find(|arg| arg.ends_with(".slice"));
            lab(name, rest.contains(&"--no-cgroup2"), slice.copied(), &[])
        }
        ["run", "--no-cgroup2", name, command @ ..] if !command.is_empty() => lab(name, true, None, command),
        ["run", name, command @ ..] if !command.is_empty() => lab(name, false, None, command),
        ["critest-images", dir] => critest_images(Path::new(dir)).map(|()| 0),
        _ => Err(
            "usage: lab cgroup NAME [--no-cgroup2] [SLICE] | lab run [--no-cgroup2] NAME COMMAND... | \
                  lab whoami ADDRESS | lab fuse DIR | lab trickle ADDRESS [UPSTREAM] | lab forward ADDRESS UPSTREAM | \
                  lab rangeless ADDRESS UPSTREAM | lab meddle ADDRESS UPSTREAM RULES LOG | \
                  lab disk DIR FILE LOG | \
                  lab nri-plugin LOG | lab grpc-health ADDRESS | \
                  lab critest-images DIR"
                .into(),
        ),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn whoami(address: &str) -> Result {
    let listener = TcpListener::bind(address)?;
    println!("ready");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let peer = stream.peer_addr()?;
        writeln!(stream, "{}", peer.ip())?;
    }
    Ok(())
}

fn fuse(dir: &Path) -> Result {
    wharf_e2e::fuse::serve(dir, |what| println!("{what}")).map_err(|error| error.to_string().into())
}

fn disk([dir, store, log]: [&Path; 3]) -> Result {
    wharf_e2e::disk::serve(dir, store, log, |what| println!("{what}")).map_err(|error| error.to_string().into())
}

fn nri_plugin(log: &Path) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(wharf_e2e::nri::run_installed(log))
        .map_err(|error| error.to_string().into())
}

fn grpc_health(address: &str) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(wharf_e2e::health::serve(address.parse()?))
        .map_err(|error| error.to_string().into())
}

fn meddle(address: &str, upstream: &str, rules: &Path, log: &Path) -> Result {
    let told = |what: &str| println!("{what}");
    wharf_e2e::meddler::serve(address, upstream, rules, log, told).map_err(|error| error.to_string().into())
}

fn proxy(address: &str, upstream: &str, manner: Manner) -> Result {
    let tell = |what: &str| println!("{what}");
    wharf_e2e::trickle::serve(address, upstream, manner, tell).map_err(|error| error.to_string().into())
}

/// Prints the digest of the image that critest pulls by digest, which can't be the public one's.
fn critest_images(dir: &Path) -> Result {
    println!(
        "{}",
        wharf_e2e::fixtures::make_critest(dir).map_err(|error| error.to_string())?
    );
    Ok(())
}

/// Makes a lab that lasts until standard input closes or, where there is a command, until that has ended.
/// With `slice` its cgroups are systemd's.
fn lab(name: &str, hide_cgroup2: bool, slice: Option<&str>, command: &[&str]) -> Result<u8> {
    let cgroups = make_cgroups(name)?;
    // This process stays where it is: it sees the cgroups by their paths when the lab has ended, and is in none of them.
    // SAFETY: this process has one thread.
    match unsafe { fork()? } {
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None);
            cgroups.iter().for_each(|path| remove_tree(path));
            if let Some(slice) = slice {
                run("systemctl", &["stop", slice])?;
            }
            Ok(exit_code(ended?))
        }
        ForkResult::Child => namespaces(&cgroups, hide_cgroup2, slice.is_some(), command),
    }
}

/// Makes the namespaces around a child, which becomes their init, and waits for it.
fn namespaces(cgroups: &[PathBuf], hide_cgroup2: bool, systemd: bool, command: &[&str]) -> Result<u8> {
    for path in cgroups {
        std::fs::write(path.join("cgroup.procs"), "0")?;
    }
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if !systemd {
        namespaces |= CloneFlags::CLONE_NEWCGROUP;
    }
    if !command.is_empty() {
        // What the command does to "the host's" shared memory stays in the lab.
        namespaces |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(namespaces)?;
    for path in cgroups.iter().filter(|_| is_v2()) {
        std::fs::write(path.join(PROCESSES).join("cgroup.procs"), "0")?;
    }
    // SAFETY: this process has one thread.
    match unsafe { fork()? } {
        ForkResult::Parent { child } => {
            if command.is_empty() {
                println!("pid {child}");
            }
            Ok(exit_code(waitpid(child, None)?))
        }
        ForkResult::Child => {
            inside(hide_cgroup2, systemd)?;
            if let [program, args @ ..] = command {
                let child = Command::new(program).args(args).spawn()?;
                return reap(Pid::from_raw(child.id().cast_signed()));
            }
            // SAFETY: no handler is installed; ignoring SIGCHLD makes the kernel reap what this init inherits.
            unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn)? };
            println!("ready");
            std::io::stdin().read_to_end(&mut Vec::new())?;
            Ok(0)
        }
    }
}

/// Reaps what this init inherits until `main` has ended; returns its exit code.
fn reap(main: Pid) -> Result<u8> {
    loop {
        let ended = waitpid(None, None)?;
        if ended.pid() == Some(main) {
            return Ok(exit_code(ended));
        }
    }
}

fn exit_code(status: WaitStatus) -> u8 {
    match status {
        WaitStatus::Exited(_, code) => u8::try_from(code).unwrap_or(1),
        _ => 1,
    }
}

/// Set-up inside the new namespaces, then duty as their init.
fn inside(hide_cgroup2: bool, systemd: bool) -> Result {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // As on a machine with systemd.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    // systemd's sockets, and the sign that it is there.
    let kept = systemd.then(|| File::open("/run/systemd")).transpose()?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    if let Some(kept) = kept {
        std::fs::create_dir("/run/systemd")?;
        let source = format!("/proc/self/fd/{}", kept.as_raw_fd());
        mount(Some(source.as_str()), "/run/systemd", none, MsFlags::MS_BIND, none)?;
        return run("ip", &["link", "set", "lo", "up"]);
    }
    for (point, options) in v1_hierarchies()? {
        umount(&point)?;
        mount(
            Some("cgroup"),
            &point,
            Some("cgroup"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
    }
    let unified = Path::new("/sys/fs/cgroup/unified");
    if is_v2() {
        umount(CGROUPS)?;
        mount(Some("cgroup2"), CGROUPS, Some("cgroup2"), MsFlags::empty(), none)?;
    } else if unified.join("cgroup.procs").exists() {
        umount(unified)?;
        if !hide_cgroup2 {
            mount(Some("cgroup2"), unified, Some("cgroup2"), MsFlags::empty(), none)?;
        }
    }
    run("ip", &["link", "set", "lo", "up"])
}

fn run(program: &str, args: &[&str]) -> Result {
    let status = Command::new(program).args(args).status()?;
    if !status.success() {
        return Err(format!("{program} {args:?}: {status}").into());
    }
    Ok(())
}

/// Mount point and mount options (controllers) of each cgroup v1 hierarchy.
fn v1_hierarchies() -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for line in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let Some((before, after)) = line.split_once(" - cgroup ") else {
            continue;
        };
        let Some(point) = before.split(' ').nth(4) else {
            continue;
        };
        let options = after.rsplit(' ').next().unwrap_or_default();
        let wanted: Vec<&str> = options
            .split(',')
            .filter(|o| !["rw", "ro", "clone_children"].contains(o))
            .collect();
        let mut text = wanted.join(",");
        if text.contains("name=") {
            text = format!("none,{text}");
        }
        found.push((PathBuf::from(point), text));
    }
    Ok(found)
}

/// A cgroup `wharf-e2e/NAME` in each hierarchy. On version 2 it has all controllers for what is made below it, and so
/// can't hold processes itself: those are in [`PROCESSES`].
fn make_cgroups(name: &str) -> Result<Vec<PathBuf>> {
    if is_v2() {
        let parent = Path::new(CGROUPS).join("wharf-e2e");
        let path = parent.join(name);
        std::fs::create_dir_all(path.join(PROCESSES))?;
        for dir in [Path::new(CGROUPS), &parent] {
            for controller in std::fs::read_to_string(dir.join("cgroup.controllers"))?.split_whitespace() {
                std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))?;
            }
        }
        return Ok(vec![path]);
    }
    let mut made = Vec::new();
    let mut roots: Vec<PathBuf> = v1_hierarchies()?.into_iter().map(|(point, _)| point).collect();
    roots.push("/sys/fs/cgroup/unified".into());
    for root in roots.into_iter().filter(|root| root.join("cgroup.procs").exists()) {
        let parent = root.join("wharf-e2e");
        let path = parent.join(name);
        std::fs::create_dir_all(&path)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = std::fs::read_to_string(root.join(file)) {
                std::fs::write(parent.join(file), value.trim())?;
                std::fs::write(path.join(file), value.trim())?;
            }
        }
        made.push(path);
    }
    Ok(made)
}

/// Removes a tree of cgroups, leaves first. What is in use still stays.
fn remove_tree(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}
