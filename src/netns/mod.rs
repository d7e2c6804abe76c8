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
mod error;
mod link;
mod namespaces;
mod nft;
mod shape;
mod socket;
mod subnet;
mod sysctl;
mod thread;
mod users;

#[cfg(fuzzing)]
pub use cni::fuzzing;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use bandwidth::Bandwidth;
pub use builtin::{Reserved, reserved};
pub use connect::connect;
pub use counters::{Counters, Traffic};
pub use error::{Error, Result};
pub use users::Users;
use wharf_proto::{cri, record};

use crate::config::{Config, IpPreference, NetworkMode};
use builtin::Builtin;
use cni::Cni;

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

/// The networks of this node; a clone is another handle to the same ones.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Kinds>);

/// Both kinds are there always: a pod is detached from what it was attached to, even if the configuration has changed.
#[derive(Debug)]
struct Kinds {
    mode: NetworkMode,
    preference: IpPreference,
    builtin: Builtin,
    cni: Cni,
}

impl Networks {
    /// Reads the settings and what earlier runs left on disk; changes nothing on the machine.
    ///
    /// # Errors
    /// When a setting can't be used or the state directory can't be read.
    pub async fn open(cfg: &Config) -> Result<Self> {
        let builtin = Builtin::open(&cfg.builtin_network, &cfg.state_dir).await?;
        let cni = Cni::open(&cfg.cni, cfg.network == NetworkMode::Cni).await?;
        Ok(Self(Arc::new(Kinds {
            mode: cfg.network,
            preference: cfg.ip_preference,
            builtin,
            cni,
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

    /// Attaches the pod to the configured network. `note` gets the record to store before the first operation that
    /// needs undoing; the record that is returned replaces it. After an error what was done is undone as far as that
    /// works, and a detach with the noted record stays allowed.
    ///
    /// # Errors
    /// When the network is not ready, addresses or ports are taken, the kernel or a plugin refuses.
    pub async fn attach<N: Future<Output = ()> + Send>(
        &self,
        pod: &PodNetwork,
        note: impl FnOnce(record::Network) -> N + Send,
    ) -> Result<record::Network> {
        let mut network = match self.0.mode {
            NetworkMode::Builtin => self.0.builtin.attach(pod, note).await,
            NetworkMode::Cni => self.0.cni.attach(pod, note).await,
        }?;
        order(&mut network.ips, self.0.preference);
        Ok(network)
    }

    /// Detaches the pod: any number of times, after a partial attach, when its namespace is gone, and by what the
    /// record says it was attached to, even if the configuration has changed since.
    ///
    /// # Errors
    /// When something could not be released; call again.
    pub async fn detach(&self, pod: &PodNetwork, network: &record::Network) -> Result<()> {
        match network.kind.as_str() {
            builtin::KIND => self.0.builtin.detach(pod, network).await,
            cni::KIND => self.0.cni.detach(pod, network).await,
            // Nothing was noted, so nothing was done.
            _ => Ok(()),
        }
    }

    /// Counters of the devices in a pod's pinned network namespace, without the loopback device.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub async fn counters(&self, netns: PathBuf) -> Result<Vec<Counters>> {
        counters::read(netns).await
    }

    /// Whether pods can be attached; reads memory only.
    pub fn status(&self) -> NetworkStatus {
        match self.0.mode {
            NetworkMode::Builtin => NetworkStatus {
                ready: true,
                reason: String::new(),
                message: String::new(),
            },
            NetworkMode::Cni => self.0.cni.status(),
        }
    }

    /// Releases what belongs to none of the `live` pods and repairs what the live ones need; to be called once, before
    /// the first attach.
    ///
    /// # Errors
    /// When the state directory can't be read or the kernel refuses.
    pub async fn recover(&self, live: &[(String, record::Network)]) -> Result<()> {
        self.0.builtin.recover(live, self.0.mode == NetworkMode::Builtin).await
    }

    /// Takes down what pods share (bridge, rules) when no pod is attached; to be called when the daemon ends.
    ///
    /// # Errors
    /// When the kernel refuses; the next start finds it.
    pub async fn release_unused(&self) -> Result<()> {
        self.0.builtin.release_unused().await
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
