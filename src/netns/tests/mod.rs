//! Tests with real namespaces, devices and rules. Each plays in network and mount namespaces of its own, on a thread
//! that ends with it: the machine's own devices, rules and mounts are never touched.

mod builtin;
mod cni;
mod named;
mod pins;
mod speed;

use std::fs::File;
use std::future::ready;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use wharf_proto::{cri, record};

use super::link::Links;
use super::{Networks, PodNetwork, Want};
use crate::config::{Config, NetworkMode};

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wharf-netns-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The machine of a test.
struct Node {
    scratch: Scratch,
    config: Config,
}

/// Runs `test` on a machine of its own: nothing but a loopback device, no rules, mounts that nobody else sees.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send + 'static) {
    let ended = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        Links::open().unwrap().set_up("lo").unwrap();
        let scratch = Scratch::new();
        let mut config = Config {
            state_dir: scratch.0.join("state"),
            run_dir: scratch.0.join("run"),
            ..Config::default()
        };
        config.builtin_network.subnet = "10.77.0.0/24".into();
        config.builtin_network.subnet_v6 = Some("fd77::/64".into());
        // One thread: what it starts is in its namespaces.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(Node { scratch, config }));
    })
    .join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

impl Node {
    async fn networks(&self) -> Networks {
        Networks::open(&self.config).await.unwrap()
    }

    fn pins(&self, name: &str) -> PathBuf {
        self.config.run_dir.join(name)
    }

    /// A pod with a namespace, not attached yet.
    async fn pod(&self, networks: &Networks, name: &str) -> PodNetwork {
        let want = Want {
            net: true,
            ipc: false,
            uts: false,
            users: None,
        };
        networks
            .create_namespaces(&self.pins(name), want, name, &[])
            .await
            .unwrap();
        PodNetwork {
            pod_id: format!("{:0<64}", hex::encode(name)),
            name: name.into(),
            namespace: "default".into(),
            uid: "uid".into(),
            netns: self.pins(name).join("net"),
            ..Default::default()
        }
    }

    /// Names of the devices on this machine.
    fn devices(&self) -> Vec<String> {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let mut names: Vec<String> = text
            .lines()
            .skip(2)
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
            .collect();
        names.retain(|name| name != "lo");
        names
    }

    fn leases(&self) -> Vec<String> {
        let dir = self
            .config
            .state_dir
            .join("ipam")
            .join(&self.config.builtin_network.bridge);
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Pods with host ports, by what is on disk.
    fn ports(&self) -> Vec<String> {
        let dir = self.config.state_dir.join("ipam/ports");
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Runs `work` on a thread in the namespace pinned at `netns`.
fn inside<T: Send + 'static>(netns: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let handle = File::open(netns).unwrap();
    thread::spawn(move || {
        setns(&handle, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .join()
    .unwrap()
}

/// Listens in `netns` and tells each caller the address that it seems to come from.
fn tell_callers_who_they_are(netns: &Path, port: u16) {
    let handle = File::open(netns).unwrap();
    let (ready, listening) = mpsc::channel();
    // Ends with the test's process; it holds nothing but its socket.
    thread::spawn(move || {
        setns(&handle, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(("::", port)).unwrap();
        ready.send(()).unwrap();
        for caller in listener.incoming() {
            let mut caller = caller.unwrap();
            let from = caller.peer_addr().unwrap().ip().to_canonical();
            let _ = caller.write_all(from.to_string().as_bytes());
        }
    });
    listening.recv().unwrap();
}

/// Who this thread's machine seems to be when it calls `ip` at `port`.
fn call(ip: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip.into(), port), Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A port mapping of TCP.
fn mapping(host_port: i32, container_port: i32, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping {
        host_port,
        container_port,
        host_ip: host_ip.into(),
        ..Default::default()
    }
}

/// A v4 address.
fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// Attaches to the network once it is ready.
async fn try_attach<N: Future<Output = ()> + Send>(
    networks: &Networks,
    pod: &PodNetwork,
    note: impl FnOnce(record::Network) -> N + Send,
) -> super::Result<record::Network> {
    let ready = networks.ready(pod, None).await?;
    networks.attach(pod, ready, note).await
}

/// Attaches and forgets what was noted.
async fn attach(networks: &Networks, pod: &PodNetwork) -> record::Network {
    try_attach(networks, pod, |_| ready(())).await.unwrap()
}

fn cni_mode(node: &mut Node) {
    node.config.network = NetworkMode::Cni;
    node.config.cni.conf_dir = node.scratch.0.join("net.d");
    node.config.cni.bin_dirs = vec![node.scratch.0.join("bin"), "/usr/lib/cni".into()];
    node.config.cni.timeout_secs = 20;
    node.config.cni.cache_dir = node.scratch.0.join("cache");
    node.config.cni.ready_wait_secs = 5;
    std::fs::create_dir_all(node.scratch.0.join("bin")).unwrap();
    std::fs::create_dir_all(node.scratch.0.join("net.d")).unwrap();
}
