//! What the kernel takes for a pod's life at the least: the same namespaces, devices, mounts, cgroups and processes, made by a
//! program of one thread that does nothing else. It keeps no state, writes no logs, speaks no protocol, holds namespaces
//! by descriptors instead of pins, checks nothing, and starts no process beside the container's.
//!
//! `bench floor DIR PODS` does it `PODS` times below `DIR` and once before, which is not counted, and prints the steps of each
//! as JSON. `bench --floor` calls that, once in each round.

pub mod cni;
mod container;
mod net;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use wharf_e2e::Result;

use crate::cycle::Steps;
use container::Cgroups;
use net::Netlink;

/// How the floor is called among the endpoints.
pub const NAME: &str = "kernel";
const BRIDGE: &str = "floor0";

/// Steps of `pods` lives, measured by a process of its own: it must have one thread.
pub async fn measure(pods: usize) -> Result<Vec<Steps>> {
    let dir = tempfile::Builder::new().prefix("wharf-floor-").tempdir()?;
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(["floor".as_ref(), dir.path().as_os_str(), pods.to_string().as_ref()])
        .stderr(Stdio::inherit())
        .output()
        .await?;
    if !output.status.success() {
        return Err(format!("bench floor: {}", output.status).into());
    }
    let pods: Vec<Vec<(String, f64)>> = serde_json::from_slice(&output.stdout)?;
    Ok(pods)
}

/// The subcommand.
///
/// # Errors
/// When the kernel refuses a step.
pub fn run(args: &[String]) -> Result {
    let [dir, pods] = args else {
        return Err("usage: bench floor DIR PODS".into());
    };
    let pods: usize = pods.parse()?;
    let floor = Floor::begin(Path::new(dir))?;
    let all: Result<Vec<Steps>> = (0..=pods).map(|n| floor.life(n)).collect();
    let ended = floor.end();
    let all: Vec<Value> = all?.into_iter().skip(1).map(|steps| serde_json::json!(steps)).collect();
    println!("{}", Value::Array(all));
    ended
}

/// What is there before the first pod, as with a daemon that runs.
struct Floor {
    dir: PathBuf,
    /// A directory with a static `sleep` and `true`.
    image: PathBuf,
    /// The machine's.
    own: [OwnedFd; 3],
    netlink: Netlink,
    bridge: u32,
    cgroups: Cgroups,
}

/// A pod of the floor.
pub(crate) struct Pod {
    dir: PathBuf,
    /// Network, IPC and UTS.
    namespaces: [OwnedFd; 3],
    device: String,
}

const KINDS: [&str; 3] = ["net", "ipc", "uts"];

fn own_namespaces() -> io::Result<[OwnedFd; 3]> {
    let open = |kind| File::open(format!("/proc/self/ns/{kind}")).map(OwnedFd::from);
    let [net, ipc, uts] = KINDS.map(open);
    Ok([net?, ipc?, uts?])
}

fn enter(namespaces: &[OwnedFd; 3]) -> nix::Result<()> {
    for namespace in namespaces {
        setns(namespace, CloneFlags::empty())?;
    }
    Ok(())
}

impl Floor {
    fn begin(dir: &Path) -> Result<Self> {
        let image = dir.join("image");
        container::make_image(&image)?;
        let mut netlink = Netlink::open()?;
        let bridge = netlink.add_bridge(BRIDGE)?;
        Ok(Self {
            dir: dir.to_owned(),
            image,
            own: own_namespaces()?,
            netlink,
            bridge,
            cgroups: Cgroups::find()?,
        })
    }

    fn end(mut self) -> Result {
        self.netlink.delete(BRIDGE)?;
        Ok(())
    }

    fn life(&self, n: usize) -> Result<Steps> {
        let mut steps = Steps::new();
        let begin = Instant::now();
        let mut lap = Instant::now();
        let mut done = |name: &str, lap: &mut Instant| {
            steps.push((name.to_owned(), lap.elapsed().as_secs_f64() * 1000.0));
            *lap = Instant::now();
        };
        let pod = self.run_pod(n)?;
        done("RunPodSandbox", &mut lap);
        let root = container::root(&pod.dir, &self.image)?;
        done("CreateContainer", &mut lap);
        let cgroup = self.cgroups.make(n)?;
        let arguments = [c"/bin/sleep", c"100000"].map(CString::from);
        let container = container::start(&pod, &root, &cgroup, &arguments)?;
        done("StartContainer", &mut lap);
        let ready = begin.elapsed().as_secs_f64() * 1000.0;
        lap = Instant::now();
        container.exec(&cgroup, &[CString::from(c"/bin/true")])?;
        done("ExecSync true", &mut lap);
        container.kill()?;
        cgroup.remove()?;
        umount2(&root, MntFlags::MNT_DETACH)?;
        done("StopContainer, timeout 0", &mut lap);
        let dir = self.stop_pod(pod)?;
        done("StopPodSandbox", &mut lap);
        std::fs::remove_dir_all(dir)?;
        done("RemovePodSandbox", &mut lap);
        steps.insert(3, ("**pod ready**".into(), ready));
        steps.push(("**whole cycle**".into(), begin.elapsed().as_secs_f64() * 1000.0));
        Ok(steps)
    }

    /// Directories, shared memory, namespaces, and the network: a veth pair with an address and a default route.
    fn run_pod(&self, n: usize) -> Result<Pod> {
        let dir = self.dir.join(format!("pod-{n}"));
        let shm = dir.join("shm");
        std::fs::create_dir_all(&shm)?;
        for name in container::FILES {
            std::fs::write(dir.join(name), "floor\n")?;
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=64m"))?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
        let made = (|| -> Result<_> {
            nix::unistd::sethostname("floor")?;
            Ok((own_namespaces()?, Netlink::open()?))
        })();
        enter(&self.own)?;
        let (namespaces, mut inside) = made?;
        inside.set_up("lo")?;
        let device = format!("fl{n}");
        let mut outside = Netlink::open()?;
        outside.add_veth(&device, self.bridge, "eth0", namespaces[0].as_fd())?;
        let index = inside.index("eth0")?;
        inside.set_up("eth0")?;
        inside.add_address(index, net::address(n), 16)?;
        inside.add_default_route(index, net::GATEWAY)?;
        Ok(Pod {
            dir,
            namespaces,
            device,
        })
    }

    /// All that [`Floor::run_pod`] has made, but for the directories.
    fn stop_pod(&self, pod: Pod) -> Result<PathBuf> {
        Netlink::open()?.delete(&pod.device)?;
        drop(pod.namespaces);
        umount2(&pod.dir.join("shm"), MntFlags::MNT_DETACH)?;
        Ok(pod.dir)
    }
}
