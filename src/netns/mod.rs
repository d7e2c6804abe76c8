//! Network namespaces of pods and what connects them: pinned namespaces, the built-in bridge network, CNI.
//!
//! This room owns the namespace pins, the bridge, the host's ends of the veth pairs, the `wharf` nftables table, the
//! address files below `state_dir/ipam` and the CNI plugins that run. It must never touch a device, rule or file that
//! it has not made, and never block a tokio thread. It asks `config` for its settings and no other room; what it must
//! remember about a pod goes to the caller as a [`record::Network`].

mod bandwidth;
mod builtin;
mod cni;
mod connect;
mod counters;
mod dns;
mod error;
mod knob;
mod lent;
mod link;
mod named;
mod namespaces;
mod nft;
mod people;
mod pool;
mod ports;
mod shape;
mod socket;
mod subnet;
mod sysctl;
mod task;
mod thread;
mod users;

#[cfg(any(fuzzing, test))]
pub use cni::fuzzing;
#[cfg(any(fuzzing, test))]
pub use dns::fuzzing as dns_fuzzing;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use bandwidth::Bandwidth;
pub use builtin::{Reserved, reserved};
pub use connect::connect;
pub use counters::{Counters, Traffic};
pub use error::{Error, Result};
pub use lent::is_device_name;
use nix::sched::{CloneFlags, setns};
pub use users::Users;
use wharf_proto::{cri, record};

use crate::config::{Config, IpPreference, NetworkMode};
use builtin::{Builtin, Seat};
use cni::Cni;
use named::Named;
use nft::Monitor;
use ports::HostPorts;
use task::Task;

/// What people call the network that the configuration describes.
pub const DEFAULT_NETWORK: &str = "default";

/// Which namespaces a pod gets of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// A network namespace, with the loopback device up.
    pub net: bool,
    /// A System V IPC and POSIX message queue namespace.
    pub ipc: bool,
    /// A host name namespace.
    pub uts: bool,
    /// A user namespace that owns the others.
    pub users: Option<Users>,
}

/// A named network that a pod shall be on.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The network's name.
    pub network: String,
    /// What the pod is called there, beside its own names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Addresses that it shall have there; at most one of each family.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// What a pod's network needs to know about the pod.
#[derive(Debug, Clone, Default)]
pub struct PodNetwork {
    /// The pod's id, 64 hexadecimal digits.
    pub pod_id: String,
    /// Kubernetes name of the pod.
    pub name: String,
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Kubernetes uid of the pod.
    pub uid: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// Host name of the pod.
    pub hostname: String,
    /// Ports; those without a host port are ignored.
    pub port_mappings: Vec<cri::PortMapping>,
    /// Name servers, for plugins with the `dns` capability.
    pub dns: Option<cri::DnsConfig>,
    /// Annotations of the pod; the bandwidth ones are read.
    pub annotations: HashMap<String, String>,
    /// Labels of the pod.
    pub labels: HashMap<String, String>,
    /// Cgroup of the pod, for plugins with the `cgroupPath` capability.
    pub cgroup_parent: String,
    /// The pod's runtime handler, which may have networks of its own.
    pub handler: String,
    /// Addresses that it shall have, where they are asked for.
    pub ips: Vec<String>,
    /// Hardware address that it shall have, where one is asked for.
    pub mac: Option<String>,
    /// The named networks that it shall be on instead of the configured one, none of them too; unset is the configured one.
    pub networks: Option<Vec<Membership>>,
}

/// Whether pods can be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// True if a pod can be attached now.
    pub ready: bool,
    /// CRI's reason, one word; empty when ready.
    pub reason: String,
    /// For a person; empty when ready.
    pub message: String,
}

impl NetworkStatus {
    fn ready() -> Self {
        Self {
            ready: true,
            reason: String::new(),
            message: String::new(),
        }
    }
}

/// The network that a pod will be attached to, found ready.
#[derive(Debug)]
pub struct Ready(Option<cni::Lists>);

/// The networks of this node; a clone is another handle to the same ones.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Kinds>);

/// Both kinds are there always: a pod is detached from what it was attached to, even if the configuration has changed.
#[derive(Debug)]
struct Kinds {
    mode: NetworkMode,
    preference: IpPreference,
    default_handler: String,
    /// For so long a pod waits at most for a network that is not ready.
    patience: Duration,
    builtin: Arc<Builtin>,
    named: Arc<Named>,
    cni: Cni,
    ports: HostPorts,
    guard: Mutex<Option<Task>>,
}

impl Networks {
    /// Reads the settings and what earlier runs left on disk; changes nothing on the machine.
    ///
    /// # Errors
    /// When a setting can't be used or the state directory can't be read.
    pub async fn open(cfg: &Config) -> Result<Self> {
        let builtin = Arc::new(Builtin::of_config(&cfg.builtin_network, &cfg.state_dir).await?);
        let named = Arc::new(Named::open(&cfg.state_dir, Arc::clone(&builtin)).await?);
        let ports = HostPorts::open(&cfg.builtin_network.bridge, &cfg.state_dir).await?;
        let cni = Cni::open(cfg, cfg.network == NetworkMode::Cni).await?;
        Ok(Self(Arc::new(Kinds {
            mode: cfg.network,
            preference: cfg.ip_preference,
            default_handler: cfg.default_runtime.clone(),
            patience: Duration::from_secs(cfg.cni.ready_wait_secs),
            builtin,
            named,
            cni,
            ports,
            guard: Mutex::default(),
        })))
    }

    /// Makes the wanted namespaces and pins them as `dir/net`, `dir/ipc`, `dir/uts` and `dir/user`.
    ///
    /// # Errors
    /// When the kernel refuses, or a sysctl is not one that a pod may set; nothing stays pinned then.
    pub async fn create_namespaces(
        &self,
        dir: &Path,
        want: Want,
        hostname: &str,
        sysctls: &[(String, String)],
    ) -> Result<()> {
        namespaces::create(dir, want, hostname, sysctls).await
    }

    /// Removes the pins below `dir`, and `dir` when it is empty then; what is gone already is no error.
    ///
    /// # Errors
    /// When a pin can't be unmounted or its file can't be removed.
    pub async fn remove_namespaces(&self, dir: &Path) -> Result<()> {
        namespaces::remove(dir).await
    }

    /// What these devices of the node's are like, to be noted before they are lent.
    ///
    /// # Errors
    /// [`Error::Device`] when one is not there.
    pub async fn look_at(&self, wanted: Vec<record::NetDevice>) -> Result<Vec<record::LentDevice>> {
        lent::look_at(wanted).await
    }

    /// Moves devices of the node's into the network namespace that is pinned in that directory, where they are up and have
    /// the addresses that they had. Any number of times.
    ///
    /// # Errors
    /// [`Error::Device`] when one is gone or its name is another's in the pod; when the kernel refuses. What was moved before
    /// stays until it is taken back.
    pub async fn lend(&self, namespaces: &Path, devices: Vec<record::LentDevice>) -> Result<()> {
        lent::lend(namespaces, devices).await
    }

    /// Brings lent devices back to the node as they were there. Any number of times, and when the namespace is gone.
    ///
    /// # Errors
    /// When the kernel refuses; call again.
    pub async fn take_back(&self, namespaces: &Path, devices: Vec<record::LentDevice>) -> Result<()> {
        lent::take_back(namespaces, devices).await
    }

    /// Whether a pod can be attached without waiting; reads memory only.
    #[must_use]
    pub fn is_usable(&self, pod: &PodNetwork) -> bool {
        match self.0.mode {
            NetworkMode::Cni if pod.networks.is_none() => self.0.cni.is_usable(&pod.handler),
            _ => true,
        }
    }

    /// Waits until the configured network is ready, at most until `deadline` and for as long as the configuration says.
    ///
    /// # Errors
    /// [`Error::NotReady`] when it is not by then.
    pub async fn ready(&self, pod: &PodNetwork, deadline: Option<Instant>) -> Result<Ready> {
        match self.0.mode {
            NetworkMode::Cni if pod.networks.is_none() => {
                let last = Instant::now() + self.0.patience;
                let deadline = deadline.map_or(last, |deadline| deadline.min(last));
                self.0.cni.ready(&pod.handler, deadline).await.map(Some).map(Ready)
            }
            _ => Ok(Ready(None)),
        }
    }

    /// Attaches the pod to the configured network. `note` gets the record to store before the first operation that
    /// needs undoing; the record that is returned replaces it. After an error what was done is undone as far as that
    /// works, and a detach with the noted record stays allowed.
    ///
    /// # Errors
    /// When addresses or ports are taken, the kernel or a plugin refuses.
    pub async fn attach<N: Future<Output = ()> + Send>(
        &self,
        pod: &PodNetwork,
        ready: Ready,
        note: impl FnOnce(record::Network) -> N + Send,
    ) -> Result<record::Network> {
        let mut noted = None;
        let note = |network: record::Network| {
            noted = Some(network.clone());
            note(network)
        };
        match self.attach_with_ports(pod, ready, note).await {
            Ok(mut network) => {
                order(&mut network.ips, self.0.preference);
                Ok(network)
            }
            Err(error) => {
                if let Err(second) = self.detach(pod, &noted.unwrap_or_default()).await {
                    tracing::warn!(pod = pod.pod_id, error = %second, "could not undo a failed attach; a detach is due");
                }
                Err(error)
            }
        }
    }

    async fn attach_with_ports<N: Future<Output = ()> + Send>(
        &self,
        pod: &PodNetwork,
        ready: Ready,
        note: impl FnOnce(record::Network) -> N + Send,
    ) -> Result<record::Network> {
        let ports = &self.0.ports;
        // A plugin that makes host ports knows which are taken.
        if ready.0.as_ref().is_none_or(|lists| Cni::lacks_host_ports(lists)) {
            ports.take(&pod.pod_id, &pod.port_mappings).await?;
        }
        let answered = async |addresses: Vec<(IpAddr, u8)>| ports.lead(&pod.pod_id, &addresses).await;
        match (&pod.networks, ready.0) {
            (Some(wishes), _) => self.0.named.attach(pod, wishes, note, answered).await,
            (None, None) => self.0.builtin.attach(pod, note, answered).await,
            (None, Some(lists)) => self.0.cni.attach(pod, &lists, note, answered).await,
        }
    }

    /// Takes the pod CIDR that kubelet tells, a list of ranges separated by commas: where CNI has a template and no
    /// configuration, one is made.
    ///
    /// # Errors
    /// [`Error::Setting`] when it is not a list of ranges; when the template can't be used.
    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let ranges = cni::ranges(cidr).map_err(|reason| Error::Setting {
            setting: "pod_cidr",
            reason,
        })?;
        if self.0.mode == NetworkMode::Cni && self.0.cni.render(&ranges).await? {
            tracing::info!(cidr, "made a CNI configuration for kubelet's pod CIDR");
        } else {
            tracing::info!(
                cidr,
                "kubelet's pod CIDR: pods get their addresses from the configured network instead"
            );
        }
        Ok(())
    }

    /// Detaches the pod: any number of times, after a partial attach, when its namespace is gone, and by what the
    /// record says it was attached to, even if the configuration has changed since.
    ///
    /// # Errors
    /// When something could not be released; call again.
    pub async fn detach(&self, pod: &PodNetwork, network: &record::Network) -> Result<()> {
        // No port may lead to an address that is somebody else's by then.
        let ports = self.0.ports.give_back(&pod.pod_id).await;
        let detached = match network.kind.as_str() {
            builtin::KIND => {
                let seat = Seat {
                    pod: pod.pod_id.clone(),
                    ips: network.ips.clone(),
                };
                self.0.builtin.unplug(seat).await
            }
            cni::KIND => self.0.cni.detach(pod, network).await,
            // On named networks only; or nothing was noted, so nothing was done.
            _ => Ok(()),
        };
        let left = self.0.named.leave_all(pod, &network.attachments).await;
        ports.and(detached).and(left)
    }

    /// Counters of the devices in a pod's pinned network namespace, without the loopback device.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub async fn counters(&self, netns: PathBuf) -> Result<Vec<Counters>> {
        counters::read(netns).await
    }

    /// Whether pods of the default handler can be attached; reads memory only.
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        match self.0.mode {
            NetworkMode::Builtin => NetworkStatus::ready(),
            NetworkMode::Cni => self.0.cni.status(&self.0.default_handler),
        }
    }

    /// Releases what belongs to none of the `live` pods and repairs what the live ones need; to be called once, before
    /// the first attach.
    ///
    /// # Errors
    /// When the state directory can't be read or the kernel refuses.
    pub async fn recover(&self, live: &[(PodNetwork, record::Network)]) -> Result<()> {
        self.0.cni.recover(live);
        let on_default = live.iter().filter(|(_, network)| network.kind == builtin::KIND);
        let seats = on_default.map(|(pod, network)| Seat {
            pod: pod.pod_id.clone(),
            ips: network.ips.clone(),
        });
        let configured = self.0.mode == NetworkMode::Builtin;
        self.0.builtin.recover(seats.collect(), configured).await?;
        self.0.named.recover(live).await?;
        let pods = live.iter().map(|(pod, _)| pod.pod_id.clone());
        self.0.ports.recover(pods.collect()).await?;
        let kinds = (
            Arc::clone(&self.0.builtin),
            Arc::clone(&self.0.named),
            self.0.ports.clone(),
        );
        let guard = Task::spawn(guard(Monitor::open()?, kinds));
        *self.0.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
        Ok(())
    }

    /// Takes down what pods share (bridge, rules) when no pod is attached; to be called when the daemon ends.
    ///
    /// # Errors
    /// When the kernel refuses; the next start finds it.
    pub async fn release_unused(&self) -> Result<()> {
        let ports = self.0.ports.release_unused().await;
        let named = self.0.named.release_unused().await;
        self.0.builtin.release_unused().await.map(drop).and(named).and(ports)
    }
}

/// Makes rules anew when somebody else takes them away.
async fn guard(monitor: Monitor, (builtin, named, ports): (Arc<Builtin>, Arc<Named>, HostPorts)) {
    loop {
        let ours = |table: &str| table == ports.table() || builtin.has_table(table) || named.has_table(table);
        if let Err(error) = monitor.lost(ours).await {
            tracing::error!(%error, "rules that somebody takes away will not be made anew");
            return;
        }
        let made = builtin
            .rebuild()
            .await
            .and(named.rebuild().await)
            .and(ports.rebuild().await);
        match made {
            Ok(()) => tracing::warn!("somebody took away rules of Wharf's nftables tables; they are made anew"),
            Err(error) => tracing::error!(%error, "make nftables rules anew that somebody took away"),
        }
    }
}

/// The preferred family first (contract rule 12); within a family nothing moves.
fn order(ips: &mut [String], preference: IpPreference) {
    let is_v6 = |ip: &String| ip.contains(':');
    match preference {
        IpPreference::Ipv4 => ips.sort_by_key(is_v6),
        IpPreference::Ipv6 => ips.sort_by_key(|ip| !is_v6(ip)),
        IpPreference::Network => {}
    }
}

/// Puts the calling thread into a network namespace.
fn enter(netns: &Path) -> Result<()> {
    let handle = File::open(netns).map_err(|source| Error::io("open network namespace", netns, source))?;
    setns(&handle, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::io("enter network namespace", netns, errno.into()))
}
